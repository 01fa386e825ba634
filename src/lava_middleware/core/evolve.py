"""This file knows how one more event changes an account.

`evolve` is arithmetic only: it asks no clock, price list or configuration, so history never changes when rules do.
It works in place: the account belongs to whoever folds it, and a fold of millions of entries must not copy.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .account import METER, OVERAGE, TOPUPS, UNLIMITED, Account, Counter, Credit, Cycle, Hold, Run, Scopes, Topup
from .events import (
    Adjusted,
    Counts,
    Crossed,
    Cycled,
    Draws,
    Event,
    Extended,
    Granted,
    Held,
    Lapsed,
    Metered,
    Repaid,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    Voided,
)
from .money import Ticks
from .terms import Plan, Terms
from .windows import window_at, window_of

T = TypeVar("T")

LATE = 7 * 86_400_000_000
"""Microseconds for which a tiered meter still knows what was used in a window that is over: what is reported late meets
the tier that it would have met in time."""
GONE_KEPT = 32


def evolve(account: Account, event: Event, at: int) -> None:
    """Fold one more event into the account, in place; its version grows by one and its time becomes `at`."""
    _FOLD[type(event)](account, event, at)
    account.version += 1
    account.at = at


def _granted(account: Account, event: Granted, at: int) -> None:
    account.debt -= event.debt_repaid
    left = event.amount - event.debt_repaid
    account.topups_stopped = False
    if account.topup is not None and event.key == account.topup.key:
        account.topup = None
    if left:
        _add(account, Credit(account.version + 1, left, 0, event.category, event.priority, event.starts, event.expires))


def _held(account: Account, event: Held, at: int) -> None:
    if event.reserve:
        _take_from_run(account, event.scopes, event.reserve)
    _reserve(account, event.draws)
    if event.counts:
        _count(account, event.counts, at, held=1)
    if event.metered:
        _meter(account, event.metered, at, held=1)
    if account.runs:
        for run in account.chain(event.scopes):
            run.held += event.amount
            run.calls += 1
    account.holds[event.hold] = Hold(
        event.owner,
        event.amount,
        event.draws,
        event.output_tokens,
        event.expected,
        event.slice,
        event.slice > 0,
        event.counts,
        at,
        event.scopes,
        event.metered,
    )


def _extended(account: Account, event: Extended, at: int) -> None:
    hold = account.holds[event.hold]
    if event.reserve:
        _take_from_run(account, hold.scopes, event.reserve)
    _reserve(account, event.draws)
    _count(account, event.counts, at, held=1)
    if event.metered:
        _meter(account, event.metered, at, held=1)
        hold.metered = _joined_metered((*hold.metered, *event.metered))
    if account.runs:
        for run in account.chain(hold.scopes):
            run.held += event.amount
    if hold.expected == hold.amount and not hold.grows:
        hold.expected += event.amount  # the policy is that an unknown outcome owes the whole hold
    hold.amount += event.amount
    hold.draws = _joined((*hold.draws, *event.draws))
    hold.output_tokens += event.output_tokens
    hold.counts = _joined_counts((*hold.counts, *event.counts))
    if hold.grows:
        hold.expected = min(hold.expected + hold.slice, hold.amount)
        hold.slice = event.amount


def _settled(account: Account, event: Settled, at: int) -> None:
    hold = account.holds.pop(event.hold)
    _release(account, hold.draws)
    if event.reserve:
        _back_to_run(account, hold.scopes, event.reserve)
    _charge(account, event.charge, event.draws, event.debt)
    _clear(account, hold.draws)
    if event.repaid:
        _repay(account, event.repaid)
    if account.runs:
        for run in account.chain(hold.scopes):
            run.held -= hold.amount
            run.spent += event.charge
    if event.metered or hold.metered:
        _meter(account, event.metered, at, used=1)
        _meter(account, hold.metered, at, held=-1)
    if event.counts or hold.counts:
        # Used before held: a counter that nobody holds and whose window has ended may leave at any count.
        _count(account, event.counts, at, used=1)
        _count(account, event.over, at, over=1)
        _count(account, hold.counts, at, held=-1)


def _voided(account: Account, event: Voided, at: int) -> None:
    hold = account.holds.pop(event.hold)
    _release(account, hold.draws)
    if event.reserve:
        _back_to_run(account, hold.scopes, event.reserve)
    _clear(account, hold.draws)
    _count(account, hold.counts, at, held=-1)
    _meter(account, hold.metered, at, held=-1)
    _repay(account, event.repaid)
    for run in account.chain(hold.scopes):
        run.held -= hold.amount
        run.calls -= 1


def _reported(account: Account, event: Reported, at: int) -> None:
    if event.reserve:
        _back_to_run(account, event.scopes, event.reserve)
    _charge(account, event.charge, event.draws, event.debt)
    _count(account, event.counts, at, used=1)
    _count(account, event.over, at, over=1)
    _meter(account, event.metered, at, used=1)
    for run in account.chain(event.scopes):
        run.spent += event.charge
        run.calls += 1


def _adjusted(account: Account, event: Adjusted, at: int) -> None:
    if event.reserve:
        _back_to_run(account, event.scopes, event.reserve)
    for run in account.chain(event.scopes):
        run.spent += event.charge
    _charge(account, event.charge, event.draws, event.debt)
    if event.refund:
        _add(account, Credit(account.version + 1, event.refund, 0, event.category, 0, None, None))
    _count(account, event.counts, at, used=1)
    _count(account, event.over, at, over=1)
    _meter(account, event.metered, at, used=1)  # last: a counter that it opens lets others leave


def _repaid(account: Account, event: Repaid, at: int) -> None:
    _repay(account, event.draws)


def _lapsed(account: Account, event: Lapsed, at: int) -> None:
    _post(account, event.draws)
    if event.rolled:
        _roll(account, event.rolled)


def _roll(account: Account, ticks: Ticks) -> None:
    """What a hold of an earlier cycle gave back goes over into the present one."""
    cycle = account.cycle
    assert cycle is not None, "credit goes over into a cycle that is not there"
    cycle.rolled += ticks
    credit = _credit(account, cycle.grant)
    if credit is not None:
        credit.remaining += ticks
        return
    cycle.grant = account.version + 1
    _add(account, Credit(cycle.grant, ticks, 0, "plan", 0, None, cycle.ends, rolls=True))


def _cycled(account: Account, event: Cycled, at: int) -> None:
    for credit in account.credits:
        if credit.category == OVERAGE or credit.rolls:  # what holds have of it meets the same fate when they end
            credit.room = 0
            credit.expires = min(credit.expires or at, at)
    _post(account, event.draws)
    left = [one for one in account.credits if one.remaining or one.reserved or one.room]
    account.credits = sorted(left, key=Credit.draw_order)
    account.debt -= event.debt_repaid
    if not event.id:
        account.cycle = None
        return
    grant = account.version + 1
    account.cycle = Cycle(
        event.plan,
        event.id,
        event.starts,
        event.ends,
        event.number,
        event.calendar,
        event.rollover,
        event.rolled,
        event.carried_most,
        grant,
    )
    if event.amount:
        _add(account, Credit(grant, event.amount, 0, "plan", 0, None, event.ends, rolls=True))
    if event.overage != 0:
        room = UNLIMITED if event.overage is None else event.overage
        _add(account, Credit(-grant, 0, 0, OVERAGE, 0, None, event.ends, room))


def _terms_set(account: Account, event: TermsSet, at: int) -> None:
    if event.effective is not None and event.effective > at:
        account.pending = event.effective, event.terms
        return
    before = account.terms
    account.terms = event.terms
    account.since = at if event.effective is None else event.effective
    account.topups_stopped = False
    if account.pending is not None:
        account.pending = _still_to_follow(account.pending, before, event.terms)
    if account.counters or account.holds:
        _forget(account, before, event.terms)
    _set_overage(account, before.plan, event.terms.plan)


def _still_to_follow(pending: tuple[int, Terms], before: Terms, now: Terms) -> tuple[int, Terms] | None:
    """What was to change later still does, unless what was set now changes the same: a limit that is set today does not
    undo the cancellation at the end of the month. A plan that is set now takes the place of one that was to follow."""
    when, then = pending
    if then == now or (then.plan != before.plan != now.plan):
        return None
    limits = _merged(*({limit.name: limit for limit in terms.limits} for terms in (before, then, now)))
    of_plan = _merged(*(dict.fromkeys(terms.of_plan, True) for terms in (before, then, now)))
    merged = replace(
        now,
        limits=tuple(limits.values()),
        plan=then.plan if now.plan == before.plan else now.plan,
        top_up=then.top_up if now.top_up == before.top_up else now.top_up,
        suspended=then.suspended if now.suspended == before.suspended else now.suspended,
        of_plan=tuple(of_plan),
    )
    if merged == now:
        return None
    return when, replace(merged, version=now.version + 1, catalogue=max(then.catalogue, now.catalogue))


def _merged(before: Mapping[str, T], then: Mapping[str, T], now: Mapping[str, T]) -> dict[str, T]:
    """By name: what was changed now is as it is now, all else as it was to be then."""
    merged = {}
    for name in dict.fromkeys((*now, *then)):
        kept = now.get(name) if now.get(name) != before.get(name) else then.get(name)
        if kept is not None:
            merged[name] = kept
    return merged


def _forget(account: Account, before: Terms, now: Terms) -> None:
    """A limit that is gone, or that counts something else under its name, has counted nothing."""
    counted = {limit.name: limit.counted_in for limit in now.limits}
    gone = {limit.name for limit in before.limits if counted.get(limit.name) != limit.counted_in}
    if not gone:
        return
    account.counters = {key: counter for key, counter in account.counters.items() if key[0] not in gone}
    for hold in account.holds.values():
        hold.counts = tuple(one for one in hold.counts if one[0] not in gone)


def _set_overage(account: Account, before: Plan | None, now: Plan | None) -> None:
    """A changed overage of the same plan counts at once, never below what is used and held of it."""
    cycle = account.cycle
    if cycle is None or before is None or now is None or not cycle.plan == before.name == now.name:
        return
    if before.overage == now.overage:
        return
    room = UNLIMITED if now.overage is None else now.overage
    credit = account.overage()
    if credit is not None:
        credit.room = max(room, credit.reserved - credit.remaining)
        if not (credit.room or credit.remaining or credit.reserved):
            account.credits.remove(credit)
    elif room:
        _add(account, Credit(-(account.version + 1), 0, 0, OVERAGE, 0, None, cycle.ends, room))


def _run_started(account: Account, event: RunStarted, at: int) -> None:
    _reserve(account, event.draws)
    account.runs[event.run] = Run(
        event.parent, event.budget, event.calls_most, event.expires, event.draws, reserves=bool(event.draws)
    )


def _run_ended(account: Account, event: RunEnded, at: int) -> None:
    run = account.runs.pop(event.run)
    _release(account, run.draws)
    _clear(account, run.draws)
    _repay(account, event.repaid)


def _crossed(account: Account, event: Crossed, at: int) -> None:
    counter = account.counters.get((event.limit, event.window))
    if counter is not None:
        counter.crossed = event.percent


def _topup_started(account: Account, event: TopupStarted, at: int) -> None:
    account.topup = Topup(event.key, event.amount, at)
    _meter(account, ((TOPUPS, event.window, event.amount, event.ends),), at, used=1)


def _topup_failed(account: Account, event: TopupFailed, at: int) -> None:
    account.topup = None
    account.topups_stopped = True


_FOLD: dict[type[Any], Any] = {
    Granted: _granted,
    Held: _held,
    Extended: _extended,
    Settled: _settled,
    Voided: _voided,
    Reported: _reported,
    Adjusted: _adjusted,
    Lapsed: _lapsed,
    Repaid: _repaid,
    Cycled: _cycled,
    TermsSet: _terms_set,
    RunStarted: _run_started,
    RunEnded: _run_ended,
    Crossed: _crossed,
    TopupStarted: _topup_started,
    TopupFailed: _topup_failed,
}


def _add(account: Account, credit: Credit) -> None:
    insort(account.credits, credit, key=Credit.draw_order)


def _credit(account: Account, grant: int) -> Credit | None:
    for credit in account.credits:
        if credit.grant == grant:
            return credit
    return None


def _reserve(account: Account, draws: Draws) -> None:
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a hold names a grant that has nothing left"
        credit.reserved += ticks


def _release(account: Account, draws: Draws) -> None:
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a hold's grant left before the hold ended"
        credit.reserved -= ticks


def _clear(account: Account, draws: Draws) -> None:
    """An overage of a cycle that is over leaves with the last hold that had a part of it."""
    for grant, _ in draws:
        credit = _credit(account, grant) if grant < 0 else None
        if credit is not None and not (credit.remaining or credit.reserved or credit.room):
            account.credits.remove(credit)


def _post(account: Account, draws: Draws) -> None:
    """Take what is posted from the grants; a negative draw gives back. Grants with nothing left leave."""
    for grant, ticks in draws:
        credit = _credit(account, grant)
        assert credit is not None, "a posting names a grant that has nothing left"
        credit.remaining -= ticks
        if not credit.remaining and not credit.reserved and not credit.room:
            account.credits.remove(credit)
            if credit.category not in ("top_up", OVERAGE):
                account.gone[grant] = credit.category
                while len(account.gone) > GONE_KEPT:
                    del account.gone[next(iter(account.gone))]


def _charge(account: Account, charge: Ticks, draws: Draws, debt: Ticks) -> None:
    _post(account, draws)
    account.debt += debt
    account.charged += charge
    account.posted += charge - debt
    account.incurred += debt


def _repay(account: Account, draws: Draws) -> None:
    _post(account, draws)
    account.debt -= sum(ticks for _, ticks in draws)


def _count(account: Account, counts: Counts, at: int, *, held: int = 0, used: int = 0, over: int = 0) -> None:
    for name, window, quantity in counts:
        counter = account.counters.get((name, window))
        if counter is None:
            _drop_ended(account, at, {one[:2] for one in counts})
            ends = _ends(account, name, window, at)
            # What comes late for a window that is over alarms nobody, and nobody twice.
            counter = account.counters[name, window] = Counter(ends, crossed=0 if ends > at else _ALL_FIRED)
        counter.held += held * quantity
        counter.used += used * quantity
        counter.over += over * quantity


_ALL_FIRED = 1000
"""No threshold is above it."""


def _ends(account: Account, name: str, window: str, at: int) -> int:
    """The end of the window that a limit, or the cap on purchases, is in by the present terms; any other is over."""
    limit, top_up = account.limit(name), account.terms.top_up
    if limit is not None:
        present, ends = window_of(limit, at, account.terms.plan)
    elif name == TOPUPS and top_up is not None:
        present, ends = window_at(top_up.window, "", top_up.zone, at, None)
    else:
        return at
    return ends if present == window.partition("|")[0] else at


def _meter(account: Account, metered: Metered, at: int, *, held: int = 0, used: int = 0) -> None:
    for name, window, quantity, ends in metered:
        counter = account.counters.get((name, window))
        if counter is None:
            _drop_ended(account, at, {one[:2] for one in metered})
            counter = account.counters[name, window] = Counter(ends)
        counter.ends = max(counter.ends, ends)  # a longer window may begin on the same day, by the same name
        counter.held += held * quantity
        counter.used = max(counter.used + used * quantity, 0)


def _take_from_run(account: Account, scopes: Scopes, draws: Draws) -> None:
    """A hold takes what its run had reserved: reserved no more by the run, but by the hold."""
    _release(account, draws)
    run = account.reserving(scopes)
    assert run is not None, "a hold names a run's reserve that is not there"
    run.draws = _joined((*run.draws, *((grant, -ticks) for grant, ticks in draws)))


def _back_to_run(account: Account, scopes: Scopes, draws: Draws) -> None:
    """What an ending leaves is the run's again; what it takes from the run beyond its hold is negative."""
    _reserve(account, draws)
    run = account.reserving(scopes)
    assert run is not None, "an ending names a run's reserve that is not there"
    run.draws = _joined((*run.draws, *draws))


