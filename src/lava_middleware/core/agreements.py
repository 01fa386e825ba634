"""This file knows what is due by time and terms alone: cycles, terms that were to follow, runs that expire, thresholds.

Nothing here asks for anything: `due` says what a calendar has already decided, the first time somebody looks.
"""

from __future__ import annotations

from .account import OVERAGE, Account, Cycle
from .commands import EndRun, SetTerms, StartRun
from .decision import Conflict, Decision, Declined, Found, LedgerRuleError, LookUp, Repeated, only
from .draws import draw
from .events import Crossed, Cycled, Draws, Event, Lapsed, Repaid, RunEnded, RunStarted, TermsSet
from .evolve import evolve
from .keys import keys_of
from .money import LARGEST, Ticks
from .state import from_state, to_state
from .terms import Plan, Terms, TermsError
from .windows import Period, begun, cycle_of, period_of, zone_of

RUN_NOT_OPEN = "a run of that id was never started for this customer"


# What is due ----------------------------------------------------------------------------------------------------------


def due(account: Account, now: int) -> Event | None:
    """The next thing that the calendar or the terms have made true and that no entry says yet; None: nothing."""
    event: Event | None = None
    if account.pending is not None or account.cycle is not None or account.terms.plan is not None:
        event = _agreed(account, now)
        if event is None and account.cycle is not None:
            event = _given_back(account, now)
    if event is None and account.debt and (draws := draw(account, account.debt, now)[0]):
        event = Repaid(draws)
    if event is None and account.runs:
        event = _run_over(account, now)
    if event is None and account.counters:
        event = _crossed(account)
    return event


def as_of(account: Account, now: int) -> Account:
    """The account with all that is due by now, for reading: itself where nothing is, else a copy."""
    now = max(now, account.at)
    event = due(account, now)
    if event is None:
        return account
    seen = from_state(to_state(account))
    while event is not None:
        evolve(seen, event, now)
        event = due(seen, now)
    return seen


def _agreed(account: Account, now: int) -> Event | None:
    """Of terms that were to follow and cycles that have begun, what comes first."""
    cycle, plan, pending = account.cycle, account.terms.plan, account.pending
    following = pending is not None and pending[0] <= now
    horizon = pending[0] - 1 if pending is not None and following else now
    if cycle is not None and plan is None:
        return _closed(account, cycle)
    if plan is not None and (cycle is None or cycle.plan != plan.name or cycle.ends <= horizon):
        return _next_cycle(account, plan, horizon)
    if pending is not None and following:
        return TermsSet(pending[1], pending[0])
    return None


def _next_cycle(account: Account, plan: Plan, now: int) -> Cycled:
    """The cycle that holds this moment; those between the last one and it are in the same entry.

    Each of them is as an entry of its own would be: what is left pays debt first, of the rest as much as may goes over,
    and the plan's credits are added, which pay debt as well.
    """
    cycle = account.cycle
    calendar = cycle_of(plan)
    period = _period_after(cycle, calendar, now)
    left, draws, overage_used = _left(account)
    cycles = _cycles_begun(account, plan, period)
    debt, amount, over = account.debt, left, 0
    carried_most = plan.rollover if cycle is None else cycle.rollover
    for number in range(cycles):
        before = debt, amount, over
        if number:
            carried_most = plan.rollover
        debt, amount = _repaid(debt, amount)
        over = _at_most(amount, carried_most)
        debt, amount = _repaid(debt, over + plan.credits)
        if (debt, amount, over) == before and number:
            break  # so is every cycle after it
    amount = min(amount, _most_held(account, draws))
    repaid, included = account.debt - debt, cycles * plan.credits
    return Cycled(
        plan=plan.name,
        id=period.id,
        starts=period.starts,
        ends=period.ends,
        number=period.number,
        calendar=calendar,
        draws=draws,
        included=included,
        amount=amount,
        rolled=over,
        carried_most=carried_most,
        debt_repaid=repaid,
        lapsed=left + included - amount - repaid,
        rollover=plan.rollover,
        overage=plan.overage,
        overage_used=overage_used,
    )


