"""This file knows how to speak OpenAI responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ..ask import Ask
from ..generation import ARGUMENTS, CALL, TEXT, THINKING, Generation, Piece, figures
from ..script import Script
from ..served import Figures
from .wire import Event, Stamp, padding, sse


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = figures(script, ask, said.output_tokens, said.reasoning_tokens)
    items = [_finished(item, said) for item in _items(said, stamp)]
    return _ended(ask, script, said, stamp, items, told), told


def events(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Iterator[Event]:
    emit = _Emitter()
    begun = _response(ask, script, stamp, status="in_progress")
    yield emit("response.created", response=begun)
    yield emit("response.in_progress", response=begun)
    items = _items(said, stamp)
    finished = [_finished(item, said) for item in items]
    streamed = itertools.groupby(said.chunks(script.tokens_per_chunk), key=_item_key)
    for position, (item, final) in enumerate(zip(items, finished, strict=True)):
        pieces = iter(()) if item.get("hidden") else next(streamed)[1]
        yield from _item_events(emit, position, item, final, pieces)
    told = figures(script, ask, said.output_tokens, said.reasoning_tokens)
    ended = _ended(ask, script, said, stamp, finished, told)
    yield emit(f"response.{ended['status']}", figures=told if script.usage else None, response=ended)


def error(ask: Ask, fault: dict[str, Any], sequence: int) -> bytes:
    """An error inside a stream that began well."""
    data = {"type": "error", "sequence_number": sequence, "code": fault.get("code"), "message": fault["message"]}
    return sse({**data, "param": None}, "error")


class _Emitter:
    """Writes events with a running sequence number."""

    def __init__(self) -> None:
        self._sequence = itertools.count()

    def __call__(
        self, name: str, *, tokens: int = 0, chunk: bool = False, figures: Figures | None = None, **data: Any
    ) -> Event:
        numbered = {"type": name, "sequence_number": next(self._sequence), **data}
        return Event(sse(numbered, name), tokens, chunk, figures)


def _item_key(piece: Piece) -> tuple[str, int]:
    return ("call" if piece.kind in (CALL, ARGUMENTS) else piece.kind, piece.call)


def _items(said: Generation, stamp: Stamp) -> list[dict[str, Any]]:
    """The output items as they begin. `hidden` marks reasoning of which nothing is streamed."""
    items: list[dict[str, Any]] = []
    kinds = dict.fromkeys(map(_item_key, said.pieces))
    if said.reasoning_tokens and (THINKING, 0) not in kinds:
        items.append({"id": "rs_" + stamp.id("reasoning", 50), "type": "reasoning", "summary": [], "hidden": True})
    for kind, index in kinds:
        items.append(_ITEMS[kind](said, stamp, index))
    if said.endless and (TEXT, 0) not in kinds:
        items.append(_message(said, stamp, 0))
    return items


def _reasoning(said: Generation, stamp: Stamp, index: int) -> dict[str, Any]:
    return {"id": "rs_" + stamp.id("reasoning", 50), "type": "reasoning", "summary": []}


def _message(said: Generation, stamp: Stamp, index: int) -> dict[str, Any]:
    head = {"id": "msg_" + stamp.id("message", 50), "type": "message", "status": "in_progress"}
    return {**head, "content": [], "role": "assistant"}


def _call(said: Generation, stamp: Stamp, index: int) -> dict[str, Any]:
    return {
        "id": "fc_" + stamp.id(f"item {index}", 50),
        "type": "function_call",
        "status": "in_progress",
        "arguments": "",
        "call_id": "call_" + stamp.id(f"call {index}", 24),
        "name": said.calls[index][0],
        "index": index,
    }


_ITEMS = {THINKING: _reasoning, TEXT: _message, "call": _call}


def _public(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("hidden", "index")}


def _finished(item: Mapping[str, Any], said: Generation) -> dict[str, Any]:
    done = _public(item)
    if item["type"] == "message":
        done |= {"status": _status(said), "content": [_part(said.joined(TEXT))]}
    elif item["type"] == "function_call":
        done |= {"status": _status(said), "arguments": said.joined(ARGUMENTS, item["index"])}
    elif not item.get("hidden"):
        done["summary"] = [{"type": "summary_text", "text": said.joined(THINKING)}]
    return done


def _status(said: Generation) -> str:
    return "incomplete" if said.finish == "length" else "completed"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _item_events(
    emit: _Emitter, position: int, item: Mapping[str, Any], final: dict[str, Any], pieces: Iterator[Piece]
) -> Iterator[Event]:
    at: dict[str, Any] = {"item_id": item["id"], "output_index": position}
    yield emit("response.output_item.added", item=_public(item), output_index=position)
    if item["type"] == "message":
        yield from _message_events(emit, {**at, "content_index": 0}, final["content"][0], pieces)
    elif item["type"] == "function_call":
        yield from _call_events(emit, at, final, pieces)
    elif not item.get("hidden"):
        yield from _summary_events(emit, {**at, "summary_index": 0}, final["summary"][0], pieces)
    yield emit("response.output_item.done", item=final, output_index=position)


def _message_events(
    emit: _Emitter, at: dict[str, Any], part: dict[str, Any], pieces: Iterator[Piece]
) -> Iterator[Event]:
    yield emit("response.content_part.added", **at, part=_part(""))
    for piece in pieces:
        more: dict[str, Any] = {"delta": piece.text, "logprobs": [], "obfuscation": padding(piece.text)}
        yield emit("response.output_text.delta", tokens=piece.tokens, chunk=True, **at, **more)
    yield emit("response.output_text.done", **at, logprobs=[], text=part["text"])
    yield emit("response.content_part.done", **at, part=part)


def _summary_events(
    emit: _Emitter, at: dict[str, Any], part: dict[str, Any], pieces: Iterator[Piece]
) -> Iterator[Event]:
    yield emit("response.reasoning_summary_part.added", **at, part={"type": "summary_text", "text": ""})
    for piece in pieces:
        more: dict[str, Any] = {"delta": piece.text, "obfuscation": padding(piece.text)}
        yield emit("response.reasoning_summary_text.delta", tokens=piece.tokens, chunk=True, **at, **more)
    yield emit("response.reasoning_summary_text.done", **at, text=part["text"])
    yield emit("response.reasoning_summary_part.done", **at, part=part)


def _call_events(emit: _Emitter, at: dict[str, Any], final: dict[str, Any], pieces: Iterator[Piece]) -> Iterator[Event]:
    carried = 0  # The name went out with the item: its tokens count with the first arguments, or with their end.
    for piece in pieces:
        if piece.kind == CALL:
            carried = piece.tokens
            continue
        more: dict[str, Any] = {"delta": piece.text, "obfuscation": padding(piece.text)}
        name, spent = "response.function_call_arguments.delta", piece.tokens + carried
        carried = 0
        yield emit(name, tokens=spent, chunk=True, **at, **more)
    done = "response.function_call_arguments.done"
    yield emit(done, tokens=carried, chunk=bool(carried), **at, arguments=final["arguments"])


def _ended(
    ask: Ask, script: Script, said: Generation, stamp: Stamp, items: list[dict[str, Any]], told: Figures
) -> dict[str, Any]:
    more: dict[str, Any] = {"output": items}
    if said.finish == "length":
        more["incomplete_details"] = {"reason": "max_output_tokens"}
    else:
        more["completed_at"] = stamp.now_s
    if script.usage:
        more["usage"] = usage(told)
    return _response(ask, script, stamp, status=_status(said), **more)


def usage(told: Figures) -> dict[str, Any]:
    cached = {"cached_tokens": told.cached_tokens}
    if told.cache_write_tokens:
        cached = {"cache_write_tokens": told.cache_write_tokens, **cached}
    return {
        "input_tokens": told.input_tokens,
        "input_tokens_details": cached,
        "output_tokens": told.output_tokens,
        "output_tokens_details": {"reasoning_tokens": told.reasoning_tokens},
        "total_tokens": told.input_tokens + told.output_tokens,
    }


def _response(ask: Ask, script: Script, stamp: Stamp, *, status: str, **more: Any) -> dict[str, Any]:
    asked = ask.body
    tier = script.service_tier or "default"
    return {
        "id": "resp_" + stamp.id("response", 50),
        "object": "response",
        "created_at": stamp.now_s,
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": ask.cap,
        "max_tool_calls": None,
        "model": script.model or ask.model,
        "moderation": None,
        "output": [],
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "previous_response_id": asked.get("previous_response_id"),
        "prompt_cache_key": None,
        "prompt_cache_retention": "in_memory",
        "reasoning": {"effort": "none", "summary": None},
        "safety_identifier": None,
        "service_tier": "auto" if status == "in_progress" else tier,
        "store": asked.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": asked.get("metadata") or {},
        **more,
    }
