"""This file knows how to run an answer through a meter, cut as a test wants it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lava_middleware.core.intent import Intent
from lava_middleware.core.usage import Reading
from lava_middleware.dialects.dialect import BodyMeter, Dialect, Refusal, StreamMeter
from lava_middleware.providers.spoken import (
    CHAT,
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    FIM,
    GENERATE,
    GENERATE_STREAM,
    MESSAGES,
    RESPONSES,
)

BODIES = Path(__file__).parent / "bodies"
EXPECTED: dict[str, dict[str, Any]] = json.loads((BODIES / "expected.json").read_text(encoding="utf-8"))
"""What our own bodies say, by file name."""

ALL = (CHAT, COMPLETIONS, FIM, RESPONSES, EMBEDDINGS, MESSAGES, GENERATE, GENERATE_STREAM, EMBED_CONTENT)
DIALECTS: dict[str, Dialect] = {one.name: one for one in ALL}
TOTALS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
STREAMED = (".sse", ".array")
"""How the names of our own bodies end that are streams: server-sent events, or an array that grows."""

REFUSAL = Refusal(402, "insufficient_credit", "no credit left", None, {"record": "r1"})


def totals(reading: Reading | None) -> dict[str, int | None] | None:
    return None if reading is None else {name: getattr(reading, name) for name in TOTALS}


def figures(meter: StreamMeter | BodyMeter) -> dict[str, Any]:
    """Everything a meter knows, as plain data."""
    return {
        "reading": None if meter.reading is None else asdict(meter.reading),
        "reading_final": meter.reading_final,
        "others": [(model, asdict(reading)) for model, reading in meter.others],
        "model": meter.model,
        "response_id": meter.response_id,
        "service_tier": meter.service_tier,
        "finish_reason": meter.finish_reason,
        "finished": meter.finished,
        "error": meter.error,
        "content": (meter.content.bytes, meter.content.hundredths, meter.content.parts),
        "extra_tokens": meter.extra_tokens,
    }


def stream(
    dialect: Dialect, pieces: Iterable[bytes], *, intent: Intent | None = None, hide_usage: bool = False
) -> tuple[StreamMeter, bytes]:
    """(the meter, what went on to the application)."""
    meter = dialect.stream_meter(intent or Intent("chat", "m", stream=True), hide_usage=hide_usage)
    passed = []
    for piece in pieces:
        for event in meter.split(piece):
            passed.append(meter.take(event))
    if rest := meter.rest():
        passed.append(meter.take(rest))
    meter.measure()
    return meter, b"".join(one for one in passed if one is not None)


def body(dialect: Dialect, pieces: Iterable[bytes]) -> BodyMeter:
    meter = dialect.body_meter()
    for piece in pieces:
        meter.feed(piece)
    meter.end()
    return meter


def read(dialect: Dialect, raw: bytes, *, streamed: bool, pieces: Iterable[bytes] | None = None) -> dict[str, Any]:
    """All figures of an answer; for a stream it is asserted that the bytes passed on are the bytes that came."""
    if not streamed:
        return figures(body(dialect, pieces or [raw]))
    meter, passed = stream(dialect, pieces or [raw])
    assert passed == raw
    return figures(meter)


def one_by_one(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


def in_two(raw: bytes, at: int) -> list[bytes]:
    return [raw[:at], raw[at:]]


def near_borders(raw: bytes, within: int = 2) -> list[int]:
    """Every cut at most `within` bytes from the end of an event."""
    cuts = set()
    for border in (b"\n\n", b"\r\n\r\n", b"}\n,\r\n", b"},"):
        at = raw.find(border)
        while at >= 0:
            end = at + len(border)
            cuts.update(range(max(0, end - within), min(len(raw), end + within) + 1))
            at = raw.find(border, end)
    return sorted(cuts)
