"""This file knows how to speak embeddings in OpenAI's format.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.intent import Intent
from .body import WholeBodyMeter, outline
from .dialect import Refusal
from .gather import Gathered
from .jsons import mapping, parsed, text_or_none
from .openai_chat import ChatStreamMeter
from .openai_errors import is_error, openai_refusal
from .openai_request import gather_prompts, unreadable
from .openai_usage import chat_usage
from .sse import is_event_stream

LARGEST_PARSED = 2_048
"""Bytes of a body that are parsed whole; larger ones are vectors, thousands of numbers that nobody needs here."""


class OpenAIEmbeddings:
    """Embeddings: nothing comes out that is billed, so there is nothing to cap and nothing to cut."""

    name = "openai.embeddings"
    operation = "embeddings"

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or "input" not in body:
            return unreadable(self.operation, path_model)
        model = text_or_none(body.get("model")) or path_model
        gathered = Gathered()
        gather_prompts(gathered, body["input"], model)
        return Intent(
            operation=self.operation,
            model=model,
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

    def body_meter(self) -> EmbeddingsBodyMeter:
        return EmbeddingsBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> ChatStreamMeter:
        return ChatStreamMeter(intent, hide_usage=False)

    def is_stream(self, content_type: str) -> bool:
        return is_event_stream(content_type)

    def refusal(self, refusal: Refusal) -> bytes:
        return openai_refusal(refusal)


class EmbeddingsBodyMeter(WholeBodyMeter):
    """Reads `usage` beside the vectors, not the vectors."""

    __slots__ = ()

    def _read(self, body: bytes) -> None:
        if len(body) > LARGEST_PARSED and (found := outline(body)):
            self.finished = body.rstrip().endswith(b"}")
            self._whole(found)
            return
        value = parsed(body)
        if isinstance(value, dict):
            self.finished = True
            self._whole(value)

    def _whole(self, value: Mapping[str, Any]) -> None:
        self.name(value)
        self.error = is_error(value) and "data" not in value
        self.reading = chat_usage(mapping(value.get("usage")))
        self.reading_final = self.reading is not None
