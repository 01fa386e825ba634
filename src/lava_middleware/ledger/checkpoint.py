"""This file knows when the -wal file is moved into the database: by one elected process, beside the calls.

One checkpointer at a time is also the defence against the WAL-reset bug of older SQLite releases
(https://www.sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import logging
import os
import time

from .connection import Connection
from .journal import Busy
from .locks import LockFile

_log = logging.getLogger("lava_middleware.ledger")

RESTART_ABOVE = 64 * 2**20
"""Bytes of frames above which writers are made to start the -wal file over."""
WARN_ABOVE = 4 * RESTART_ABOVE
TRUNCATE_ABOVE = 4 * 2**20
IDLE_S = 1.0
SELDOM_S = 0.3
"""A process that ticks less often is idle: it does what there is to do and lets another be elected."""
SILENCE_S = 2.5
"""An elected checkpointer that shows no sign of life for this long is not counted on."""
SIGN_OF_LIFE_S = 0.25
AUTOMATIC_PAGES = 1000
"""SQLite's own default for wal_autocheckpoint."""
_FRAME_BYTES = 2048 + 24


class Checkpointer:
    """Elected by an OS lock on `<ledger>.checkpoint`, which a process has while its ledger thread calls often."""

    def __init__(self, path: str, keeper: Connection, writer: Connection, lock: LockFile) -> None:
        self._wal = path + "-wal"
        self._keeper = keeper
        self._writer = writer
        self._lock = lock
        self.reset()

    def reset(self) -> None:
        self.automatic = False
        """True while SQLite's own checkpoints, made by whoever commits, stand in for a missing checkpointer."""
        self._seen: tuple[int, int] | None = None
        self._changed_at = 0.0
        self._not_before = 0.0
        self._signed_at = self._ticked_at = 0.0
        self._sign: int | None = None
        self._sign_at = time.monotonic()
        self._warned = False

    def tick(self) -> None:
        """One pass: checkpoint if this process is the elected one, else see that somebody does."""
        now = time.monotonic()
        seldom, self._ticked_at = now - self._ticked_at > SELDOM_S, now
        if not self._lock.hold(0):
            self._watch(now)
            return
        self._leave_it_to_sqlite(False)
        if now - self._signed_at > SIGN_OF_LIFE_S:
            self._lock.touch()
            self._signed_at = now
        if now >= self._not_before:
            self._work(now)
            # Two syncs a pass: on a slow disk at most a fifth of the time is spent on them.
            took = time.monotonic() - now
            self._not_before = now + 5 * took
        if seldom:
            self._lock.release(0)

    def nobody_ticks(self) -> None:
        """Called by a process that commits while nothing in it calls tick(): give the election up, and watch."""
        self._lock.release(0)
        self._watch(time.monotonic())

    def resign(self) -> None:
        self._lock.release(0)

    def _watch(self, now: float) -> None:
        try:
            sign = os.stat(self._lock.path).st_mtime_ns
        except FileNotFoundError:
            sign = None
        if sign != self._sign:
            self._sign, self._sign_at = sign, now
        self._leave_it_to_sqlite(now - self._sign_at > SILENCE_S)

    def _leave_it_to_sqlite(self, automatic: bool) -> None:
        if automatic != self.automatic:
            self._writer.fetch(f"PRAGMA wal_autocheckpoint={AUTOMATIC_PAGES if automatic else 0}")
            self.automatic = automatic

    def _work(self, now: float) -> None:
        try:
            status = os.stat(self._wal)
        except FileNotFoundError:
            return
        seen = status.st_mtime_ns, status.st_size
        if seen != self._seen:
            self._seen, self._changed_at = seen, now
            if not self._move():
                self._seen = None
        elif status.st_size > TRUNCATE_ABOVE and now - self._changed_at > IDLE_S:
            self._checkpoint("TRUNCATE")

    def _move(self) -> bool:
        """Move what can be moved without anybody waiting; True if nothing is left."""
        frames, moved = self._checkpoint("PASSIVE")
        if frames * _FRAME_BYTES > RESTART_ABOVE:
            self._checkpoint("PASSIVE")  # what came in meanwhile, so that little is left for the part that blocks
            frames, moved = self._checkpoint("RESTART")
            self._warn_of_a_reader(frames)
        return moved >= frames

    def _checkpoint(self, mode: str) -> tuple[int, int]:
        """(frames in the -wal file, frames moved so far)."""
        try:
            ((_, frames, moved),) = self._keeper.fetch(f"PRAGMA wal_checkpoint({mode})")
        except Busy:
            return 0, -1
        return frames, moved

    def _warn_of_a_reader(self, frames: int) -> None:
        if frames * _FRAME_BYTES > WARN_ABOVE and not self._warned:
            self._warned = True
            _log.warning(
                "%s has grown to %d MB: some connection keeps a read transaction open; find and end it",
                self._wal,
                frames * _FRAME_BYTES // 2**20,
            )
