"""This file knows how to show an account to a person: what is available, held, owed, and how far each limit is used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .account import Account
from .money import Amount
from .windows import window_of


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
    resets_at: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """What a customer has. `available` is what a new call could hold: credits not held by open calls, less debt."""

    available: Amount
    balance: Amount
    """As on a statement: credits not yet spent, holds not deducted, less debt."""
    held: Amount
    debt: Amount
    limits: tuple[LimitState, ...] = ()


def balance_of(account: Account, now: int) -> Balance:
    """The account as of `now` (microseconds since 1970)."""
    limits = []
    for limit in account.terms.limits:
        window, ends = window_of(limit, now)
        counter = account.counters.get((limit.name, window))
        used, held = (counter.used, counter.held) if counter else (0, 0)
        resets_at = datetime.fromtimestamp(ends / 1_000_000, UTC)
        limits.append(LimitState(limit.name, limit.unit, limit.window, limit.quantity, used, held, resets_at))
    return Balance(
        available=Amount(account.available(now)),
        balance=Amount(account.balance(now)),
        held=Amount(account.reserved()),
        debt=Amount(account.debt),
        limits=tuple(limits),
    )
