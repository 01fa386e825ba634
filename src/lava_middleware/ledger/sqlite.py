"""This file knows how the journal is kept in SQLite: the embedded default, one host, any number of processes.

Every append is one autocommit INSERT that carries its own proof; nothing waits inside SQLite.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from .connection import NullViolation, UniqueViolation
from .journal import Entry, Outcome, OwnerMark, Snapshot, check_consecutive
from .sqlite_file import Durability, open_file, patiently

_COLUMNS = "account, version, kind, key, balance_after, event, record, at"
_FULL = f"SELECT {_COLUMNS}, seq FROM journal"
_BARE = _FULL.replace("record", "NULL")
_KEYS_AT_ONCE = 500


class SqliteJournal:
    """The journal in a file. Journals of one process on the same file share its connections.

    `durability`: "power_loss" has every commit on the disk within 50 ms; "process_crash" leaves that to the operating
    system. Either way an append that was answered survives the death of its process.
    """

    def __init__(self, path: str | os.PathLike[str], durability: Durability = "power_loss") -> None:
        self._file = open_file(path, durability)
        self._closed = False
        self._writer, self._tail, self._bulk = self._file.writer, self._file.tail, self._file.bulk

    @property
    def path(self) -> str:
        """The real path: absolute, without symbolic links."""
        return self._file.path

    # -- entries

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        check_consecutive(entries, predecessor)
        self._file.look_after_a_pause()
        values: tuple[Any, ...] = entries[0][:-1]  # all but its seq, in the order of _COLUMNS
        for one in entries[1:]:
            values += one[:-1]
        follows = predecessor[0] > 0
        if follows:
            values += predecessor
        try:
            seq = self._writer.insert(_insert(len(entries), follows), values)
        except UniqueViolation:
            return Outcome.CONFLICT, 0
        except NullViolation:
            return Outcome.NO_PREDECESSOR, 0
        return Outcome.APPENDED, seq

    def exclusive(self) -> AbstractContextManager[None]:
        """See ExclusiveJournal. Reads in the block see the journal as it was when the block began."""
        return self._writer.exclusive()

    def since(self, account: str, version: int) -> list[Entry]:
        self._file.look_after_a_pause()
        rows = self._tail.fetch(f"{_BARE} WHERE account = ? AND version >= ? ORDER BY version", (account, version))
        return [Entry(*row) for row in rows]

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        keys = list(dict.fromkeys(keys))
        found: list[Entry] = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            places = ", ".join("?" * len(some))
            rows = self._tail.fetch(f"{_FULL} WHERE account = ? AND key IN ({places})", (account, *some))
            found += [Entry(*row) for row in rows]
        return sorted(found, key=lambda one: one.version)

    def entries(self, account: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        below = 2**62 if before is None else before
        sql = f"{_FULL} WHERE account = ? AND version < ? ORDER BY version DESC LIMIT ?"
        return [Entry(*row) for row in self._bulk.fetch(sql, (account, below, limit))]

    def read(self, after: int, limit: int = 500) -> list[Entry]:
        rows = self._bulk.fetch(f"{_FULL} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [Entry(*row) for row in rows]

    def last_seq(self) -> int:
        ((seq,),) = self._tail.fetch("SELECT coalesce(max(seq), 0) FROM journal")
        return int(seq)

    def accounts(self, *, after: str = "", limit: int = 500) -> list[str]:
        # One step in the index for each account; DISTINCT would walk over all of their entries.
        sql = """WITH RECURSIVE walk (account) AS (
            SELECT min(account) FROM journal WHERE account > ?1
            UNION ALL
            SELECT (SELECT min(journal.account) FROM journal WHERE journal.account > walk.account)
            FROM walk WHERE walk.account IS NOT NULL LIMIT ?2)
            SELECT account FROM walk WHERE account IS NOT NULL"""
        return [account for (account,) in self._bulk.fetch(sql, (after, limit))]

    # -- what is kept beside the entries

    def snapshot(self, account: str) -> Snapshot | None:
        sql = "SELECT account, version, at, format, state FROM snapshots WHERE account = ?"
        rows = self._tail.fetch(sql, (account,))
        return Snapshot(*rows[0]) if rows else None

    def save_snapshots(self, snapshots: Iterable[Snapshot]) -> None:
        rows = [(one.account, one.version, one.at, one.format, one.state) for one in snapshots]
        sql = "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)"
        if rows:
            self._writer.transaction(lambda raw: raw.executemany(sql, rows))

    def cursor(self, follower: str) -> int:
        rows = self._tail.fetch("SELECT seq FROM cursors WHERE follower = ?", (follower,))
        return int(rows[0][0]) if rows else 0

    def cursors(self) -> list[tuple[str, int]]:
        rows = self._bulk.fetch("SELECT follower, seq FROM cursors ORDER BY follower")
        return [(follower, seq) for follower, seq in rows]

    def save_cursor(self, follower: str, seq: int, last: Entry | None = None) -> None:
        if last is None:
            self._writer.insert("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (follower, seq))
            return
        sql = (
            "INSERT OR REPLACE INTO cursors SELECT ?, ? WHERE EXISTS "
            "(SELECT 1 FROM journal WHERE seq = ? AND account = ? AND version = ? AND at = ? AND key IS ?)"
        )
        self._writer.insert(sql, (follower, seq, seq, last.account, last.version, last.at, last.key))

    def bury(self, follower: str, seq: int, reason: str) -> None:
        sql = "INSERT OR IGNORE INTO dead_letters (follower, seq, reason) VALUES (?, ?, ?)"
        self._writer.insert(sql, (follower, seq, reason))

    def dead_letters(self, *, limit: int = 100) -> list[tuple[str, int, str]]:
        sql = "SELECT follower, seq, reason FROM dead_letters ORDER BY id DESC LIMIT ?"
        return [(follower, seq, reason) for follower, seq, reason in self._bulk.fetch(sql, (limit,))]

    def note(self, name: str) -> str | None:
        rows = self._tail.fetch("SELECT text FROM notes WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def save_note(self, name: str, text: str) -> None:
        self._writer.insert("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))

    def bump(self, day: str, reason: str, host: str, count: int) -> None:
        sql = """INSERT INTO bumps VALUES (?, ?, ?, ?)
            ON CONFLICT (day, reason, host) DO UPDATE SET count = count + excluded.count"""
        self._writer.insert(sql, (day, reason, host, count))

    def bumps(self) -> list[tuple[str, str, str, int]]:
        sql = "SELECT day, reason, host, count FROM bumps ORDER BY day DESC, reason, host"
        return [(day, reason, host, count) for day, reason, host, count in self._bulk.fetch(sql)]

    # -- owners

    def register_owner(self) -> str:
        return patiently(self._file.owners.register)

    def advance_owner(self, owner: str, low_seq: int) -> None:
        self._file.owners.advance(owner, low_seq)

    def owners(self) -> list[OwnerMark]:
        return self._file.owners.marks()

    def forget_owner(self, owner: str) -> None:
        self._file.owners.forget(owner)

    # -- between calls

    def maintain(self) -> None:
        self._file.maintain()

    def sync(self, timeout_s: float) -> bool:
        return self._file.sync(timeout_s)

    @property
    def generation(self) -> int:
        return self._file.generation

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._writer = self._tail = self._bulk = self._file.closed
            self._file.release()


@cache
def _insert(count: int, follows: bool) -> str:
    """The INSERT for so many entries. One that follows others takes its account from its predecessor, that very entry:
    without it there is no account, and the NOT NULL column refuses (T42). A first entry is guarded by the unique index.

    (INSERT ... SELECT ... WHERE EXISTS says the same, 4 µs slower: SQLite copies its rows to a temporary table.)
    """
    places = [[f"?{8 * row + column}" for column in range(1, 9)] for row in range(count)]
    if follows:
        last = 8 * count
        places[0][0] = (
            f"(SELECT account FROM journal WHERE account = ?1 AND version = ?{last + 1} AND at = ?{last + 2})"
        )
    rows = ", ".join(f"({', '.join(row)})" for row in places)
    return f"INSERT INTO journal ({_COLUMNS}) VALUES {rows}"
