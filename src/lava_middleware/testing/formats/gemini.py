"""This file knows how to speak Gemini's generateContent, whole, as events, and as an array that grows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from ..ask import Ask
from ..generation import ARGUMENTS, CALL, THINKING, Generation, Piece, figures
from ..script import Script
from ..served import Figures
from .wire import Event, Stamp, dumps, marked

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = _told(ask, script, said.output_tokens, said.reasoning_tokens)
    parts = [_part(run) for _, run in itertools.groupby(said.pieces, key=_part_key)]
    candidates = [
        {"content": {"parts": parts, "role": "model"}, "finishReason": _FINISH[said.finish], "index": index}
        for index in range(ask.choices)
    ]
    return _chunk(ask, script, stamp, candidates, told), told


def events(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Iterator[Event]:
    """Each chunk carries the figures so far, and the last ones count."""
    if not ask.array:
        for chunk, tokens, told in _chunks(ask, script, said, stamp):
            yield Event(f"data: {dumps(chunk)}\r\n\r\n".encode(), tokens, bool(tokens), told)
        return
    opening = b"["
    for (chunk, tokens, told), last in marked(_chunks(ask, script, said, stamp)):
        data = opening + json.dumps(chunk, indent=2, ensure_ascii=False).encode() + (b"\n]" if last else b"\n")
        yield Event(data, tokens, bool(tokens), told)
        opening = b",\r\n"


def error(ask: Ask, fault: dict[str, Any], sequence: int) -> bytes:
    """An error inside a stream that began well."""
    if ask.array:
        return (b",\r\n" if sequence else b"[") + dumps({"error": fault}).encode() + b"\n]"
    return f"data: {dumps({'error': fault})}\r\n\r\n".encode()


def _chunks(
    ask: Ask, script: Script, said: Generation, stamp: Stamp
) -> Iterator[tuple[dict[str, Any], int, Figures | None]]:
    """(chunk, output tokens that it carries, figures): a function call comes in one piece."""
    spoken = 0
    pieces = said.chunks(script.tokens_per_chunk)
    for key, run in itertools.groupby(pieces, key=_part_key):
        for group in [list(run)] if key[0] == CALL else ([piece] for piece in run):
            tokens = sum(piece.tokens for piece in group)
            spoken += tokens
            told = _told(ask, script, spoken + said.reasoning_tokens, said.reasoning_tokens)
            content = {"parts": [_part(iter(group))], "role": "model"}
            candidates = [{"content": content, "index": index} for index in range(ask.choices)]
            shown = told if script.usage else None
            yield _chunk(ask, script, stamp, candidates, told), tokens * ask.choices, shown
    told = _told(ask, script, said.output_tokens, said.reasoning_tokens)
    nothing = {"parts": [{"text": ""}], "role": "model"}
    finish = _FINISH[said.finish]
    candidates = [{"content": nothing, "finishReason": finish, "index": index} for index in range(ask.choices)]
    yield _chunk(ask, script, stamp, candidates, told), 0, told if script.usage else None


def _told(ask: Ask, script: Script, output_tokens: int, reasoning_tokens: int) -> Figures:
    return figures(script, ask, output_tokens * ask.choices, reasoning_tokens * ask.choices)


def _chunk(ask: Ask, script: Script, stamp: Stamp, candidates: list[dict[str, Any]], told: Figures) -> dict[str, Any]:
    used = {"usageMetadata": usage(told, script)} if script.usage else {}
    named = {"modelVersion": script.model or ask.model, "responseId": stamp.id("gemini", 22)}
    return {"candidates": candidates, **used, **named}


def usage(told: Figures, script: Script) -> dict[str, Any]:
    """Thoughts stand beside the candidates' tokens, not in them; what came from the cache is in the prompt's."""
    block: dict[str, Any] = {
        "promptTokenCount": told.input_tokens,
        "candidatesTokenCount": told.output_tokens - told.reasoning_tokens,
        "totalTokenCount": told.input_tokens + told.output_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": told.input_tokens}],
    }
    if told.cached_tokens:
        block["cachedContentTokenCount"] = told.cached_tokens
    if told.reasoning_tokens:
        block["thoughtsTokenCount"] = told.reasoning_tokens
    if script.service_tier is not None:
        block["serviceTier"] = script.service_tier
    return block


def _part_key(piece: Piece) -> tuple[str, int]:
    return (CALL if piece.kind in (CALL, ARGUMENTS) else piece.kind, piece.call)


def _part(pieces: Iterator[Piece]) -> dict[str, Any]:
    run = list(pieces)
    if run[0].kind in (CALL, ARGUMENTS):
        name = next((piece.text for piece in run if piece.kind == CALL), "")
        return {"functionCall": {"name": name, "args": _parsed("".join(p.text for p in run if p.kind == ARGUMENTS))}}
    thought = {"thought": True} if run[0].kind == THINKING else {}
    return {"text": "".join(piece.text for piece in run), **thought}


def _parsed(arguments: str) -> Any:
    """A function call that the cap cut short has no arguments."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}
