"""This file knows how to post records that another ledger decided into a ledger of record: once each, by their ids.

Two ways lead there, and the same id makes both safe together: a follower of the first ledger's journal (`post_to`),
which loses nothing, and signed billing spans (lava_middleware.otel), which go wherever spans go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ..core.carry import NewerRecord, Posting, carry, posting
from ..core.decide import LedgerRuleError
from ..core.money import AmountError
from ..core.record import Record
from ..ledger.journal import Busy, Journal, JournalUnavailable
from ..ledger.ledger import Ledger
from ..ledger.ticket import LedgerUnavailable, Ticket
from .follower import Follower, PermanentRefusal, RetryLater

COMMIT_TIMEOUT_S = 10.0
SYNC_TIMEOUT_S = 5.0


class Books(Protocol):
    """What is needed of a ledger: its commands, and its journal's promise about the disk."""

    @property
    def journal(self) -> Journal: ...

    def apply(self, account_id: str, command: Any, *, record: str | None = None) -> Ticket: ...


class Kept(Protocol):
    """Whatever has a ledger: a Lava."""

    @property
    def ledger(self) -> Books: ...


class Opened:
    """A ledger that was opened to be posted to, and nothing else."""

    def __init__(self, open_journal: Callable[[], Journal]) -> None:
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """Opened when first asked for: where it is away, records wait for it, and calls do not."""
        if self._ledger is None:
            self._journal = self._open_journal()
            self._ledger = Ledger(self._journal)
        return self._ledger

    def close(self) -> None:
        """Safe to repeat."""
        if self._ledger is not None and self._journal is not None:
            self._ledger.close()
            self._journal.close()


class Outcome:
    """What became of postings."""

    __slots__ = ("conflicts", "posted", "repeated")

    def __init__(self) -> None:
        self.posted = self.repeated = self.conflicts = 0


def post(books: Books, postings: Iterable[Posting]) -> Outcome:
    """Post them, and return when all are as durable as the ledger promises.

    A record that is there already is left as it is; one that is there with another charge is a conflict, and is left
    too. Raises RetryLater if any could not be written: then post them all again.
    """
    outcome = Outcome()
    tickets = [books.apply(one.customer, one.command, record=one.record) for one in postings]
    try:
        for ticket in tickets:
            try:
                receipt = ticket.wait(COMMIT_TIMEOUT_S)
            except (LedgerRuleError, AmountError):
                outcome.conflicts += 1
                continue
            outcome.repeated += receipt.repeated
            outcome.posted += not receipt.repeated
        if not books.journal.sync(SYNC_TIMEOUT_S):
            raise RetryLater("the ledger of record could not be flushed to disk in time")
    except (LedgerUnavailable, TimeoutError, Busy, JournalUnavailable) as error:
        raise RetryLater(f"the ledger of record cannot be written now ({type(error).__name__})") from None
    return outcome


def post_to(lava: Kept, *, name: str = "ledger-of-record", finish: Callable[[], None] = lambda: None) -> Follower:
    """A follower that posts every usage record into this Lava's ledger: `Lava(..., exporters=(post_to(other),))`.

    What the other ledger holds under the same id with another charge becomes a dead letter. Two such followers on one
    ledger need two names. `finish` is called when it ends.
    """

    def deliver(records: Sequence[Record]) -> None:
        try:
            postings = [posting(carry(record)) for record in records]
        except ValueError as error:  # an entry that somebody made by other means than a Lava
            raise PermanentRefusal(str(error)) from None
        except NewerRecord as error:
            raise RetryLater(str(error)) from None
        try:
            books = lava.ledger
        except (Busy, JournalUnavailable) as error:
            raise RetryLater(f"the ledger of record cannot be opened ({type(error).__name__})") from None
        if post(books, postings).conflicts:
            raise PermanentRefusal("the ledger of record has this id with another charge")

    return Follower(name, deliver, finish=finish)
