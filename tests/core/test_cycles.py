"""Plans: what is included in each cycle, what goes over, what may be overdrawn, and how plans follow one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lava_middleware.core.account import Account
from lava_middleware.core.agreements import as_of
from lava_middleware.core.balance import balance_of
from lava_middleware.core.commands import EndRun, Grant, Report, SetTerms, Settle, StartRun, Void
from lava_middleware.core.decide import Conflict, Declined, Repeated, decide
from lava_middleware.core.events import Adjusted, Cycled, Held, Lapsed, Repaid, Settled, TermsSet
from lava_middleware.core.money import LARGEST
from lava_middleware.core.terms import NO_TERMS, Limit, Plan, Terms, TermsError

from .history import CREDIT, History, call, granted, moment, settled

DAY = 86_400_000_000
BASIC = Plan("basic", 10 * CREDIT)


def terms(plan: Plan | None, before: Terms = NO_TERMS, **more: Any) -> SetTerms:
    schedule = {name: more.pop(name) for name in ("effective", "at_cycle_end") if name in more}
    return SetTerms(before.changed(plan=plan, **more), **schedule)


def on(plan: Plan, start: str = "2026-09-10 12:00") -> History:
    """A customer on this plan."""
    history = History(moment(start))
    history.given(terms(plan))
    history.bring_up_to_date()
    return history


def change(history: History, plan: Plan | None, **more: Any) -> History:
    history.given(terms(plan, history.account.terms, **more))
    history.bring_up_to_date()
    return history


class TestCycles:
    def test_a_plan_begins_at_once_with_its_credits_until_the_cycle_ends(self) -> None:
        history = on(BASIC)
        assert history.available == 10 * CREDIT
        cycle = history.account.cycle
        assert cycle is not None
        assert (cycle.id, cycle.ends) == ("2026-09", moment("2026-10-01 00:00"))

    def test_what_is_left_lapses_and_the_new_credits_come_with_the_first_look(self) -> None:
        history = on(BASIC).given(call(fixed=4 * CREDIT), settled(charge=4 * CREDIT))
        assert as_of(history.account, moment("2026-09-30 23:59")).available(moment("2026-09-30 23:59")) == 6 * CREDIT
        edge = moment("2026-10-01 00:00")
        assert as_of(history.account, edge).available(edge) == 10 * CREDIT, "no job has to run"
        history.at(edge)
        cycled = history.written(Cycled)[-1]
        assert (cycled.lapsed, cycled.amount, cycled.rolled) == (6 * CREDIT, 10 * CREDIT, 0)

    @pytest.mark.parametrize(
        ("rollover", "second", "third"), [(0, 10, 10), (None, 16, 26), (3 * CREDIT, 13, 13), (12 * CREDIT, 16, 22)]
    )
    def test_rollover_is_none_full_or_capped(self, rollover: int | None, second: int, third: int) -> None:
        history = on(replace(BASIC, rollover=rollover)).given(call(fixed=4 * CREDIT), settled(charge=4 * CREDIT))
        assert history.at(moment("2026-10-05 00:00")).available == second * CREDIT
        assert history.at(moment("2026-11-05 00:00")).available == third * CREDIT

    def test_only_the_cycles_own_credits_go_over(self) -> None:
        history = on(replace(BASIC, rollover=None)).given(granted(5), granted(2, key="promo", category="promo"))
        assert history.at(moment("2026-10-05 00:00")).available == 27 * CREDIT
        assert history.written(Cycled)[-1].rolled == 10 * CREDIT

    def test_the_cycle_of_a_plan_anchored_on_the_31st(self) -> None:
        history = on(replace(BASIC, anchor="2026-01-31"), "2027-01-31 00:00")
        for edge in ("2027-02-28", "2027-03-31", "2027-04-30"):
            before = len(history.written(Cycled))
            history.at(moment(f"{edge} 00:00") - 1)
            assert len(history.written(Cycled)) == before
            history.at(moment(f"{edge} 00:00"))
            assert history.written(Cycled)[-1].id == edge

    @pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Europe/Berlin"])
    def test_cycles_follow_the_customers_own_calendar(self, zone: str) -> None:
        history = on(replace(BASIC, zone=zone), "2026-10-15 00:00")
        edge = moment("2026-11-01 00:00", zone)
        history.at(edge - 1).given(call(fixed=10 * CREDIT))
        assert history.now == edge
        assert history.written(Cycled)[-1].id == "2026-11", "the call itself was on the edge"

    def test_a_yearly_plan_of_the_29th_of_february(self) -> None:
        history = on(Plan("year", CREDIT, "year", "2024-02-29"), "2026-06-01 00:00")
        assert history.at(moment("2027-02-27 23:59")).account.cycle.id == "2026-02-28"  # type: ignore[union-attr]
        assert history.at(moment("2027-02-28 00:00")).account.cycle.id == "2027-02-28"  # type: ignore[union-attr]

    def test_a_date_that_a_zone_skipped_is_no_cycle(self) -> None:
        """Samoa had no 30th of December 2011: a daily plan has one cycle less, and nobody is given credits for it."""
        plan = Plan("daily", CREDIT, "day", zone="Pacific/Apia", rollover=None)
        history = on(plan, "2011-12-28 12:00")
        history.at(moment("2012-01-01 12:00", "Pacific/Apia"))
        assert history.account.cycle.id == "2012-01-01"  # type: ignore[union-attr]
        assert history.available == 4 * CREDIT, "of the 28th, the 29th, the 31st and the first"

    def test_a_host_with_other_time_zone_data_does_not_begin_a_cycle_twice(self) -> None:
        history = on(BASIC)
        assert history.account.cycle is not None
        history.account.cycle.ends -= 3_600_000_000  # as a host saw it, to which the month ends an hour earlier
        ends = history.account.cycle.ends
        history.at(ends)
        history.at(ends + 1_800_000_000)
        history.at(moment("2026-10-01 00:00"))
        history.at(moment("2026-10-01 01:00"))
        assert [event.id for event in history.written(Cycled)] == ["2026-09", "2026-10"]

    def test_an_idle_customers_credits_stop_at_the_largest_amount_and_nothing_breaks(self) -> None:
        """T24: what is due must never fail, or every later command would."""
        history = on(Plan("huge", LARGEST // 2, "day", rollover=None)).given(granted(1))
        history.at(history.now + 400 * DAY)
        assert history.account.balance(history.now) == LARGEST - 1
        cycled = history.written(Cycled)[-1]
        assert cycled.lapsed > 0
        assert isinstance(history.event(call()), Held)


# Idle cycles ----------------------------------------------------------------------------------------------------------


def one_by_one(history: History, until: int) -> History:
    """Looked at in each of its cycles."""
    while history.account.cycle is not None and history.account.cycle.ends <= until:
        history.at(history.account.cycle.ends)
    return history.at(until)


def state(account: Account) -> tuple[Any, ...]:
    """All that the customer could notice."""
    assert account.cycle is not None
    cycle = replace(account.cycle, grant=0)
    return account.debt, sorted((one.category, one.remaining, one.expires) for one in account.credits), cycle


def same_either_way(plan: Plan, debt: int, used: int, cycles: int, start: str = "2026-09-10 12:00") -> None:
    histories = []
    for _ in range(2):
        history = on(plan, start)
        if used:
            history.given(Report("used", used))
        if debt:
            history.given(Report("debt", history.available + debt))
        histories.append(history)
    assert histories[0].account.cycle is not None
    length = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY, "year": 366 * DAY}[plan.cycle]
    until = max(histories[0].account.cycle.starts + cycles * length, histories[0].now)
    at_once, each = histories[0].at(until), one_by_one(histories[1], until)
    assert len(at_once.written(Cycled)) == (2 if len(each.written(Cycled)) > 1 else 1), "one entry, however many"
    assert state(at_once.account) == state(each.account)
    for name in ("included", "debt_repaid", "lapsed"):
        once, often = [sum(getattr(event, name) for event in one.written(Cycled)) for one in (at_once, each)]
        assert once == often, f"{name}, to the tick"


@pytest.mark.parametrize("rollover", [0, None, 3 * CREDIT, 10 * CREDIT, 1_000 * CREDIT], ids=str)
@pytest.mark.parametrize("debt", [0, 1, 25 * CREDIT, 5_000 * CREDIT], ids=str)
def test_thousands_of_idle_cycles_are_one_entry_equal_to_each_by_itself(rollover: int | None, debt: int) -> None:
    same_either_way(Plan("daily", CREDIT, "day", rollover=rollover), debt, 0, 3_000)


@given(
    st.integers(0, 5) | st.integers(0, 40),
    st.none() | st.integers(0, 100),
    st.integers(0, 200),
    st.integers(0, 60),
    st.integers(0, 12),
    st.sampled_from(["day", "week", "month", "year"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati", "Etc/GMT+12", "America/Santiago"]),
    st.sampled_from(["", "2026-01-31", "2024-02-29"]),
)
@settings(max_examples=60, deadline=None)
def test_idle_cycles_are_the_same_either_way(
    credits: int, rollover: int | None, debt: int, used: int, cycles: int, kind: str, zone: str, anchor: str
) -> None:
    same_either_way(Plan("p", credits, kind, anchor, zone, rollover), debt, used, cycles)


def test_idle_cycles_over_a_date_that_a_zone_skipped() -> None:
    same_either_way(
        Plan("daily", CREDIT, "day", zone="Pacific/Apia", rollover=None), 0, 0, 3_000, start="2011-06-01 12:00"
    )


def test_cycles_before_the_first_look_count_from_the_day_the_plan_began() -> None:
    """Set in January, first used in April: what was included in between goes over."""
    history = History(moment("2026-01-10 12:00")).given(terms(replace(BASIC, rollover=None)))
    history.at(moment("2026-04-10 12:00"))
    assert history.available == 40 * CREDIT
    assert len(history.written(Cycled)) == 1


def test_a_plan_that_followed_while_nobody_looked_began_when_it_was_to() -> None:
    rolling = Plan("rolling", 5 * CREDIT, rollover=None)
    looked, idle = [change(on(BASIC), rolling, at_cycle_end=True) for _ in range(2)]
    until = moment("2027-01-15 00:00")
    one_by_one(looked, until)
    idle.at(until)
    assert state(looked.account) == state(idle.account)
    assert idle.available == 4 * 5 * CREDIT, "October to January; of the old plan nothing went over"


def test_cycles_of_a_changed_calendar_count_from_the_last_one_that_was_written() -> None:
    daily = Plan("basic", CREDIT, "day", rollover=None)
    looked, idle = [change(on(replace(BASIC, rollover=None)), daily) for _ in range(2)]
    until = moment("2026-10-20 12:00")
    one_by_one(looked, until)
    idle.at(until)
    assert state(looked.account) == state(idle.account)
    assert idle.available == 30 * CREDIT, "ten of September, and twenty days"


# Calls across the edge ------------------------------------------------------------------------------------------------


class TestAcrossTheEdge:
    """T11: a call that begins in one cycle and settles in the next."""

    def across(self, rollover: int | None, held: int = 4) -> History:
        history = on(replace(BASIC, rollover=rollover)).given(call(fixed=held * CREDIT))
        return history.at(moment("2026-10-02 00:00"))

    def test_it_is_paid_from_the_cycle_that_it_began_in(self) -> None:
        history = self.across(0)
        assert history.available == 10 * CREDIT
        event = history.event(settled(charge=3 * CREDIT))
        assert isinstance(event, Settled)
        assert [grant for grant, _ in event.draws] == [2]
        assert history.available == 10 * CREDIT

    def test_what_it_leaves_is_forfeited_where_nothing_goes_over(self) -> None:
        history = self.across(0).given(settled(charge=CREDIT))
        history.given(call("next", fixed=0))
        assert history.available == 10 * CREDIT
        assert history.written(Lapsed)[-1] == Lapsed(((2, 3 * CREDIT),))
        assert [one.grant for one in history.account.credits] == [4], "and is kept nowhere"

    @pytest.mark.parametrize(
        ("rollover", "edge", "after"), [(None, 16, 19), (7 * CREDIT, 16, 17), (5 * CREDIT, 15, 15)]
    )
    def test_what_it_leaves_goes_over_within_the_cap(self, rollover: int | None, edge: int, after: int) -> None:
        history = self.across(rollover)
        assert history.available == edge * CREDIT
        history.given(settled(charge=CREDIT))
        history.bring_up_to_date()
        assert history.available == after * CREDIT

    def test_what_goes_over_is_there_for_a_call_that_needs_it(self) -> None:
        """It must not take another entry before it counts."""
        history = on(Plan("once", 10 * CREDIT, rollover=None)).given(call(fixed=10 * CREDIT))
        change(history, Plan("once", 0, rollover=None))
        history.at(moment("2026-10-02 00:00")).given(Void("h", "rejected"))
        assert isinstance(history.event(call("next", fixed=10 * CREDIT)), Held)

    def test_a_hold_over_many_edges_ends_in_the_present_cycle(self) -> None:
        history = self.across(None).at(moment("2027-03-01 12:00"))
        assert history.available == 66 * CREDIT
        history.given(Void("h", "rejected"))
        history.bring_up_to_date()
        assert history.available == 70 * CREDIT

    def test_what_exceeds_the_hold_comes_from_the_present_cycle(self) -> None:
        history = self.across(0).given(settled(charge=6 * CREDIT, cause="cap_ignored"))
        assert history.available == 8 * CREDIT

    def test_a_refund_of_a_cycle_that_is_over_is_a_fresh_grant_of_the_same_category(self) -> None:
        history = self.across(0).given(Settle("h", 4 * CREDIT, 0, 0, lost_owner=True))
        event = history.event(Void("h", "unsent"))
        assert isinstance(event, Adjusted)
        assert (event.refund, event.category) == (4 * CREDIT, "plan")


# Change and cancellation ----------------------------------------------------------------------------------------------


class TestChange:
    def test_a_change_at_once_begins_the_new_plans_cycle(self) -> None:
        history = on(BASIC).given(call(fixed=4 * CREDIT), settled(charge=4 * CREDIT))
        change(history, Plan("pro", 100 * CREDIT))
        assert history.available == 100 * CREDIT, "what was left of the old plan lapses: nothing of it goes over"

    def test_what_goes_over_into_the_new_plan_is_what_the_old_one_allowed(self) -> None:
        history = on(replace(BASIC, rollover=7 * CREDIT))
        assert change(history, Plan("pro", 100 * CREDIT)).available == 107 * CREDIT

    def test_a_change_at_the_end_of_the_cycle_waits_for_it(self) -> None:
        history = change(on(BASIC), Plan("pro", 100 * CREDIT), at_cycle_end=True)
        assert history.available == 10 * CREDIT
        assert history.at(moment("2026-10-01 00:00") - 1).available == 10 * CREDIT
        assert history.at(moment("2026-10-01 00:00")).available == 100 * CREDIT

    def test_a_cancellation_at_once_takes_what_nobody_has_reserved(self) -> None:
        """A plan cancelled under an open stream: what it held it may use, the rest is gone, what it leaves as well."""
        history = on(replace(BASIC, rollover=None)).given(granted(1), call(fixed=4 * CREDIT))
        change(history, None)
        assert history.available == CREDIT
        assert isinstance(history.event(settled(charge=3 * CREDIT)), Settled)
        history.given(call("next", fixed=0))
        assert history.available == CREDIT
        assert history.account.cycle is None
        assert [one.category for one in history.account.credits] == ["top_up"]

    def test_what_a_hold_leaves_after_a_change_at_once_meets_the_fate_of_its_plan(self) -> None:
        for rollover, after in ((0, 100), (None, 109), (7 * CREDIT, 107)):
            history = on(replace(BASIC, rollover=rollover)).given(call(fixed=4 * CREDIT))
            change(history, Plan("pro", 100 * CREDIT, rollover=0 if rollover is None else None))
            history.given(settled(charge=CREDIT))
            history.bring_up_to_date()
            assert history.available == after * CREDIT

    def test_a_cancellation_at_the_end_of_the_cycle_under_an_open_stream(self) -> None:
        history = on(BASIC).given(call(fixed=4 * CREDIT))
        change(history, None, at_cycle_end=True)
        assert history.available == 6 * CREDIT
        history.at(moment("2026-10-01 00:00"))
        assert (history.available, history.account.cycle) == (0, None)
        history.given(settled(charge=4 * CREDIT))
        assert history.account.debt == 0

    def test_a_limit_set_today_does_not_undo_the_cancellation_at_the_end_of_the_month(self) -> None:
        history = change(on(BASIC), None, at_cycle_end=True)
        history.given(SetTerms(history.account.terms.with_limit(Limit("l", "tokens", 5))))
        assert history.account.terms.plan == BASIC, "and does not bring it forward"
        history.at(moment("2026-10-01 00:00"))
        assert history.account.terms.plan is None
        assert [limit.name for limit in history.account.terms.limits] == ["l"]

    def test_what_came_with_a_plan_leaves_with_it_though_another_limit_was_set_meanwhile(self) -> None:
        theirs, ours = Limit("of the plan", "tokens", 5), Limit("ours", "requests", 7)
        history = History(moment("2026-09-10 12:00"))
        history.given(SetTerms(Terms(1, (theirs, ours), BASIC, of_plan=("of the plan",))))
        change(history, Plan("pro"), at_cycle_end=True, limits=(ours,), of_plan=())
        history.given(SetTerms(history.account.terms.with_limit(replace(ours, quantity=9))))
        assert history.account.terms.limits == (theirs, replace(ours, quantity=9))
        history.at(moment("2026-10-01 00:00"))
        assert history.account.terms.limits == (replace(ours, quantity=9),)
        assert (history.account.terms.of_plan, history.account.cycle.plan) == ((), "pro")  # type: ignore[union-attr]

    def test_a_suspension_and_its_end_leave_what_is_to_follow(self) -> None:
        history = change(on(BASIC), Plan("pro", 100 * CREDIT), at_cycle_end=True)
        change(history, BASIC, suspended=True)
        assert history.ask(call()) == Declined("customer_suspended")
        change(history, BASIC, suspended=False)
        assert history.at(moment("2026-10-01 00:00")).available == 100 * CREDIT

    def test_a_plan_set_at_once_takes_the_place_of_one_that_was_to_follow(self) -> None:
        history = change(on(BASIC), None, at_cycle_end=True)
        change(history, Plan("pro", 100 * CREDIT))
        assert history.account.pending is None
        assert history.at(moment("2026-10-01 00:00")).available == 100 * CREDIT

    def test_a_cancellation_is_taken_back_by_the_same_plan_at_the_end_of_the_cycle(self) -> None:
        history = change(on(BASIC), None, at_cycle_end=True)
        change(history, BASIC, at_cycle_end=True)
        assert history.at(moment("2026-10-01 00:00")).account.terms.plan == BASIC
        assert history.available == 10 * CREDIT

    def test_other_credits_in_the_plan_count_from_the_next_cycle_its_overage_at_once(self) -> None:
        history = change(on(BASIC), replace(BASIC, credits=20 * CREDIT, overage=5 * CREDIT))
        assert history.available == 15 * CREDIT
        assert history.at(moment("2026-10-01 00:00")).available == 25 * CREDIT

    def test_the_same_terms_again_change_nothing_and_older_ones_never_overwrite(self) -> None:
        """A rolling deploy with two catalogues."""
        old = Terms(1, plan=BASIC, catalogue=1)
        new = Terms(2, plan=Plan("pro", 20 * CREDIT), catalogue=2)
        history = History().given(SetTerms(old), SetTerms(new))
        assert history.ask(SetTerms(new)) == Repeated(TermsSet(new))
        with pytest.raises(Conflict, match="catalogue"):
            history.ask(SetTerms(replace(old, version=3)))
        with pytest.raises(Conflict, match="newer terms"):
            history.ask(SetTerms(old))
        assert history.account.terms == new
        assert len(history.written(Cycled)) == 2

    def test_a_zone_that_this_host_does_not_know_is_refused_before_anything_is_written(self) -> None:
        for wrong in (
            Terms(1, plan=replace(BASIC, zone="Mars/Olympus")),
            Terms(1, limits=(Limit("l", "tokens", 1, zone="Mars/Olympus"),)),
        ):
            with pytest.raises(TermsError, match="zone"):
                decide(Account(), SetTerms(wrong), 5)


# Overage --------------------------------------------------------------------------------------------------------------


class TestOverage:
    def test_without_overage_the_plan_ends_at_its_credits(self) -> None:
        history = on(BASIC).given(call(fixed=10 * CREDIT))
        declined = history.ask(call("next"))
        assert isinstance(declined, Declined)
        assert declined.reason == "credit_on_hold"

    def test_up_to_a_cap_it_goes_on_and_says_what_is_to_be_invoiced(self) -> None:
        """ "They have hit their card limit.\""""
        history = on(replace(BASIC, overage=5 * CREDIT))
        assert history.available == 15 * CREDIT
        history.given(call(fixed=14 * CREDIT), settled(charge=14 * CREDIT))
        assert (history.available, history.account.debt) == (CREDIT, 0)
        assert history.account.balance(history.now) == -4 * CREDIT
        declined = history.ask(call("next", fixed=2 * CREDIT))
        assert isinstance(declined, Declined)
        assert (declined.reason, declined.available) == ("request_exceeds_credit", CREDIT)
        history.at(moment("2026-10-01 00:00"))
        assert history.written(Cycled)[-1].overage_used == 4 * CREDIT
        assert history.available == 15 * CREDIT, "a new cycle, a new cap"

    def test_unlimited_is_unlimited_and_no_big_number_is_written(self) -> None:
        """T24."""
        history = on(replace(BASIC, overage=None)).given(call(fixed=10**6 * CREDIT))
        history.given(settled(charge=10**6 * CREDIT))
        history.at(moment("2026-10-01 00:00"))
        cycled = history.written(Cycled)[-1]
        assert (cycled.overage, cycled.overage_used) == (None, (10**6 - 10) * CREDIT)

    def test_overage_is_drawn_last(self) -> None:
        history = on(replace(BASIC, overage=5 * CREDIT)).given(granted(3), granted(1, key="late", priority=9))
        held = history.event(call(fixed=15 * CREDIT))
        assert isinstance(held, Held)
        assert [grant for grant, _ in held.draws] == [2, 3, 4, -2]

    def test_a_call_across_the_edge_is_paid_from_the_overage_that_it_held(self) -> None:
        history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=15 * CREDIT))
        history.at(moment("2026-10-01 00:00"))
        assert history.available == 15 * CREDIT
        event = history.event(settled(charge=12 * CREDIT))
        assert isinstance(event, Settled)
        assert (event.draws[-1], event.debt) == ((-2, 2 * CREDIT), 0)
        history.given(call("next", fixed=0))
        assert history.available == 15 * CREDIT
        history.at(moment("2026-11-01 00:00"))
        assert len(history.account.credits) == 2, "what is over leaves"

    def test_overage_used_after_the_edge_is_told_once_when_the_next_cycle_ends(self) -> None:
        """Who holds it at the edge may use it, and somebody has to invoice it."""
        history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=14 * CREDIT), call("more", fixed=CREDIT))
        history.at(moment("2026-10-01 00:00")).given(settled(charge=13 * CREDIT), call("next", fixed=0))
        assert not history.written(Lapsed), "it has not expired unused"
        balance = balance_of(history.account, history.now)
        assert (balance.overage_used.ticks, balance.balance.ticks) == (3 * CREDIT, 7 * CREDIT)
        history.given(settled("more"), call("again", fixed=11 * CREDIT), settled("again", charge=11 * CREDIT))
        for month in ("11", "12"):
            history.at(moment(f"2026-{month}-01 00:00"))
        assert [one.overage_used for one in history.written(Cycled)] == [0, 0, 5 * CREDIT, 0]

    def test_what_a_run_had_reserved_of_it_is_told_as_well(self) -> None:
        history = on(replace(BASIC, overage=None), "2026-09-30 23:00")
        history.given(StartRun("r", 1_000 * CREDIT, None, moment("2026-10-20 00:00"), reserve=True))
        history.at(moment("2026-10-01 00:01"))
        for number in range(5):
            inside = call(f"c{number}", fixed=190 * CREDIT, scopes=(("run", "r"),))
            history.given(inside, settled(f"c{number}", charge=190 * CREDIT))
        history.given(EndRun("r"), call("z", fixed=0)).at(moment("2026-11-01 00:00"))
        assert history.account.charged == 950 * CREDIT
        assert sum(one.overage_used for one in history.written(Cycled)) == 940 * CREDIT

    def test_of_a_plan_that_has_ended_it_is_told_with_the_next_entry(self) -> None:
        history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=14 * CREDIT))
        change(history, None).given(settled(charge=13 * CREDIT), call("next", fixed=0))
        assert history.written(Cycled)[-1].overage_used == 0
        assert [(one.draws, one.overage_used) for one in history.written(Lapsed)] == [
            (((-2, -3 * CREDIT),), 3 * CREDIT)
        ]
        assert (history.account.credits, history.account.balance(history.now)) == ([], 0)

    def test_what_nobody_used_leaves_with_its_cycle(self) -> None:
        history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=12 * CREDIT))
        for month in ("10", "11", "12"):
            history.at(moment(f"2026-{month}-01 00:00"))
        history.given(Void("h", "rejected"), call("next", fixed=0))
        assert len(history.account.credits) == 2

    def test_a_lower_cap_takes_nothing_that_is_used_or_held(self) -> None:
        history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=13 * CREDIT))
        change(history, replace(BASIC, overage=CREDIT))
        assert history.available == 0
        history.given(settled(charge=13 * CREDIT))
        assert history.account.debt == 0
        change(history, replace(BASIC, overage=0))
        assert history.available == 0
        change(history, replace(BASIC, overage=None))
        assert history.available > 10**6 * CREDIT

    def test_a_refund_of_overage_makes_room_again_and_after_the_cycle_is_a_top_up(self) -> None:
        for later, category in ((False, None), (True, "top_up")):
            history = on(replace(BASIC, overage=5 * CREDIT)).given(call(fixed=15 * CREDIT))
            history.given(Settle("h", 15 * CREDIT, 0, 0, lost_owner=True))
            if later:
                history.at(moment("2026-10-01 00:00"))
            event = history.event(Settle("h", 12 * CREDIT, 0, 0))
            assert isinstance(event, Adjusted)
            if category is None:
                assert (event.draws, event.refund) == (((-2, -3 * CREDIT),), 0)
                assert history.available == 3 * CREDIT
            else:
                assert (event.draws, event.refund, event.category) == ((), 3 * CREDIT, category)


