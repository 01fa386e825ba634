"""This file knows where everything goes that is still to be written when a ledger closes, or has closed.

What the ledger's thread was to do is done by whoever comes after it, or, while it is long at one thing, kept in the
pending file. Nothing is lost but what neither the ledger nor a pending file could take, and that is said in the log.
"""

from __future__ import annotations

import itertools
import logging
import time
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import AbstractContextManager

from .backlog import Backlog, is_ending
from .batches import Batches
from .counters import Counters
from .pending import Pending
from .thread import LedgerThread
from .ticket import LedgerUnavailable, Receipt, Ticket

_log = logging.getLogger("lava_middleware")


class Leaving:
    """`accept` is what the ledger's thread does with what it is handed; `at_work`: in the middle of ledger work."""

    def __init__(
        self,
        thread: LedgerThread,
        backlog: Backlog,
        batches: Batches | None,
        pending: Pending | None,
        counters: Counters,
        *,
        accept: Callable[[Ticket], None],
        at_work: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._thread = thread
        self._backlog = backlog
        self._batches = batches
        self._pending = pending
        self._counters = counters
        self._accept = accept
        self._at_work = at_work
        self._lock = allocate_lock()
        self.until = 0.0
        """When to stop trying what the journal does not take (by time.monotonic)."""

    def keep(self, ticket: Ticket) -> bool:
        """Write it to the pending file. False if there is none, or it cannot be written."""
        if self._pending is None:
            return False
        try:
            self._pending.keep(ticket.account, ticket.command, ticket.record)
        except (OSError, ValueError) as error:
            _log.error("the pending file could not be written: %s", error)
            return False
        self._counters.kept += 1
        if not ticket.done:
            ticket.resolve(Receipt(()))
        return True

    def keep_or_fail(self, ticket: Ticket) -> None:
        """For what can no longer be written: into the pending file, else into the log."""
        if is_ending(ticket) and self.keep(ticket):
            return
        if is_ending(ticket):
            self._counters.unposted += 1
            _log.error("an ending could not be written, and there is no pending file for it")
        ticket.fail(LedgerUnavailable("the ledger was closed before this could be written", unsure=ticket.unsure))

    def do_the_rest(self, *, in_any_case: bool = False) -> None:
        """Do what was put on the lists of threads that have ended. Whoever put something there calls it, after that:
        of several one is at it, and nobody waits for a lock. Never in the middle of ledger work (T35)."""
        for ticket in self._batches.left() if self._batches is not None else ():
            if is_ending(ticket):
                self._thread.put(lambda ticket=ticket: self._accept(ticket))  # type: ignore[misc]
            else:
                self.keep_or_fail(ticket)
        if self._pending is None and self._thread.alive:
            return  # it is long at one thing, and there is nowhere else to write what it has to
        while (in_any_case or not self._thread.empty) and self._lock.acquire(blocking=False):
            in_any_case = False
            try:
                if self._thread.alive:
                    self._keep_all()
                else:
                    self._thread.drain()
                    self.bring_in_all()
            finally:
                self._lock.release()

    def bring_in_all(self) -> None:
        """Write what is to be written, as long as there is time, and keep what is left. By one thread at a time."""
        backlog = self._backlog
        with self._at_work():
            backlog.unpark()
            while (pause := backlog.work()) is not None and time.monotonic() + pause < self.until:
                time.sleep(pause)
            for ticket in itertools.chain(backlog.endings, backlog.parked, backlog.questions):
                if not ticket.done:
                    self.keep_or_fail(ticket)
            backlog.endings.clear()
            backlog.questions.clear()
            backlog.parked.clear()

    def _keep_all(self) -> None:
        """The ledger's thread is long at one thing, and may yet do the others: meanwhile all of them are written to the
        pending file. What is then posted twice changes nothing."""
        with self._at_work():  # what is said in here is kept, not tried
            while not self._thread.drain():
                pass
            backlog = self._backlog
            for ticket in (*backlog.endings.copy(), *backlog.parked, *backlog.questions.copy()):
                if ticket.done:
                    continue
                record = ticket.record
                ticket.unsure = True
                ticket.withdraw()
                self.keep_or_fail(ticket)
                ticket.record = record  # the thread may be about to write it
