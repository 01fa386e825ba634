"""This file knows what must be true after every entry and at the end of a history, by arithmetic of its own.

The books are those of tests.simulator.book, which says no to what its customer's entries may not say: no credit is
created or lost, draws are in order, no grant, overage, limit, run or purchase is exceeded, debt is repaid first, a
refund is at most what was charged, a threshold fires once, cycles follow the calendar and grant once.

G1  `on_the_wire`: when the provider gets a byte, the journal holds an open hold of that exchange, or the exchange has
    the reason why it goes without one, and its report says so at the end
G2  `Book._end` and `at_rest`: a hold that ended does not end again; none stays open; what its owner said, in time
    or late, is what is on the books, the later one as an adjustment that names the hold
G3  `same_record`, `at_rest`: what bills has one record, of an id of its own, that reached the target at least once
G4  `Book` after every entry: no grant and no limit is ever over-reserved, and all sums add up; and `folded`: an account
    in memory, from a snapshot or not, is what all entries fold to
G5  `Book._settled`: what exceeds a hold stands there with its cause; what no grant covers, and only that, is debt; and
    `Book._more_held`: nothing is newly held while debt exceeds what is free
G6  `committed`: an entry about an exchange is in the account of the customer whose frame it was opened in
G7  `passed`: the application has a prefix of the provider's bytes, and all of them when nobody cut it short
G8  `at_rest`: after every outage of the target the follower has passed the last entry, and the target has all records
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lava_middleware.core.account import Account
from lava_middleware.core.agreements import as_of
from lava_middleware.core.commands import Command, Post, Report, Settle, Void
from lava_middleware.core.events import Adjusted, Reported, Settled, Voided, decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.money import AmountError
from lava_middleware.core.record import Record
from lava_middleware.core.state import from_state, to_state
from lava_middleware.ledger.journal import Entry

from .book import Book
from .calendars import DAY
from .selling import HUGE

if TYPE_CHECKING:
    from .world import Exchange, World


IDLE = 3_650 * DAY

Asked = TypeVar("Asked", bound=Callable[..., None])


def remembered(check: Asked) -> Asked:
    """What a judge finds inside the library is kept: there it might be caught as an error of the provider's."""

    @wraps(check)
    def checked(judge: Judge, *what: Any) -> None:
        try:
            check(judge, *what)
        except Exception as wrong:
            judge.wrong = judge.wrong or wrong
            raise

    return cast(Asked, checked)


def hold_of(key: str | None) -> str:
    """The exchange that an entry's key names; empty: none."""
    kind, _, name = (key or "").partition(":")
    return name.partition(":")[0] if kind in ("hold", "end", "late", "report", "adjust") else ""


