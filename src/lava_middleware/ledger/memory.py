"""This file knows how to keep the journal in memory: for tests, and for a try-out that may forget."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from .journal import Entry, JournalUnavailable, Outcome, OwnerMark, Snapshot, check_consecutive


class MemoryJournal:
    """A journal that lives and dies with its process. A forked child has a copy of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._all: list[Entry] = []
        self._accounts: dict[str, list[Entry]] = {}
        self._tails: dict[str, list[Entry]] = {}
        """The same entries without their records."""
        self._keys: dict[tuple[str, str], Entry] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._cursors: dict[str, int] = {}
        self._dead: dict[tuple[str, int], str] = {}
        self._notes: dict[str, str] = {}
        self._bumps: dict[tuple[str, str, str], int] = {}
        self._owner: tuple[int, str] | None = None
        self._owners: dict[str, int] = {}
        _OPEN.add(self)

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        check_consecutive(entries, predecessor)
        account = entries[0].account
        with self._lock:
            self._check_open()
            lines = self._accounts.get(account, [])
            version, at = predecessor
            if version and not (version <= len(lines) and lines[version - 1].at == at):
                return Outcome.NO_PREDECESSOR, 0
            if version != len(lines) or self._repeats_key(entries):
                return Outcome.CONFLICT, 0
            for entry in entries:
                self._add(entry._replace(seq=len(self._all) + 1))
            return Outcome.APPENDED, len(self._all)

    def _repeats_key(self, entries: Sequence[Entry]) -> bool:
        keys = [(one.account, one.key) for one in entries if one.key is not None]
        return len(set(keys)) < len(keys) or any(key in self._keys for key in keys)

    def _add(self, entry: Entry) -> None:
        self._all.append(entry)
        self._accounts.setdefault(entry.account, []).append(entry)
        self._tails.setdefault(entry.account, []).append(entry if entry.record is None else entry._replace(record=None))
        if entry.key is not None:
            self._keys[entry.account, entry.key] = entry

    def since(self, account: str, version: int) -> list[Entry]:
        with self._lock:
            self._check_open()
            return self._tails.get(account, [])[max(version - 1, 0) :]

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        with self._lock:
            self._check_open()
            found = [self._keys[account, key] for key in set(keys) if (account, key) in self._keys]
        return sorted(found, key=lambda one: one.version)

    def entries(self, account: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        with self._lock:
            self._check_open()
            lines = self._accounts.get(account, [])
            end = len(lines) if before is None else min(max(before - 1, 0), len(lines))
            return lines[max(end - limit, 0) : end][::-1]

    def read(self, after: int, limit: int = 500) -> list[Entry]:
        with self._lock:
            self._check_open()
            return self._all[max(after, 0) : max(after, 0) + limit]

    def last_seq(self) -> int:
        with self._lock:
            self._check_open()
            return len(self._all)

    def accounts(self, *, after: str = "", limit: int = 500) -> list[str]:
        with self._lock:
            self._check_open()
            names = sorted(self._accounts)
        start = bisect_right(names, after)
        return names[start : start + limit]

    def snapshot(self, account: str) -> Snapshot | None:
        with self._lock:
            self._check_open()
            return self._snapshots.get(account)

    def save_snapshots(self, snapshots: Iterable[Snapshot]) -> None:
        with self._lock:
            self._check_open()
            self._snapshots.update({one.account: one for one in snapshots})

    def cursor(self, follower: str) -> int:
        with self._lock:
            self._check_open()
            return self._cursors.get(follower, 0)

    def cursors(self) -> list[tuple[str, int]]:
        with self._lock:
            self._check_open()
            return sorted(self._cursors.items())

    def save_cursor(self, follower: str, seq: int, last: Entry | None = None) -> None:
        with self._lock:
            self._check_open()
            if last is None or self._all[seq - 1 : seq] == [last]:
                self._cursors[follower] = seq

    def bury(self, follower: str, seq: int, reason: str) -> None:
        with self._lock:
            self._check_open()
            self._dead.setdefault((follower, seq), reason)

    def dead_letters(self, *, limit: int = 100) -> list[tuple[str, int, str]]:
        with self._lock:
            self._check_open()
            return [(*which, reason) for which, reason in self._dead.items()][::-1][:limit]

    def note(self, name: str) -> str | None:
        with self._lock:
            self._check_open()
            return self._notes.get(name)

    def save_note(self, name: str, text: str) -> None:
        with self._lock:
            self._check_open()
            self._notes[name] = text

    def bump(self, day: str, reason: str, host: str, count: int) -> None:
        with self._lock:
            self._check_open()
            self._bumps[day, reason, host] = self._bumps.get((day, reason, host), 0) + count

    def bumps(self) -> list[tuple[str, str, str, int]]:
        with self._lock:
            self._check_open()
            rows = sorted((*which, count) for which, count in self._bumps.items())
        return sorted(rows, key=lambda row: row[0], reverse=True)

    def register_owner(self) -> str:
        with self._lock:
            self._check_open()
            if self._owner is None or self._owner[0] != os.getpid():
                self._owner = os.getpid(), f"memory-{secrets.token_hex(8)}"
            self._owners.setdefault(self._owner[1], len(self._all) + 1)
            return self._owner[1]

    def advance_owner(self, owner: str, low_seq: int) -> None:
        with self._lock:
            self._check_open()
            if owner in self._owners:
                self._owners[owner] = max(self._owners[owner], low_seq)

    def owners(self) -> list[OwnerMark]:
        """All alive: who could have died with a journal that only its own process sees? A forked child's copy still
        names its parent, whose holds are the parent's to end."""
        with self._lock:
            self._check_open()
            return [OwnerMark(owner, low_seq, True) for owner, low_seq in self._owners.items()]

    def forget_owner(self, owner: str) -> None:
        with self._lock:
            self._check_open()
            self._owners.pop(owner, None)

    def maintain(self) -> None:
        return

    def sync(self, timeout_s: float) -> bool:
        return True

    @property
    def generation(self) -> int:
        return 0

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise JournalUnavailable("this ledger was closed: build a new Lava, or close it later")

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


_OPEN: weakref.WeakSet[MemoryJournal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for journal in list(_OPEN):  # another thread of the parent may have had the lock at that moment
        journal._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
