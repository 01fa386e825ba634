"""This file knows how to break each guarantee in one place: the mistakes that the simulator must find.

Each is a change of the library's own code, made for one test and undone after it. A missing guarantee is one that
nobody proves the simulator can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from lava_middleware import context
from lava_middleware.core import account as accounts
from lava_middleware.core import admission, agreements, counting, crediting, draws, endings, state, windows
from lava_middleware.core import decide as rules
from lava_middleware.core import evolve as folds
from lava_middleware.core.account import Account
from lava_middleware.core.commands import Adjust, Grant, Settle, StartTopup
from lava_middleware.core.decide import Repeated
from lava_middleware.core.events import Adjusted, Crossed, Extended, Lapsed, Reported, RunEnded, Settled, Voided
from lava_middleware.core.exchange import ENDED_STATES
from lava_middleware.dialects.sse import Splitter
from lava_middleware.export import follower
from lava_middleware.ledger import appender, entries, recovery
from lava_middleware.transport import flight

Plant: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def a_hold_that_lost_the_race_counts(patch: pytest.MonkeyPatch) -> None:
    """Whoever was slower goes on as if its entry had been appended."""
    honest = appender.Appender._append

    def append(self: Any, slot: Any, account: Any, ticket: Any, events: Any, now: int) -> Any:
        receipt = honest(self, slot, account, ticket, events, now)
        if receipt is None and hasattr(events[-1], "owner"):
            return appender.Receipt(tuple(events), None, 0, False, 1)
        return receipt

    patch.setattr(appender.Appender, "_append", append)


def a_send_after_the_end_passes(patch: pytest.MonkeyPatch) -> None:
    """An exchange that was given up while it waited for a connection is sent all the same."""
    honest = flight.follow
    patch.setattr(
        flight, "follow", lambda state, event: (state, None) if state in ENDED_STATES else honest(state, event)
    )


def what_comes_late_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """The owner of a hold that was ended for it comes back, and nobody listens."""
    patch.setattr(endings, "_late", lambda account, said, ending, now, found: Repeated(ending))


def a_voided_hold_stays_open(patch: pytest.MonkeyPatch) -> None:
    def voided(account: Account, event: Voided, at: int) -> None:
        folds._repay(account, event.repaid)

    patch.setitem(folds._FOLD, Voided, voided)


def a_correction_has_the_id_of_what_it_corrects(patch: pytest.MonkeyPatch) -> None:
    """A target that ignores what it has already loses the correction."""
    honest = follower.record_of

    def record_of(event: Any, text: Any, **more: Any) -> Any:
        record = honest(event, text, **more)
        return replace(record, id=event.hold) if isinstance(event, Adjusted) and record is not None else record

    patch.setattr(follower, "record_of", record_of)


def a_report_is_posted_as_often_as_it_arrives(patch: pytest.MonkeyPatch) -> None:
    honest = rules.key_of

    def key_of(event: Any) -> str | None:
        return None if isinstance(event, Reported) else honest(event)

    patch.setattr(entries, "key_of", key_of)


def what_is_reserved_is_drawn_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts.Account, "free", lambda self, now: sum(c.remaining for c in self.credits if c.alive(now)))
    honest = draws.draw

    def draw(account: Account, amount: int, now: int, released: Any = None) -> Any:
        unreserved = [replace(credit, reserved=0) for credit in account.credits]
        return honest(replace(account, credits=unreserved), amount, now, released)

    for rule in (draws, crediting, endings):
        patch.setattr(rule, "draw", draw)


def a_limit_forgets_what_is_held(patch: pytest.MonkeyPatch) -> None:
    honest = admission.applied

    def applied(account: Account, scopes: Any, now: int) -> list[Any]:
        return [one._replace(room=one.room + one.held) for one in honest(account, scopes, now)]

    patch.setattr(admission, "applied", applied)


def an_expired_grant_is_drawn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts.Credit, "alive", lambda self, now: self.starts is None or self.starts <= now)
    patch.setattr(accounts.Account, "free", lambda self, now: sum(c.free for c in self.credits if c.alive(now)))


def an_overrun_has_no_cause(patch: pytest.MonkeyPatch) -> None:
    honest = rules._RULES[Settle]

    def settle(account: Account, command: Settle, now: int, found: Any) -> Any:
        decision = honest(account, command, now, found)
        if isinstance(decision, list):
            return [replace(event, cause=None) if isinstance(event, Settled) else event for event in decision]
        return decision

    patch.setitem(rules._RULES, Settle, settle)


def what_comes_late_exceeds_only_what_was_held_first(patch: pytest.MonkeyPatch) -> None:
    """What an owner that was taken for dead says is measured without its extensions."""
    honest = folds._FOLD[Extended]
    first: dict[str, int] = {}

    def fold(account: Account, event: Extended, at: int) -> None:
        first.setdefault(event.hold, account.holds[event.hold].amount)
        honest(account, event, at)

    patch.setitem(folds._FOLD, Extended, fold)
    late = endings._late

    def said_late(account: Account, said: Any, ending: Settled, now: int, found: Any) -> Any:
        return late(account, said, replace(ending, held=first.get(ending.hold, ending.held)), now, found)

    patch.setattr(endings, "_late", said_late)


def debt_is_neither_repaid_nor_in_the_way(patch: pytest.MonkeyPatch) -> None:
    honest = rules._RULES[Grant]

    def grant(account: Account, command: Grant, now: int, found: Any) -> Any:
        decision = honest(account, command, now, found)
        return [replace(event, debt_repaid=0) for event in decision] if isinstance(decision, list) else decision

    patch.setitem(rules._RULES, Grant, grant)
    patch.setattr(accounts.Account, "available", lambda self, now: self.free(now))
    patch.setattr(agreements, "draw", lambda account, amount, now: ((), amount))


def one_customer_for_all_tasks(patch: pytest.MonkeyPatch) -> None:
    """T37: the current frame is a variable of the process, not of the task."""

    class Shared:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> None:
            self.value = value

    patch.setattr(context, "_frame", Shared())


def the_end_of_a_broken_stream_is_swallowed(patch: pytest.MonkeyPatch) -> None:
    """T30: what no blank line ends is not an event, and so it goes nowhere."""
    patch.setattr(Splitter, "rest", lambda self: b"")


def events_are_written_anew(patch: pytest.MonkeyPatch) -> None:
    """What is passed on is what was understood, with line ends of our own."""
    honest = Splitter.split
    patch.setattr(Splitter, "split", lambda self, data: [one.replace(b"\r\n", b"\n") for one in honest(self, data)])


def a_target_that_is_away_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    honest = follower.Follower._hand_over

    def hand_over(self: Any, journal: Any, records: Any, read: Any) -> int:
        try:
            return honest(self, journal, records, read)
        except ConnectionError:
            return 0

    patch.setattr(follower.Follower, "_hand_over", hand_over)


def the_cursor_moves_before_the_records(patch: pytest.MonkeyPatch) -> None:
    honest = follower.Follower._hand_over

    def hand_over(self: Any, journal: Any, records: Any, read: Any) -> int:
        if records:
            self._save_cursor(journal, read[records[-1].seq])
        return honest(self, journal, records, read)

    patch.setattr(follower.Follower, "_hand_over", hand_over)


# What an operator sells -----------------------------------------------------------------------------------------------


def a_plan_grants_twice_at_the_edge_of_a_cycle(patch: pytest.MonkeyPatch) -> None:
    """The cycle that has just ended is taken for one that was missed."""
    honest = agreements._cycles_begun

    def begun(account: Account, plan: Any, period: Any) -> int:
        missed = account.cycle is not None and account.cycle.ends == period.starts
        return int(honest(account, plan, period)) + missed

    patch.setattr(agreements, "_cycles_begun", begun)


def what_a_hold_gives_back_to_an_earlier_cycle_is_doubled(patch: pytest.MonkeyPatch) -> None:
    """It goes over, and lapses as well as nothing that was ever there."""
    honest = folds._FOLD[Lapsed]

    def fold(account: Account, event: Lapsed, at: int) -> None:
        honest(account, event, at)
        if event.rolled:
            folds._roll(account, event.rolled)

    patch.setitem(folds._FOLD, Lapsed, fold)


def what_was_promised_for_the_end_of_a_cycle_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A limit that is set today undoes the cancellation."""
    patch.setattr(folds, "_still_to_follow", lambda pending, before, now: None)


