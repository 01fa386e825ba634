"""This file knows how to get one command into the journal: decide, append with proof, fold; again after a lost race.

Whoever calls it holds the slot's lock. Nothing in here sleeps or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from ..core.account import Account
from ..core.commands import Authorize, Command, Settle, Void
from ..core.decide import Declined, LedgerRuleError, LookUp, Repeated, decide, due, keys_of
from ..core.events import Event, Held
from ..core.evolve import evolve
from ..core.money import AmountError
from ..core.terms import TermsError
from .accounts import LOOK_AFTER_LOSS, Accounts, Slot
from .counters import Counters
from .entries import entries_of
from .journal import Busy, Journal, JournalUnavailable, Outcome, Refused
from .presence import Presence
from .ticket import Receipt, Ticket

LOSSES_MOST = 8
"""Races one command may lose before it is written by the ledger's thread, alone if the journal offers that."""

RULED_OUT = (LedgerRuleError, AmountError, TermsError)
"""What a command that may not be is answered with."""

_HOPELESS = 200
"""Losses after which the journal itself must be at fault."""

_DUE_MOST = 10_000
"""Entries that may be due at once: thresholds, runs that expired. Idle cycles are one entry together."""

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
        found = self._known(slot, ticket)
        while True:
            now = self._now(account)
            if due(account, now) is not None:
                account = self.bring_up_to_date(slot)
                now = self._now(account)
            decision: list[Event] | Declined | Repeated | None
            try:
                decision = decide(account, command, now, found)
            except (LookUp, *RULED_OUT) as question:
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
                    if account.terms.limits:
                        with suppress(Busy, JournalUnavailable):  # else with the account's next entry
                            self.bring_up_to_date(slot)
                    return receipt
                account, found = self._look_after_loss(slot, ticket)
                fresh = True
            elif fresh and decision is not None:
                return self._without_entry(slot, ticket, decision, now)
            else:
                self._accounts.refresh(slot)
                account, fresh, found = _account(slot), True, self._known(slot, ticket)

    def _known(self, slot: Slot, ticket: Ticket) -> tuple[Event, ...] | None:
        """What stands under the command's keys, where it may have been written before; None: not looked up."""
        return self._accounts.find(slot, keys_of(ticket.command)) if ticket.unsure else None

    def bring_up_to_date(self, slot: Slot) -> Account:
        """Write down what time and terms have decided by themselves, and give the account after it.

        One entry each, apart from any command's: true whoever asks, so losing the race for it to another process is as
        good as winning it. Raises Busy, JournalUnavailable.
        """
        account = _account(slot)
        for _ in range(_DUE_MOST):
            event = due(account, now := self._now(account))
            if event is None:
                return account
            if self._write(slot, account, (event,), now, None) is None:
                self._accounts.refresh(slot)
            account = _account(slot)
        raise JournalUnavailable("an account has no end of what is due: run `lava doctor`")

    def _now(self, account: Account) -> int:
        return max(self._clock(), account.at + 1)

    def _append(
        self, slot: Slot, account: Account, ticket: Ticket, events: Sequence[Event], now: int
    ) -> Receipt | None:
        """The receipt, or None when the journal did not take it: then look what it holds."""
        command = ticket.command
        opening = isinstance(command, Authorize)
        told = isinstance(command, Authorize) and self._presence.opening(slot.id, command.hold)
        try:
            written = self._write(slot, account, events, now, ticket.record)
        except Busy:
            if told:
                self._forget(slot, command)
            raise
        except BaseException:
            ticket.unsure = True
            raise
        if written is None:
            if told:
                self._forget(slot, command)
            return None
        if not opening:
            self._forget(slot, command)
        return Receipt(tuple(events), None, written[1].available(now), False, written[0])

    def _write(
        self, slot: Slot, account: Account, events: Sequence[Event], now: int, record: str | None
    ) -> tuple[int, Account] | None:
        """(seq, the account after it), or None when the journal did not take it."""
        entries, folded = entries_of(slot.id, account, events, now, record)
        try:
            outcome, seq = self._journal.append(entries, (account.version, account.at))
        except Busy:
            raise
        except BaseException:  # it may have been written: nobody may build on what is in memory
            slot.unsure = True
            raise
        if outcome is not Outcome.APPENDED:
            if outcome is Outcome.NO_PREDECESSOR:
                self._accounts.belied(slot)
                slot.account = None
            return None
        self._presence.known_seq, self._presence.last = seq, entries[-1]
        slot.account = None  # whatever interrupts the fold leaves nothing half done behind
        if folded is not None:
            account = folded
        else:
            evolve(account, events[0], now)
        slot.account = account
        for entry in entries:
            slot.tail_entries += 1
            slot.tail_bytes += len(entry.event)
        return seq, account

    def _look_after_loss(self, slot: Slot, ticket: Ticket) -> tuple[Account, tuple[Event, ...] | None]:
        """The account as the journal has it now; where nobody added to it, what stands under the command's keys."""
        self._counters.conflicts += 1
        ticket.losses += 1
        slot.look_first = LOOK_AFTER_LOSS
        if ticket.losses >= _HOPELESS:
            raise Refused("the ledger refuses an entry again and again: run `lava doctor`")
        if ticket.losses % LOSSES_MOST == 0:
            raise TooManyLosses
        grew = self._accounts.refresh(slot)
        return _account(slot), None if grew else self._accounts.find(slot, keys_of(ticket.command))

    def _without_entry(self, slot: Slot, ticket: Ticket, decision: Declined | Repeated, now: int) -> Receipt:
        """What was looked up changes nothing. A hold that an attempt before may have made is open, or never is."""
        account, command = _account(slot), ticket.command
        known = ticket.unsure or isinstance(decision, Repeated)
        if known and isinstance(command, _ABOUT_A_HOLD) and command.hold not in account.holds:
            self._forget(slot, command)
        if isinstance(decision, Declined):
            return Receipt((), decision, account.available(now))
        return Receipt((decision.event,), None, account.available(now), repeated=True)

    def _forget(self, slot: Slot, command: Command) -> None:
        if isinstance(command, _ABOUT_A_HOLD):
            self._presence.ended(slot.id, command.hold)


def _account(slot: Slot) -> Account:
    assert slot.account is not None
    return slot.account


def _behind(account: Account, event: Event, now: int) -> Receipt:
    """The refusal of a call that could pass but for those who have waited longer."""
    available = account.available(now)
    required = event.amount if isinstance(event, Held) else 0
    return Receipt((), Declined("credit_on_hold", available, required, waitable=True), available)
