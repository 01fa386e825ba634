"""This file knows how to get one command into the journal: decide, append with proof, fold; again after a lost race.

Whoever calls it holds the slot's lock. Nothing in here sleeps or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.account import Account, evolve
from ..core.commands import Authorize, Command, Settle, Void
from ..core.decide import Declined, LedgerRuleError, LookUp, Repeated, decide, keys_of
from ..core.events import Event, Held
from .accounts import LOOK_AFTER_LOSS, Accounts, Slot
from .counters import Counters
from .entries import entries_of
from .journal import Busy, Journal, JournalUnavailable, Outcome
from .presence import Presence
from .ticket import Receipt, Ticket

LOSSES_MOST = 8
"""Races one command may lose before it is written by the ledger's thread, alone if the journal offers that."""

_HOPELESS = 200
"""Losses after which the journal itself must be at fault."""

_ABOUT_A_HOLD = (Authorize, Settle, Void)


class TooManyLosses(Exception):
    """Others were faster every time: the ledger's thread goes on with it."""


class Appender:
    def __init__(
        self,
        journal: Journal,
        accounts: Accounts,
        presence: Presence,
        clock: Callable[[], int],
        counters: Counters,
    ) -> None:
        self._journal = journal
        self._accounts = accounts
        self._presence = presence
        self._clock = clock
        self._counters = counters

    def attempt(self, slot: Slot, ticket: Ticket, *, behind: bool = False) -> Receipt:
        """What the command leads to, appended if it leads to anything.

        What appends nothing (a refusal, a repetition, an error) is never told from memory alone: the tail is read
        first (T44). `behind`: others wait longer for this account, so an approval becomes a refusal.
        Raises Busy, JournalUnavailable, TooManyLosses and what decide() raises.
        """
        command = ticket.command
        account, fresh = self._accounts.ready(slot)
        found = self._accounts.find(slot, keys_of(command)) if ticket.unsure else None
        while True:
            now = max(self._clock(), account.at + 1)
            decision: list[Event] | Declined | Repeated | None
            try:
                decision = decide(account, command, now, found)
            except (LookUp, LedgerRuleError) as question:
                if fresh and isinstance(question, LookUp):
                    found = self._accounts.find(slot, question.keys)
                    continue
                if fresh:
                    raise
                decision = None
            if isinstance(decision, list):
                if behind:
                    return _behind(account, decision[-1], now)
                if (receipt := self._append(slot, account, ticket, decision, now)) is not None:
                    return receipt
                account, found = self._look_after_loss(slot, ticket)
                fresh = True
            elif fresh and decision is not None:
                return self._without_entry(account, command, decision, now)
            else:
                self._accounts.refresh(slot)
                account, fresh, found = _account(slot), True, None

    def _append(
        self, slot: Slot, account: Account, ticket: Ticket, events: Sequence[Event], now: int
    ) -> Receipt | None:
        """The receipt, or None when the journal did not take it: then look what it holds."""
        command = ticket.command
        entries, folded = entries_of(slot.id, account, events, now, ticket.record)
        opening = isinstance(command, Authorize)
        if isinstance(command, Authorize):
            self._presence.opening(command.hold)
        try:
            outcome, seq = self._journal.append(entries, (account.version, account.at))
        except Busy:
            if opening:
                self._forget(command)
            raise
        except BaseException:  # it may have been written: nobody may build on what is in memory
            slot.unsure = ticket.unsure = True
            raise
        if outcome is not Outcome.APPENDED:
            if opening:
                self._forget(command)
            if outcome is Outcome.NO_PREDECESSOR:
                self._presence.doubt()
                slot.account = None
            return None
        self._presence.known_seq = seq
        slot.account = None  # whatever interrupts the fold leaves nothing half done behind
        if folded is not None:
            account = folded
        else:
            evolve(account, events[0], now)
        slot.account = account
        for entry in entries:
            slot.tail_entries += 1
            slot.tail_bytes += len(entry.event)
        if not opening:
            self._forget(command)
        return Receipt(tuple(events), None, account.available(now), False, seq)

    def _look_after_loss(self, slot: Slot, ticket: Ticket) -> tuple[Account, tuple[Event, ...] | None]:
        """The account as the journal has it now; where nobody added to it, what stands under the command's keys."""
        self._counters.conflicts += 1
        ticket.losses += 1
        slot.look_first = LOOK_AFTER_LOSS
        if ticket.losses >= _HOPELESS:
            raise JournalUnavailable("the ledger refuses an entry again and again: run `lava doctor`")
        if ticket.losses % LOSSES_MOST == 0:
            raise TooManyLosses
        grew = self._accounts.refresh(slot)
        return _account(slot), None if grew else self._accounts.find(slot, keys_of(ticket.command))

    def _without_entry(self, account: Account, command: Command, decision: Declined | Repeated, now: int) -> Receipt:
        available = account.available(now)
        if isinstance(decision, Declined):
            return Receipt((), decision, available)
        self._forget(command)
        return Receipt((decision.event,), None, available, repeated=True)

    def _forget(self, command: Command) -> None:
        if isinstance(command, _ABOUT_A_HOLD):
            self._presence.ended(command.hold)


def _account(slot: Slot) -> Account:
    assert slot.account is not None
    return slot.account


def _behind(account: Account, event: Event, now: int) -> Receipt:
    """The refusal of a call that could pass but for those who have waited longer."""
    available = account.available(now)
    required = event.amount if isinstance(event, Held) else 0
    return Receipt((), Declined("credit_on_hold", available, required, waitable=True), available)