def an_overage_has_no_cap(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks how far a cycle may go beyond its credits, once it may at all."""
    honest = accounts.Credit.free.fget
    assert honest is not None

    def free(credit: Any) -> int:
        return honest(credit) + (10**9 if credit.room else 0)

    patch.setattr(accounts.Credit, "free", property(free))
    patch.setattr(accounts.Account, "free", lambda self, now: sum(c.free for c in self.credits if c.alive(now)))

    def draw(account: Account, amount: int, now: int, released: Any = None) -> Any:
        found = []
        for credit in account.credits:
            part = min(credit.free + (released or {}).get(credit.grant, 0), amount) if credit.alive(now) else 0
            if part > 0:
                found.append((credit.grant, part))
                amount -= part
        return tuple(found), max(amount, 0)

    for rule in (draws, crediting, endings, agreements):
        patch.setattr(rule, "draw", draw)


def what_expires_last_is_drawn_first(patch: pytest.MonkeyPatch) -> None:
    honest = accounts.Credit.draw_order

    def order(credit: Any) -> Any:
        over, priority, expires, *more = honest(credit)
        return (over, priority, -expires, *more)

    patch.setattr(accounts.Credit, "draw_order", order)


def a_run_does_not_count_what_is_held(patch: pytest.MonkeyPatch) -> None:
    """Each of its calls alone is within the budget."""

    honest = admission._budget_room
    patch.setattr(admission, "_budget_room", lambda run, *more: honest(replace(run, held=0), *more))


def an_inner_run_spends_for_itself_alone(patch: pytest.MonkeyPatch) -> None:
    for rule in (admission, crediting):
        patch.setattr(rule, "with_outer_runs", lambda account, scopes: scopes)


def a_run_that_has_ended_keeps_its_reserve(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(folds._FOLD, RunEnded, lambda account, event, at: account.runs.pop(event.run))


def a_refund_forgets_the_refunds_before_it(patch: pytest.MonkeyPatch) -> None:
    """Each of them gives back up to what the record charged."""
    honest = rules._RULES[Adjust]

    def adjust(account: Account, command: Adjust, now: int, found: Any) -> Any:
        seen = [
            replace(one, charge=0, draws=(), debt=0) if isinstance(one, Adjusted) and one.key != command.key else one
            for one in found or ()
        ]
        return honest(account, command, now, None if found is None else seen)

    patch.setitem(rules._RULES, Adjust, adjust)


def what_a_fresh_grant_stands_for_is_owed_again(patch: pytest.MonkeyPatch) -> None:
    """A refund in parts goes to the grant that is gone each time, and the living one never has its own back."""

    def still_paid(record: Any, corrections: Any) -> Any:
        return draws.joined(*(one.draws for one in (record, *corrections) if one is not None))

    for rule in (crediting, endings):
        patch.setattr(rule, "still_paid", still_paid)


def a_purchase_under_way_is_no_reason_not_to_buy(patch: pytest.MonkeyPatch) -> None:
    honest = rules._RULES[StartTopup]

    def start(account: Account, command: StartTopup, now: int, found: Any) -> Any:
        return honest(replace(account, topup=None), command, now, found)

    patch.setitem(rules._RULES, StartTopup, start)


def what_was_bought_is_granted_by_whoever_hears_of_it(patch: pytest.MonkeyPatch) -> None:
    """The hook is called again after a crash, with the same key; each answer of it is credited."""
    honest = rules._RULES[Grant]

    def grant(account: Account, command: Grant, now: int, found: Any) -> Any:
        again = replace(command, key=f"{command.key}+") if command.key.startswith("t") and found else command
        return honest(account, again, now, None if again is not command else found)

    patch.setitem(rules._RULES, Grant, grant)


def a_threshold_fires_as_often_as_it_is_passed(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(folds._FOLD, Crossed, lambda account, event, at: None)


def a_month_begins_a_day_late(patch: pytest.MonkeyPatch) -> None:
    honest = windows._first_day

    def first_day(kind: str, anchor: str, number: int) -> Any:
        first = honest(kind, anchor, number)
        return first.replace(day=2) if kind == "month" and first.day == 1 else first

    patch.setattr(windows, "_first_day", first_day)
    patch.setattr(windows, "_last", {})


def a_settlement_counts_in_the_window_of_its_own_moment(patch: pytest.MonkeyPatch) -> None:
    """T11: what was held in one window is used in the next."""
    honest = counting.filled

    def filled(account: Account, hold: Any, used: Any) -> Any:
        counts, over = honest(account, hold, used)
        terms = account.terms
        present = {one.name: windows.window_of(one, account.at, terms.plan)[0] for one in terms.limits}
        moved = [(one[0], one[1] if "|" in one[1] else present.get(one[0], one[1]), one[2]) for one in counts]
        return tuple(moved), over

    patch.setattr(endings, "filled", filled)


def what_the_dead_had_reserved_counts_nowhere(patch: pytest.MonkeyPatch) -> None:
    """It is charged, and no limit and no tier ever hears of it."""
    honest = recovery.lost_owner_settlement

    def settlement(*what: Any) -> Any:
        command, record = honest(*what)
        return replace(command, units=(), metered=0), record

    patch.setattr(recovery, "lost_owner_settlement", settlement)


def a_snapshot_forgets_the_runs(patch: pytest.MonkeyPatch) -> None:
    honest = state._fields
    patch.setattr(state, "_fields", lambda made: honest(replace(made, calls=0) if hasattr(made, "calls") else made))


BUGS: dict[str, tuple[Plant, ...]] = {
    "G1": (a_hold_that_lost_the_race_counts, a_send_after_the_end_passes),
    "G2": (what_comes_late_is_dropped, a_voided_hold_stays_open),
    "G3": (a_correction_has_the_id_of_what_it_corrects, a_report_is_posted_as_often_as_it_arrives),
    "G4": (what_is_reserved_is_drawn_again, a_limit_forgets_what_is_held, an_expired_grant_is_drawn),
    "G5": (
        an_overrun_has_no_cause,
        what_comes_late_exceeds_only_what_was_held_first,
        debt_is_neither_repaid_nor_in_the_way,
    ),
    "G6": (one_customer_for_all_tasks,),
    "G7": (the_end_of_a_broken_stream_is_swallowed, events_are_written_anew),
    "G8": (a_target_that_is_away_is_passed_over, the_cursor_moves_before_the_records),
    "plans": (
        a_plan_grants_twice_at_the_edge_of_a_cycle,
        what_a_hold_gives_back_to_an_earlier_cycle_is_doubled,
        what_was_promised_for_the_end_of_a_cycle_is_forgotten,
        an_overage_has_no_cap,
        what_expires_last_is_drawn_first,
    ),
    "limits": (
        a_month_begins_a_day_late,
        a_settlement_counts_in_the_window_of_its_own_moment,
        a_threshold_fires_as_often_as_it_is_passed,
        what_the_dead_had_reserved_counts_nowhere,
    ),
    "runs": (
        a_run_does_not_count_what_is_held,
        an_inner_run_spends_for_itself_alone,
        a_run_that_has_ended_keeps_its_reserve,
    ),
    "refunds": (a_refund_forgets_the_refunds_before_it, what_a_fresh_grant_stands_for_is_owed_again),
    "top-ups": (
        a_purchase_under_way_is_no_reason_not_to_buy,
        what_was_bought_is_granted_by_whoever_hears_of_it,
    ),
    "snapshots": (a_snapshot_forgets_the_runs,),
}
