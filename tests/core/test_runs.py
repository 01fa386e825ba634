"""Runs: a ring-fenced budget for a piece of work. It caps, and on request it also reserves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from lava_middleware.core.commands import Adjust, Authorize, EndRun, Extend, Grant, Report, Settle, StartRun, Void
from lava_middleware.core.decide import Conflict, Declined, LedgerRuleError, Repeated
from lava_middleware.core.events import Adjusted, Extended, Held, Lapsed, Reported, RunEnded, RunStarted, Settled
from lava_middleware.core.money import PER_MILLION
from lava_middleware.core.state import from_state, to_state
from lava_middleware.core.terms import TermsError

from .history import CREDIT, START, History, call, granted, more, settled, stream

DAY = 86_400_000_000


def run(name: str = "r", budget: int | None = CREDIT, calls: int | None = None, **more: Any) -> StartRun:
    return StartRun(name, budget, calls, **{"expires": START + DAY, **more})


def step(hold: str, *runs: str, fixed: int = CREDIT, **more: Any) -> Authorize:
    """A call inside these runs, outermost first."""
    return call(hold, fixed, scopes=tuple(("run", name) for name in runs), **more)


def declined(history: History, command: Any) -> Declined:
    answer = history.ask(command)
    assert isinstance(answer, Declined)
    return answer


class TestBudget:
    def test_a_run_caps_and_reserves_nothing(self) -> None:
        history = History().given(granted(10), run(budget=3 * CREDIT))
        assert history.available == 10 * CREDIT
        history.given(step("a", "r", fixed=2 * CREDIT))
        answer = declined(history, step("b", "r", fixed=2 * CREDIT))
        assert (answer.reason, answer.limit, answer.unit) == ("limit_reached", "run r", "credits")
        assert (answer.used, answer.quantity, answer.waitable, answer.resets_at) == (2 * CREDIT, 3 * CREDIT, True, None)
        assert isinstance(history.event(call("outside", 7 * CREDIT)), Held), (
            "what is not of the run is not capped by it"
        )

    def test_what_a_call_leaves_is_the_runs_again(self) -> None:
        history = History().given(granted(10), run(budget=3 * CREDIT), step("a", "r", fixed=3 * CREDIT))
        history.given(settled("a", CREDIT), step("b", "r", fixed=2 * CREDIT), Void("b", "rejected"))
        assert isinstance(history.event(step("c", "r", fixed=2 * CREDIT)), Held)
        assert not declined(history.given(settled("c", 2 * CREDIT)), step("d", "r", fixed=1)).waitable

    def test_calls_are_counted_and_a_void_is_none(self) -> None:
        history = History().given(granted(10), run(budget=None, calls=2), step("a", "r"), step("b", "r"))
        answer = declined(history, step("c", "r"))
        assert (answer.limit, answer.unit, answer.used, answer.quantity) == ("run r", "requests", 2, 2)
        history.given(Void("b", "unsent"))
        assert isinstance(history.event(step("c", "r")), Held)
        history.given(settled("a"), settled("c"))
        assert isinstance(declined(history, step("d", "r")), Declined)

    def test_a_stream_that_is_under_way_goes_on_whatever_was_reported_beside_it(self) -> None:
        """More output is no further call: what was reported has passed the cap, and the next call is refused."""
        scopes = (("run", "r"),)
        history = History().given(granted(100), run(budget=None, calls=1))
        history.given(replace(stream(), scopes=scopes), Report("beside", 0, scopes=scopes))
        assert history.account.runs["r"].calls == 2
        assert isinstance(history.event(more()), Extended)
        assert declined(history, step("next", "r")).unit == "requests"

    def test_a_free_call_of_a_spent_run_passes(self) -> None:
        history = History().given(granted(10), run(), step("a", "r"), settled("a"))
        assert isinstance(history.event(step("free", "r", fixed=0)), Held)

    def test_an_overrun_is_spent_by_the_run_and_stops_it(self) -> None:
        history = History().given(granted(10), run(budget=2 * CREDIT), step("a", "r"))
        history.given(settled("a", 5 * CREDIT, cause="cap_ignored"))
        assert declined(history, step("b", "r")).used == 5 * CREDIT

    def test_a_stream_is_cut_at_the_budget_to_the_token(self) -> None:
        history = History().given(granted(10), run(budget=500))
        history.given(Authorize("h", "o", 0, 0, PER_MILLION, 64, 32, grows=True, scopes=(("run", "r"),)))
        total, size = 64, 64
        while isinstance(decision := history.ask(Extend("h", PER_MILLION, 10_000, size)), list):
            total, size = total + decision[-1].output_tokens, decision[-1].output_tokens  # type: ignore[union-attr]
        assert total == 500
        assert decision.limit == "run r"  # type: ignore[union-attr]

    def test_a_call_without_a_cap_takes_its_share_of_the_run(self) -> None:
        """It would lock out its siblings otherwise."""
        history = History().given(granted(10), run(budget=3_000))
        wish = Authorize("a", "o", 0, 0, PER_MILLION, 100_000, 256, share=3, scopes=(("run", "r"),))
        sizes = [history.event(replace(wish, hold=name)).output_tokens for name in "abc"]  # type: ignore[union-attr]
        assert sizes == [1_000, 666, 444]

    def test_reports_and_corrections_are_spent_as_well(self) -> None:
        history = History().given(granted(10), run(budget=3 * CREDIT))
        history.given(Report("tool", 2 * CREDIT, scopes=(("run", "r"),)))
        assert isinstance(declined(history, step("a", "r", fixed=2 * CREDIT)), Declined)
        history.given(Adjust("k", "tool", -CREDIT))
        assert isinstance(history.event(step("a", "r", fixed=2 * CREDIT)), Held)

    def test_a_refund_of_what_came_before_the_run_is_nothing_of_its_budget(self) -> None:
        history = History().given(granted(10), Report("before", 2 * CREDIT, scopes=(("run", "r"),)), run())
        history.given(Adjust("k", "before", -2 * CREDIT))
        assert history.account.runs["r"].spent == 0

    def test_what_a_late_owner_says_is_spent_as_well(self) -> None:
        history = History().given(granted(10), run(budget=3 * CREDIT), step("a", "r", fixed=3 * CREDIT))
        history.given(Settle("a", CREDIT, 0, 0, lost_owner=True))
        assert isinstance(history.event(settled("a", 3 * CREDIT)), Adjusted)
        assert declined(history, step("b", "r", fixed=1)).used == 3 * CREDIT


class TestNested:
    def nested(self) -> History:
        return History().given(
            granted(10),
            run("outer", 3 * CREDIT),
            run("inner", 2 * CREDIT, parent="outer"),
            run("twin", None, parent="outer"),
        )

    def test_a_call_is_capped_by_every_run_that_it_is_a_part_of(self) -> None:
        history = self.nested()
        assert declined(history, step("a", "outer", "inner", fixed=2 * CREDIT + 1)).limit == "run inner"
        history.given(step("a", "outer", "twin", fixed=2 * CREDIT))
        assert declined(history, step("b", "outer", "inner", fixed=2 * CREDIT)).limit == "run outer"
        assert isinstance(history.event(step("b", "outer", "inner", fixed=CREDIT)), Held)

    def test_who_names_the_inner_run_alone_spends_the_outer_ones_as_well(self) -> None:
        """Resumed by its id in another process."""
        history = self.nested()
        held = history.event(step("a", "inner", fixed=2 * CREDIT))
        assert isinstance(held, Held)
        assert held.scopes == (("run", "outer"), ("run", "inner"))
        history.given(settled("a", 2 * CREDIT))
        assert declined(history, step("b", "twin", fixed=2 * CREDIT)).limit == "run outer"
        history.given(Report("tool", CREDIT, scopes=(("run", "twin"),)))
        assert history.account.runs["outer"].spent == 3 * CREDIT

    def test_the_end_of_a_run_is_the_end_of_those_inside_it(self) -> None:
        history = self.nested().given(EndRun("outer"))
        history.bring_up_to_date()
        assert [event.run for event in history.written(RunEnded)] == ["outer", "inner", "twin"]
        assert declined(history, step("a", "inner")).reason == "run_ended"
        assert declined(history, run("late", parent="outer")).reason == "run_ended"

    def test_an_outer_run_that_expires_takes_the_inner_ones_along(self) -> None:
        history = History().given(granted(10), run("outer"), run("inner", parent="outer", expires=START + 9 * DAY))
        history.at(START + DAY)
        assert [(event.run, event.expired) for event in history.written(RunEnded)] == [
            ("outer", True),
            ("inner", False),
        ]

    def test_an_inner_run_that_ends_leaves_the_outer_one_what_was_spent(self) -> None:
        history = self.nested().given(step("a", "outer", "inner"), EndRun("inner"), settled("a", CREDIT))
        assert (history.account.runs["outer"].spent, history.account.runs["outer"].held) == (CREDIT, 0)


class TestReserve:
    def reserved(self, credits: int = 10) -> History:
        return History().given(granted(credits), run(budget=4 * CREDIT, reserve=True))

    def test_it_holds_its_budget_for_itself_alone(self) -> None:
        history = self.reserved()
        assert history.available == 6 * CREDIT
        assert history.account.balance(history.now) == 10 * CREDIT
        history.given(call("greedy", 6 * CREDIT))
        assert declined(history, call("more")).reason == "credit_on_hold"
        for name in "abcd":
            assert isinstance(history.event(step(name, "r")), Held), "and nobody starves it"
        assert declined(history, step("e", "r")).limit == "run r"

    def test_a_settlement_gives_what_it_leaves_back_to_the_run_and_not_to_the_customer(self) -> None:
        history = self.reserved().given(step("a", "r", fixed=3 * CREDIT), settled("a", CREDIT))
        assert history.available == 6 * CREDIT
        assert isinstance(history.event(step("b", "r", fixed=3 * CREDIT)), Held)
        history.given(Void("b", "rejected"))
        assert history.available == 6 * CREDIT
        history.given(EndRun("r"))
        assert history.available == 9 * CREDIT

    def test_it_is_held_until_the_expiry(self) -> None:
        history = self.reserved().at(START + DAY - 1)
        assert history.available == 6 * CREDIT
        history.at(START + DAY)
        assert history.available == 10 * CREDIT
        assert history.written(RunEnded) == [RunEnded("r", expired=True)]

    def test_it_outlives_the_grant_that_it_was_reserved_of(self) -> None:
        history = History().given(Grant("g", 5 * CREDIT, expires=START + 1_000), run(budget=4 * CREDIT, reserve=True))
        history.at(START + 2_000)
        assert isinstance(history.event(step("a", "r", fixed=4 * CREDIT)), Held)
        history.given(settled("a", CREDIT), EndRun("r"), call("x", 0))
        assert (history.available, history.account.credits) == (0, [])
        assert sum(ticks for event in history.written(Lapsed) for _, ticks in event.draws) == 4 * CREDIT

    def test_an_overrun_takes_from_the_run_first_and_then_from_the_customer(self) -> None:
        history = self.reserved().given(step("a", "r"), settled("a", 6 * CREDIT, cause="cap_ignored"))
        assert history.account.debt == 0
        assert history.available == 4 * CREDIT, "four of the run's, two of the customer's"
        assert history.account.runs["r"].draws == ()

    def test_an_overrun_with_siblings_open_never_touches_what_they_hold(self) -> None:
        history = History().given(granted(4), run(budget=4 * CREDIT, reserve=True))
        history.given(step("a", "r"), step("b", "r"), settled("a", 9 * CREDIT, cause="cap_ignored"))
        event = history.event(settled("b", CREDIT))
        assert isinstance(event, Settled)
        assert (event.debt, history.account.debt) == (0, 6 * CREDIT)

    def test_what_is_reported_inside_takes_the_runs_reserve(self) -> None:
        """No debt beside a reserve that is there for it."""
        history = History().given(granted(4), run(budget=4 * CREDIT, reserve=True))
        event = history.event(Report("tool", 3 * CREDIT, scopes=(("run", "r"),)))
        assert isinstance(event, Reported)
        assert (event.debt, event.reserve) == (0, ((1, -3 * CREDIT),))
        assert isinstance(history.event(step("a", "r")), Held)
        history.given(settled("a", CREDIT))
        assert history.account.credits == []

    def test_a_correction_upwards_takes_it_as_well(self) -> None:
        history = History().given(granted(4), run(budget=4 * CREDIT, reserve=True), step("a", "r"), settled("a"))
        event = history.event(Adjust("k", "a", 2 * CREDIT))
        assert isinstance(event, Adjusted)
        assert (event.debt, event.reserve) == (0, ((1, -2 * CREDIT),))

    def test_a_refund_inside_may_be_spent_again_by_the_run(self) -> None:
        history = History().given(granted(4), run(budget=4 * CREDIT, reserve=True), step("a", "r", fixed=4 * CREDIT))
        history.given(settled("a", 4 * CREDIT), Adjust("k", "a", -2 * CREDIT))
        assert history.account.runs["r"].spent == 2 * CREDIT
        assert isinstance(history.event(step("b", "r", fixed=2 * CREDIT)), Held)
        assert isinstance(declined(history, step("c", "r", fixed=1)), Declined)

    def test_runs_inside_share_it(self) -> None:
        history = self.reserved().given(run("inner", 2 * CREDIT, parent="r"), call("greedy", 6 * CREDIT))
        history.given(step("a", "r", "inner", fixed=2 * CREDIT), settled("a", CREDIT))
        assert isinstance(history.event(step("b", "r", fixed=3 * CREDIT)), Held)

    def test_debt_is_paid_when_the_reserve_comes_back(self) -> None:
        history = History().given(granted(4), run(budget=4 * CREDIT, reserve=True), Report("other", CREDIT))
        assert history.account.debt == CREDIT
        assert isinstance(history.event(step("a", "r")), Held), "the run has what it has"
        history.given(settled("a", CREDIT), EndRun("r"))
        assert (history.account.debt, history.available) == (0, 2 * CREDIT)

    def test_what_is_not_there_cannot_be_reserved(self) -> None:
        history = History().given(granted(4), call("open", 2 * CREDIT))
        answer = declined(history, run(budget=3 * CREDIT, reserve=True))
        assert (answer.reason, answer.waitable) == ("credit_on_hold", True)
        answer = declined(history, run(budget=5 * CREDIT, reserve=True))
        assert (answer.reason, answer.available, answer.required) == ("insufficient_credit", 2 * CREDIT, 5 * CREDIT)
        assert history.account.runs == {}

    def test_only_an_outermost_run_with_a_budget_reserves(self) -> None:
        history = History().given(granted(4), run("outer"))
        for wrong in (run("inner", parent="outer", reserve=True), run("free", None, reserve=True)):
            with pytest.raises(LedgerRuleError, match="outermost"):
                history.ask(wrong)


class TestLife:
    def test_starting_it_again_gives_the_first_answer_again(self) -> None:
        history = History().given(granted(10))
        first = history.event(run(calls=4))
        assert isinstance(first, RunStarted)
        assert history.ask(run(calls=4)) == Repeated(first)
        assert history.ask(run(calls=4, expires=START + 5 * DAY)) == Repeated(first), "resumed later, same run"
        with pytest.raises(Conflict):
            history.ask(run(calls=5))

    @pytest.mark.parametrize("first", [True, False])
    def test_started_again_with_another_reserve_it_is_a_conflict(self, first: bool) -> None:
        """Who asks for a reserve is never told that there is one where nothing was reserved."""
        history = History().given(granted(10), run(reserve=first))
        assert isinstance(history.ask(run(reserve=first)), Repeated)
        with pytest.raises(Conflict):
            history.ask(run(reserve=not first))

    def test_a_reserve_of_nothing_is_repeated(self) -> None:
        history = History().given(run(budget=0, reserve=True))
        assert isinstance(history.ask(run(budget=0, reserve=True)), Repeated)

    def test_a_run_that_has_ended_does_not_begin_again(self) -> None:
        history = History().given(granted(10), run(), EndRun("r"))
        assert declined(history, run()).reason == "run_ended"
        assert declined(history, step("a", "r")).reason == "run_ended"
        assert declined(history, step("a", "never")).reason == "run_ended"

    @pytest.mark.parametrize("end", [EndRun("r"), None])
    def test_one_that_is_started_again_after_its_time_has_ended(self, end: EndRun | None) -> None:
        """The one who repeats it says when it was to expire, which is past by now."""
        history = History().given(granted(10), run(), *([end] if end else []))
        history.at(START + 2 * DAY)
        assert declined(history, run()).reason == "run_ended"

    def test_after_a_clock_that_ran_ahead_a_run_lasts_as_long_as_it_was_to_last(self) -> None:
        """Entries never go back in time, so the account is ahead of the clock of whoever asks."""
        history = History().given(granted(10)).at(START + 3 * DAY)
        started = history.event(run(lasts=DAY))
        assert isinstance(started, RunStarted)
        assert started.expires == history.now + DAY
        assert isinstance(history.event(step("a", "r")), Held)
        assert history.ask(run(lasts=DAY)) == Repeated(started)

    def test_ending_it_again_is_repeated_and_what_never_began_cannot_end(self) -> None:
        history = History().given(granted(10), run())
        first = history.event(EndRun("r"))
        assert history.ask(EndRun("r")) == Repeated(first)
        with pytest.raises(LedgerRuleError, match="never started"):
            history.ask(EndRun("x"))

    def test_a_run_must_expire_in_the_future(self) -> None:
        with pytest.raises(TermsError, match="future"):
            History().ask(run(expires=START))

    @pytest.mark.parametrize("reserve", [False, True])
    def test_a_stream_outlives_its_run(self, reserve: bool) -> None:
        history = History().given(granted(10), run(budget=4 * CREDIT, reserve=reserve))
        history.given(Authorize("h", "o", CREDIT, 0, PER_MILLION, 64, 32, grows=True, scopes=(("run", "r"),)))
        history.at(START + DAY)
        assert history.account.runs == {}
        assert isinstance(history.event(Extend("h", PER_MILLION, 1_000, 64)), Extended)
        assert isinstance(history.event(settled("h", CREDIT)), Settled)
        assert history.available == 9 * CREDIT
        assert history.account.reserved() == 0

    def test_killed_halfway_and_resumed_elsewhere_it_goes_on_with_what_was_left(self) -> None:
        """Another process knows what is in the journal, and no more."""
        history = History().given(granted(10), run(budget=3 * CREDIT), step("a", "r"), settled("a"), step("b", "r"))
        history.account = from_state(to_state(history.account))
        assert isinstance(history.ask(run(budget=3 * CREDIT)), Repeated)
        assert declined(history, step("c", "r", fixed=2 * CREDIT)).waitable, "the dead process's hold still counts"
        history.given(Settle("b", CREDIT // 2, 0, 0, lost_owner=True))
        assert isinstance(history.event(step("c", "r", fixed=3 * CREDIT // 2)), Held)
        assert isinstance(declined(history, step("d", "r", fixed=1)), Declined)


@pytest.mark.parametrize("reserve", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_an_agent_with_parallel_tools_never_exceeds_its_budget_and_starves_nobody(seed: int, reserve: bool) -> None:
    """Fifty steps, each a model call and up to three tools at once, beside others of the same customer."""
    rng = random.Random(seed)
    history = History().given(granted(1_000), run(budget=20 * CREDIT, reserve=reserve))
    history.given(run("tools", 9 * CREDIT, parent="r"), run("sibling", 30 * CREDIT))
    spent = refused = sibling = 0
    for number in range(50):
        names = [f"m{number}", *(f"t{number}-{tool}" for tool in range(rng.randint(0, 3)))]
        opened = []
        for name in names:
            runs = ("r",) if name[0] == "m" else ("r", "tools")
            answer = history.ask(step(name, *runs, fixed=rng.randint(1, CREDIT)))
            if isinstance(answer, list):
                opened.append(answer[-1])
            else:
                refused += 1
        rng.shuffle(opened)
        for held in opened:
            assert isinstance(held, Held)
            charge = rng.randint(0, held.amount)
            history.given(Void(held.hold, "rejected") if rng.random() < 0.1 else settled(held.hold, charge))
        root = history.account.runs["r"]
        assert root.held == 0
        assert root.spent <= 20 * CREDIT
        assert history.account.runs["tools"].spent <= 9 * CREDIT
        if reserve:
            assert sum(ticks for _, ticks in root.draws) == 20 * CREDIT - root.spent
        spent = root.spent
        assert isinstance(history.event(step(f"s{number}", "sibling", fixed=CREDIT // 2)), Held)
        history.given(settled(f"s{number}", CREDIT // 2))
        sibling += CREDIT // 2
    assert refused, "the budget was reached"
    assert history.account.charged == spent + sibling
    history.given(EndRun("r"))
    history.bring_up_to_date()
    assert (history.account.reserved(), list(history.account.runs)) == (0, ["sibling"])
