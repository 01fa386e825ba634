"""This file knows how to keep answers back until a test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

_POLL_S = 0.005


class Barrier:
    """Keeps whoever reaches it until it opens; once open it stays open. Safe to use from any thread.

    It opens by `release()`; or by itself when `requests` have reached it; or when `until()` becomes true, which is
    asked every few milliseconds (pass a `threading.Event`'s `is_set`, or a look at a file shared by processes).
    """

    def __init__(self, requests: int | None = None, *, until: Callable[[], bool] | None = None) -> None:
        self._requests, self._until = requests, until
        self._changed = threading.Condition()
        self._reached = 0
        self._open = False
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def reached(self) -> int:
        """How many have come so far, let through or not."""
        with self._changed:
            return self._reached

    def release(self) -> None:
        """Open it. Safe to repeat."""
        with self._changed:
            self._open = True
            sleepers, self._sleepers = self._sleepers, []
            self._changed.notify_all()
        for loop, awake in sleepers:
            loop.call_soon_threadsafe(awake.set)

    def wait_reached(self, number: int, timeout_s: float = 10.0) -> None:
        """Block the calling thread until `number` have come. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._reached >= number, timeout_s):
                raise TimeoutError(f"{self._reached} of {number} requests reached the barrier in {timeout_s} s")

    async def passed(self) -> None:
        """Arrive, and return when the barrier is open."""
        if self._arrive():
            self.release()
            return
        while not await self._slept():
            if self._until is not None and self._until():
                self.release()
                return

    def _arrive(self) -> bool:
        """Count one more; whether it is, or thereby becomes, open."""
        with self._changed:
            self._reached += 1
            self._changed.notify_all()
            return self._open or (self._requests is not None and self._reached >= self._requests)

    async def _slept(self) -> bool:
        """Sleep until it opens, or until it is time to ask `until()` again; whether it is open."""
        sleeper = (asyncio.get_running_loop(), asyncio.Event())
        with self._changed:
            if self._open:
                return True
            self._sleepers.append(sleeper)
        try:
            async with asyncio.timeout(None if self._until is None else _POLL_S):
                await sleeper[1].wait()
        except TimeoutError:
            return False
        finally:
            self._forget(sleeper)
        return True

    def _forget(self, sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Event]) -> None:
        with self._changed:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