# Debt -----------------------------------------------------------------------------------------------------------------


class TestDebt:
    """T8: visible, repaid first, whatever makes the credit free."""

    def test_a_new_cycle_pays_debt_first(self) -> None:
        history = on(BASIC).given(Report("r", 13 * CREDIT)).at(moment("2026-10-01 00:00"))
        assert (history.available, history.account.debt) == (7 * CREDIT, 0)
        assert history.written(Cycled)[-1].debt_repaid == 3 * CREDIT

    def test_a_grant_pays_debt_when_its_start_has_come(self) -> None:
        history = History().given(Grant("later", 5 * CREDIT, starts=History().now + DAY), Report("r", 3 * CREDIT))
        assert (history.available, history.account.debt) == (-3 * CREDIT, 3 * CREDIT)
        history.at(history.now + DAY)
        assert history.written(Repaid) == [Repaid(((1, 3 * CREDIT),))]
        assert (history.available, history.account.debt) == (2 * CREDIT, 0)

    def test_a_grant_that_has_expired_before_it_came_pays_nothing(self) -> None:
        history = History().given(Report("r", 3 * CREDIT), Grant("old", 5 * CREDIT, expires=History().now - DAY))
        assert history.account.debt == 3 * CREDIT

    def test_what_goes_over_pays_debt_before_it_is_anybodys(self) -> None:
        history = on(Plan("p", 10 * CREDIT, rollover=None)).given(call(fixed=10 * CREDIT))
        change(history, Plan("p", 0, rollover=None))
        history.at(moment("2026-10-02 00:00")).given(Report("r", 3 * CREDIT), Void("h", "rejected"))
        history.bring_up_to_date()
        assert (history.available, history.account.debt) == (7 * CREDIT, 0)

    def test_overage_pays_debt_of_before_it_was_allowed(self) -> None:
        history = on(BASIC).given(Report("r", 13 * CREDIT))
        change(history, replace(BASIC, overage=5 * CREDIT))
        assert (history.available, history.account.debt) == (2 * CREDIT, 0)
        assert history.at(moment("2026-10-01 00:00")).written(Cycled)[-1].overage_used == 3 * CREDIT
