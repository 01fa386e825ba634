"""A record that another ledger decided is posted here once, to the tick, whatever this ledger's grants can pay."""

from __future__ import annotations

import json

import pytest

from lava_middleware.core.carry import NewerRecord, UnreadableRecord, carry, posting
from lava_middleware.core.commands import Grant, Post, Report, SetTerms, Void
from lava_middleware.core.decide import Conflict, Decision, Repeated
from lava_middleware.core.events import Adjusted, Event, Reported, Settled
from lava_middleware.core.record import Facts, Record, record_of
from lava_middleware.core.terms import NO_TERMS, Limit

from .history import CREDIT, History, call, granted, settled


def test_it_is_paid_as_a_report_is_by_the_grants_of_this_ledger_and_the_rest_is_debt() -> None:
    history = History().given(granted(3))
    event = history.event(Post("r", 5 * CREDIT, 10, 20))
    assert event == Reported("r", 5 * CREDIT, draws=((1, 3 * CREDIT),), debt=2 * CREDIT)
    assert history.available == -2 * CREDIT


def test_limits_count_it() -> None:
    history = History().given(granted(3), SetTerms(NO_TERMS.with_limit(Limit("t", "tokens", 100, "month"))))
    event = history.event(Post("r", 1, 100, 20))
    assert isinstance(event, Reported)
    assert [quantity for _, _, quantity in event.counts] == [120]
    assert [quantity for _, _, quantity in event.over] == [20]


def test_posting_it_again_changes_nothing_and_another_charge_under_its_id_is_a_conflict() -> None:
    """T15."""
    history = History().given(granted(3), Post("r", CREDIT))
    assert isinstance(history.ask(Post("r", CREDIT)), Repeated)
    with pytest.raises(Conflict):
        history.ask(Post("r", CREDIT + 1))
    assert history.available == 2 * CREDIT


@pytest.mark.parametrize("of_its_own", ["settled", "reported"])
def test_a_record_of_this_very_ledger_is_known_by_its_id(of_its_own: str) -> None:
    """T15: spans that come back to the ledger they were made from bill nothing twice."""
    history = History().given(granted(3))
    if of_its_own == "settled":
        history.given(call("h"), settled("h", charge=CREDIT))
    else:
        history.given(Report("h", CREDIT))
    assert isinstance(history.ask(Post("h", CREDIT)), Repeated)
    assert history.available == 2 * CREDIT


def test_a_hold_that_was_given_back_here_is_not_billed_by_a_record_from_elsewhere() -> None:
    history = History().given(granted(3), call("h"), Void("h", "rejected"))
    with pytest.raises(Conflict):
        history.ask(Post("h", CREDIT))


def test_an_adjustment_gives_back_to_the_grant_that_paid_and_again_changes_nothing() -> None:
    history = History().given(granted(3), Post("r", 2 * CREDIT))
    event = history.event(Post("r:late", -CREDIT, adjusts="r"))
    assert event == Adjusted("r", -CREDIT, draws=((1, -CREDIT),))
    assert history.available == 2 * CREDIT
    assert isinstance(history.ask(Post("r:late", -CREDIT, adjusts="r")), Repeated)


def test_an_adjustment_that_comes_before_what_it_adjusts_comes_to_the_same() -> None:
    """Spans keep no order."""
    history = History().given(granted(3), Post("r:late", -CREDIT, adjusts="r"))
    assert history.available == 4 * CREDIT
    history.given(Post("r", 2 * CREDIT))
    assert history.available == 2 * CREDIT


def test_an_adjustment_upwards_is_drawn_and_one_downwards_cancels_debt_first() -> None:
    history = History().given(Post("r", 2 * CREDIT), Post("r:late", CREDIT, adjusts="r"))
    assert history.available == -3 * CREDIT
    history.given(Post("s", CREDIT), Post("s:late", -CREDIT, adjusts="s"))
    assert history.available == -3 * CREDIT
    history.given(Grant("g", 4 * CREDIT))
    assert history.available == CREDIT


def test_two_adjustments_give_each_grant_back_what_it_paid_and_no_more() -> None:
    """The second one knows what the first has given back. It gave the same grant twice its due."""
    history = History().given(Grant("a", 2, "promo"), Grant("b", 9), Post("r", 5))
    one = history.event(Post("r:1", -3, adjusts="r"))
    two = history.event(Post("r:2", -2, adjusts="r"))
    assert one == Adjusted("r", -3, draws=((2, -3),), number=1, key="r:1")
    assert two == Adjusted("r", -2, refund=2, category="promo", number=2, key="r:2")
    assert {credit.grant: credit.remaining for credit in history.account.credits} == {2: 9, history.account.version: 2}
    for again in (Post("r:1", -3, adjusts="r"), Post("r:2", -2, adjusts="r")):
        assert isinstance(history.ask(again), Repeated)


