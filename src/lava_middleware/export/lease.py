"""This file knows how one follower of many becomes the only one at work on a ledger, and stays it until it ends.

Between processes an operating system's lock on `<ledger>.follower-NAME` decides: it is given back by the death of its
holder, whatever the cause. A journal that serves many hosts decides itself. Within one process such locks never
conflict (T41), so a table decides there first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..ledger.journal import Busy, Journal, JournalUnavailable
from ..ledger.locks import lock_file

_BYTE = 0
_holders: dict[tuple[Any, str], Lease] = {}
"""(ledger, follower) → the lease that this process has on it."""
_lock = threading.Lock()


class Lease:
    """The right to drain one ledger for one follower. Cheap to ask for again and again."""

    def __init__(self, journal: Journal, follower: str) -> None:
        path = getattr(journal, "path", None)
        self._key = (path or getattr(journal, "identity", journal), follower)
        self._follower = follower
        self._take: Callable[[str], bool] | None = getattr(journal, "take_lease", None)
        self._give_up: Callable[[str], object] | None = getattr(journal, "give_up_lease", None)
        self._file = lock_file(f"{path}.follower-{follower}") if path else None

    def take(self) -> bool:
        """Whether the lease is ours, now taken or taken before. Raises OSError where its file cannot be made."""
        with _lock:
            if _holders.setdefault(self._key, self) is not self:
                return False
            if self._file is None and self._take is None:
                return True
            taken = False
            try:
                if self._take is not None:
                    taken = self._take(self._follower)
                    return taken
                assert self._file is not None
                taken = _BYTE not in self._file.renew() and self._file.hold(_BYTE)
            finally:
                if not taken:
                    del _holders[self._key]
            return taken

    def give_up(self) -> None:
        """Let another one have it. Safe to repeat, and when it was never had."""
        with _lock:
            if _holders.get(self._key) is self:
                del _holders[self._key]
                if self._file is not None:
                    self._file.release(_BYTE)
                if self._give_up is not None:
                    with suppress(Busy, JournalUnavailable):  # it is anybody's once this process is dead
                        self._give_up(self._follower)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
