"""This file knows how to use one SQLite connection of the ledger, and what each of SQLite's errors means for it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .journal import Busy, JournalUnavailable

Row = tuple[Any, ...]
T = TypeVar("T")

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
"""Primary codes that say: another connection is at it, nothing was done. PROTOCOL is a lost race for a WAL lock."""

_UNIQUE = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}

_MEANING: dict[int, str] = {
    # SQLite's result code (an extended one, else the primary one) → what is the matter, and what to do about it.
    # A code that is missing here is reported as SQLite words it. https://www.sqlite.org/rescode.html
    sqlite3.SQLITE_NOTADB: "is not an SQLite database (or was overwritten): restore it from a backup, or name another",
    sqlite3.SQLITE_CORRUPT: "is corrupt: stop every process that uses it and restore it from a backup",
    sqlite3.SQLITE_FULL: "cannot grow, the disk or the database's allowed size is full: make room; nothing was written",
    sqlite3.SQLITE_READONLY: "cannot be written: give this user write permission on the file and on its directory",
    sqlite3.SQLITE_READONLY_DBMOVED: "was moved or deleted while in use: put it back, or restart",
    sqlite3.SQLITE_PERM: "may not be used by this user: give it permission on the file and on its directory",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the path, and that this user may read and write the file, its "
    "-wal and -shm companions and their directory",
    sqlite3.SQLITE_IOERR: "cannot be read or written, the operating system reports an error: look for a full or "
    "failing disk, a quota, or a limit on file sizes (ulimit -f)",
    sqlite3.SQLITE_NOLFS: "has grown beyond what this file system can store",
    sqlite3.SQLITE_NOMEM: "cannot be used, memory is exhausted",
}


class UniqueViolation(Exception):
    """An entry with that version or that key is there."""


class NullViolation(Exception):
    """A value that must be there is not."""


class Source(Protocol):
    """Where a connection comes from: the ledger file it belongs to."""

    path: str

    def ensure_usable(self) -> None:
        """Raise JournalUnavailable if the file must not be used now."""

    def connect(self) -> sqlite3.Connection: ...

    def committed(self) -> None:
        """Something was just committed."""


class Connection:
    """One SQLite connection and the lock under which one thread at a time uses it. It is opened when first used."""

    __slots__ = ("_alone", "_cursor", "_source", "lock", "raw")

    def __init__(self, source: Source) -> None:
        self._source = source
        self.lock = threading.Lock()
        self.raw: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        """Of `raw`, or of one before it: a new cursor for every statement would cost more than its parameters."""
        self._alone: int | None = None
        """The thread that is in `exclusive` and has the lock."""

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run one statement that changes something; the rowid of the last row it inserted.

        Raises UniqueViolation, NullViolation, Busy, JournalUnavailable; then it changed nothing.
        """
        if self._alone is not None and self._alone == threading.get_ident():
            return self._execute(sql, parameters).lastrowid or 0
        with self.lock:
            last = self._execute(sql, parameters).lastrowid or 0
            self._source.committed()
            return last

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows at once: a SELECT that is left half-read would keep checkpoints from their work (T47)."""
        if self._alone == threading.get_ident():
            return self._rows(sql, parameters)
        with self.lock:
            return self._rows(sql, parameters)

    def _rows(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        cursor = self._execute(sql, parameters)
        try:
            return cursor.fetchall()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _execute(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        self._source.ensure_usable()
        try:
            raw, cursor = self.raw or self._open(), self._cursor
            if cursor is None or cursor.connection is not raw:
                cursor = self._cursor = raw.cursor()
            return cursor.execute(sql, parameters)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one write transaction: all of it, or nothing."""
        with self.lock:
            self._source.ensure_usable()
            try:
                raw = self.raw or self._open()
                result = in_transaction(raw, work)
            except sqlite3.Error as error:
                raise self._translated(error) from error
            self._source.committed()
            return result

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Write alone until the block ends: what this thread inserts in it is committed then, or none of it."""
        with self.lock:
            try:
                self._execute("BEGIN IMMEDIATE", ())
                self._alone = threading.get_ident()
                yield
                self._execute("COMMIT", ())
            finally:
                self._alone = None
                if self.raw is not None and self.raw.in_transaction:
                    self.raw.rollback()
            self._source.committed()

    def close(self) -> None:
        """Close it; the next use opens another. The caller holds the lock."""
        raw, self.raw, self._cursor = self.raw, None, None
        if raw is not None:
            raw.close()

    def forget(self) -> None:
        """In a forked child: the connection is the parent's, and so is whoever held the lock."""
        self.lock = threading.Lock()
        self._alone = self._cursor = None
        if self.raw is not None:
            _ABANDONED.append(self.raw)
            self.raw = None

    def _open(self) -> sqlite3.Connection:
        self.raw = self._source.connect()
        return self.raw

    def _translated(self, error: sqlite3.Error) -> Exception:
        if self._alone is None and self.raw is not None and self.raw.in_transaction:
            self.raw.rollback()
        return translated(error, self._source.path)


_ABANDONED: list[sqlite3.Connection] = []
"""Connections of a parent process. Closing one here would take part in the parent's locking, so they are kept (T36)."""


def in_transaction(raw: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` between BEGIN IMMEDIATE and COMMIT, and roll back when anything goes wrong."""
    try:
        raw.execute("BEGIN IMMEDIATE")  # in here: Ctrl-C may come when it has just begun
        result = work(raw)
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    return result


def translated(error: sqlite3.Error, path: str) -> Exception:
    """The one place where SQLite's errors become the journal's."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # the module's own complaint about how it was called: a programmer's error, passed on
        return error
    if code in _UNIQUE:
        return UniqueViolation()
    if code == sqlite3.SQLITE_CONSTRAINT_NOTNULL:
        return NullViolation()
    primary = code & 0xFF
    if primary in _BUSY:
        return Busy(f"another process is writing the ledger {path}")
    meaning = _MEANING.get(code) or _MEANING.get(primary) or "cannot be used"
    return JournalUnavailable(f"the ledger {path} {meaning} (SQLite: {error}, {error.sqlite_errorname})")