def _period_after(cycle: Cycle | None, calendar: tuple[str, str, str], now: int) -> Period:
    """The cycle that is to be written. A host whose time zone data has the last cycle end later does not begin it
    a second time: the next one begins where the entry says that the last one ended."""
    period = period_of(*calendar, now)
    if cycle is None or cycle.calendar != calendar or cycle.ends > now or period.number > cycle.number:
        return period
    following = period_of(*calendar, period.ends)
    return following._replace(starts=cycle.ends)


def _cycles_begun(account: Account, plan: Plan, period: Period) -> int:
    """How many cycles have begun since the last one ended, or since the plan came into force."""
    cycle = account.cycle
    since = cycle.ends if cycle is not None and cycle.plan == plan.name else account.since
    return begun(plan.cycle, period_of(*cycle_of(plan), since), period) if since < period.starts else 1


def _repaid(debt: Ticks, amount: Ticks) -> tuple[Ticks, Ticks]:
    paid = min(debt, amount)
    return debt - paid, amount - paid


def _most_held(account: Account, leaving: Draws) -> Ticks:
    """What may be granted without the account's sum leaving its bounds: an idle customer's credits stop growing."""
    remaining = sum(credit.remaining for credit in account.credits) - sum(ticks for _, ticks in leaving)
    return max(LARGEST - 1 - max(remaining, 0), 0)


def _closed(account: Account, cycle: Cycle) -> Cycled:
    """The plan is over: what it had left and nobody has reserved pays debt, and lapses."""
    left, draws, overage_used = _left(account)
    debt, lapsing = _repaid(account.debt, left)
    return Cycled(
        plan=cycle.plan,
        draws=draws,
        debt_repaid=account.debt - debt,
        lapsed=lapsing,
        carried_most=0,
        overage_used=overage_used,
    )


def _left(account: Account) -> tuple[Ticks, Draws, Ticks]:
    """(what cycles' grants have left that nobody reserved, the draws that take it, overage that was used)."""
    left = used = 0
    draws = []
    for credit in account.credits:
        if credit.rolls and (free := credit.remaining - credit.reserved) > 0:
            left += free
            draws.append((credit.grant, free))
        elif credit.category == OVERAGE and credit.remaining:
            used -= credit.remaining
            draws.append((credit.grant, credit.remaining))
    return left, tuple(draws), used


def _at_most(ticks: Ticks, most: Ticks | None) -> Ticks:
    return ticks if most is None else min(ticks, most)


def lapsed(account: Account, now: int) -> Lapsed | None:
    """What expired grants have left and no hold has reserved: written off, or gone over into the present cycle.

    What a hold of an earlier cycle used of its overage is told when the present cycle ends; where there is none, here.
    """
    dead, rolling, overage_used, cycle = [], 0, 0, account.cycle
    for credit in account.credits:
        if credit.expires is None or credit.expires > now:
            continue
        left = credit.remaining - credit.reserved
        if credit.category == OVERAGE:
            if cycle is None and left and not credit.reserved:
                dead.append((credit.grant, left))
                overage_used -= left
        elif left > 0:
            dead.append((credit.grant, left))
            rolling += left if credit.rolls else 0
    if not dead:
        return None
    if not rolling or cycle is None or cycle.ends <= now:
        return Lapsed(tuple(dead), overage_used=overage_used)
    room = rolling if cycle.carried_most is None else max(cycle.carried_most - cycle.rolled, 0)
    return Lapsed(tuple(dead), min(rolling, room))


def _given_back(account: Account, now: int) -> Lapsed | None:
    """What a hold has given back of an earlier cycle's credits, if any of it goes over into the present one."""
    for credit in account.credits:  # a loop of its own: it runs with every call of a customer with a plan
        if credit.rolls and credit.expires is not None and credit.expires <= now and credit.remaining > credit.reserved:
            event = lapsed(account, now)
            return event if event is not None and event.rolled else None
    return None


def _run_over(account: Account, now: int) -> RunEnded | None:
    """A run ends when it expires, and with the run that it is a part of."""
    for name, run in account.runs.items():
        if run.expires <= now:
            return _ended(account, name, now, expired=True)
        if run.parent and run.parent not in account.runs:
            return _ended(account, name, now)
    return None


