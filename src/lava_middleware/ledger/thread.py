"""This file knows how to run what a ledger does beside its callers: one daemon thread, things handed to it, duties."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

_log = logging.getLogger("lava_middleware")

_AT_ONCE = 200
"""Things handed in that are done before the duties get their turn."""

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

    def put(self, thunk: Thunk) -> None:
        """Have it run on the thread, after what was put before."""
        self._inbox.put(thunk)

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
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self) -> bool:
        """Do what is in the inbox. False once the order to stop was among it."""
        for _ in range(_AT_ONCE):
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
            return True
        if thunk is None:
            return False
        _done(thunk)
        return self.drain()


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
