"""This file knows whose -wal and -shm lie beside a ledger file, and moves those of another file out of the way.

SQLite finds them by their names alone. Where yesterday's copy is moved over the ledger, today's -wal still lies there:
whoever opens the copy with it reads, and then writes, a mixture of the two. So everybody who opens the ledger does it
in his turn, and notes which files belong together; a -wal that stayed where it was while the ledger became another
file is not the ledger's. (Where both are others, they were copied together.)
https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from .journal import Busy
from .locks import LockFile, errors_of

T = TypeVar("T")
Identity = tuple[int, int]

TURN = 1
"""The byte of the lock file that is held while the ledger is opened."""
PATIENCE_S = 5.0

_log = logging.getLogger("lava_middleware.ledger")


def identity(path: str) -> Identity | None:
    """Which file is at the path, by stat: never by opening it (T34)."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class Companions:
    """The -wal and -shm of one ledger file, as all its processes see them."""

    def __init__(self, path: str, lock: LockFile) -> None:
        self._path = path
        self._lock = lock
        self._note = f"{path}.companions"
        self._noted: tuple[Identity, Identity] | None = None

    def opened(self, open_it: Callable[[], T]) -> tuple[T, Identity | None]:
        """(what opening the ledger gives, which file it was); nothing of another file is beside it meanwhile.

        Raises Busy if others keep opening it, and what `open_it` raises.
        """
        if self._read() is None:  # nobody has had it open: it may be another program's, beside which nothing is made
            return self._opened(open_it)
        with self._turn():
            self._set_aside()
            result, ledger = self._opened(open_it)
            self._write(ledger)
            return result, ledger

    def _opened(self, open_it: Callable[[], T]) -> tuple[T, Identity | None]:
        before = identity(self._path)
        result = open_it()
        after = identity(self._path)
        return result, after if before in (None, after) else before  # replaced meanwhile: to be noticed

    def look(self, ledger: Identity) -> None:
        """Note it if the ledger, which is that file, has got another -wal since. Raises Busy; never waits."""
        wal = identity(f"{self._path}-wal")
        if wal is None or self._noted == (ledger, wal):
            return
        with self._turn(0.0):
            if identity(self._path) == ledger:
                self._write(ledger)

    def _set_aside(self) -> None:
        noted = self._read()
        ledger, wal = identity(self._path), identity(f"{self._path}-wal")
        if ledger is None or wal is None or noted is None or noted[1] != wal or noted[0] == ledger:
            return
        _log.critical(
            "%s is another file than the one that the -wal beside it belongs to: that is set aside", self._path
        )
        for end in ("-wal", "-shm"):
            with suppress(FileNotFoundError):  # the ledger's directory is ours to write in, or nothing here was
                os.replace(f"{self._path}{end}", f"{self._path}{end}.of-replaced-ledger")

    def _read(self) -> tuple[Identity, Identity] | None:
        """(ledger, its -wal) as last noted."""
        try:
            with open(self._note, encoding="ascii") as file:
                numbers = [int(one) for one in file.read().split()]
        except (OSError, ValueError):
            return None
        return ((numbers[0], numbers[1]), (numbers[2], numbers[3])) if len(numbers) == 4 else None

    def _write(self, ledger: Identity | None) -> None:
        wal = identity(f"{self._path}-wal")
        if ledger is None or wal is None:
            return
        self._noted = ledger, wal
        if self._read() == self._noted:
            return
        with suppress(OSError):  # a full disk, for instance: what else is done to the ledger will say it
            with open(f"{self._note}.new", "w", encoding="ascii") as file:
                file.write(" ".join(str(one) for one in (*ledger, *wal)))
            os.replace(f"{self._note}.new", self._note)

    @contextmanager
    def _turn(self, patience_s: float = PATIENCE_S) -> Iterator[None]:
        until = time.monotonic() + patience_s
        while not self._taken():
            if time.monotonic() > until:
                raise Busy("others are opening the ledger")
            time.sleep(random.uniform(0.001, 0.01))
        try:
            yield
        finally:
            self._lock.release(TURN)

    def _taken(self) -> bool:
        with errors_of(self._lock):
            return self._lock.hold(TURN)
