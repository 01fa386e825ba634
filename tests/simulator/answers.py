"""This file knows what the simulated provider can be asked, and what it can answer: made once, in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lava_middleware.core.bound import input_tokens
from lava_middleware.core.intent import Intent, Text
from lava_middleware.core.pricing import Price
from lava_middleware.core.rating import dearest
from lava_middleware.dialects.stream import sse
from lava_middleware.providers.spoken import CHAT, MESSAGES

EVENT_STREAM = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]

PER_MILLION = 10**10
MODELS = {
    "small": Price("sim", "small", {"input": 2 * PER_MILLION, "output": 8 * PER_MILLION}, output_tokens_max=2_000),
    "tiered": Price(
        "sim",
        "tiered",
        {"input": 3 * PER_MILLION, "output": 15 * PER_MILLION, "cache_read": PER_MILLION},
        tiers=((400, {"input": 6 * PER_MILLION, "output": 22 * PER_MILLION}),),
        variants={"flex": {"input": PER_MILLION, "output": 7 * PER_MILLION}},
        output_tokens_max=1_000,
    ),
    "free": Price("sim", "free", {}, free=True),
}
"""The model that answers may be a dearer one than was asked for."""


@dataclass(frozen=True)
class Answer:
    """What comes back: a head, a body, and the same body without the usage block that only we asked for."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    without_usage: bytes = b""


def _plan(dialect: Any, model: str, stream: bool, text: int, cap: int | None, **more: Any) -> tuple[Any, ...]:
    price = MODELS[model]
    hidden = stream and more.pop("hide", False)
    intent = Intent("chat", model, stream, Text(text, 30 * text, 2), output_tokens_max=cap, **more)
    estimate = input_tokens(intent, "openai", framing=8, tools_framing=64, context_tokens=price.context_tokens)
    most = cap if cap is not None else price.output_tokens_max or 500
    plan = {
        "dialect": dialect,
        "intent": intent,
        "body": {"model": model},
        "family": "openai",
        "estimate": estimate,
        "price_lists": ("sim",),
        "price": price,
        "overruled": "",
        "output_tokens_max": most,
        "output_unbounded": cap is None and price.output_tokens_max is None,
        "hide_usage": hidden,
        "ask_usage": hidden,
        "untouchable": False,
        "lesson": f"sim/{model}",
    }
    return plan, dearest(price, estimate.cautious, intent.service_tier), hidden


def _plans() -> Iterator[tuple[Any, ...]]:
    for dialect in (CHAT, MESSAGES):
        for model in MODELS:
            for text in (40, 900):
                yield _plan(dialect, model, True, text, None)
                yield _plan(dialect, model, True, text, 150, hide=dialect is CHAT)
                yield _plan(dialect, model, False, text, 100)
                yield _plan(dialect, model, False, text, None, choices=1 if dialect is MESSAGES else 2)
        yield _plan(dialect, "tiered", True, 300, 200, hidden_reasoning=True)
        yield _plan(dialect, "tiered", True, 300, 200, service_tier="flex")


PLANS = list(_plans())

WORDS = (
    "A",
    "ledger",
    "is",
    "a",
    "book",
    "in",
    "which",
    "every",
    "entry",
    "has",
    "a",
    "place.",
    "Ünïcödé",
    "漢字",
    "—",
)


def _said(words: int, first: int = 0) -> str:
    return " ".join(WORDS[(first + number) % len(WORDS)] for number in range(words))


