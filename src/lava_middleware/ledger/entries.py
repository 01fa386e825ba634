"""This file knows how to write decided events down as entries, each with the balance after it."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.account import Account, evolve, from_state, to_state
from ..core.decide import key_of
from ..core.events import Adjusted, Event, Extended, Granted, Held, Lapsed, Reported, Settled, TermsSet, Voided, encode
from ..core.money import Ticks
from .journal import Entry

_NO_CHANGE = (Held, Extended, Voided, TermsSet)


def entries_of(
    account_id: str, account: Account, events: Sequence[Event], now: int, record: str | None
) -> tuple[list[Entry], Account | None]:
    """The entries that append these events to the account, the first at `now`; the record stands beside the last.

    The account stays as it is, for the append may fail. Where the balances could not be told without folding the
    events, the folded copy comes along.
    """
    if len(events) == 1 and (change := _change(events[0])) is not None and _all_alive(account, now):
        event = events[0]
        return [_entry(account_id, account.version + 1, event, account.balance(now) + change, record, now)], None
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


def _change(event: Event) -> Ticks | None:
    """By how much an event changes the balance of an account whose grants are all alive; None: fold it to see."""
    if isinstance(event, _NO_CHANGE):
        return 0
    if isinstance(event, Settled | Reported):
        return -sum(ticks for _, ticks in event.draws) - event.debt
    if isinstance(event, Granted) and event.starts is None and event.expires is None:
        return event.amount
    assert isinstance(event, Granted | Lapsed | Adjusted)
    return None


def _all_alive(account: Account, now: int) -> bool:
    return all(
        (credit.starts is None or credit.starts <= now) and (credit.expires is None or now < credit.expires)
        for credit in account.credits
    )
