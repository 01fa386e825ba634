"""Credits that are bought by themselves (T8): one purchase at a time, capped, and none after a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lava_middleware.core.commands import FailTopup, Grant, Report, SetTerms, StartTopup
from lava_middleware.core.decide import Conflict, Declined, Repeated
from lava_middleware.core.events import Granted, TopupFailed, TopupStarted
from lava_middleware.core.state import from_state, to_state
from lava_middleware.core.terms import Limit, Plan, Terms, TermsError, TopUp

from .history import CREDIT, History, granted, moment

TOP_UP = TopUp(below=2 * CREDIT, amount=10 * CREDIT, most=30 * CREDIT)


def customer(credits: int = 1, top_up: TopUp | None = TOP_UP, plan: Plan | None = None) -> History:
    history = History(moment("2026-09-10 12:00")).given(SetTerms(Terms(1, top_up=top_up, plan=plan)))
    return history.given(granted(credits)) if credits else history


def bought(history: History, key: str) -> History:
    """A purchase that works and is spent at once."""
    assert isinstance(history.event(StartTopup(key)), TopupStarted)
    return history.given(Grant(key, 10 * CREDIT), Report(f"spent {key}", 10 * CREDIT))


def no(history: History, key: str = "next", required: int = 0) -> str:
    answer = history.ask(StartTopup(key, required))
    assert isinstance(answer, Declined)
    return answer.reason


def test_a_purchase_begins_below_the_mark_and_is_written_before_anybody_is_asked_for_money() -> None:
    history = customer(2)
    assert no(history) == "topup_not_needed"
    history.given(Report("r", 1))
    event = history.event(StartTopup("t1"))
    assert event == TopupStarted("t1", 10 * CREDIT, "2026-09", moment("2026-10-01 00:00"))
    assert history.available == 2 * CREDIT - 1, "nothing is granted yet"
    assert isinstance(history.event(Grant("t1", 10 * CREDIT)), Granted)
    assert history.account.topup is None


def test_a_call_that_needs_more_than_there_is_begins_one_as_well() -> None:
    history = customer(5)
    assert no(history, required=5 * CREDIT) == "topup_not_needed"
    assert isinstance(history.event(StartTopup("t1", 5 * CREDIT + 1)), TopupStarted)


def test_there_is_one_purchase_at_a_time_whatever_the_key() -> None:
    history = customer().given(StartTopup("t1"))
    for key in ("t1", "t2"):
        answer = history.ask(StartTopup(key))
        assert isinstance(answer, Repeated)
        assert answer.event.key == "t1"  # type: ignore[union-attr]
    assert len(history.written(TopupStarted)) == 1


def test_after_a_crash_the_same_key_is_used_again() -> None:
    """Who comes next finds the purchase, and asks the payment provider with the key of the first time."""
    history = customer().given(StartTopup("t1"))
    history.account = from_state(to_state(history.account))
    answer = history.ask(StartTopup("another process's"))
    assert isinstance(answer, Repeated)
    assert (answer.event.key, answer.event.amount) == ("t1", 10 * CREDIT)  # type: ignore[union-attr]
    history.given(Grant("t1", 10 * CREDIT))
    assert isinstance(history.ask(Grant("t1", 10 * CREDIT)), Repeated), "both processes heard of the payment"
    assert history.available == 11 * CREDIT


def test_a_grant_of_somebody_elses_leaves_the_purchase_under_way() -> None:
    history = customer().given(StartTopup("t1"), granted(50, key="gift"))
    assert history.account.topup is not None


def test_a_period_has_a_cap_and_the_refusal_says_until_when() -> None:
    history = customer(0)
    for number in range(3):
        bought(history, f"t{number}")
    answer = history.ask(StartTopup("t3"))
    assert isinstance(answer, Declined)
    assert (answer.reason, answer.resets_at) == ("topup_capped", moment("2026-10-01 00:00"))
    bought(history.at(moment("2026-10-01 00:00")), "t4")


def test_a_cap_that_is_no_multiple_of_the_amount_is_not_passed() -> None:
    history = bought(customer(0, replace(TOP_UP, most=19 * CREDIT)), "t0")
    assert no(history) == "topup_capped"


@pytest.mark.parametrize("window", ["day", "week", "year", "lifetime"])
def test_the_period_is_the_operators_choice(window: str) -> None:
    history = bought(customer(0, replace(TOP_UP, most=10 * CREDIT, window=window)), "t0")
    history.at(moment("2026-09-10 23:00"))
    assert no(history) == "topup_capped"
    history.at(moment("2027-01-05 00:00"))
    if window == "lifetime":
        assert no(history) == "topup_capped"
    else:
        bought(history, "t1")


def test_a_longer_period_that_begins_on_the_same_day_goes_on_counting() -> None:
    """T8: a day and the week that begins on it have one name; the counter does not leave with the day."""
    history = History(moment("2026-09-21 10:00"))
    daily = replace(TOP_UP, most=10 * CREDIT, window="day")
    history.given(SetTerms(Terms(1, (Limit("calls", "requests", 100, "hour"),), top_up=daily)))
    bought(history, "t1")
    history.given(SetTerms(history.account.terms.changed(top_up=replace(daily, window="week"))))
    assert no(history) == "topup_capped"
    history.at(moment("2026-09-23 10:00")).given(Report("opens another counter", 0))
    assert no(history) == "topup_capped"
    bought(history.at(moment("2026-09-28 00:00")), "t2")


class TestFailure:
    def test_a_failure_stops_further_tries(self) -> None:
        history = customer().given(StartTopup("t1"))
        assert history.event(FailTopup("t1", "card declined")) == TopupFailed("t1", "card declined")
        assert no(history) == "topup_failed"
        assert no(history.at(moment("2026-12-01 00:00"))) == "topup_failed", "time does not heal it"

    def test_until_somebody_grants(self) -> None:
        history = customer(0).given(StartTopup("t1"), FailTopup("t1"), granted(1, key="by hand"))
        assert isinstance(history.event(StartTopup("t2")), TopupStarted)

    def test_or_the_terms_change(self) -> None:
        history = customer().given(StartTopup("t1"), FailTopup("t1"))
        history.given(SetTerms(history.account.terms.with_limit(Limit("l", "tokens", 1))))
        assert isinstance(history.event(StartTopup("t2")), TopupStarted)

    def test_terms_that_are_to_follow_do_not_heal_it_before_they_do(self) -> None:
        history = customer().given(StartTopup("t1"), FailTopup("t1"))
        later = history.account.terms.changed(top_up=replace(TOP_UP, amount=CREDIT))
        history.given(SetTerms(later, moment("2026-09-20 00:00")))
        assert no(history) == "topup_failed"
        history.at(moment("2026-09-20 00:00"))
        assert isinstance(history.event(StartTopup("t2")), TopupStarted)

    def test_what_failed_counts_against_the_cap(self) -> None:
        history = customer(0, replace(TOP_UP, most=10 * CREDIT)).given(StartTopup("t1"), FailTopup("t1"))
        history.given(granted(1, key="by hand"))
        assert no(history) == "topup_capped"

    def test_a_failure_is_told_once_and_only_of_what_is_under_way(self) -> None:
        history = customer(0).given(StartTopup("t1"))
        first = history.event(FailTopup("t1", "declined"))
        assert history.ask(FailTopup("t1", "declined")) == Repeated(first)
        with pytest.raises(Conflict):
            history.ask(FailTopup("t2"))
        with pytest.raises(Conflict, match="ended"):
            history.given(granted(1, key="by hand")).ask(StartTopup("t1"))

    def test_what_was_paid_cannot_fail_and_what_failed_may_still_be_paid(self) -> None:
        history = customer().given(StartTopup("t1"), Grant("t1", 10 * CREDIT))
        with pytest.raises(Conflict):
            history.ask(FailTopup("t1"))
        history = customer().given(StartTopup("t1"), FailTopup("t1", "time-out"), Grant("t1", 10 * CREDIT))
        assert history.available == 11 * CREDIT
        assert not history.account.topups_stopped


def test_without_terms_for_it_nothing_is_bought() -> None:
    assert no(customer(0, None)) == "topup_off"
    assert no(History()) == "topup_off"


def test_nothing_is_bought_for_a_customer_who_is_suspended() -> None:
    history = customer()
    history.given(SetTerms(history.account.terms.changed(suspended=True)))
    assert no(history) == "customer_suspended"


def test_who_may_go_on_by_overage_buys_nothing() -> None:
    assert no(customer(0, plan=Plan("p", 0, overage=None))) == "topup_not_needed"
    assert isinstance(customer(0, plan=Plan("p", 0, overage=CREDIT)).event(StartTopup("t")), TopupStarted)


def test_debt_is_paid_first_by_what_was_bought() -> None:
    history = customer(0).given(Report("r", 4 * CREDIT), StartTopup("t1"))
    event = history.event(Grant("t1", 10 * CREDIT))
    assert isinstance(event, Granted)
    assert (event.debt_repaid, history.available) == (4 * CREDIT, 6 * CREDIT)


@pytest.mark.parametrize(
    "wrong", [{"amount": 0}, {"amount": 31 * CREDIT}, {"below": -1}, {"window": "cycle"}, {"window": "fortnight"}]
)
def test_a_top_up_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TermsError, match="top-up"):
        replace(TOP_UP, **wrong)
