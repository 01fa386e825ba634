"""This file knows how to make commits survive a power loss: fdatasync of the -wal file, soon after the first of them.

The thread takes no SQLite lock, so no commit ever waits for the disk (T40). The -wal file carries no locks of SQLite's,
so opening and closing it does not touch them (T34 is about the database and its -shm).
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable

INTERVAL_S = 0.04
"""From the first unflushed commit to its flush; with the flush itself it stays within the promised 50 ms."""


class Flusher:
    """Flushes one ledger file. Its thread starts when first needed, in a forked child too."""

    def __init__(self, path: str, on_failure: Callable[[OSError], None]) -> None:
        self._wal = path + "-wal"
        self._on_failure = on_failure
        self.after_fork()

    def after_fork(self) -> None:
        """Begin anew: also what a forked child does, where the thread and its state are the parent's."""
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._armed = False
        self._due = 0.0
        self._begun = 0
        """Flushes begun so far; the others are numbers of flushes too."""
        self._wanted = 0
        self._done = 0
        self._stopping = False
        self._directory_of: tuple[int, int] | None = None

    def committed(self) -> None:
        """There is something to flush. Cheap when a flush is due anyway."""
        if self._armed:
            return  # it is cleared before a flush begins, so the coming flush has this commit
        with self._condition:
            if self._armed:
                return
            self._armed = True
            self._due = time.monotonic() + INTERVAL_S
            self._wake()

    def sync(self, timeout_s: float) -> bool:
        """Wait for a flush that begins after this call: it has every commit made before, by any process."""
        with self._condition:
            number = self._begun + 1
            self._wanted = max(self._wanted, number)
            self._wake()
            self._condition.wait_for(lambda: self._done >= number or self._stopping, timeout_s)
            return self._done >= number

    def close(self) -> None:
        """Flush what is left, then end the thread."""
        with self._condition:
            thread, self._stopping = self._thread, True
            self._condition.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="lava-flush", daemon=True)
            self._thread.start()
        self._condition.notify_all()

    def _run(self) -> None:
        with self._condition:
            while self._wait_until_due():
                self._armed = False
                self._begun += 1
                number = self._begun
                self._condition.release()
                try:
                    flushed = self._flush()
                finally:
                    self._condition.acquire()
                if flushed:
                    self._done = number
                self._condition.notify_all()

    def _wait_until_due(self) -> bool:
        """True when a flush is to begin, False when the thread is to end with nothing left to flush."""
        while True:
            left = self._due - time.monotonic() if self._armed else None
            if self._wanted > self._begun or (left is not None and (left <= 0 or self._stopping)):
                return True
            if self._stopping:
                return False
            self._condition.wait(left)

    def _flush(self) -> bool:
        try:
            descriptor = os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # the last close moved it all into the database, and SQLite synced that
        except OSError as error:
            self._on_failure(error)
            return False
        try:
            self._flush_directory_of(descriptor)
            flush(descriptor)
        except OSError as error:
            self._on_failure(error)
            return False
        finally:
            os.close(descriptor)
        return True

    def _flush_directory_of(self, descriptor: int) -> None:
        """A -wal file that is new to us may have a directory entry that is not on disk yet."""
        status = os.fstat(descriptor)
        if self._directory_of != (status.st_dev, status.st_ino):
            directory = os.open(os.path.dirname(self._wal) or ".", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self._directory_of = status.st_dev, status.st_ino


def flush(descriptor: int) -> None:
    """Have the file's data on the disk itself. On macOS only F_FULLFSYNC empties the drive's own cache."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


_AT_EXIT: list[Callable[[], object]] = []


def at_exit(finish: Callable[[], object]) -> None:
    """Have it called when the process ends, after the ledgers have written what was still open: they were imported
    later than this file, and the last that is registered runs first."""
    _AT_EXIT.append(finish)


@atexit.register
def _finish() -> None:
    for finish in _AT_EXIT:
        finish()
