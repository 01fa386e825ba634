"""This file knows how to write decided events down as entries, each with the balance after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.account import Account
from ..core.decide import key_of
from ..core.events import (
    Crossed,
    Event,
    Extended,
    Held,
    Reported,
    RunEnded,
    RunStarted,
    Settled,
    TermsSet,
    TopupFailed,
    TopupStarted,
    Voided,
    encode,
)
from ..core.evolve import evolve
from ..core.money import Ticks
from ..core.state import from_state, to_state
from .journal import Entry

_CHARGES: dict[type[Any], bool] = {
    # event → whether its charge is what it changes the balance by, on an account whose grants are all alive; if not, it
    # leaves the balance as it is. Missing: fold it to see.
    Held: False,
    Extended: False,
    Voided: False,
    TermsSet: False,
    RunStarted: False,
    RunEnded: False,
    Crossed: False,
    TopupStarted: False,
    TopupFailed: False,
    Settled: True,
    Reported: True,
}


def entries_of(
    account_id: str, account: Account, events: Sequence[Event], now: int, record: str | None
) -> tuple[list[Entry], Account | None]:
    """The entries that append these events to the account, the first at `now`; the record stands beside the last.

    The account stays as it is, for the append may fail. Where the balances could not be told without folding the
    events, the folded copy comes along; without one there is just one event.
    """
    if len(events) == 1 and (charges := _CHARGES.get(type(events[0]))) is not None:
        event: Any = events[0]
        balance = _balance_if_all_live(account, now)
        if balance is not None:
            after = balance - event.charge if charges else balance
            return [_entry(account_id, account.version + 1, event, after, record, now)], None
    folded = from_state(to_state(account))
    entries = []
    for number, event in enumerate(events):
        at = now + number
        evolve(folded, event, at)
        beside = record if number == len(events) - 1 else None
        entries.append(_entry(account_id, folded.version, event, folded.balance(at), beside, at))
    return entries, folded


def _entry(account_id: str, version: int, event: Event, balance: Ticks, record: str | None, at: int) -> Entry:
    return Entry(account_id, version, event.kind, key_of(event), balance, encode(event), record, at)


def _balance_if_all_live(account: Account, now: int) -> Ticks | None:
    """What account.balance(now) says, in one pass; None if a grant has not begun or has expired."""
    balance = -account.debt
    for credit in account.credits:
        if (credit.starts is not None and credit.starts > now) or (
            credit.expires is not None and now >= credit.expires
        ):
            return None
        balance += credit.remaining
    return balance
