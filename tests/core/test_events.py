"""What is written in the journal stays readable for ever."""

from __future__ import annotations

import json
import pathlib
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.account import Account
from lava_middleware.core.events import (
    Adjusted,
    Crossed,
    Cycled,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Repaid,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    UnknownKind,
    Voided,
    decode,
    encode,
)
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import from_state, to_state
from lava_middleware.core.terms import Limit, Plan, Terms, TopUp

RECORDED = pathlib.Path(__file__).parent / "recorded"

ticks = st.integers(-(2**61), 2**61)
text = st.text(max_size=20)
draws = st.lists(st.tuples(st.integers(1, 10**9), ticks), max_size=3).map(tuple)
counts = st.lists(st.tuples(text, text, ticks), max_size=3).map(tuple)
metered = st.lists(st.tuples(text, text, ticks, ticks), max_size=2).map(tuple)
scopes = st.lists(st.tuples(text, text), max_size=3).map(tuple)
moments = st.none() | st.integers(0, 2**53)
limits = st.builds(
    Limit,
    st.sampled_from(["tokens/month", "ü"]),
    st.sampled_from(["tokens", "pages"]),
    st.integers(0, 2**52),
    st.sampled_from(["minute", "cycle"]),
    st.sampled_from(["UTC", "Europe/Berlin"]),
    st.sampled_from(["", "2026-01-31"]),
    st.sampled_from([(), (("model", "m"), ("user", "ü"))]),
    st.sampled_from(["", "user"]),
    st.sampled_from(["block", "warn"]),
    st.booleans(),
    st.sampled_from([(), (50, 80)]),
)
amounts = st.integers(0, 2**60)
plans = st.builds(
    Plan,
    st.sampled_from(["pro", "ü"]),
    amounts,
    st.sampled_from(["day", "month"]),
    st.sampled_from(["", "2026-01-31"]),
    st.sampled_from(["UTC", "Europe/Berlin"]),
    st.none() | amounts,
    st.none() | amounts,
    st.sampled_from([None, (), ("chat",)]),
    st.sampled_from([None, ("gpt-4o*",)]),
)
top_ups = st.builds(TopUp, amounts, st.just(5), st.just(50), st.sampled_from(["month", "day"]))
terms = st.builds(
    Terms,
    *(st.integers(0, 99), st.lists(limits, max_size=2).map(tuple), st.none() | plans, st.none() | top_ups),
    *(st.booleans(), st.integers(0, 9), st.sampled_from([(), ("tokens/month",)])),
)
events = st.one_of(
    st.builds(Granted, text, ticks, st.just("plan"), st.integers(-9, 9), moments, moments, ticks),
    st.builds(Held, text, text, ticks, draws, st.integers(0, 10**6), ticks, ticks, counts, scopes, metered, draws),
    st.builds(Extended, text, ticks, draws, st.integers(0, 10**6), counts, metered, draws),
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
        metered,
        draws,
        draws,
    ),
    st.builds(Voided, text, text, draws, draws),
    st.builds(Reported, text, ticks, draws, ticks, ticks, counts, counts, metered, draws, scopes, draws),
    st.builds(
        Adjusted,
        *(text, ticks, draws, ticks, st.just("top_up"), ticks, counts, counts, st.integers(0, 16), metered),
        *(text, text, scopes, draws),
    ),
    st.builds(Repaid, draws),
    st.builds(Lapsed, draws, ticks),
    st.builds(
        Cycled,
        *(text, text, ticks, ticks, ticks, st.tuples(text, text, text), draws, ticks, ticks, ticks),
        *(st.none() | ticks, ticks, ticks, st.none() | ticks, st.none() | ticks, ticks),
    ),
    st.builds(TermsSet, terms, moments),
    st.builds(RunStarted, text, text, st.none() | ticks, st.none() | ticks, ticks, draws),
    st.builds(RunEnded, text, st.booleans(), draws),
    st.builds(Crossed, text, text, st.integers(1, 1000), ticks, ticks, text),
    st.builds(TopupStarted, text, ticks, text, ticks),
    st.builds(TopupFailed, text, text),
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
    state = to_state(account)
    assert (_as_in_format_1(state) if path.stem == "journal-1" else json.loads(state)) == json.loads(first)
    assert from_state(to_state(account)) == account


def _as_in_format_1(state: str) -> list[Any]:
    """What a state of today says in the words of the first release's."""
    version, at, terms, credits, holds, counters, sums, *_ = json.loads(state)
    return [
        version,
        at,
        [terms["version"], terms["limits"]],
        credits,
        [hold[:10] for hold in holds],
        [counter[:6] for counter in counters],
        sums,
    ]


def test_every_kind_of_this_release_is_in_a_recorded_journal() -> None:
    kinds = {
        json.loads(line)["kind"]
        for path in RECORDED.glob("journal-*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()[1:]
    }
    assert kinds == {made.kind for made in get_args(Event)}
