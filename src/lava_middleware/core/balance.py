"""This file knows how to show an account to a person: what is available, held, owed, and how far each limit is used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .account import OVERAGE, UNLIMITED, Account, Counter
from .money import Amount
from .terms import Limit
from .windows import NEVER, window_of

NOTHING = Amount(0)


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit in its current window."""

    name: str
    unit: str
    window: str
    quantity: int
    used: int
    held: int
    """By calls that are open now."""
    resets_at: datetime | None
    """None: it does not reset by itself."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What a customer has. `available` is what a new call could hold: credits not held by open calls, less debt."""

    available: Amount
    balance: Amount
    """As on a statement: credits not yet spent, holds not deducted, less debt."""
    held: Amount
    debt: Amount
    limits: tuple[LimitState, ...] = ()
    plan: str | None = None
    """Name of the plan the customer is on; likewise the end of its present cycle."""
    cycle_ends: datetime | None = None
    overage_used: Amount = NOTHING
    """How far the present cycle has gone beyond its credits, and in it calls of cycles before: yours to invoice.
    `balance` is less by it."""
    unlimited: bool = False
    """The plan's overage has no cap; `available` is what there is without it."""
    suspended: bool = False


def balance_of(account: Account, now: int) -> Balance:
    """The account as of `now` (microseconds since 1970)."""
    limits = []
    for limit in account.terms.limits:
        window, ends = window_of(limit, now, account.terms.plan)
        for name, counted in _windows(account, limit, window):
            resets_at = None if ends >= NEVER else datetime.fromtimestamp(ends / 1_000_000, UTC)
            used, held = (counted.used, counted.held) if counted else (0, 0)
            limits.append(LimitState(name, limit.unit, limit.window, limit.quantity, used, held, resets_at))
    overage, cycle, plan = account.overage(), account.cycle, account.terms.plan
    unlimited = overage is not None and overage.room >= UNLIMITED
    room = overage.free if overage is not None and unlimited else 0
    return Balance(
        available=Amount(account.available(now) - room),
        balance=Amount(account.balance(now)),
        held=Amount(account.reserved()),
        debt=Amount(account.debt),
        limits=tuple(limits),
        plan=plan.name if plan is not None else None,
        cycle_ends=None if cycle is None else datetime.fromtimestamp(cycle.ends / 1_000_000, UTC),
        overage_used=Amount(-sum(one.remaining for one in account.credits if one.category == OVERAGE)),
        unlimited=unlimited,
        suspended=account.terms.suspended,
    )


def _windows(account: Account, limit: Limit, window: str) -> list[tuple[str, Counter | None]]:
    """(name, counter) of the limit in its present window; of one per scope, for each value that was counted."""
    if not limit.per:
        return [(limit.name, account.counters.get((limit.name, window)))]
    return [
        (f"{limit.name} {limit.per}={found.partition('|')[2]}", counter)
        for (name, found), counter in account.counters.items()
        if name == limit.name and found.partition("|")[0] == window
    ]
