"""This file knows how one process has one ledger file open: its connections, and what happens to them when the process
forks, the file is replaced, or the last user closes it.

Only SQLite opens the database and its -shm: closing any other descriptor of theirs would drop all of SQLite's locks of
this process (T34). For the same reason a process has one SqliteFile for a file, however many journals use it.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, TypeVar
from urllib.parse import quote

from . import filesystem, schema
from .checkpoint import AUTOMATIC_PAGES, Checkpointer
from .companions import Companions, identity
from .connection import Connection, translated
from .flush import Flusher, at_exit
from .journal import Busy, JournalUnavailable
from .locks import lock_file
from .owners import Owners

T = TypeVar("T")
Durability = Literal["power_loss", "process_crash"]

CLOSED = "this ledger was closed: build a new Lava, or close it later"
OPEN_PATIENCE_S = 5.0
PAUSE_S = 0.1
"""An append or a tail read that comes so long after the last look at the path looks again."""
NEGLECT_S = 2.5
"""If maintain() was not called for this long, SQLite's own checkpoints are let in."""
_FORK_PATIENCE_S = 5.0

_log = logging.getLogger("lava_middleware.ledger")
_FILES: dict[str, SqliteFile] = {}
_LOCK = threading.RLock()


def open_file(path: str | os.PathLike[str], durability: Durability) -> SqliteFile:
    """The process's one SqliteFile for this path, opened or shared. Every call is answered by one of its release()."""
    real = os.path.realpath(path)
    with _LOCK:
        file = _FILES.get(real)
        if file is None:
            file = _FILES[real] = SqliteFile(real)
            _advise_once()
        file.users += 1
        if durability == "power_loss":
            file.survive_power_loss()
        return file


def patiently(work: Callable[[], T], patience_s: float = OPEN_PATIENCE_S) -> T:
    """Try again while others are writing, for as long as a start-up may take. Then the last Busy is raised."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return work()
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.0005, 0.005))


class Closed:
    """The source of the connections of a journal that was closed: there are none."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ensure_usable(self) -> None:
        raise JournalUnavailable(CLOSED)

    def connect(self) -> sqlite3.Connection:
        raise JournalUnavailable(CLOSED)

    def committed(self) -> None:
        return


