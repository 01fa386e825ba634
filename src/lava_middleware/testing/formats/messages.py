"""This file knows how to speak Anthropic messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..ask import Ask
from ..generation import ARGUMENTS, CALL, TEXT, THINKING, Generation, Piece, figures
from ..script import Script
from ..served import Figures
from .wire import Event, Stamp, dumps, sse

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_SIGNATURE = "ErYCCqcBCBAYAipAnghNVyvQT"


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = figures(script, ask, said.output_tokens, said.reasoning_tokens)
    answer = _message(ask, script, stamp, content=list(_blocks(said, stamp)), stop_reason=_STOP[said.finish])
    if script.usage:
        answer["usage"] = usage(told, script)
    return answer, told


def events(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Iterator[Event]:
    started = figures(script, ask, 0, 0)
    message = _message(ask, script, stamp, content=[], stop_reason=None)
    if script.usage:
        # The first event counts the first token of the answer; the last one replaces it.
        started = replace(started, output_tokens=1)
        message["usage"] = usage(started, script)
    yield Event(_write("message_start", 14, message=message), figures=started if script.usage else None)
    yield from _block_events(script, said, stamp)
    told = figures(script, ask, said.output_tokens, said.reasoning_tokens)
    delta = {"stop_reason": _STOP[said.finish], "stop_sequence": None, "stop_details": None}
    used = {"usage": _delta_usage(told)} if script.usage else {}
    yield Event(_write("message_delta", 5, delta=delta, **used), figures=told if script.usage else None)
    yield Event(_write("message_stop", 9))


def error(ask: Ask, fault: dict[str, Any], sequence: int) -> bytes:
    """An error inside a stream that began well."""
    return sse({"type": "error", "error": fault}, "error")


def usage(told: Figures, script: Script) -> dict[str, Any]:
    """Anthropic's own input count leaves out what was read from and written to the cache."""
    block = {
        **_input_usage(told),
        "cache_creation": {
            "ephemeral_5m_input_tokens": told.cache_write_tokens - told.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": told.cache_write_1h_tokens,
        },
        "output_tokens": told.output_tokens,
        "service_tier": script.service_tier or "standard",
        "inference_geo": "global",
    }
    return block | _thought(told)


def _delta_usage(told: Figures) -> dict[str, Any]:
    return {**_input_usage(told), "output_tokens": told.output_tokens} | _thought(told)


def _input_usage(told: Figures) -> dict[str, Any]:
    return {
        "input_tokens": max(told.input_tokens - told.cached_tokens - told.cache_write_tokens, 0),
        "cache_creation_input_tokens": told.cache_write_tokens,
        "cache_read_input_tokens": told.cached_tokens,
    }


def _thought(told: Figures) -> dict[str, Any]:
    return {"output_tokens_details": {"thinking_tokens": told.reasoning_tokens}} if told.reasoning_tokens else {}


def _message(ask: Ask, script: Script, stamp: Stamp, **more: Any) -> dict[str, Any]:
    return {
        "model": script.model or ask.model,
        "id": "msg_01" + stamp.id("message", 22),
        "type": "message",
        "role": "assistant",
        **more,
        "stop_sequence": None,
        "stop_details": None,
    }


def _tool_id(stamp: Stamp, index: int) -> str:
    return "toolu_01" + stamp.id(f"call {index}", 22)


def _blocks(said: Generation, stamp: Stamp) -> Iterator[dict[str, Any]]:
    if thinking := said.joined(THINKING):
        yield {"type": "thinking", "thinking": thinking, "signature": _SIGNATURE}
    if (text := said.joined(TEXT)) or not said.calls:
        yield {"type": "text", "text": text}
    for index, (name, arguments) in enumerate(said.calls):
        yield {"type": "tool_use", "id": _tool_id(stamp, index), "name": name, "input": _parsed(arguments)}


def _parsed(arguments: str) -> Any:
    """A tool call that the cap cut short has an empty input."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _block_key(piece: Piece) -> tuple[str, int]:
    return ("tool_use" if piece.kind in (CALL, ARGUMENTS) else piece.kind, piece.call)


def _block_events(script: Script, said: Generation, stamp: Stamp) -> Iterator[Event]:
    chunks = itertools.groupby(said.chunks(script.tokens_per_chunk), key=_block_key)
    for position, ((kind, index), pieces) in enumerate(chunks):
        start = _block_start(kind, index, said, stamp)
        yield Event(_write("content_block_start", 10, index=position, content_block=start))
        if not position:
            yield Event(b'event: ping\ndata: {"type": "ping"}\n\n')
        yield from _delta_events(position, pieces)
        yield Event(_write("content_block_stop", 5, index=position))


def _block_start(kind: str, index: int, said: Generation, stamp: Stamp) -> dict[str, Any]:
    if kind == TEXT:
        return {"type": "text", "text": ""}
    if kind == THINKING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    name = said.calls[index][0]
    return {"type": "tool_use", "id": _tool_id(stamp, index), "name": name, "input": {}}


def _delta_events(position: int, pieces: Iterator[Piece]) -> Iterator[Event]:
    kind = TEXT
    for piece in pieces:
        kind = piece.kind
        name, member, text = _DELTAS[kind]
        # A tool's name went out with the start of its block; Anthropic follows it with an empty piece of JSON.
        shown = piece.text if text else ""
        data = _write("content_block_delta", len(piece.text) % 16, index=position, delta={"type": name, member: shown})
        yield Event(data, piece.tokens, chunk=True)
    if kind == THINKING:
        signed = {"type": "signature_delta", "signature": _SIGNATURE}
        yield Event(_write("content_block_delta", 11, index=position, delta=signed))


# Kind of piece -> (delta's type, its member, whether the text is shown in it).
_DELTAS = {
    TEXT: ("text_delta", "text", True),
    THINKING: ("thinking_delta", "thinking", True),
    ARGUMENTS: ("input_json_delta", "partial_json", True),
    CALL: ("input_json_delta", "partial_json", False),
}


def _write(name: str, pad: int, **data: Any) -> bytes:
    """Anthropic pads its lines with spaces before or behind the last brace."""
    return sse(dumps({"type": name, **data})[:-1] + " " * pad + "}", name)
