"""This file knows how to run what a ledger does beside its callers: one daemon thread, things handed to it, duties."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

_log = logging.getLogger("lava_middleware")

_AT_ONCE_S = 0.1
"""For so long things that were handed in are done before the duties get their turn: each may wait for the journal."""

Thunk = Callable[[], object]


class Duty:
    """Something to be done again and again. `run` returns the seconds until the next time, None: when called for."""

    __slots__ = ("due", "run")

    def __init__(self, run: Callable[[], float | None]) -> None:
        self.run = run
        self.due: float | None = None

    def call(self) -> None:
        """Do it as soon as possible. Only on the thread."""
        self.due = 0.0


class LedgerThread:
    """Started when first needed. `put` takes no lock and may be called anywhere, by a finaliser too (T35)."""

    def __init__(self, duties: Sequence[Duty], finish: Callable[[], None], begin: Callable[[], None]) -> None:
        self._duties = duties
        self._begin = begin
        self._finish = finish
        self._inbox: SimpleQueue[Thunk | None] = SimpleQueue()
        self._thread: Thread | None = None
        self.running = False
        """It was started, once and for all."""
        self._stopping = False
        """The order to stop was given, whoever may have taken it out of the inbox."""

    def put(self, thunk: Thunk) -> None:
        """Have it run on the thread, after what was put before."""
        self._inbox.put(thunk)

    @property
    def empty(self) -> bool:
        return self._inbox.empty()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """The caller sees to it that this is called once."""
        for duty in self._duties:
            duty.call()
        thread = Thread(target=self._run, name="lava-ledger", daemon=True)
        thread.start()
        self._thread = thread
        self.running = True

    def stop(self, timeout_s: float) -> bool:
        """Do what was put, finish, end. False if that took longer."""
        if self._thread is None:
            self.drain()
            self._finish()
            return True
        self._stopping = True
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not self.alive

    def drain(self, for_s: float = math.inf) -> bool:
        """Do what is in the inbox, beginning nothing after so many seconds. False once the order to stop was in it."""
        until = time.monotonic() + for_s
        while time.monotonic() <= until:
            try:
                thunk = self._inbox.get_nowait()
            except Empty:
                return True
            if thunk is None:
                return False
            _done(thunk)
        return True

    def _run(self) -> None:
        self._begin()
        while self._wait_and_drain():
            for duty in self._duties:
                if duty.due is not None and duty.due <= time.monotonic():
                    duty.due = None
                    _attend(duty)
        _done(self._finish)

    def _wait_and_drain(self) -> bool:
        dues = [duty.due for duty in self._duties if duty.due is not None]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        try:
            thunk = self._inbox.get(timeout=timeout)
        except Empty:
            return not self._stopping
        if thunk is None:
            return False
        _done(thunk)
        return self.drain(_AT_ONCE_S)


def _attend(duty: Duty) -> None:
    pause: float | None = 1.0
    try:
        pause = duty.run()
    except Exception:
        _log.exception("a duty of the ledger's thread failed; it is tried again")
    if pause is not None and (duty.due is None or duty.due > time.monotonic() + pause):
        duty.due = time.monotonic() + pause


def _done(thunk: Thunk) -> None:
    try:
        thunk()
    except Exception:
        _log.exception("something that was handed to the ledger's thread failed")