class SqliteFile:
    """One open ledger file. Get it from open_file()."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.users = 0
        self.generation = 0
        self._trouble: str | None = None
        self._pid = os.getpid()
        self._tending = threading.Lock()
        self._tended_at = self._looked_at = time.monotonic()
        self._complained_at = -60.0
        self._flusher: Flusher | None = None

        self.writer = Connection(self)
        self.tail = Connection(self)
        """Reads that a call waits for."""
        self.bulk = Connection(self)
        """Reads that may take long; nothing waits behind them."""
        self._keeper = Connection(self)
        self._connections = (self.writer, self.tail, self.bulk, self._keeper)
        self.closed = Connection(Closed(path))
        """What a journal has in place of connections once it was closed."""
        self.owners = Owners(self.writer, self.tail, lock_file(path + ".owners"))
        self._checkpointer = Checkpointer(path, self._keeper, self.writer, lock_file(path + ".checkpoint"))

        self._companions = Companions(path, lock_file(path + ".checkpoint"))

        _refuse_unsuitable(path)
        self.writer.raw, self._identity = self._companions.opened(
            lambda: patiently(lambda: self._first_connection("rwc"))
        )
        if self._identity is not None:
            with suppress(Busy):  # then it is noted at the first look
                self._companions.look(self._identity)
        self._path_is_wrong = False
        self._retry_at = 0.0
        self._row_is_due = False
        self._locked_for_fork: list[threading.Lock] = []

    # -- connections

    def ensure_usable(self) -> None:
        if self._trouble is not None:
            raise JournalUnavailable(self._trouble)
        if self._pid != os.getpid():
            raise JournalUnavailable(
                f"this process was forked, by other means than Python's, while the ledger {self.path} was open: "
                "open the ledger after the fork"
            )

    def connect(self) -> sqlite3.Connection:
        """Open a connection to the file as it is, never a new or another file: the old one may just have been moved."""
        if identity(self.path) != self._identity:
            raise Busy("the ledger is another file by now")  # which whoever looks at the path will notice
        return self._connect("rw")

    def committed(self) -> None:
        if self._flusher is not None:
            self._flusher.committed()

    def _connect(self, mode: str) -> sqlite3.Connection:
        raw = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            timeout=0,  # SQLite's own waiting took 2.5 s with sixteen writers (T38); the ledger waits better
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            raw.execute("PRAGMA synchronous=NORMAL")
            raw.execute("PRAGMA temp_store=MEMORY")
            raw.execute(f"PRAGMA wal_autocheckpoint={AUTOMATIC_PAGES if self._checkpointer.automatic else 0}")
        except BaseException:
            raw.close()
            raise
        return raw

    def _first_connection(self, mode: str) -> sqlite3.Connection:
        """A connection to a file that is known to be a ledger of today's schema, made or migrated where needed."""
        try:
            raw = self._connect(mode)
            try:
                raw.execute("PRAGMA synchronous=FULL")
                schema.prepare(raw, self.path)
                raw.execute("PRAGMA synchronous=NORMAL")
            except BaseException:
                raw.close()
                raise
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
        return raw

    # -- durability

    def survive_power_loss(self) -> None:
        """From now on commits are flushed; the setting of one user of the file holds for all of them."""
        if self._flusher is None:
            self._flusher = Flusher(self.path, self._flush_failed)
            self._flusher.committed()

    def sync(self, timeout_s: float) -> bool:
        self.ensure_usable()
        return self._flusher is None or self._flusher.sync(timeout_s)

    def _flush_failed(self, error: OSError) -> None:
        # The kernel reports a failed write-back once and then forgets it: a later success would prove nothing.
        self._trouble = (
            f"the disk did not take the ledger {self.path} ({error.strerror}): what was written last may be lost at a "
            "power failure; check the disk and restart"
        )
        _log.critical(self._trouble)

    # -- upkeep

    def maintain(self) -> None:
        """See the Protocol. Two ledgers on one file may both call: one of them does the work."""
        if self._pid != os.getpid() or not self._tending.acquire(blocking=False):
            return
        try:
            self._tended_at = time.monotonic()
            self._look_at_the_path()
            if self._trouble is None:
                self.owners.renew()
                if self._row_is_due:
                    self.owners.restore()
                    self._row_is_due = False
                self._checkpointer.tick()
        except Busy:
            pass
        except (JournalUnavailable, OSError) as error:
            self._complain(error)
        finally:
            self._tending.release()

    def look_after_a_pause(self) -> None:
        """Called before appends and tail reads: does something only if maintain() was not called for a while.

        Then nobody has looked whether the file is still the one at the path; and if nobody ever calls maintain(), the
        -wal file must not grow for ever.
        """
        now = time.monotonic()
        if now - self._looked_at < PAUSE_S or self._pid != os.getpid() or not self._tending.acquire(blocking=False):
            return
        try:
            self._look_at_the_path()
            if self._trouble is None and now - self._tended_at > NEGLECT_S:
                self._tended_at = now
                self._checkpointer.nobody_ticks()
        except (Busy, JournalUnavailable, OSError):
            pass  # what comes next will say it
        finally:
            self._tending.release()

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at > 60:
            self._complained_at = now
            _log.error("upkeep of the ledger failed: %s", error)

    # -- a file that is moved away or replaced under us

    def _look_at_the_path(self) -> None:
        self._looked_at = time.monotonic()
        there = identity(self.path)
        if there is not None and there == self._identity:
            self._companions.look(there)
            if self._path_is_wrong:
                self._path_is_wrong, self._trouble = False, None
        elif there is None:
            self._stop(f"the ledger {self.path} was moved or deleted while in use: put it back, or restart")
        elif time.monotonic() >= self._retry_at:
            self._reopen()

    def _stop(self, trouble: str) -> None:
        if self._trouble != trouble:
            self._path_is_wrong, self._trouble = True, trouble
            _log.critical(trouble)

    def _reopen(self) -> None:
        """Another file is at the path: use it from now on. Closing the old connections is safe, for SQLite notices
        that their file is no longer at the path and leaves what is there alone."""
        with _all_of(self._locks()[1:]):  # the first, _tending, is the caller's
            self._close_connections()
            self._checkpointer.reset()
            try:
                self.writer.raw, self._identity = self._companions.opened(lambda: self._first_connection("rw"))
            except (Busy, JournalUnavailable) as error:
                self._retry_at = time.monotonic() + 1
                self._stop(f"the ledger {self.path} was replaced, and what is there now cannot be used: {error}")
                return
            self._path_is_wrong, self._trouble, self._row_is_due = False, None, True
            self.generation += 1
        _log.critical("the ledger %s was replaced while in use: going on with the file that is there now", self.path)

    # -- the end

    def release(self) -> None:
        """One user less; the last one flushes what is left and closes the connections."""
        with _LOCK:
            self.users -= 1
            if self.users or self._pid != os.getpid():
                return
            del _FILES[self.path]
            with _all_of(self._locks()):
                self.finish_flushing()
                self._checkpointer.resign()
                self._close_connections()
                self._trouble = CLOSED

    def finish_flushing(self) -> None:
        if self._flusher is not None and self._pid == os.getpid():
            self._flusher.close()

    def _close_connections(self) -> None:
        for connection in self._connections:
            connection.close()

    def _locks(self) -> list[threading.Lock]:
        """In the order in which they are taken."""
        return [self._tending, *(one.lock for one in self._connections)]

    # -- fork

    def before_fork(self) -> None:
        """Close every connection; parent and child each open their own when they next need one.

        Closed before, rather than abandoned by the child: SQLite keeps its locks in a table per process, keyed by the
        file, and a child that inherits that table takes no lock of its own for the connections it opens. The parent
        then closes as if it were alone, deletes the -wal file, and the child's entries with it (T36, seen).
        """
        for lock in self._locks():
            if not lock.acquire(timeout=_FORK_PATIENCE_S):  # a fork from within our own code, by a signal handler
                return
            self._locked_for_fork.append(lock)
        self._close_connections()

    def after_fork_in_parent(self) -> None:
        while self._locked_for_fork:
            self._locked_for_fork.pop().release()

    def after_fork_in_child(self) -> None:
        inherited = any(connection.raw is not None for connection in self._connections)
        if not inherited:  # otherwise ensure_usable() goes on refusing
            self._pid = os.getpid()
        for connection in self._connections:
            connection.forget()
        self._tending = threading.Lock()
        self._locked_for_fork = []
        self._tended_at = time.monotonic()
        self._checkpointer.reset()
        self.owners.after_fork()
        if self._flusher is not None:
            self._flusher.after_fork()