def _chat_usage(given: int, made: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    usage: dict[str, Any] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def _chat_events(model: str, chunks: int, words: int, usage: dict[str, Any] | None, *, done: bool) -> list[bytes]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    events = [event({"role": "assistant", "content": ""})]
    events += [event({"content": _said(words, 3 * number)}) for number in range(chunks)]
    events.append(event({}, "stop"))
    if usage is not None:
        events.append(sse({**head, "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"] if done else events


def _chat_stream(
    model: str, chunks: int, words: int, usage: dict[str, Any] | None, *, done: bool = True, crlf: bool = False
) -> Answer:
    events = _chat_events(model, chunks, words, usage, done=done)
    if not done:  # it just stops, in the middle of a line end
        events[-1] = events[-1][:-1]
    if crlf:
        events = [event.replace(b"\n", b"\r\n") for event in events]
    visible = [event for event in events if b'"choices":[]' not in event]
    return Answer(200, EVENT_STREAM, b"".join(events), b"".join(visible))


def _messages_stream(model: str, chunks: int, words: int, given: int, made: int, *, whole: bool = True) -> Answer:
    start = {"id": "m1", "type": "message", "role": "assistant", "model": model, "content": []}
    events = [
        sse({"type": "message_start", "message": {**start, "usage": _claude_usage(given, 1)}}, "message_start"),
        sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, "x"),
        sse({"type": "ping"}, "ping"),
    ]
    for number in range(chunks):
        delta = {"type": "text_delta", "text": _said(words, number)}
        events.append(sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"))
    if whole:
        events.append(sse({"type": "content_block_stop", "index": 0}, "content_block_stop"))
        stop = {"stop_reason": "end_turn", "stop_sequence": None}
        events.append(sse({"type": "message_delta", "delta": stop, "usage": {"output_tokens": made}}, "message_delta"))
        events.append(sse({"type": "message_stop"}, "message_stop"))
    return Answer(200, EVENT_STREAM, b"".join(events), b"".join(events))


def _claude_usage(given: int, made: int) -> dict[str, Any]:
    return {"input_tokens": given, "cache_read_input_tokens": given // 3, "output_tokens": made}


def _chat_body(model: str, words: int, usage: dict[str, Any] | None) -> Answer:
    message = {"role": "assistant", "content": _said(words)}
    said: dict[str, Any] = {"id": "c2", "object": "chat.completion", "model": model}
    said["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    if usage is not None:
        said["usage"] = usage
    return _body(200, said)


def _messages_body(model: str, words: int, given: int, made: int) -> Answer:
    content = [{"type": "text", "text": _said(words)}]
    said = {"id": "m2", "type": "message", "role": "assistant", "model": model, "content": content}
    return _body(200, {**said, "stop_reason": "end_turn", "usage": _claude_usage(given, made)})


def _body(status: int, said: dict[str, Any]) -> Answer:
    body = json.dumps(said, ensure_ascii=False).encode()
    return Answer(status, JSON, body, body)


_ERROR = {"error": {"message": "simulated", "type": "server_error", "code": "x"}}
FAILURES = [_body(status, _ERROR) for status in (429, 500, 408, 502)] + [_body(302, {})]

ANSWERS: dict[tuple[str, bool], list[Answer]] = {
    (CHAT.name, True): [
        _chat_stream("small", 4, 12, _chat_usage(30, 60)),
        _chat_stream("tiered", 6, 20, _chat_usage(300, 140, cached=100)),
        _chat_stream("tiered", 6, 20, _chat_usage(700, 900)),  # more than was capped, and of a dearer tier
        _chat_stream("small", 5, 10, _chat_usage(40, 190, reasoning=140)),
        _chat_stream("small", 6, 14, None),
        _chat_stream("small", 3, 8, None, done=False),
        _chat_stream("free", 3, 8, _chat_usage(30, 30), crlf=True),
        _chat_stream("small", 4, 8, _chat_usage(20, 40), done=False, crlf=True),
        Answer(200, EVENT_STREAM, sse(_ERROR), sse(_ERROR)),
    ],
    (MESSAGES.name, True): [
        _messages_stream("small", 5, 12, 30, 70),
        _messages_stream("tiered", 7, 20, 200, 210),
        _messages_stream("tiered", 6, 12, 900, 1_200),
        _messages_stream("small", 5, 12, 30, 70, whole=False),
    ],
    (CHAT.name, False): [
        _chat_body("small", 30, _chat_usage(30, 45)),
        _chat_body("tiered", 60, _chat_usage(500, 300, reasoning=200)),
        _chat_body("small", 30, None),
    ],
    (MESSAGES.name, False): [
        _messages_body("small", 40, 30, 60),
        _messages_body("tiered", 40, 600, 700),
    ],
}
"""By dialect and whether it streams."""
