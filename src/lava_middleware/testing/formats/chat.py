"""This file knows how to speak OpenAI chat completions, and Azure's, Groq's, Mistral's and Together's ways of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ask import Ask
from ..generation import ARGUMENTS, CALL, THINKING, Generation, Piece, figures
from ..script import Script
from ..served import Figures
from .wire import Event, Stamp, dumps, padding, sse

_UNASKED = ("groq", "mistral", "together")
"""Whose streams carry the usage in the chunk with the finish reason, whether it was asked for or not."""
_PLAIN = ("groq", "mistral", "together")
"""Who sends none of OpenAI's newer members."""
_DONE = b"data: [DONE]\n\n"
_SAFE = {
    "hate": {"filtered": False, "severity": "safe"},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": False, "severity": "safe"},
}
_PROMPT_FILTER = [{"prompt_index": 0, "content_filter_results": _SAFE}]


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = _told(ask, script, said)
    answer = {
        **_head(ask, script, stamp, "chat.completion"),
        "choices": [_choice(ask, said, stamp, index) for index in range(ask.choices)],
        **({"usage": usage(told, ask.flavour)} if script.usage else {}),
        **_tail(ask, script, stamp),
    }
    if ask.flavour == "azure":
        answer["prompt_filter_results"] = _PROMPT_FILTER
    return answer, told


