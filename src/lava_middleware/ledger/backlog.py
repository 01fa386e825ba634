"""This file knows how to bring in, one after another, what could not be written at once."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..core.commands import Report, Settle, Void
from .appender import RULED_OUT, TooManyLosses
from .counters import Counters
from .journal import Busy, JournalUnavailable, Refused
from .ticket import LedgerUnavailable, Receipt, Ticket

_log = logging.getLogger("lava_middleware")

PAUSE_LEAST_S, PAUSE_MOST_S = 0.05, 1.0
"""Between attempts while the journal cannot be written at all."""

ENDINGS = (Settle, Void, Report)
"""Commands that are never given up: what they say has happened."""


def is_ending(ticket: Ticket) -> bool:
    return isinstance(ticket.command, ENDINGS)


def jitter() -> float:
    """Seconds until a busy journal is tried again."""
    return random.uniform(50e-6, 500e-6)


class Backlog:
    """Two lines: endings, which stay until they are in, and questions, which are given up at their deadline.

    Only the ledger's thread changes it; other threads may ask for its length.
    """

    def __init__(
        self,
        run: Callable[[Ticket], Receipt],
        conclude: Callable[[Ticket, Receipt], None],
        failed: Callable[[Ticket, Exception], None],
        counters: Counters,
    ) -> None:
        self._run = run
        self._conclude = conclude
        self._failed = failed
        self._counters = counters
        self.endings: deque[Ticket] = deque()
        self.questions: deque[Ticket] = deque()
        self.parked: list[Ticket] = []
        """Endings that cannot be posted though others can (this release cannot read the account, or the journal refuses
        this very one); tried again when somebody `unpark`s them."""
        self.down_s = 0.0
        """The pause after the last attempt that found the journal unavailable; 0 while it is not."""

    def __len__(self) -> int:
        return len(self.endings) + len(self.parked)

    def add(self, ticket: Ticket) -> None:
        (self.endings if is_ending(ticket) else self.questions).append(ticket)

    def unpark(self) -> None:
        self.endings.extend(self.parked)
        self.parked = []

    def work(self) -> float | None:
        """Bring in as much as possible. Returns the seconds until the next attempt, None when nothing is left."""
        self._give_up_late_questions()
        for line in (self.endings, self.questions):
            while line:
                pause = self._one(line)
                if pause is not None:
                    return pause
        return None

    def _one(self, line: deque[Ticket]) -> float | None:
        ticket = line[0]
        if ticket.done:  # the ledger was closed beside this thread, and has kept it
            _take_out(line, ticket)
            return None
        try:
            receipt = self._run(ticket)
        except (Busy, TooManyLosses):
            self._counters.retries += 1
            return jitter()
        except Refused as error:
            _take_out(line, ticket)
            self._park(ticket, error)
        except JournalUnavailable as error:
            return self._unavailable(line, error)
        except RULED_OUT as error:
            _take_out(line, ticket)
            self._failed(ticket, error)
        except Exception as error:
            _take_out(line, ticket)
            self._park(ticket, error)
        else:
            self.down_s = 0.0
            _take_out(line, ticket)
            self._conclude(ticket, receipt)
        return None

    def _unavailable(self, line: deque[Ticket], error: JournalUnavailable) -> float | None:
        """Endings wait for better times in their order; questions are answered at once: nobody knows how long."""
        while self.questions:
            self._failed(self.questions.popleft(), error)
        if not self.endings:
            return None
        if not self.down_s:
            _log.error("the ledger cannot be written; %d endings wait for it: %s", len(self.endings), error)
        self.down_s = min(max(2 * self.down_s, PAUSE_LEAST_S), PAUSE_MOST_S)
        return self.down_s

    def _park(self, ticket: Ticket, error: Exception) -> None:
        if is_ending(ticket):
            _log.error("an ending cannot be posted yet: %s", error)
            self.parked.append(ticket)
            aside = "the ledger cannot write this now; it is kept and tried again"
            ticket.set_aside(LedgerUnavailable(aside, unsure=True))
        else:
            self._failed(ticket, error)

    def _give_up_late_questions(self) -> None:
        now = time.monotonic()
        for ticket in [one for one in self.questions if one.withdrawn or one.deadline <= now]:
            self.questions.remove(ticket)
            late = LedgerUnavailable("the ledger is busy: it could not decide in time", unsure=ticket.unsure)
            self._failed(ticket, late)


def _take_out(line: deque[Ticket], ticket: Ticket) -> None:
    with suppress(ValueError):
        line.remove(ticket)
