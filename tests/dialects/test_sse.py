"""The splitter gives whole events for bytes cut anywhere, and every byte exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.dialects.sse import Splitter, fields_of, is_event_stream

from .kit import in_two, one_by_one

TWO = b"event: a\ndata: 1\n\ndata: 2\n\n"


def pieces_of(parts: list[bytes]) -> list[bytes]:
    splitter = Splitter()
    events = [event for part in parts for event in splitter.split(part)]
    return [*events, rest] if (rest := splitter.rest()) else events


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_end_with_a_blank_line_of_any_kind(line_end: bytes) -> None:
    """T30."""
    raw = TWO.replace(b"\n", line_end)
    want = [one.replace(b"\n", line_end) for one in (b"event: a\ndata: 1\n\n", b"data: 2\n\n")]
    assert pieces_of([raw]) == want
    for at in range(len(raw)):
        assert b"".join(pieces_of(in_two(raw, at))) == raw
    if line_end != b"\r":
        assert pieces_of(one_by_one(raw)) == want


def test_mixed_line_ends_and_blank_lines_in_a_row() -> None:
    raw = b"data: 1\r\n\ndata: 2\n\r\n\n\ndata: 3\n\n"
    assert b"".join(pieces_of([raw])) == raw
    assert [fields_of(one)[1] for one in pieces_of([raw]) if fields_of(one)[1]] == [b"1", b"2", b"3"]


def test_an_event_is_given_out_as_soon_as_it_is_whole() -> None:
    splitter = Splitter()
    assert splitter.split(b"data: 1\n") == []
    assert splitter.kept == 8
    assert splitter.split(b"\ndata: 2") == [b"data: 1\n\n"]
    assert splitter.kept == 7
    assert splitter.rest() == b"data: 2"
    assert splitter.kept == 0


def test_utf8_may_be_cut_anywhere() -> None:
    """T30: the euro sign and the balloon in three and four pieces."""
    raw = "data: €🎈\n\n".encode()
    assert pieces_of(one_by_one(raw)) == [raw]


def test_fields_are_read_as_the_standard_says() -> None:
    """Several data lines join, one space is dropped, comments and other fields are not data, a BOM is none."""
    assert fields_of(b"\xef\xbb\xbfevent: x\nid: 7\n: hi\ndata: a\ndata:b\ndata:  c\ndata\n\n") == (b"x", b"a\nb\n c\n")
    assert fields_of(b": keepalive\n\n") == (b"", b"")


def test_a_large_event_in_small_pieces_takes_no_quadratic_time() -> None:
    """One searched byte is not searched again; 2 MB in 64-byte pieces would else take minutes."""
    splitter = Splitter()
    for _ in range(32_768):
        assert splitter.split(b"x" * 64) == []
    assert splitter.split(b"\n\n") == [b"x" * 64 * 32_768 + b"\n\n"]


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b":", b"e", b"\xc3"]), max_size=40), st.data())
def test_nothing_is_lost_or_changed(tokens: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(tokens)
    at = data.draw(st.integers(0, len(raw)))
    assert b"".join(pieces_of(in_two(raw, at))) == raw
    together, apart = pieces_of([raw]), pieces_of(in_two(raw, at))
    assert [fields_of(one) for one in together if fields_of(one)[1]] == [
        fields_of(one) for one in apart if fields_of(one)[1]
    ]


@pytest.mark.parametrize(
    "spelling",
    ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream;charset=UTF-8", " text/event-stream "],
)
def test_the_content_type_of_a_stream_may_be_spelled_in_any_way(spelling: str) -> None:
    assert is_event_stream(spelling)


@pytest.mark.parametrize("other", ["application/json", "", "text/plain; boundary=text/event-stream"])
def test_other_content_types_are_no_stream(other: str) -> None:
    assert not is_event_stream(other)