def _drop_ended(account: Account, at: int, counted: Container[tuple[str, str]]) -> None:
    """A counter leaves with the first entry that opens another after its window ended and no open hold names it.

    Terms may have changed since: a week that begins on the day that was counted has that day's name, and is not over.
    `counted`: those that the same entry counts in, for windows that are over.
    """
    over = [
        key
        for key, counter in account.counters.items()
        if counter.ends <= at
        and not counter.held
        and not (key[0].startswith(METER) and at < counter.ends + LATE)
        and key not in counted
        and _ends(account, *key, at) <= at
    ]
    for key in over:
        del account.counters[key]


def _joined(draws: Iterable[tuple[int, Ticks]]) -> Draws:
    """The same draws with each grant once, in order of first mention."""
    sums: dict[int, Ticks] = {}
    for grant, ticks in draws:
        sums[grant] = sums.get(grant, 0) + ticks
    return tuple((grant, ticks) for grant, ticks in sums.items() if ticks)


def _joined_metered(metered: Iterable[tuple[str, str, int, int]]) -> Metered:
    sums: dict[tuple[str, str, int], int] = {}
    for name, window, quantity, ends in metered:
        sums[name, window, ends] = sums.get((name, window, ends), 0) + quantity
    return tuple((name, window, quantity, ends) for (name, window, ends), quantity in sums.items())


def _joined_counts(counts: Iterable[tuple[str, str, int]]) -> Counts:
    sums: dict[tuple[str, str], int] = {}
    for name, window, quantity in counts:
        sums[name, window] = sums.get((name, window), 0) + quantity
    return tuple((name, window, quantity) for (name, window), quantity in sums.items())