def events(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Iterator[Event]:
    chunk = _Chunk(ask, script, stamp)
    if ask.flavour == "azure":
        first = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
        yield Event(sse({**first, "prompt_filter_results": _PROMPT_FILTER}))
    # A tool call that comes first carries the role itself.
    calls_first = bool(said.pieces) and said.pieces[0].kind == CALL
    if not calls_first:
        for index in range(ask.choices):
            yield Event(chunk.of({"role": "assistant", "content": "", **chunk.refusal}, index, first=True))
    for number, piece in enumerate(said.chunks(script.tokens_per_chunk)):
        delta = _delta(ask, piece, stamp, opening=calls_first and number == 0)
        for index in range(ask.choices):
            yield Event(chunk.of(delta, index), piece.tokens, chunk=True)
    yield from _closing(ask, script, said, chunk)


def _closing(ask: Ask, script: Script, said: Generation, chunk: _Chunk) -> Iterator[Event]:
    told = _told(ask, script, said)
    always = script.usage and ask.flavour in _UNASKED
    for index in range(ask.choices):
        last = always and index == ask.choices - 1
        data = chunk.of({}, index, finish=said.finish, unasked=told if last else None)
        yield Event(data, figures=told if last else None)
    if script.usage and ask.asks_usage:
        yield Event(chunk.usage(told), figures=told)
    yield Event(_DONE)


def error(ask: Ask, fault: dict[str, Any], sequence: int) -> bytes:
    """An error inside a stream that began well."""
    if ask.flavour == "groq":
        return sse({"error": {**fault, "status_code": 400}}, "error")
    return sse({"error": fault})


def usage(told: Figures, flavour: str = "openai") -> dict[str, Any]:
    total = told.input_tokens + told.output_tokens
    if flavour == "groq":
        block: dict[str, Any] = {
            "queue_time": 0.036348217,
            "prompt_tokens": told.input_tokens,
            "prompt_time": 0.001661312,
            "completion_tokens": told.output_tokens,
            "completion_time": 0.008458721,
            "total_tokens": total,
            "total_time": 0.010120033,
        }
        if told.cached_tokens:
            block["prompt_tokens_details"] = {"cached_tokens": told.cached_tokens}
        if told.reasoning_tokens:
            block["completion_tokens_details"] = {"reasoning_tokens": told.reasoning_tokens}
        return block
    if flavour in _PLAIN:
        block = {"prompt_tokens": told.input_tokens, "completion_tokens": told.output_tokens, "total_tokens": total}
        cached = {"cached_tokens": told.cached_tokens}
        return block | (cached if flavour == "together" else {"prompt_tokens_details": cached})
    cached = {"cached_tokens": told.cached_tokens, "audio_tokens": 0}
    if told.cache_write_tokens:
        cached["cache_write_tokens"] = told.cache_write_tokens
    return {
        "prompt_tokens": told.input_tokens,
        "completion_tokens": told.output_tokens,
        "total_tokens": total,
        "prompt_tokens_details": cached,
        "completion_tokens_details": {
            "reasoning_tokens": told.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _told(ask: Ask, script: Script, said: Generation) -> Figures:
    return figures(script, ask, said.output_tokens * ask.choices, said.reasoning_tokens * ask.choices)


def _head(ask: Ask, script: Script, stamp: Stamp, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-" + stamp.id("chat", 29),
        "object": kind,
        "created": stamp.now_s,
        "model": script.model or ask.model,
    }


def _tail(ask: Ask, script: Script, stamp: Stamp) -> dict[str, Any]:
    if ask.flavour in ("mistral", "together"):
        return {}
    tier = script.service_tier or ("on_demand" if ask.flavour == "groq" else "default")
    groq = {"x_groq": {"id": "req_" + stamp.id("groq", 26)}} if ask.flavour == "groq" else {}
    return {"service_tier": tier, "system_fingerprint": "fp_8e1b2afd75", **groq}


def _call_id(stamp: Stamp, index: int) -> str:
    return "call_" + stamp.id(f"call {index}", 24)


def _choice(ask: Ask, said: Generation, stamp: Stamp, index: int) -> dict[str, Any]:
    text = said.joined("text")
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not said.calls else None}
    if ask.flavour == "groq" and message["content"] is None:
        del message["content"]
    if ask.flavour == "mistral":
        message["content"] = text
    if thinking := said.joined(THINKING):
        message[_thinking(ask)] = thinking
    if ask.flavour not in _PLAIN:
        message |= {"refusal": None, "annotations": []}
    if said.calls:
        message["tool_calls"] = [
            {"id": _call_id(stamp, n), "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(said.calls)
        ]
    filtered = {"content_filter_results": _SAFE} if ask.flavour == "azure" else {}
    likely = {} if ask.flavour == "mistral" else {"logprobs": None}
    return {"index": index, "message": message, **likely, "finish_reason": said.finish, **filtered}


def _thinking(ask: Ask) -> str:
    """OpenAI shows no thoughts; those who speak its dialect and do agree on this member, but for Groq."""
    return "reasoning" if ask.flavour == "groq" else "reasoning_content"


def _delta(ask: Ask, piece: Piece, stamp: Stamp, *, opening: bool) -> dict[str, Any]:
    if piece.kind == CALL:
        named = {"name": piece.text, "arguments": ""}
        call = {"index": piece.call, "id": _call_id(stamp, piece.call), "type": "function", "function": named}
        return {**({"role": "assistant", "content": None} if opening else {}), "tool_calls": [call]}
    if piece.kind == ARGUMENTS:
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
    return {_thinking(ask) if piece.kind == THINKING else "content": piece.text}


class _Chunk:
    """Writes chunks of one stream; what does not change in them is written once."""

    def __init__(self, ask: Ask, script: Script, stamp: Stamp) -> None:
        self._flavour, self._plain = ask.flavour, ask.flavour in _PLAIN
        self._groq, self._azure = ask.flavour == "groq", ask.flavour == "azure"
        self._null_usage = ask.asks_usage and not self._plain
        self._request_id = "req_" + stamp.id("groq", 26)
        self._head = _head(ask, script, stamp, "chat.completion.chunk") | _tail(ask, script, stamp)
        self._head.pop("x_groq", None)
        if self._groq:
            self._head.pop("service_tier")
        self._opening = dumps(self._head)[:-1]
        self.refusal = {} if self._plain else {"refusal": None}

    def of(
        self,
        delta: dict[str, Any],
        index: int,
        *,
        finish: str | None = None,
        first: bool = False,
        unasked: Figures | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self._flavour == "mistral":
            del choice["logprobs"]
        if self._azure:
            choice["content_filter_results"] = {}
        rest: dict[str, Any] = {"choices": [choice]}
        if self._null_usage:
            rest["usage"] = None
        if self._groq and first:
            rest["x_groq"] = {"id": self._request_id, "seed": 430271417}
        if unasked is not None and self._groq:
            rest["x_groq"] = {"id": self._request_id, "usage": usage(unasked, "groq")}
        elif unasked is not None:
            rest["usage"] = usage(unasked, self._flavour)
        return self._write(rest, str(delta.get("content") or ""))

    def usage(self, told: Figures) -> bytes:
        return self._write({"choices": [], "usage": usage(told, self._flavour)}, "")

    def _write(self, rest: dict[str, Any], hidden: str) -> bytes:
        if not self._plain:
            rest["obfuscation"] = padding(hidden)
        return f"data: {self._opening},{dumps(rest)[1:]}\n\n".encode()
