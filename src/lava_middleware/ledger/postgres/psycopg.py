"""This file knows how to talk to PostgreSQL through psycopg 3: waits that end, errors as the ledger's own.

Nothing here needs a session: no named prepared statement, no SET that outlives its transaction, no LISTEN, no lock
beyond a transaction. So a pooler that changes the connection behind every transaction may stand in between.
"""

from __future__ import annotations

import os
import random
import re
import select
import selectors
import time
import weakref
from _thread import allocate_lock, get_ident
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from ..journal import Busy, JournalUnavailable, Unreachable

try:
    import psycopg
    from psycopg import conninfo, errors
except ImportError as missing:
    raise ImportError(
        "a ledger in PostgreSQL needs psycopg 3.2 or newer: pip install 'lava-middleware[postgres]'"
    ) from missing

OLDEST = 13
"""The first PostgreSQL with xid8 and pg_current_snapshot()."""

PAUSE_S = 0.25
"""Between two attempts to connect while the server is away: whoever asks in between is told so at once."""

_BUSY = {
    # SQLSTATE → the statement was rolled back and may be tried again. Any other one is somebody's mistake.
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "55P03": "lock_not_available",
    "57014": "query_canceled",
}
_AWAY = {
    # SQLSTATE → the server, or the pooler before it, cannot serve this connection now. So is every one that begins 08.
    "25006": "read_only_sql_transaction: it has become a standby; another one may be the primary by now",
    "25P03": "idle_in_transaction_session_timeout",
    "53300": "too_many_connections",
    "57P01": "admin_shutdown",
    "57P02": "crash_shutdown",
    "57P03": "cannot_connect_now",
    "57P05": "idle_session_timeout",
}

_DEFAULTS: dict[str, str] = {
    # For what the URL does not say: a dead peer is noticed although nobody sends anything.
    "application_name": "lava-middleware",
    "client_encoding": "utf8",
    "connect_timeout": "2",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}

_REFUSED_BY_A_POOLER = re.compile(r"unsupported startup parameter(?: in options)?: ([\w.]+)")
"""What PgBouncer cannot pass on. It is so at every attempt. (pgbouncer.org/config.html#ignore_startup_parameters)"""

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Clash(Exception):
    """A unique index has it already."""

    def __init__(self, index: str) -> None:
        super().__init__(index)
        self.index = index


class Missing(Exception):
    """A column that must not be empty would have been: what it is taken from is not there."""


class _TimedOut(Exception):
    pass


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which no statement lasts beyond `deadline` (time.monotonic)."""

    deadline = 0.0

    def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        """Run psycopg's generator until it is done. Raises _TimedOut: the connection cannot be used any more."""
        try:
            wanted = next(gen)
            with _Selector() as selector:
                selector.register(self.pgconn.socket, wanted)
                while True:
                    ready = selector.select(max(self.deadline - time.monotonic(), 0))
                    if not ready:
                        raise _TimedOut
                    before, wanted = wanted, gen.send(ready[0][1])
                    if wanted != before:
                        selector.modify(self.pgconn.socket, wanted)
        except StopIteration as done:
            return done.value


Rows: TypeAlias = list[tuple[Any, ...]]
Statement: TypeAlias = tuple[str, Sequence[Any]]


