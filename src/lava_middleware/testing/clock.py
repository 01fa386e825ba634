"""This file knows how to stand still: a clock for tests."""

from __future__ import annotations

import threading
from decimal import Decimal

NEW_YEAR_2026 = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z, in microseconds since the epoch."""


class FrozenClock:
    """A clock that moves only when told. Calling it gives microseconds since the epoch. Safe for threads."""

    def __init__(self, now: int = NEW_YEAR_2026) -> None:
        self._lock = threading.Lock()
        self._now = now

    def __call__(self) -> int:
        with self._lock:
            return self._now

    def advance(self, seconds: float | Decimal) -> int:
        """Move on, and get the new time. A negative step sets it back."""
        with self._lock:
            self._now += int(Decimal(str(seconds)) * 1_000_000)
            return self._now

    def set(self, now: int) -> None:
        with self._lock:
            self._now = now
