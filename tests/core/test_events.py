"""What is written in the journal stays readable for ever."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.account import Account, evolve, from_state, to_state
from lava_middleware.core.events import (
    Adjusted,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Reported,
    Settled,
    TermsSet,
    UnknownKind,
    Voided,
    decode,
    encode,
)
from lava_middleware.core.terms import Limit, Terms

RECORDED = pathlib.Path(__file__).parent / "recorded"

ticks = st.integers(-(2**61), 2**61)
text = st.text(max_size=20)
draws = st.lists(st.tuples(st.integers(1, 10**9), ticks), max_size=3).map(tuple)
counts = st.lists(st.tuples(text, text, ticks), max_size=3).map(tuple)
scopes = st.lists(st.tuples(text, text), max_size=3).map(tuple)
moments = st.none() | st.integers(0, 2**53)
terms = st.builds(
    lambda version, quantity: Terms(version, (Limit("tokens/month", "tokens", quantity, "month", "Europe/Berlin"),)),
    st.integers(0, 99),
    st.integers(0, 2**52),
)
events = st.one_of(
    st.builds(Granted, text, ticks, st.just("plan"), st.integers(-9, 9), moments, moments, ticks),
    st.builds(Held, text, text, ticks, draws, st.integers(0, 10**6), ticks, ticks, counts, scopes),
    st.builds(Extended, text, ticks, draws, st.integers(0, 10**6), counts),
    st.builds(
        Settled,
        text,
        ticks,
        draws,
        ticks,
        ticks,
        st.none() | st.text(min_size=1),
        ticks,
        draws,
        counts,
        counts,
        st.booleans(),
    ),
    st.builds(Voided, text, text, draws),
    st.builds(Reported, text, ticks, draws, ticks, ticks, counts, counts),
    st.builds(Adjusted, text, ticks, draws, ticks, st.just("top_up"), ticks, counts, counts),
    st.builds(Lapsed, draws),
    st.builds(TermsSet, terms),
)


@given(events)
def test_every_event_survives_being_written_and_read(event: Event) -> None:
    written = encode(event)
    assert decode(event.kind, written) == event


@given(events)
def test_what_is_put_together_by_hand_is_what_the_json_module_writes(event: Event) -> None:
    written = encode(event)
    assert written == json.dumps(json.loads(written), ensure_ascii=False, separators=(",", ":"))


@given(events)
def test_the_journal_holds_no_floats(event: Event) -> None:
    """T24."""

    def refuse(number: str) -> float:
        raise AssertionError(f"a float in the journal: {number}")

    json.loads(encode(event), parse_float=refuse)


def test_an_unknown_kind_is_refused_and_never_skipped() -> None:
    with pytest.raises(UnknownKind, match="upgrade"):
        decode("settled.2", "{}")


def test_a_field_unknown_to_this_release_is_refused_and_never_skipped() -> None:
    with pytest.raises(UnknownKind, match="upgrade"):
        decode("voided.1", '{"hold":"h","reason":"r","surprise":1}')


@pytest.mark.parametrize("path", sorted(RECORDED.glob("journal-*.jsonl")), ids=lambda path: path.stem)
def test_a_journal_written_by_an_earlier_release_folds_to_the_same_account(path: pathlib.Path) -> None:
    """The first line is the account that the release folded; the others are its entries. Files are only ever added."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    account = Account()
    for line in lines:
        entry = json.loads(line)
        evolve(account, decode(entry["kind"], entry["event"]), entry["at"])
    assert to_state(account) == first
    assert from_state(first) == account


def test_every_kind_of_this_release_is_in_a_recorded_journal() -> None:
    kinds = {
        json.loads(line)["kind"]
        for path in RECORDED.glob("journal-*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()[1:]
    }
    written = (Granted, Held, Extended, Settled, Voided, Reported, Adjusted, Lapsed, TermsSet)
    assert kinds >= {made.kind for made in written}
