"""A JSON array that grows is cut into its elements, whatever is in them and wherever its bytes are cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.intent import Intent
from lava_middleware.dialects.json_array import ArraySplitter
from lava_middleware.providers.spoken import GENERATE_STREAM

from .kit import BODIES, figures

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='{}[]",\\ü\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='{}"]\\', max_size=3), inner),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=2), values, max_size=3), max_size=4)


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(raw)) for cut in cuts})
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]


@given(objects, st.sampled_from([",", "\n,\r\n"]), st.booleans(), st.lists(st.integers(0, 400), max_size=8))
def test_elements_come_out_whole_and_nothing_is_lost(
    items: list[Any], between: str, pretty: bool, cuts: list[int]
) -> None:
    """T30."""
    raw = ("[" + between.join(json.dumps(one, indent=2 if pretty else None) for one in items) + "\n]").encode()
    splitter = ArraySplitter()
    events = [event for piece in pieces_of(raw, cuts) for event in splitter.split(piece)]
    assert b"".join(events) + splitter.rest() == raw
    *elements, end = events
    assert end.strip(b"[ \n") == b"]"
    assert [json.loads(one.strip(b"[, \r\n")) for one in elements] == items


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_any_bytes_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    splitter = ArraySplitter()
    passed = b"".join(event for piece in pieces for event in splitter.split(piece))
    assert passed + splitter.rest() == b"".join(pieces)


def test_one_large_element_is_looked_at_once(rng: random.Random) -> None:
    """T29: a picture of a megabyte in pieces; each byte is searched once."""
    splitter = ArraySplitter()
    splitter.split(b'[{"data":"')
    for _ in range(64):
        splitter.split(b"A" * 1_024)
        assert splitter._at == splitter.kept
    assert len(splitter.split(b'"}')) == 1


@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
def test_elements_that_went_through_in_pieces_still_count(size: int) -> None:
    """A tail beyond what is kept back is passed on as it comes; the figures are the same."""
    raw = (BODIES / "gemini_stream.array").read_bytes()
    whole = GENERATE_STREAM.stream_meter(Intent("chat", "m", stream=True), hide_usage=False)
    for event in whole.split(raw):
        whole.take(event)
    meter = GENERATE_STREAM.stream_meter(Intent("chat", "m", stream=True), hide_usage=False)
    passed = []
    for at in range(0, len(raw), size):
        for event in meter.split(raw[at : at + size]):
            passed.append(meter.take(event))
        if rest := meter.rest():
            passed.append(meter.take(rest))
    assert b"".join(one for one in passed if one is not None) == raw
    whole.measure()
    meter.measure()
    assert figures(meter) == figures(whole)