def test_an_adjustment_cancels_debt_only_of_the_record_that_it_adjusts() -> None:
    """And debt that an earlier one has cancelled is not there to be cancelled again."""
    history = History().given(granted(1), Post("r", 3 * CREDIT), Post("s", CREDIT))
    history.given(Post("r:1", -2 * CREDIT, adjusts="r"))
    assert history.account.debt == CREDIT
    event = history.event(Post("r:2", -CREDIT, adjusts="r"))
    assert event == Adjusted("r", -CREDIT, refund=CREDIT, category="top_up", number=2, key="r:2")


# How it is carried ---------------------------------------------------------------------------------------------------

FACTS = Facts(
    id="x1", provider="openai", model="gpt-4o", usage={"input": 3, "output": 2}, basis="reported", cost=4,
    lines=(("input", 3, 7),), user="u1", tags=(("team", "Ünïted"),), request_id="req", ended=9,
)  # fmt: skip


def record(event: Event, facts: Facts | None = FACTS, *, seq: int = 3) -> Record:
    made = record_of(
        event, facts.to_json() if facts else None, customer="acme", at=100, seq=seq, balance_after=10 * CREDIT
    )
    assert made is not None
    return made


def posted(first: Record) -> Record:
    """The record as it stands in a second ledger without any grant."""
    customer, command, text = posting(carry(first))
    history = History()
    decision: Decision = history.ask(command)
    assert isinstance(decision, list)
    made = record_of(decision[-1], text, customer=customer, at=999, seq=77, balance_after=0)
    assert made is not None
    return made


OWN = {"seq", "balance_after", "debt", "posted"}
"""What each ledger says for itself."""


@pytest.mark.parametrize(
    "event",
    [
        Settled("x1", CREDIT),
        Settled("x1", CREDIT, overrun=7, cause="cap_ignored", debt=3),
        Settled("x1", CREDIT, overrun=7, cause="late", absorbed=7),
        Settled("x1", CREDIT, lost_owner=True),
        Reported("x1", CREDIT, debt=CREDIT),
        Reported("x1", CREDIT, forgiven=5),
        Adjusted("x1", -CREDIT),
        Adjusted("x1", CREDIT),
    ],
    ids=["settled", "overrun", "absorbed", "expired", "reported", "forgiven", "given back", "adjusted"],
)
@pytest.mark.parametrize("facts", [FACTS, None], ids=["with facts", "without"])
def test_a_record_is_the_same_in_the_second_ledger_and_in_the_third(event: Event, facts: Facts | None) -> None:
    first = record(event, facts)
    second = posted(first)
    third = posted(second)
    for other in (second, third):
        assert (other.id, other.kind, other.at, other.charge, other.cost) == (
            first.id, first.kind, first.at, first.charge, first.cost,
        )  # fmt: skip
        assert {name: value for name, value in other.to_dict().items() if name not in OWN} == {
            name: value for name, value in first.to_dict().items() if name not in OWN
        }
    assert third.facts["posted"] == second.facts["posted"]
    assert second.facts["posted"]["debt"] == first.debt.ticks


def test_an_unheld_call_keeps_its_cause() -> None:
    facts = Facts(id="x1", unheld="ledger_unavailable")
    second = posted(record(Reported("x1", 5, debt=5), facts))
    assert (second.overrun_cause, second.overrun.ticks) == ("unheld", 5)


@pytest.mark.parametrize(
    "change",
    [
        {"charge": -1}, {"charge": 1.5}, {"charge": True}, {"charge": 2**62}, {"charge": "5"}, {"id": ""}, {"id": 7},
        {"customer": ""}, {"customer": "a" * 601}, {"kind": "granted"}, {"kind": "adjusted"}, {"adjusts": "x"},
        {"facts": []}, {"facts": {"usage": {"input": -1}}}, {"facts": {"usage": {"input": 0.5}}}, {"facts": None},
        {"form": "1"}, {"form": True}, {"at": None}, {"cause": 5},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_record_is_not_posted(change: dict[str, object]) -> None:
    """T24: no floats, no negative charges, no overflow."""
    carried = json.loads(carry(record(Settled("x1", CREDIT)))) | change
    with pytest.raises(UnreadableRecord):
        posting(json.dumps(carried))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"form": 1}', " " * 200_001])
def test_what_is_no_json_is_not_posted(text: str) -> None:
    with pytest.raises(UnreadableRecord):
        posting(text)


def test_the_form_of_a_newer_release_is_told_apart_from_nonsense() -> None:
    carried = json.loads(carry(record(Settled("x1", CREDIT)))) | {"form": 2}
    with pytest.raises(NewerRecord):
        posting(json.dumps(carried))
