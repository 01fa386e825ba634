"""Sums stay within their bounds (T24): what nobody could add up is refused before it is written, and an ending, which
cannot be refused, is borne by the operator as far as no account can keep it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lava_middleware.core.balance import balance_of
from lava_middleware.core.commands import Adjust, Grant, Post, Report, SetTerms, Settle
from lava_middleware.core.decide import Repeated
from lava_middleware.core.events import Adjusted, Cycled, Settled
from lava_middleware.core.money import LARGEST, AmountError
from lava_middleware.core.terms import NO_TERMS, Plan

from .history import CREDIT, History, call, granted

HUGE = 400_000_000 * CREDIT
MOST = LARGEST - 1


def refused(history: History, *commands: object) -> None:
    """Each of them, once and again, and nothing is written."""
    before = len(history.events)
    for command in (*commands, *commands):
        with pytest.raises(AmountError):
            history.ask(command)  # type: ignore[arg-type]
    assert len(history.events) == before
    assert balance_of(history.account, history.now)


def test_a_debt_that_no_account_can_keep_is_refused_and_what_it_can_is_not() -> None:
    history = History().given(Report("r1", HUGE))
    post = Post("p1", HUGE), Post("r1:1", HUGE, adjusts="r1")
    refused(history, Report("r2", HUGE), Adjust("a1", "r1", HUGE), *post)
    history.given(Report("r2", MOST - HUGE))
    assert history.account.debt == MOST
    refused(history, Report("r3", 1))
    assert isinstance(history.ask(Report("r1", HUGE)), Repeated)
    assert isinstance(history.ask(Report("r2", MOST - HUGE)), Repeated)
    history.given(Grant("g", HUGE), Report("r3", 1))
    assert history.account.debt == MOST - HUGE + 1


def test_an_overage_counts_as_owed_used_or_held() -> None:
    plan = Plan("p", 0, overage=HUGE)
    history = History().given(SetTerms(NO_TERMS.changed(plan=plan)), call(fixed=HUGE))
    refused(history, Report("r", HUGE))
    history.given(Settle("h", HUGE, 0, 0))
    refused(history, Report("r", HUGE))
    assert balance_of(history.account, history.now).overage_used.ticks == HUGE


def test_credit_that_no_account_can_keep_is_refused_and_a_repeated_grant_is_not() -> None:
    history = History().given(Grant("g1", HUGE))
    refused(history, Grant("g2", HUGE))
    assert isinstance(history.ask(Grant("g1", HUGE)), Repeated)


def test_a_refund_that_no_account_can_keep_is_refused() -> None:
    history = History().given(Grant("g1", HUGE), Report("r", HUGE), Grant("g2", HUGE))
    refused(history, Adjust("a", "r", -HUGE), Post("r:1", -HUGE, adjusts="r"))
    history.given(Report("spent", HUGE), Adjust("a", "r", -HUGE))
    assert history.available == HUGE


def test_what_an_ended_call_owes_beyond_what_an_account_can_keep_is_borne_and_told() -> None:
    """T14: it happened, so it is written, whatever the figure."""
    history = History().given(granted(10), call(fixed=CREDIT), Report("r", HUGE))
    settle = Settle("h", HUGE, 0, 0, "undercounted")
    event = history.event(settle)
    assert isinstance(event, Settled)
    assert (event.charge + event.absorbed, event.overrun, event.cause) == (HUGE, HUGE - CREDIT, "undercounted")
    assert (history.account.debt, event.absorbed > 0) == (MOST, True)
    assert isinstance(history.ask(settle), Repeated)
    assert balance_of(history.account, history.now).debt.ticks == MOST


def test_and_so_is_what_an_owner_says_late() -> None:
    history = History().given(granted(1), call(), Settle("h", CREDIT, 0, 0, lost_owner=True), Report("r", HUGE))
    event = history.event(Settle("h", HUGE, 0, 0))
    assert isinstance(event, Adjusted)
    assert event.charge + event.absorbed == HUGE - CREDIT
    assert history.account.debt == MOST


def test_what_an_owner_gives_back_late_fills_the_account_and_no_more() -> None:
    history = History().given(Grant("g1", HUGE), call(fixed=HUGE), Settle("h", HUGE, 0, 0, lost_owner=True))
    history.given(Grant("g2", HUGE))
    event = history.event(Settle("h", 0, 0, 0))
    assert isinstance(event, Adjusted)
    assert (event.charge, history.available) == (HUGE - MOST, MOST)


def test_the_next_cycle_of_a_full_account_adds_what_there_is_room_for() -> None:
    history = History().given(Grant("g", HUGE), SetTerms(NO_TERMS.changed(plan=replace(Plan("p", HUGE)))))
    history.bring_up_to_date()
    assert history.written(Cycled)[-1].amount == MOST - HUGE
    assert balance_of(history.account, history.now).available.ticks == MOST


def test_a_charge_beyond_all_bounds_ends_its_call_as_well() -> None:
    history = History().given(granted(10), call(fixed=CREDIT))
    event = history.event(Settle("h", 10 * LARGEST, 0, 0, "undercounted"))
    assert isinstance(event, Settled)
    assert event.charge + event.absorbed == 10 * LARGEST
    assert (history.account.debt, history.account.holds) == (MOST - 10 * CREDIT, {})
