"""This file knows which processes have the ledger open, and which of them are dead.

Liveness is an OS lock, not a clock: each process holds its own byte of `<ledger>.owners` until it exits, however it
exits. The byte's number and a random part make the owner's id. The row is written after the byte is held, so a row
whose byte can be taken is a dead owner's. A byte is given again only when no row names it.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import sqlite3
import threading

from .connection import Connection
from .journal import OwnerMark
from .locks import LockFile, errors_of

_log = logging.getLogger("lava_middleware.ledger")

_MINE: dict[str, tuple[int, str]] = {}
"""Lock file → (byte, owner id) of this process. It outlives a closed journal, as the byte does."""


class Owners:
    """The owners of one ledger file, as this process sees them."""

    def __init__(self, writer: Connection, reader: Connection, lock: LockFile) -> None:
        self._writer = writer
        self._reader = reader
        self._lock = lock
        self._registering = threading.Lock()

    def register(self) -> str:
        """This process's owner id, and its row in the ledger. Safe to repeat: writes only when the row is not there."""
        with self._registering, errors_of(self._lock):
            mine = _MINE.get(self._lock.path)
            if mine is None:
                mine = self._writer.transaction(self._take_a_byte)
            else:
                self._ensure_row(*mine)
            return mine[1]

    def _take_a_byte(self, raw: sqlite3.Connection) -> tuple[int, str]:
        named = {byte for (byte,) in raw.execute("SELECT byte FROM owners").fetchall()}
        byte = next(one for one in itertools.count() if one not in named and self._lock.hold(one))
        owner = f"{byte}-{secrets.token_hex(8)}"
        _MINE[self._lock.path] = byte, owner  # before anybody can see the row: another thread would take it for dead
        try:
            raw.execute("INSERT INTO owners SELECT ?, ?, coalesce(max(seq), 0) + 1 FROM journal", (owner, byte))
        except sqlite3.Error:
            del _MINE[self._lock.path]
            self._lock.release(byte)
            raise
        return byte, owner

    def restore(self) -> None:
        """The file was replaced: have this process's row in the new one, if it was in the old."""
        mine = _MINE.get(self._lock.path)
        if mine is not None:
            self._ensure_row(*mine)

    def _ensure_row(self, byte: int, owner: str) -> None:
        """The row is missing where the file was replaced; what this owner holds there may be anywhere in it."""
        if not self._reader.fetch("SELECT 1 FROM owners WHERE owner = ?", (owner,)):
            self._writer.insert("INSERT OR IGNORE INTO owners VALUES (?, ?, 1)", (owner, byte))

    def marks(self) -> list[OwnerMark]:
        rows = self._reader.fetch("SELECT owner, low_seq, byte FROM owners ORDER BY low_seq, owner")
        _, mine = _MINE.get(self._lock.path, (None, None))
        with errors_of(self._lock):
            return [
                OwnerMark(owner, low_seq, owner == mine or self._lock.held_elsewhere(byte))
                for owner, low_seq, byte in rows
            ]

    def advance(self, owner: str, low_seq: int) -> None:
        self._writer.insert("UPDATE owners SET low_seq = ?2 WHERE owner = ?1 AND low_seq < ?2", (owner, low_seq))

    def forget(self, owner: str) -> None:
        self._writer.insert("DELETE FROM owners WHERE owner = ?", (owner,))

    def renew(self) -> None:
        """Keep the proof of life even if somebody removed or replaced the lock file."""
        lost = self._lock.renew()
        if lost:
            _log.error("%s was replaced and another process has this one's place in it: restart", self._lock.path)

    def after_fork(self) -> None:
        self._registering = threading.Lock()
        _MINE.pop(self._lock.path, None)
