"""This file knows how to keep the log of the stand-in, written by its thread and read by all."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .served import Served, Totals, totals


class Log:
    """All requests since the start or the last reset, and a place to wait for more. Safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._served: list[Served] = []
        self._serials = itertools.count(1)

    def open(self, make: Callable[[int], Served]) -> Served:
        """Note a new request, made with the next serial number."""
        with self._changed:
            served = make(next(self._serials))
            self._served.append(served)
            self._changed.notify_all()
            return served

    def note(self, served: Served, **changes: object) -> None:
        """Set some of its fields, all at once."""
        with self._changed:
            for name, value in changes.items():
                setattr(served, name, value)
            self._changed.notify_all()

    def add(self, served: Served, *, output_tokens: int = 0, chunks: int = 0) -> None:
        """Count what was just written. Wakes nobody: streams would wake all waiters at each word."""
        served.output_tokens += output_tokens
        served.chunks += chunks

    def __len__(self) -> int:
        with self._changed:
            return len(self._served)

    def copy(self) -> tuple[Served, ...]:
        with self._changed:
            return tuple(replace(served) for served in self._served)

    def totals(self) -> Totals:
        with self._changed:
            return totals(self._served)

    def reset(self) -> None:
        with self._changed:
            self._served = []
            self._serials = itertools.count(1)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came true in time; it is asked after each change, and 50 times a second."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            with self._changed:
                self._changed.wait(0.02)
            if time.monotonic() >= deadline:
                return condition()
        return True
