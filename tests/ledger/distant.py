"""This file knows how to keep a journal in memory that answers from afar, for the thread that appends in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from lava_middleware.ledger.journal import Appended, Busy, Entry, Outcome, Snapshot
from lava_middleware.ledger.memory import MemoryJournal

Appends: TypeAlias = Sequence[tuple[Sequence[Entry], tuple[int, int]]]


class _Alone:
    def __init__(self, journal: Distant, tails: dict[str, list[Entry]]) -> None:
        self._journal = journal
        self.tails = tails

    def commit(self, appends: Appends) -> list[Appended]:
        return self._journal.append_many(appends)


class Distant(MemoryJournal):
    """A BatchJournal whose statements wait until they are let through, and may meet something on their way."""

    batches = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        """A statement waits, or has passed."""
        self.meets: list[Callable[[Appends], list[Appended]]] = []
        """What becomes of the next statements, in place of being carried out."""
        self.statements: list[list[str | None]] = []
        """The keys of what each was to append."""
        self.cannot_be_had: set[str] = set()
        """Accounts that somebody else has for himself."""
        self.maintained = 0
        self.upkeep_fails = False

    def name_owner(self) -> str:
        return self.register_owner()

    def append_many(self, appends: Appends) -> list[Appended]:
        self.waiting.set()
        assert self.gate.wait(20)
        self.statements.append([entry.key for entries, _ in appends for entry in entries])
        return self.meets.pop(0)(appends) if self.meets else self.carry_out(appends)

    def carry_out(self, appends: Appends) -> list[Appended]:
        return [self._carried_out(*one) for one in appends]

    def _carried_out(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> Appended:
        outcome, seq = self.append(entries, predecessor)
        seqs = range(seq - len(entries) + 1, seq + 1) if outcome is Outcome.APPENDED else ()
        taken = outcome is Outcome.CONFLICT and self.find(entries[0].account, [one.key for one in entries if one.key])
        return Appended(outcome, tuple(seqs), key_taken=bool(taken))

    def tails(self, wanted: Sequence[tuple[str, int]]) -> dict[str, list[Entry]]:
        return {account: self.since(account, version) for account, version in wanted}

    def snapshots(self, accounts: Sequence[str]) -> dict[str, Snapshot]:
        found = ((account, self.snapshot(account)) for account in accounts)
        return {account: snapshot for account, snapshot in found if snapshot is not None}

    @contextmanager
    def alone(self, wanted: Sequence[tuple[str, int]]) -> Iterator[_Alone]:
        if not self.cannot_be_had.isdisjoint(account for account, _ in wanted):
            raise Busy
        yield _Alone(self, self.tails(wanted))

    def writes_here(self, here: bool = True) -> None:
        return

    def maintain(self) -> None:
        self.maintained += 1
        if self.upkeep_fails:
            raise RuntimeError("a mistake in the upkeep")