@contextmanager
def _all_of(locks: list[threading.Lock]) -> Iterator[None]:
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def _refuse_unsuitable(path: str) -> None:
    if sys.platform == "win32":
        raise JournalUnavailable("a SQLite ledger needs Linux or macOS: on Windows use PostgreSQL, or memory for tests")
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise JournalUnavailable(f"the directory {parent} does not exist: create it, or name another ledger")
    if os.path.isdir(path):
        raise JournalUnavailable(f"{path} is a directory: name a file in it")
    if os.path.exists(path) and os.stat(path).st_nlink > 1:
        # https://www.sqlite.org/howtocorrupt.html#_multiple_links_to_the_same_file
        raise JournalUnavailable(f"the ledger {path} has a second name (a hard link): remove one of the two")
    verdict = filesystem.check(path, filesystem.read_mountinfo())
    if isinstance(verdict, filesystem.Refused):
        raise JournalUnavailable(verdict.message)
    if verdict is not None:
        _log.warning(verdict.message)


def checkpoints_can_race(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the WAL-reset bug (https://www.sqlite.org/wal.html#walresetbug): fixed in 3.51.3, and
    in 3.50.7 and 3.44.6 for their lines."""
    fixed = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
    return version < fixed.get(version[:2], (3, 51, 3))


_advised = False


def _advise_once() -> None:
    global _advised
    if not _advised and checkpoints_can_race(sqlite3.sqlite_version_info):
        _log.info(
            "SQLite %s can corrupt a database when checkpoints race; the ledger lets one process checkpoint at a time. "
            "3.51.3, 3.50.7 and 3.44.6 have no such bug",
            sqlite3.sqlite_version,
        )
    _advised = True


def _before_fork() -> None:
    _LOCK.acquire(timeout=_FORK_PATIENCE_S)
    for file in list(_FILES.values()):
        file.before_fork()


def _after_fork_in_parent() -> None:
    for file in list(_FILES.values()):
        file.after_fork_in_parent()
    with suppress(RuntimeError):  # not ours: another thread kept it for longer than we waited
        _LOCK.release()


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.RLock()
    for file in list(_FILES.values()):
        file.after_fork_in_child()


def _finish_flushing() -> None:
    for file in list(_FILES.values()):
        file.finish_flushing()


at_exit(_finish_flushing)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