class Judge:
    """All customers' books, and what was promised to whom."""

    def __init__(self, settings: SimpleNamespace) -> None:
        self._settings = settings
        self.books: dict[str, Book] = {}
        self.accounts: dict[str, Account] = {}
        """What all entries of a customer fold to, one after another."""
        self.bound: dict[str, str] = {}
        """Exchange → the customer in whose frame it was opened."""
        self.last: dict[str, Command] = {}
        """Exchange → what its owner said of its end."""
        self.unheld: set[str] = set()
        self.expected: dict[str, int] = {}
        """Hold that was settled for a dead owner → what was posted then."""
        self.on_the_books: dict[str, int] = {}
        """Exchange → charged so far, but for corrections that were asked for."""
        self.adjusted: set[str] = set()
        """What was settled for a dead owner, and heard of later."""
        self.corrected: set[str] = set()
        self.billed: set[str] = set()
        """Ids of the records there must be."""
        self.posted: dict[str, int] = {}
        """Record of another ledger → what it charges."""
        self.wrong: Exception | None = None

    @remembered
    def committed(self, entry: Entry, command: Command | None, now: int) -> None:
        book = self.books.get(entry.account)
        if book is None:
            book = self.books[entry.account] = Book()
            self.accounts[entry.account] = Account()
        event = decode(entry.kind, entry.event)
        book.entry(entry, event, command, now)
        if isinstance(event, Settled | Voided | Reported | Adjusted):
            self._ended(book, event, command)
        account = self.accounts[entry.account]
        evolve(account, event, entry.at)
        book.agrees(account)
        bound = self.bound.get(hold_of(entry.key))
        assert bound is None or bound == entry.account, "G6: it is posted to another customer than the bound one"

    def _ended(self, book: Book, event: Settled | Voided | Reported | Adjusted, command: Command | None) -> None:
        if isinstance(event, Voided):
            self.on_the_books.setdefault(event.hold, 0)
            return
        name = event.key if isinstance(event, Reported) else event.hold
        if isinstance(event, Adjusted):
            record = f"{name}:{event.number}" if event.key else f"{name}:late"
            if isinstance(command, Post):
                self.posted[record] = event.charge
            elif event.key:
                self.corrected.add(name)
            else:
                assert name in self.expected, "G2: only what was settled for a dead owner is adjusted"
                assert name not in self.adjusted, "G2: late comes once"
                self.adjusted.add(name)
                self.on_the_books[name] += event.charge
            assert record not in self.billed, "G3: a record has an id of its own"
            self.billed.add(record)
            return
        assert name not in self.billed, "G3: an exchange has one record"
        if isinstance(event, Settled):
            if isinstance(command, Settle) and command.absorb:
                assert event.charge <= book.amounts[name], "G5: where the operator bears overruns nobody pays more"
            if event.lost_owner:
                assert event.charge <= book.amounts[name]
                self.expected[name] = event.charge
        if isinstance(command, Post):
            self.posted[name] = event.charge
        self.on_the_books[name] = event.charge
        self.billed.add(name)

    @remembered
    def folded(self, name: str, account: Account | None) -> None:
        """An account in memory, just decided on: as of the last entry it is what the entries say."""
        whole = self.accounts.get(name)
        if account is not None and whole is not None and account.version == whole.version:
            assert account == whole, "G4: an account in memory is what its entries fold to"

    @remembered
    def said(self, command: Command, settings: SimpleNamespace) -> None:
        """What the owner of an exchange says of its end; it says it once."""
        name = command.key if isinstance(command, Report) else command.hold  # type: ignore[union-attr]
        assert name not in self.last, "G2: the owner of an exchange ends it once"
        self.last[name] = command

    @remembered
    def ending_refused(self, command: Command, error: Exception) -> None:
        name = command.key if isinstance(command, Report) else command.hold  # type: ignore[union-attr]
        reported = isinstance(command, Report) and name in self.on_the_books
        too_much = isinstance(command, Report) and isinstance(error, AmountError) and command.charge >= HUGE
        assert reported or too_much, f"G2: an ending was refused: {error}"

    def on_the_wire(self, exchange: Exchange) -> None:
        """The first byte leaves."""
        flight: Any = exchange.flight
        if flight._unheld:
            self.unheld.add(exchange.id)
            return
        book = self.books[exchange.customer]
        held = exchange.id in book.holds
        if not exchange.process.alive:  # it was taken for dead: the hold may have been ended for it
            held = held or exchange.id in self.expected
        assert held, "G1: a byte went out without a committed hold"

    def passed(self, exchange: Exchange, data: bytes) -> None:
        """Bytes reach the application."""
        end = exchange.got + len(data)
        assert exchange.visible[exchange.got : end] == data, "G7: the application got other bytes than were sent"
        exchange.got = end

    def ended_well(self, exchange: Exchange) -> None:
        assert exchange.got == len(exchange.visible), "G7: the application did not get all that was sent"

    def same_record(self, before: Record, again: Record) -> None:
        assert (before.id, before.seq, before.charge) == (again.id, again.seq, again.charge), (
            "G3: two records have the same id"
        )

    def at_rest(self, world: World) -> None:
        """Everything has ended, everybody alive has been heard, the dead have been cleared away."""
        for name, book in self.books.items():
            assert not book.holds, "G2: a hold never ended"
            self._at_rest_for_ever(name, world)
            self._what_was_bought(name, book, world)
        self._what_was_said({one for one, process in world.owned.items() if not process.running})
        for exchange in self.unheld:
            self._report_says_why(exchange, world)
        assert world.follower._host is not None
        assert world.store.cursors.get("sink", 0) == len(world.store.all), "G8: the follower has passed all entries"
        assert not world.store.buried, "G8: nothing was given up"
        assert world.delivered.keys() == self.billed, "G3, G8: every record reached the target"
        for record in world.delivered.values():
            bound = self.bound.get(record.id.partition(":")[0])
            assert bound is None or record.customer == bound, "G6: a record names another customer"

    def _what_was_said(self, lost: set[str]) -> None:
        for name, charged in self.on_the_books.items():
            said = self.last.get(name)
            unadjusted = name in self.expected and name not in self.adjusted
            if said is None or (name in lost and (isinstance(said, Report) or unadjusted)):
                continue  # nobody could say anything any more, or what was said died with its process
            if (name in self.adjusted and name in self.corrected) or getattr(said, "tiers", None) is not None:
                continue  # its books have looked at each entry
            wanted = 0 if isinstance(said, Void) else said.charge  # type: ignore[union-attr]
            book = self.books[self.bound[name]]
            if isinstance(said, Settle) and said.absorb:
                wanted = min(wanted, book.amounts[name])
            if isinstance(said, Settle | Report) and said.forgive:
                assert charged <= wanted, "G2: more is on the books than was said"
                continue
            assert charged == wanted, "G2: what is on the books is not what its owner said"

    def _at_rest_for_ever(self, name: str, world: World) -> None:
        """Ten years later nothing is reserved, no run is open, and a snapshot is what it was made of."""
        account = self.accounts[name]
        assert from_state(to_state(account)) == account, "a snapshot is what the entries fold to"
        later = as_of(account, max(world.now, account.at) + IDLE)
        assert not later.runs, "every run ends"
        assert not later.reserved(), "what was reserved is free in the end"
        assert later.debt == 0 or later.free(later.at) <= 0

    def _what_was_bought(self, name: str, book: Book, world: World) -> None:
        """The operator's hook has taken the money of each key once, and each has been credited once."""
        paid = {key: amount for key, (customer, amount) in world.shop.items() if customer == name and amount}
        assert book.topup is None, "a purchase never ended"
        assert book.purchased == paid, "what was paid for is what was granted, once for each key"

    def _report_says_why(self, exchange: str, world: World) -> None:
        entry = world.store.keys.get((self.bound[exchange], f"report:{exchange}"))
        if entry is not None:
            assert '"unheld":"' in (entry.record or ""), "G1: the report says why there was no hold"
            return
        opened: Any = world.opened[exchange]
        # A void owes nothing; and in mode observe what a process has in memory may die with it.
        assert opened.flight._state == "voided" or not opened.process.running, "G1: nothing says why there was no hold"