def _crossed(account: Account) -> Crossed | None:
    """The lowest threshold that has been reached and has not fired yet."""
    for limit in account.terms.limits:
        if not limit.thresholds:
            continue
        for (name, window), counter in account.counters.items():
            if name != limit.name or not counter.used:
                continue
            for percent in sorted(limit.thresholds):
                if percent > counter.crossed and counter.used * 100 >= percent * limit.quantity:
                    return Crossed(name, window, percent, counter.used, limit.quantity, limit.unit)
    return None


# What is asked --------------------------------------------------------------------------------------------------------


def set_terms(account: Account, command: SetTerms, now: int, found: Found) -> Decision:
    """Terms at once, or from a moment on; only one change can follow, the last one that was asked for.

    Versions and catalogues are compared with the terms in force.
    """
    terms = command.terms
    effective = command.effective
    if command.at_cycle_end and account.cycle is not None:
        effective = account.cycle.ends
    if effective is not None and effective <= now:
        effective = None
    if account.pending == (effective, terms) or (effective is None and terms == account.terms):
        return Repeated(TermsSet(terms, effective))
    if terms.version <= account.terms.version:
        raise Conflict("newer terms are in force; read them again and repeat the change")
    if terms.catalogue < account.terms.catalogue:
        raise Conflict("terms of a newer catalogue are in force; an older one never overwrites them")
    _check_zones(terms)
    return [TermsSet(terms, effective)]


def _check_zones(terms: Terms) -> None:
    """TermsError for a zone that this host does not know: every later command would stumble over it."""
    for limit in terms.limits:
        zone_of(limit.zone)
    if terms.plan is not None:
        zone_of(terms.plan.zone)
    if terms.top_up is not None:
        zone_of(terms.top_up.zone)


def start_run(account: Account, command: StartRun, now: int, found: Found) -> Decision:
    if found:
        first = only(RunStarted, found)
        wanted = (command.budget, command.calls_most, command.parent, command.reserve and bool(command.budget))
        if (first.budget, first.calls_most, first.parent, bool(first.draws)) != wanted:
            raise Conflict("a run with this id exists with another budget; an id names one run for ever")
        if command.run not in account.runs:
            return Declined("run_ended", limit=f"run {command.run}")
        return Repeated(first)
    if found is not None:
        return _run_started(account, command, now)
    # Whatever is no beginning may be one that was made before: what is told then does not depend on who has looked.
    if command.run in account.runs:
        raise LookUp(*keys_of(command))
    try:
        started = _run_started(account, command, now)
    except (LedgerRuleError, TermsError):
        raise LookUp(*keys_of(command)) from None
    if isinstance(started, Declined):
        raise LookUp(*keys_of(command))
    return started


def _run_started(account: Account, command: StartRun, now: int) -> Decision:
    if command.parent and command.parent not in account.runs:
        return Declined("run_ended", limit=f"run {command.parent}")
    expires = command.expires
    if expires <= now:
        if not command.lasts:
            raise TermsError("a run must expire in the future")
        expires = now + command.lasts
    draws: tuple[tuple[int, Ticks], ...] = ()
    if command.reserve:
        if command.parent or command.budget is None:
            raise LedgerRuleError("only an outermost run with a budget can reserve it; runs inside share what it has")
        if (free := account.available(now)) < command.budget:
            waitable = free + account.reserved() >= command.budget
            reason = "credit_on_hold" if waitable else "insufficient_credit"
            return Declined(reason, free, command.budget, waitable=waitable)
        draws, _ = draw(account, command.budget, now)
    return [RunStarted(command.run, command.parent, command.budget, command.calls_most, expires, draws)]


def end_run(account: Account, command: EndRun, now: int, found: Found) -> Decision:
    if command.run not in account.runs:
        if found is None:
            raise LookUp(*keys_of(command))
        if not found:
            raise LedgerRuleError(RUN_NOT_OPEN)
        return Repeated(only(RunEnded, found))
    return [_ended(account, command.run, now)]


def _ended(account: Account, name: str, now: int, *, expired: bool = False) -> RunEnded:
    released = dict(account.runs[name].draws)
    repaid = draw(account, account.debt, now, released)[0] if account.debt and released else ()
    return RunEnded(name, expired, repaid)
