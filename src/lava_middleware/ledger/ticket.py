"""This file knows how to hand over an answer that may not be there yet, to threads and to tasks alike.

Nothing here takes a lock: a garbage collector may run another ending in the middle of any line (T35), so all that is
shared is changed by single atomic steps (a deque's append and popleft).
"""

from __future__ import annotations

import asyncio
import sys
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple

from ..core.commands import Command
from ..core.decide import Declined
from ..core.events import Event
from ..core.money import Ticks


class LedgerUnavailable(Exception):
    """The ledger could not decide in time, or cannot be read or written. The message says what to do.

    `unsure`: the command may have been written all the same. A grant or terms may be repeated as they were; a hold
    that was written is given back by the ledger itself, so ask again under another id.
    """

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


class Receipt(NamedTuple):
    """What a command led to: its events in order, or the reason why there are none.

    No events and no reason: the command is kept in the pending file and will be posted later.
    """

    events: tuple[Event, ...]
    declined: Declined | None = None
    available: Ticks = 0
    """What a new hold could take afterwards."""
    repeated: bool = False
    """The same command was applied before; the event is its first outcome."""
    seq: int = 0
    """Of the last entry that was appended; 0 when none was."""

    @property
    def event(self) -> Event | None:
        """The event that answers the command (others, such as a lapse, come before it)."""
        return self.events[-1] if self.events else None


class Ticket:
    """A command on its way. Usually `done` when you get it; else `wait()` in a thread or `await` it in a task."""

    __slots__ = (
        "_aside",
        "_callbacks",
        "_error",
        "_receipt",
        "account",
        "command",
        "deadline",
        "declined",
        "done",
        "losses",
        "record",
        "unsure",
        "wait_s",
        "wait_until",
        "withdrawn",
    )

    def __init__(self, account: str, command: Command, record: str | None, wait_s: float = 0.0) -> None:
        self.account = account
        self.command = command
        self.record = record
        self.wait_s = wait_s
        self.done = False
        self.withdrawn = False
        self.losses = 0
        self.unsure = False
        """An append of it may have been written although its answer was lost."""
        self.deadline = 0.0
        """time.monotonic() at which a command that cannot be tried is given up; 0: not set."""
        self.wait_until = 0.0
        """time.monotonic() until which it waits for a hold to end; 0: it does not wait yet."""
        self.declined: Receipt | None = None
        """The last refusal, while it waits."""
        self._receipt: Receipt | None = None
        self._error: BaseException | None = None
        self._aside: BaseException | None = None
        """What those who wait are told while it is set aside: it is not done, and nobody knows when it will be."""
        self._callbacks: deque[Callable[[], object]] | None = None

    def result(self) -> Receipt:
        """The receipt. Raises what the command met: Conflict, UnknownHold, LedgerUnavailable, AmountError."""
        if self._error is not None:
            raise self._error
        if self._receipt is None:
            if self._aside is not None:
                raise self._aside
            raise RuntimeError("the ledger has not decided yet: wait() for the ticket, or await it")
        return self._receipt

    def wait(self, timeout: float | None = None) -> Receipt:
        """Block this thread until it is decided. Raises TimeoutError, and what `result` raises."""
        if not self.done:
            gate = allocate_lock()
            gate.acquire()
            self.on_done(Wake(gate.release))
            if self._aside is None and not gate.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError("the ledger has not decided in time")
        return self.result()

    def __await__(self) -> Generator[Any, Any, Receipt]:
        if not self.done:
            yield from _until_done(self).__await__()
        return self.result()

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call it once decided: at once if it is, else on the ledger's thread. It must neither block nor raise."""
        if self.done:
            callback()
            return
        callbacks = self._callbacks
        if callbacks is None:
            callbacks = self._callbacks = deque()
        callbacks.append(callback)
        if self.done:  # decided between the two lines: whoever pops the callback calls it
            self._call_back()

    def withdraw(self) -> None:
        """Nobody wants it any more: stop trying as soon as possible. It may still pass; `on_done` tells."""
        self.withdrawn = True

    def resolve(self, receipt: Receipt) -> None:
        """For the ledger: the answer."""
        self._receipt = receipt
        self._finish()

    def fail(self, error: BaseException) -> None:
        """For the ledger: the answer is an exception."""
        self._error = error
        self._finish()

    def set_aside(self, error: BaseException) -> None:
        """For the ledger's thread: it is kept and tried again. Who waits gets the error; `on_done` still tells how it
        ends."""
        self._aside = error
        callbacks = self._callbacks or deque()
        for _ in range(len(callbacks)):
            callback = callbacks.popleft()
            if isinstance(callback, Wake):
                callback()
            else:
                callbacks.append(callback)

    def _finish(self) -> None:
        self.record = None
        self.done = True
        if self._callbacks is not None:
            self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            try:
                callback()
            except BaseException:
                self._call_back()  # whoever else waits is told all the same
                raise


class Wake:
    """What wakes somebody who waits for a ticket."""

    __slots__ = ("_wake",)

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake

    def __call__(self) -> None:
        self._wake()


async def _until_done(ticket: Ticket) -> None:
    if running_library() == "trio":
        await _until_done_trio(ticket)
    else:
        await _until_done_asyncio(ticket)


def running_library() -> str:
    """Whose task this is: "asyncio" or "trio"."""
    if "trio" not in sys.modules:
        return "asyncio"
    import sniffio  # comes with trio; both may run in one process, so ask which one this task is of

    return str(sniffio.current_async_library())


async def _until_done_asyncio(ticket: Ticket) -> None:
    loop = asyncio.get_running_loop()
    decided = loop.create_future()

    def wake() -> None:
        if not decided.done():
            decided.set_result(None)

    def wake_from_thread() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(wake)

    ticket.on_done(Wake(wake_from_thread))
    if ticket._aside is None:
        await decided


async def _until_done_trio(ticket: Ticket) -> None:
    import trio

    token = trio.lowlevel.current_trio_token()
    decided = trio.Event()

    def wake_from_thread() -> None:
        with suppress(trio.RunFinishedError):  # the run is over: nobody waits any more
            token.run_sync_soon(decided.set)

    ticket.on_done(Wake(wake_from_thread))
    if ticket._aside is None:
        await decided.wait()
