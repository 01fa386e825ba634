"""This file knows who waits for credit to come free, in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..core.commands import Extend
from .ticket import Ticket

OVERTAKEN_MOST = 16
"""Calls that do not wait may pass the head of a queue so often; then they are refused until it had its turn."""


class Queue:
    """Those who wait for one account. Open streams come before new calls: they end sooner if they can go on."""

    __slots__ = ("calls", "overtaken", "stirred", "streams")

    def __init__(self) -> None:
        self.streams: deque[Ticket] = deque()
        self.calls: deque[Ticket] = deque()
        self.overtaken = 0
        self.stirred = False
        """It is about to be tried: whoever has a reason to meanwhile need not say so again."""

    def __bool__(self) -> bool:
        return bool(self.streams or self.calls)

    def __len__(self) -> int:
        return len(self.streams) + len(self.calls)

    def add(self, ticket: Ticket) -> None:
        (self.streams if isinstance(ticket.command, Extend) else self.calls).append(ticket)

    def heads(self) -> Iterator[deque[Ticket]]:
        """The lines in the order in which their heads try again; a line that has run empty is passed over."""
        return (line for line in (self.streams, self.calls) if line)

    def take_due(self, now: float) -> list[Ticket]:
        """Take out those whose time is up, or whom nobody wants any more."""
        due = []
        for line in self.heads():
            if any(ticket.withdrawn or ticket.wait_until <= now for ticket in line):
                due += [ticket for ticket in line if ticket.withdrawn or ticket.wait_until <= now]
                kept = [ticket for ticket in line if not (ticket.withdrawn or ticket.wait_until <= now)]
                line.clear()
                line.extend(kept)
        return due


class Waiters:
    """Queues by account. Only the ledger's thread changes them; other threads may ask whether there is one."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}

    def __contains__(self, account: str) -> bool:
        return account in self.queues

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    def queue(self, account: str) -> Queue | None:
        return self.queues.get(account)

    def add(self, ticket: Ticket) -> Queue:
        queue = self.queues.setdefault(ticket.account, Queue())
        queue.add(ticket)
        return queue

    def tidy(self, account: str) -> None:
        """Forget the account's queue if nobody is left in it."""
        if account in self.queues and not self.queues[account]:
            del self.queues[account]

    def accounts(self, most: int) -> list[str]:
        """Accounts to look at now, at most so many; the others come first the next time."""
        names = list(self.queues)[:most]
        if len(names) < len(self.queues):
            for name in names:
                self.queues[name] = self.queues.pop(name)
        return names

    def due_at(self) -> float | None:
        """When the first of all runs out of time."""
        ends = (ticket.wait_until for queue in self.queues.values() for line in queue.heads() for ticket in line)
        return min(ends, default=None)

    def take_due(self, now: float) -> list[Ticket]:
        due = [ticket for queue in self.queues.values() for ticket in queue.take_due(now)]
        for account in {ticket.account for ticket in due}:
            self.tidy(account)
        return due

    def take_all(self) -> list[Ticket]:
        """Everybody, in order of arrival per account: the ledger closes."""
        everybody = [ticket for queue in self.queues.values() for line in queue.heads() for ticket in line]
        self.queues.clear()
        return everybody