class Link:
    """One connection, opened when first needed and again after it was lost. Threads take turns.

    `timeout_s`: how long one statement may take, and how long an outage that has just begun is waited for.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._parameters = _parameters(url)
        self._timeout_s = timeout_s
        self._lock = allocate_lock()
        self._connection: _Connection | None = None
        self._busy_with = 0
        """The thread that is in the middle of a transaction."""
        self._finished = False
        self._away_since: float | None = None
        self._failed_at = 0.0
        self._why_away = ""
        self._closed = False
        self.statements = 0
        """Sent so far."""
        _LINKS.add(self)

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        """What a query finds. A connection that turns out to be lost is replaced, and the query repeated."""
        if self._busy_with == get_ident():
            return self._send(sql, values)
        with self._lock:
            until = time.monotonic() + self._timeout_s
            while True:
                self._connected()
                try:
                    return self._send(sql, values)
                except Unreachable:
                    if time.monotonic() > until:
                        raise

    def save(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        """A write that changes nothing when it is repeated, which it is where a query would be."""
        return self.fetch(sql, values)

    def write(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        """One statement, committed. It is sent once: Unreachable may mean that it was carried out all the same."""
        if self._busy_with == get_ident():
            return self._send(sql, values)
        with self._lock:
            self._connected()
            return self._send(sql, values)

    @contextmanager
    def transaction(self, *first: Statement) -> Iterator[list[Rows]]:
        """What this thread sends in the block is committed together at its end. Unreachable there: perhaps it was.

        `first` are sent together with its beginning; the block is given what they found. `finish` ends it before.
        """
        with self._lock:
            self._connected()
            self._busy_with = get_ident()
            self._finished = False
            try:
                yield self._send_all((("BEGIN", ()), *first))[1:]
                if not self._finished:
                    self._send("COMMIT")
            except BaseException:
                if self._connection is not None and not self._finished:
                    with suppress(Exception):
                        self._send("ROLLBACK")
                raise
            finally:
                self._busy_with = 0

    def finish(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        """The last statement of a transaction and its COMMIT, sent together: the commit waits for no second answer."""
        rows = self._send_all(((sql, values), ("COMMIT", ())))[0]
        self._finished = True
        return rows

    def close(self) -> None:
        """Safe to repeat. Whoever uses it afterwards is told."""
        self._closed = True
        with self._lock:
            self._drop()

    # Only with the lock held -----------------------------------------------------------------------------------------

    def _send(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        connection = self._connection
        if connection is None:
            raise Unreachable("the connection to PostgreSQL was lost in the middle of a transaction")
        connection.deadline = time.monotonic() + self._timeout_s
        self.statements += 1
        with self._errors(connection):
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _errors(self, connection: _Connection) -> Iterator[None]:
        """Errors in the ledger's words; a connection that cannot be used any more is given up."""
        try:
            yield
        except psycopg.Error as error:
            told = _told(error, connection)
            if isinstance(told, Unreachable):
                self._drop()
            raise told from None
        except _TimedOut:
            self._drop()
            raise Unreachable(f"PostgreSQL did not answer within {self._timeout_s:g} s") from None
        except BaseException:  # Ctrl-C in the middle of an answer: nobody knows where the next one begins
            self._drop()
            raise

    def _send_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """Several statements with one wait for all of them; after one that fails the rest is not carried out."""
        connection = self._connection
        if connection is None or not psycopg.Pipeline.is_supported():
            return [self._send(sql, values) for sql, values in statements]
        connection.deadline = time.monotonic() + self._timeout_s
        self.statements += len(statements)
        with self._errors(connection):
            with connection.pipeline():
                cursors = [connection.execute(sql, values or None) for sql, values in statements]
            return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

    def _connected(self) -> None:
        """See to it that there is a connection. An outage is waited for only while it is young."""
        if self._closed:
            raise JournalUnavailable("this ledger was closed: build a new Lava, or close it later")
        if self._connection is not None:
            if not _said_goodbye(self._connection):
                return
            self._drop()
        while True:
            now = time.monotonic()
            old = self._away_since is not None and now - self._away_since > self._timeout_s
            if old and now - self._failed_at < PAUSE_S:
                raise Unreachable(self._why_away)
            try:
                self._connection = self._connect()
            except Unreachable as why:
                self._why_away = str(why)
                self._failed_at = time.monotonic()
                self._away_since = self._away_since or now
                if self._failed_at - self._away_since > self._timeout_s:
                    raise
                time.sleep(random.uniform(0.02, 0.1))
            else:
                self._away_since = None
                return

    def _connect(self) -> _Connection:
        try:
            # psycopg ends an attempt by itself (connect_timeout); the deadline is for what it asks afterwards.
            connection = _Connection.connect(
                "", autocommit=True, prepare_threshold=None, cursor_factory=psycopg.RawCursor, **self._parameters
            )
        except psycopg.OperationalError as error:
            refused = _REFUSED_BY_A_POOLER.search(str(error))
            if refused is not None:
                raise JournalUnavailable(
                    f"the pooler before PostgreSQL refuses {refused[1]} in the ledger's URL: take it out (ALTER ROLE "
                    "... SET does the same), or have PgBouncer leave it out, by ignore_startup_parameters"
                ) from None
            raise Unreachable(f"PostgreSQL cannot be reached: {_first_line(error)}") from None
        except psycopg.Error as error:
            raise JournalUnavailable(f"PostgreSQL cannot be used with this URL ({type(error).__name__})") from None
        found, encoding = connection.info.server_version // 10_000, connection.info.parameter_status("server_encoding")
        if found < OLDEST or encoding not in ("UTF8", None):
            connection.close()
            raise JournalUnavailable(
                f"this is PostgreSQL {found} with a database in {encoding}: a ledger needs {OLDEST} or newer, and UTF8"
            )
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _forget_parent(self) -> None:
        """In a forked child: the connection is the parent's, and to close it would end the parent's session (T36)."""
        self._lock = allocate_lock()
        self._busy_with = 0
        if self._connection is not None:
            _PARENTS.append(self._connection)
            self._connection = None


def _parameters(url: str) -> dict[str, Any]:
    """Raises JournalUnavailable for a URL that libpq cannot read, without quoting it: it may hold a password."""
    try:
        return {**_DEFAULTS, **conninfo.conninfo_to_dict(url)}
    except psycopg.Error:
        raise JournalUnavailable(
            "the ledger's URL cannot be read: it must be like postgresql://user:password@host:5432/database, "
            "with special characters of the password percent-encoded"
        ) from None


def _told(error: psycopg.Error, connection: _Connection) -> Exception:
    """The error in the ledger's words. PostgreSQL's own may quote a customer, so of them only the code is passed on."""
    state = error.sqlstate
    if isinstance(error, errors.UniqueViolation):
        return Clash(error.diag.constraint_name or "")
    if isinstance(error, errors.NotNullViolation):
        return Missing(error.diag.column_name or "")
    if state in _BUSY:
        return Busy()
    if state is None or state in _AWAY or state.startswith("08") or connection.broken:
        why = _AWAY.get(state or "", type(error).__name__)
        return Unreachable(f"the connection to PostgreSQL was lost ({why})")
    return JournalUnavailable(f"PostgreSQL refused it ({type(error).__name__}, SQLSTATE {state}): see its log")


def _said_goodbye(connection: _Connection) -> bool:
    """Whether an idle connection was ended from the other side. Costs one system call; asks nobody."""
    if connection.closed:
        return True
    ready, _, _ = select.select([connection.pgconn.socket], [], [], 0) if os.name == "nt" else _polled(connection)
    if not ready:
        return False
    try:
        connection.pgconn.consume_input()
    except psycopg.Error:
        return True
    return connection.closed


def _polled(connection: _Connection) -> tuple[Any, Any, Any]:
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return poll.poll(0), None, None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_LINKS: weakref.WeakSet[Link] = weakref.WeakSet()
_PARENTS: list[_Connection] = []
"""Connections of the process that forked this one: kept, for what is collected is closed."""


def _after_fork_in_child() -> None:
    for link in list(_LINKS):
        link._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
