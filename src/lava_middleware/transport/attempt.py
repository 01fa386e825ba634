"""This file knows how far one attempt on the wire has come, and what an error means at that stage."""

from __future__ import annotations

import os
from contextvars import ContextVar
from time import monotonic

from .seen import Flight, Ticket


class Way:
    """Whether an attempt is on its way. What a transport spawns inherits the context, and keeps it: so this is looked
    at, not only found, and it is small, for a pooled connection may keep it for as long as it lives."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = False


_under_way: ContextVar[Way | None] = ContextVar("lava_middleware_under_way", default=None)
_pid = os.getpid()


def _forked() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_forked)


def here() -> int:
    """This process, without asking the kernel: an exchange belongs to the one that opened it (T36)."""
    return _pid


def is_under_way() -> bool:
    """Whether this code runs on behalf of an attempt that is already metered further out (httpx over aiohttp, say)."""
    way = _under_way.get()
    return way is not None and way.active


class Attempt:
    """One exchange up to its answer, whatever library carries it."""

    __slots__ = ("authorized", "flight", "replied", "sent", "way")

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.way = Way()
        """Active: nested shells and guards let it pass."""
        self.authorized = self.sent = self.replied = False

    def begin(self) -> None:
        """It is handed to the library."""
        self.way.active = self.flight.reading = True
        _under_way.set(self.way)

    def dispatch(self) -> None:
        """Its first byte is about to leave. Repeats harmlessly."""
        if not self.sent:
            self.flight.dispatched()
            self.sent = True

    def over(self) -> None:
        """The library has returned or raised."""
        self.way.active = self.flight.reading = False
        self.flight.last_read = monotonic()
        _under_way.set(None)

    def failed(self, error: BaseException) -> None:
        """End the flight as this error, at this stage, says. After the answer: as a reader that stopped or broke."""
        flight = self.flight
        if not self.authorized:
            flight.withdrawn()
        elif not self.sent or (not self.replied and self._cannot_have_left(error)):
            flight.unsent(error)
        else:
            end_by(flight, error)

    def _cannot_have_left(self, error: BaseException) -> bool:
        """Whether an error before the answer means that no byte of the request can have left after all."""
        return False


def end_by(flight: Flight, error: BaseException) -> None:
    """End the flight after the send: it broke (an error), or the reader stopped (anything else)."""
    if isinstance(error, Exception):
        flight.lost(error)
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        flight.abandoned("interrupted")
    elif isinstance(error, GeneratorExit):  # a coroutine that nobody finished
        flight.abandoned("collected")
    else:  # asyncio's and trio's cancellation, gevent's time-out
        flight.abandoned("cancelled")


def until(ticket: Ticket) -> None:
    """Until the ledger has decided. What it met meanwhile is for the flight to tell, never for the application."""
    try:
        ticket.wait()
    except Exception:
        if not ticket.done:
            raise


async def until_async(ticket: Ticket) -> None:
    try:
        await ticket
    except Exception:
        if not ticket.done:
            raise
