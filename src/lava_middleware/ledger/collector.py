"""This file knows how the journal, and this process's open holds, look to a batch that is not appended yet."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Sequence

from .journal import BatchJournal, Entry, Outcome, Snapshot
from .presence import Presence


class Overtaken(Exception):
    """Somebody else appended to the account while we were deciding: what was decided on it here is worth nothing."""


class Collector:
    """The journal as the thread of the batches sees it: with what it has decided already and not yet appended.

    To any other thread it is the journal itself.
    """

    def __init__(self, journal: BatchJournal) -> None:
        self.journal = journal
        self.thread = 0
        self.known_seq = 0
        """Some seq that the journal has reached."""
        self.groups: dict[str, tuple[list[Entry], tuple[int, int]]] = {}
        """Account → (what is to be appended, what it builds on)."""
        self._keys: dict[str, set[str]] = {}
        """Account → the keys of what is to be appended."""
        self._seen: dict[str, Entry | None] = {}
        """Account → its last entry in the journal, if we have looked since this batch began."""
        self.snapshots: dict[str, Snapshot | None] = {}
        self.tails: dict[str, tuple[int, list[Entry]]] = {}
        """Account → (from which version on, what there is): read for all accounts of the batch at once."""

    def begin(self) -> None:
        self.groups = {}
        self._keys = {}
        self._seen = {}
        self.snapshots = {}
        self.tails = {}

    def bring(self, wanted: Sequence[tuple[str, int]], tails: dict[str, list[Entry]]) -> None:
        self.tails = {account: (version, tails[account]) for account, version in wanted}

    def discard(self, account: str) -> None:
        self.groups.pop(account, None)
        self._keys.pop(account, None)
        self._seen.pop(account, None)
        self.tails.pop(account, None)
        self.snapshots.pop(account, None)

    def count(self, account: str) -> int:
        return len(self.groups[account][0]) if account in self.groups else 0

    @property
    def generation(self) -> int:
        return self.journal.generation

    def snapshot(self, account: str) -> Snapshot | None:
        if get_ident() == self.thread and account in self.snapshots:
            return self.snapshots[account]
        return self.journal.snapshot(account)

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        if get_ident() != self.thread:
            return self.journal.append(entries, predecessor)
        account, keys = entries[0].account, {entry.key for entry in entries if entry.key is not None}
        taken = self._keys.setdefault(account, set())
        if not taken.isdisjoint(keys):
            return Outcome.CONFLICT, 0  # the same command came twice: `find` tells what the first one led to
        taken |= keys
        collected, _ = self.groups.setdefault(account, ([], predecessor))
        collected += entries
        return Outcome.APPENDED, self.known_seq

    def since(self, account: str, version: int) -> list[Entry]:
        if get_ident() != self.thread:
            return self.journal.since(account, version)
        if account not in self._seen:
            return self._first_look(account, version)
        last = self._seen[account]
        if last is not None and version < last.version:
            if account in self.groups:
                raise Overtaken
            return self._read(account, version)
        return self._ours(account, version)

    def _read(self, account: str, version: int) -> list[Entry]:
        since, rows = self.tails.get(account, (version + 1, []))
        return self.journal.since(account, version) if version < since else [r for r in rows if r.version >= version]

    def _first_look(self, account: str, version: int) -> list[Entry]:
        """All commands of the batch had arrived before this: none of them needs another look (T44)."""
        if account not in self.groups:
            rows = self._read(account, version)
            if rows or version <= 1:
                self._seen[account] = rows[-1] if rows else None
            return rows
        _, (base, at) = self.groups[account]
        rows = self._read(account, max(base, 1))
        if [(row.version, row.at) for row in rows] != ([(base, at)] if base else []):
            raise Overtaken
        self._seen[account] = rows[-1] if rows else None
        return self._ours(account, version)

    def _ours(self, account: str, version: int) -> list[Entry]:
        last = self._seen[account]
        collected = self.groups[account][0] if account in self.groups else []
        rows = [*([] if last is None else [last]), *collected]
        return [row if row.record is None else row._replace(record=None) for row in rows if row.version >= version]

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        found = self.journal.find(account, keys)
        if get_ident() == self.thread and account in self.groups:
            found += [entry for entry in self.groups[account][0] if entry.key in keys]
        return found


class Openings:
    """This process's open holds, as the appender may tell of them before anything is committed.

    A hold counts as open from the moment it is decided, and as ended once its ending is committed.
    """

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self.opened: dict[str, list[str]] = {}
        self.ending: dict[str, list[str]] = {}

    known_seq = property(lambda self: 0, lambda self, seq: None)
    """What the appender is told of is not in the journal yet."""

    def opening(self, account: str, hold: str) -> bool:
        told = self._presence.opening(account, hold)
        if told:  # else it stays said, whatever becomes of this attempt: an earlier one may have made it
            self.opened.setdefault(account, []).append(hold)
        if hold in self.ending.get(account, ()):
            self.ending[account].remove(hold)
        return told

    def ended(self, account: str, hold: str) -> None:
        self.ending.setdefault(account, []).append(hold)

    def committed(self, account: str) -> None:
        self.opened.pop(account, None)
        for hold in self.ending.pop(account, ()):
            self._presence.ended(account, hold)

    def taken_back(self, account: str) -> None:
        self.ending.pop(account, None)
        for hold in self.opened.pop(account, ()):
            self._presence.ended(account, hold)

    def unknown(self, account: str) -> None:
        """It may have been committed: whoever repeats the command, or gives it up, sees to it."""
        self.opened.pop(account, None)
        self.ending.pop(account, None)
