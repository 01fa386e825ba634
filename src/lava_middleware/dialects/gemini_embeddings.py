"""This file knows how to speak Gemini's embedContent and batchEmbedContents.

https://ai.google.dev/api/embeddings
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.intent import Intent
from .body import WholeBodyMeter
from .dialect import Refusal
from .gather import Gathered
from .gemini import GeminiStreamMeter
from .gemini_errors import gemini_refusal
from .gemini_request import gather_content
from .gemini_usage import embedding_usage, gemini_outline
from .jsons import mapping, parsed, text_or_none
from .openai_request import unreadable

LARGEST_PARSED = 2_048
"""Bytes of a body that are parsed whole; larger ones are vectors, thousands of numbers that nobody needs here."""


class GeminiEmbeddings:
    """Embeddings, one or many: nothing comes out that is billed. What went in is mostly not reported either."""

    name = "gemini.embeddings"
    operation = "embeddings"

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        requests = body.get("requests", [body]) if isinstance(body, dict) else None
        if not isinstance(requests, list) or not all(isinstance(one, dict) and "content" in one for one in requests):
            return unreadable(self.operation, path_model)
        gathered = Gathered()
        for one in requests:
            gather_content(gathered, one["content"])
            gathered.text(one.get("title"))
        return Intent(
            operation=self.operation,
            model=path_model or text_or_none(body.get("model")),
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            output_tokens_max=0,
            refuse=gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        return dict(body)

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body)

    def body_meter(self) -> GeminiEmbeddingsMeter:
        return GeminiEmbeddingsMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> GeminiStreamMeter:
        return GeminiStreamMeter(intent)

    def is_stream(self, content_type: str) -> bool:
        return False

    def refusal(self, refusal: Refusal) -> bytes:
        return gemini_refusal(refusal)


class GeminiEmbeddingsMeter(WholeBodyMeter):
    """Reads `usageMetadata` beside the vectors, not the vectors."""

    __slots__ = ()

    def _read(self, body: bytes) -> None:
        if len(body) > LARGEST_PARSED and body[:200].find(b'"embedding') >= 0:
            self.finished = body.rstrip().endswith(b"}")
            self._whole(gemini_outline(body))
        elif isinstance(value := parsed(body), dict):
            self.finished = True
            self._whole(value)

    def _look_around(self, tail: bytes) -> None:
        self._whole(gemini_outline(tail))

    def _whole(self, value: Mapping[str, Any]) -> None:
        self.error = bool(value.get("error"))
        self.reading = embedding_usage(mapping(value.get("usageMetadata")))
        self.reading_final = self.reading is not None
