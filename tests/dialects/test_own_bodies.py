"""Every dialect reads our own bodies, whole and in pieces. They follow documentation and recorded traffic."""

from __future__ import annotations

import random
from typing import Any

import pytest

from .kit import (
    BODIES,
    DIALECTS,
    EXPECTED,
    STREAMED,
    body,
    figures,
    in_two,
    near_borders,
    one_by_one,
    read,
    stream,
    totals,
)

NAMES = sorted(EXPECTED)
STREAMS = [name for name in NAMES if name.endswith(STREAMED)]
EVENTS = [name for name in STREAMS if name.endswith(".sse")]


@pytest.mark.parametrize("name", NAMES)
def test_a_body_says_what_it_says(name: str) -> None:
    """T21, T22: cached, written and reasoning tokens land where each provider's totals have them."""
    raw, want = (BODIES / name).read_bytes(), EXPECTED[name]
    dialect = DIALECTS[want["dialect"]]
    meter = stream(dialect, [raw])[0] if name in STREAMS else body(dialect, [raw])
    assert totals(meter.reading) == want["totals"]
    assert meter.finished is want["finished"]
    assert meter.error is want.get("error", False)
    assert meter.reading_final is want.get("reading_final", want["totals"] is not None)
    assert meter.finish_reason == want.get("finish_reason")
    assert meter.model == want.get("model")
    assert meter.content.bytes == len(want["text"].encode())
    assert meter.extra_tokens == want.get("extra_tokens", 0)
    assert [[model, totals(reading)] for model, reading in meter.others] == want.get("others", [])
    if "service_tier" in want:
        assert meter.service_tier == want["service_tier"]
    for figure in ("web_searches", "cost_ticks", "cache_write_1h_tokens"):
        if figure in want:
            assert getattr(meter.reading, figure) == want[figure]


@pytest.mark.parametrize("name", NAMES)
def test_cuts_change_nothing(name: str, rng: random.Random) -> None:
    """T30: one byte at a time, in two anywhere and around every event's border: the same figures, the same bytes."""
    raw, streamed = (BODIES / name).read_bytes(), name in STREAMS
    dialect = DIALECTS[EXPECTED[name]["dialect"]]
    whole = read(dialect, raw, streamed=streamed)
    assert read(dialect, raw, streamed=streamed, pieces=one_by_one(raw)) == whole
    cuts = [*near_borders(raw), *rng.sample(range(len(raw)), min(len(raw), 200))]
    for at in cuts:
        assert read(dialect, raw, streamed=streamed, pieces=in_two(raw, at)) == whole, f"cut at {at}"


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_without_its_last_blank_line_is_read_to_its_end(name: str) -> None:
    """T30: ten of the recorded streams end so; dropping the last event would lose the usage."""
    raw = (BODIES / name).read_bytes()
    dialect = DIALECTS[EXPECTED[name]["dialect"]]
    whole = read(dialect, raw, streamed=True)
    for ending in (b"", b"\n", b"\r"):
        assert read(dialect, raw.rstrip() + ending, streamed=True) == whole


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_line_ends_of_every_kind(name: str, line_end: bytes) -> None:
    """T30: a server may end lines with CRLF or CR."""
    raw = (BODIES / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", line_end)
    dialect = DIALECTS[EXPECTED[name]["dialect"]]
    meter, passed = stream(dialect, one_by_one(raw))
    assert passed == raw
    assert totals(meter.reading) == EXPECTED[name]["totals"]
    assert meter.content.bytes == len(EXPECTED[name]["text"].encode())


def test_the_usage_chunk_we_asked_for_is_hidden() -> None:
    """T16: the application did not ask for it, and `chunk.choices[0]` would break."""
    raw = (BODIES / "chat_stream.sse").read_bytes()
    meter, passed = stream(DIALECTS["openai.chat"], [raw], hide_usage=True)
    assert totals(meter.reading) == EXPECTED["chat_stream.sse"]["totals"]
    events = raw.split(b"\n\n")
    assert passed == b"\n\n".join(event for event in events if b'"choices":[]' not in event)


def test_a_usage_block_in_a_chunk_with_choices_is_never_hidden() -> None:
    """Hiding it would take text or a finish reason away from the application."""
    raw = (BODIES / "chat_stream_crlf.sse").read_bytes()
    meter, passed = stream(DIALECTS["openai.chat"], [raw], hide_usage=True)
    assert passed == raw
    assert meter.reading_final


def test_a_stream_without_usage_is_counted_not_free() -> None:
    """T16: no usage block is no reading, and the text that passed is there to be counted."""
    meter, _ = stream(DIALECTS["openai.chat"], [(BODIES / "chat_stream_without_usage.sse").read_bytes()])
    assert meter.reading is None
    assert meter.content.hundredths > 500
    assert meter.content.parts == 1


def test_web_searches_are_metered_from_the_answer() -> None:
    """T23: beside `usage` in newer answers of OpenAI, inside it at Anthropic, else the calls in the output count."""
    told: dict[str, Any] = figures(body(DIALECTS["openai.responses"], [(BODIES / "responses.json").read_bytes()]))
    assert told["reading"]["web_searches"] == 1
    untold = (BODIES / "responses.json").read_bytes().replace(b'"num_requests"', b'"other"')
    assert figures(body(DIALECTS["openai.responses"], [untold]))["reading"]["web_searches"] == 1
