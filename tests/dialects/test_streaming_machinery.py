"""What the shell relies on in every stream meter: deferral, bounds, pieces of events, taking back the last one."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable

import pytest

from lava_middleware.core.intent import Intent
from lava_middleware.dialects import stream as machinery
from lava_middleware.dialects.dialect import Dialect, StreamMeter

from .kit import BODIES, DIALECTS, EXPECTED, REFUSAL, figures

STREAMS = sorted(name for name in EXPECTED if name.endswith(".sse"))
STREAMED = Intent("chat", "gpt-4o", stream=True)


def events_of(name: str) -> tuple[Dialect, list[bytes]]:
    dialect = DIALECTS[EXPECTED[name]["dialect"]]
    meter = dialect.stream_meter(STREAMED, hide_usage=False)
    events = meter.split((BODIES / name).read_bytes())
    rest = meter.rest()
    return dialect, [*events, rest] if rest else events


@pytest.mark.parametrize("name", STREAMS)
def test_what_waits_is_counted_by_its_bytes(name: str) -> None:
    """T3: content_bound() is never below what measure() finds, and equals it afterwards."""
    dialect, events = events_of(name)
    lazy = dialect.stream_meter(STREAMED, hide_usage=False)
    for upto, event in enumerate(events, 1):
        lazy.take(event)
        eager = dialect.stream_meter(STREAMED, hide_usage=False)
        for one in events[:upto]:
            eager.take(one)
        eager.measure()
        (bound, extra), (content, least) = lazy.content_bound(), eager.content_bound()
        assert (content, least) == (eager.content, eager.extra_tokens)
        assert bound.bytes >= content.bytes
        assert bound.hundredths >= content.hundredths
        assert bound.parts >= content.parts
        assert extra >= least


@pytest.mark.parametrize("name", STREAMS)
def test_unmeasured_bytes_bound_the_growth(name: str) -> None:
    dialect, events = events_of(name)
    meter = dialect.stream_meter(STREAMED, hide_usage=False)
    for start in range(0, len(events), 3):
        meter.measure()
        assert meter.unmeasured == 0
        before = meter.content.hundredths // 100 + 8 * meter.content.parts + meter.extra_tokens
        for event in events[start : start + 3]:
            meter.take(event)
        grown = meter.unmeasured
        assert meter.content.hundredths // 100 + 8 * meter.content.parts + meter.extra_tokens <= before + grown + 1


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("measured", [False, True])
def test_the_last_event_can_be_taken_back(name: str, measured: bool) -> None:
    """An event that could not be paid for is not delivered, so it is not charged."""
    dialect, events = events_of(name)
    for upto in range(1, len(events)):
        without = dialect.stream_meter(STREAMED, hide_usage=False)
        taken_back = dialect.stream_meter(STREAMED, hide_usage=False)
        for event in events[:upto]:
            without.take(event)
            taken_back.take(event)
        taken_back.take(events[upto])
        if measured:
            taken_back.measure()
        taken_back.untake()
        assert taken_back.content == without.content
        assert taken_back.extra_tokens == without.extra_tokens


@pytest.mark.parametrize("name", STREAMS)
def test_an_event_that_went_through_in_pieces_is_still_read(name: str) -> None:
    """The shell lets a tail beyond 64 kB through before it is whole; its figures count all the same."""
    dialect, events = events_of(name)
    whole = dialect.stream_meter(STREAMED, hide_usage=False)
    pieces = dialect.stream_meter(STREAMED, hide_usage=False)
    for event in events:
        whole.take(event)
        for piece in (event[: len(event) // 3], event[len(event) // 3 : -3], event[-3:]):
            pieces.take(piece)
    assert figures(pieces) == figures(whole)


def test_a_stream_with_a_piece_of_an_event_outside_cannot_be_ended_well() -> None:
    dialect, events = events_of("chat_stream.sse")
    meter = dialect.stream_meter(STREAMED, hide_usage=False)
    meter.take(events[0])
    meter.take(events[1][:50])
    assert meter.ending(REFUSAL) is None


def test_plain_events_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost per chunk: of 1,000 events of text a handful is parsed."""
    parses = 0
    parse = machinery.parsed

    def counting(raw: bytes | str) -> object:
        nonlocal parses
        parses += 1
        return parse(raw)

    monkeypatch.setattr(machinery, "parsed", counting)
    for meter, event in plain_streams():
        parses = 0
        for number in range(1_000):
            meter.take(event(f'word {number} "é"\n'))
        meter.measure()
        assert meter.content.bytes == sum(len(f'word {n} "é"\n'.encode()) for n in range(1_000))
        assert parses <= 5, type(meter).__name__


def plain_streams() -> list[tuple[StreamMeter, Callable[[str], bytes]]]:
    def chat(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        return f"data: {json.dumps({'id': 'c', 'choices': [choice]}, separators=(',', ':'))}\n\n".encode()

    def padded(text: str) -> bytes:
        return chat(text)[:-3] + b',"obfuscation":"' + b"x" * (len(text) % 7) + b'"}\n\n'

    def response(text: str) -> bytes:
        data = json.dumps({"type": "response.output_text.delta", "delta": text, "sequence_number": len(text)})
        return b"event: response.output_text.delta\ndata: " + data.replace('"delta": ', '"delta":').encode() + b"\n\n"

    def message(text: str) -> bytes:
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        data = json.dumps(delta, separators=(",", ":"), ensure_ascii=False)
        return f"event: content_block_delta\ndata: {data}\n\n".encode()

    return [
        (DIALECTS["openai.chat"].stream_meter(STREAMED, hide_usage=False), chat),
        (DIALECTS["openai.chat"].stream_meter(STREAMED, hide_usage=False), padded),
        (DIALECTS["openai.responses"].stream_meter(STREAMED, hide_usage=False), response),
        (DIALECTS["anthropic.messages"].stream_meter(STREAMED, hide_usage=False), message),
    ]


def test_text_that_looks_like_json_is_text() -> None:
    """A model that writes the very bytes around its text must not be misread."""
    for meter, event in plain_streams():
        nasty = [
            '"},"logprobs":null,"finish_reason":null}]}',
            '\\"',
            "\\",
            '"',
            '"usage":{"prompt_tokens":1}',
            '{"delta":"',
        ]
        for text in ["a", "b", "c", *nasty, "d"]:
            meter.take(event(text))
        meter.measure()
        assert meter.reading is None
        assert meter.content.bytes == len("abcd") + sum(len(text) for text in nasty)


def test_memory_of_a_stream_that_never_ends_stays_bounded() -> None:
    """T29: 20 MB of text leave counters, not text (responses keep up to 1 MB to repeat in a last event)."""
    for meter, event in plain_streams():
        raw = event("x" * 2_000)
        tracemalloc.start()
        for _ in range(10_000):
            meter.take(raw)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert used < 1_500_000, type(meter).__name__
