"""This file knows how to hold bytes of a lock file for as long as this process lives.

POSIX byte locks belong to the process: they never conflict within it, and closing any descriptor of the file drops
them all (T41). So a process has one descriptor for each lock file, shared by whoever needs it, and never closes it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .journal import JournalUnavailable

try:
    import fcntl
except ImportError:  # Windows, where a SQLite ledger is refused before anything is locked
    fcntl = None  # type: ignore[assignment]  # never used there

_FILES: dict[str, LockFile] = {}
_LOCK = threading.Lock()


def lock_file(path: str) -> LockFile:
    """The process's one LockFile for this path (a real path), made when first asked for."""
    with _LOCK:
        return _FILES.setdefault(path, LockFile(path))


class LockFile:
    """The bytes of one file that this process holds. Get it from lock_file(), never build a second one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._held: set[int] = set()

    def hold(self, byte: int) -> bool:
        """Take a byte; False if another process has it. True as well when this process has it already."""
        with self._lock:
            if byte in self._held:
                return True
            if not _taken(self._open(), byte):
                return False
            self._held.add(byte)
            return True

    def release(self, byte: int) -> None:
        with self._lock:
            if byte in self._held:
                self._held.discard(byte)
                fcntl.lockf(self._open(), fcntl.LOCK_UN, 1, byte)

    def held_elsewhere(self, byte: int) -> bool:
        """Whether another process holds the byte. A byte of this process is never probed: that would drop it."""
        with self._lock:
            if byte in self._held:
                return False
            if not _taken(self._open(), byte):
                return True
            fcntl.lockf(self._open(), fcntl.LOCK_UN, 1, byte)
            return False

    def touch(self) -> None:
        """Set the file's time to now: a sign of life for those who wait for the byte."""
        with self._lock:
            os.utime(self._open())

    def renew(self) -> set[int]:
        """If the file was removed or replaced, hold the same bytes in the one that is there now.

        Returns the bytes that another process took meanwhile.
        """
        with self._lock:
            if self._descriptor is None or self._is_current():
                return set()
            held, self._held, self._descriptor = self._held, set(), None
            self._held = {byte for byte in held if _taken(self._open(), byte)}
            return held - self._held

    def _is_current(self) -> bool:
        assert self._descriptor is not None
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._share_with_the_owner_of_the_directory(self._descriptor)
        return self._descriptor

    def _share_with_the_owner_of_the_directory(self, descriptor: int) -> None:
        """When root is first (`sudo lava grant`), the file is made the service's, as SQLite does with its own."""
        if os.geteuid() != 0 or os.fstat(descriptor).st_size:
            return
        parent = os.stat(os.path.dirname(self.path))
        with contextlib.suppress(OSError):
            os.fchown(descriptor, parent.st_uid, parent.st_gid)

    def _forget(self) -> None:
        """In a forked child: the locks are the parent's, the descriptor is left alone, the first use opens another."""
        self._lock = threading.Lock()
        self._descriptor = None
        self._held = set()


@contextmanager
def errors_of(lock: LockFile) -> Iterator[None]:
    """What the file system says of a lock file, as the journal's error that says what to do."""
    try:
        yield
    except OSError as error:
        raise JournalUnavailable(
            f"the lock file {os.path.basename(lock.path)} beside the ledger cannot be used ({error.strerror}): "
            "give this user write permission on it and on its directory"
        ) from error


def _taken(descriptor: int, byte: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES for a lock that another process has
        return False
    return True


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()
    for file in _FILES.values():
        file._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
