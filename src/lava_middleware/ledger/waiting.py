"""This file knows when those who wait for credit try again, and what they are told when their time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from ..core.decide import Declined
from .appender import TooManyLosses
from .counters import Counters
from .journal import Busy
from .ticket import Receipt, Ticket
from .waiters import Queue, Waiters

POLL_S = 0.05
"""Between two looks at what other processes ended, while somebody waits here."""
POLL_MOST = 64
"""Accounts with a queue that one such look tries."""


class Waiting:
    """Tries the heads of all lines again. On the ledger's thread, all but `stir`.

    `attempt` and `failed` are the ledger's; `put` has something done on its thread; `decide_together` sends a ticket
    where others are decided in the same statement, and says False where there is no such place.
    """

    def __init__(
        self,
        waiters: Waiters,
        counters: Counters,
        *,
        attempt: Callable[[Ticket], Receipt],
        failed: Callable[[Ticket, Exception], None],
        put: Callable[[Callable[[], object]], None],
        decide_together: Callable[[Ticket], bool],
    ) -> None:
        self._waiters = waiters
        self._counters = counters
        self._attempt = attempt
        self._failed = failed
        self._put = put
        self._decide_together = decide_together

    def add(self, ticket: Ticket) -> float | None:
        """Let it stand in line. When to look at the lines next; None: its time was up, and it has its answer."""
        self._counters.waits += 1
        if ticket.wait_until <= time.monotonic():
            self._try_for_the_last_time((ticket,))
            return None
        queue = self._waiters.add(ticket)
        self.stir(queue, ticket.account)  # what it waits for may have happened before it stood in line
        return min(ticket.wait_until, time.monotonic() + POLL_S)

    def stir(self, queue: Queue, account_id: str) -> None:
        """Have the account's lines tried: once for all that happens until then, for an attempt may take long. Said on
        any thread, after what may let somebody pass is in the journal."""
        if not queue.stirred:
            queue.stirred = True
            self._put(partial(self._try_queue, account_id))

    def look(self) -> float | None:
        """Try everybody whose time is up, and some of the others. Seconds until the next look; None: nobody waits."""
        self._try_for_the_last_time(self._waiters.take_due(time.monotonic()))
        for account_id in self._waiters.accounts(POLL_MOST):
            self._try_queue(account_id)
        due = self._waiters.due_at()
        return None if due is None else max(0.0, min(POLL_S, due - time.monotonic()))

    def refuse_all(self) -> None:
        """The ledger closes."""
        for ticket in self._waiters.take_all():
            refuse(ticket)

    def _try_queue(self, account_id: str) -> None:
        """Let the heads of the account's lines try again, until one of them still has to wait."""
        queue = self._waiters.queue(account_id)
        if queue is None:
            return
        queue.stirred = False  # first: what happens from now on may come too late for this attempt
        for line in queue.heads():
            while line and self._passes(line[0]):
                line.popleft()
                queue.overtaken = 0
        self._waiters.tidy(account_id)

    def _passes(self, ticket: Ticket) -> bool:
        """Try one that waits; True once it has its answer."""
        if ticket.withdrawn:
            refuse(ticket)
            return True
        try:
            receipt = self._attempt(ticket)
        except (Busy, TooManyLosses):
            return False  # the next look tries again
        except Exception as error:
            self._failed(ticket, error)
            return True
        if receipt.declined is not None and receipt.declined.waitable:
            ticket.declined = receipt
            return False
        ticket.resolve(receipt)
        return True

    def _try_for_the_last_time(self, tickets: Iterable[Ticket]) -> None:
        """Those whose time is up: their answer is final, and where it comes from afar they go for it together."""
        for ticket in tickets:
            if not ticket.withdrawn and self._decide_together(ticket):
                continue
            if not self._passes(ticket):
                refuse(ticket)


def refuse(ticket: Ticket) -> None:
    """What one that waited is told in the end: its last refusal, if it ever got to one."""
    ticket.resolve(ticket.declined or Receipt((), Declined("credit_on_hold", waitable=True)))
