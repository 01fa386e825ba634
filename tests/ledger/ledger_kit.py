"""This file knows what the tests of the ledger share: commands in a few words, journals that count, and that fail."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lava_middleware.core.commands import Authorize, Grant, Settle
from lava_middleware.ledger.journal import Busy, Entry, JournalUnavailable, Outcome
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.memory import MemoryJournal

_ids = itertools.count(1)


def hold_id(prefix: str = "hold") -> str:
    return f"{prefix}-{next(_ids)}"


def ask_for(ledger: Ledger, ticks: int, hold: str | None = None, **more: Any) -> Authorize:
    """An authorize of exactly so many ticks."""
    return Authorize(hold or hold_id(), ledger.owner, ticks, 0, 0, 0, 0, **more)


def grant(ticks: int, key: str | None = None) -> Grant:
    return Grant(key or hold_id("grant"), ticks)


def settle(hold: str, ticks: int, **more: Any) -> Settle:
    return Settle(hold, ticks, 0, 0, cause="input_above_bound", **more)


@contextmanager
def opened(journal: Any, **settings: Any) -> Iterator[Ledger]:
    ledger = Ledger(journal, **settings)
    try:
        yield ledger
    finally:
        ledger.close()


def eventually(happened: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until it is so; fail if it does not come about."""
    until = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.002)


class Spied:
    """Another journal, with its calls counted."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._journal, name)
        if not callable(found):
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return found(*arguments, **named)

        return counted


class Troubled(MemoryJournal):
    """A journal in memory that can be told to be busy, to be unavailable, or to lose the answer to an append."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = 0
        """So many appends find it busy; -1: all of them."""
        self.unavailable = False
        self.lose_answer = False
        """The next append is written, but its caller is told that it failed."""
        self.appended_by: list[str] = []

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        if self.unavailable:
            raise JournalUnavailable("the disk is gone: bring it back")
        if self.busy:
            self.busy -= self.busy > 0
            raise Busy
        outcome = super().append(entries, predecessor)
        self.appended_by.append(threading.current_thread().name)
        if self.lose_answer:
            self.lose_answer = False
            raise JournalUnavailable("the answer was lost")
        return outcome
