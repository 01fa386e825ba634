"""This file knows how to speak OpenAI's completions: a prompt is continued. Mistral's fill-in-the-middle asks likewise.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.intent import Intent
from .dialect import Refusal
from .gather import Gathered
from .jsons import mapping, text_or_none
from .openai_chat import ChatBodyMeter, ChatStreamMeter
from .openai_errors import openai_refusal
from .openai_request import cap_of, choices_of, gather_prompts, unreadable
from .openai_usage import asking_usage
from .sse import is_event_stream
from .thinking import hides_thoughts

DEFAULT_CAP = 16
"""Tokens of output where the request names no cap: OpenAI's, Azure's and vLLM's default.
https://platform.openai.com/docs/api-reference/completions/create#completions-create-max_tokens"""


class OpenAICompletions:
    """Completions. `default_cap`: the provider's own cap on requests without one; None: it has none, or it is not
    known."""

    name = "openai.completions"
    operation = "text_completion"

    def __init__(self, default_cap: int | None = None) -> None:
        self._default_cap = default_cap

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or body.get("prompt") is None:
            return unreadable(self.operation, path_model)
        model = text_or_none(body.get("model")) or path_model
        gathered = Gathered()
        prompts = gather_prompts(gathered, body["prompt"], model)
        for field in ("suffix", "stop"):
            gathered.text(body.get(field))
        cap = cap_of(body.get("max_tokens"), body.get("max_completion_tokens"))
        return Intent(
            operation=self.operation,
            model=model,
            stream=body.get("stream") is True,
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            output_tokens_max=self._default_cap if cap is None else cap,
            choices=max(choices_of(body.get("n")), choices_of(body.get("best_of"))) * max(prompts, 1),
            hidden_reasoning=hides_thoughts(model, body),
            asks_usage=mapping(body.get("stream_options")).get("include_usage") is True,
            service_tier=text_or_none(body.get("service_tier")),
            refuse=gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        return {**body, "max_tokens": output_tokens}

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return asking_usage(body)

    def body_meter(self) -> ChatBodyMeter:
        return CompletionBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> ChatStreamMeter:
        return CompletionStreamMeter(intent, hide_usage=hide_usage)

    def is_stream(self, content_type: str) -> bool:
        return is_event_stream(content_type)

    def refusal(self, refusal: Refusal) -> bytes:
        return openai_refusal(refusal)


class FillInTheMiddle(OpenAICompletions):
    """Mistral's: asked like a completion, answered like a chat. It refuses stream_options, and needs none.

    https://docs.mistral.ai/api/#tag/fim
    """

    name = "mistral.fim"

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body)

    def body_meter(self) -> ChatBodyMeter:
        return ChatBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> ChatStreamMeter:
        return ChatStreamMeter(intent, hide_usage=hide_usage)


def _said(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """A choice's text, as the message that a chat would send."""
    return {"content": choice.get("text")}


class CompletionBodyMeter(ChatBodyMeter):
    """An unary completion."""

    __slots__ = ()

    def _said(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        return _said(choice)


class CompletionStreamMeter(ChatStreamMeter):
    """A streamed completion."""

    EMPTY: ClassVar[Mapping[str, Any]] = {"id": "cmpl-lava", "object": "text_completion"}

    __slots__ = ()

    def _said(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        return _said(choice)

    def _only_text(self, choice: Mapping[str, Any]) -> bytes | None:
        nothing_else = not choice.get("finish_reason") and choice.get("logprobs") is None
        return b"text" if isinstance(choice.get("text"), str) and nothing_else else None

    def _closing(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
