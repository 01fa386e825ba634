"""This file knows how the parts are put together: ledger, prices, terms, exporters and clock make one `Lava`."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from opentelemetry import trace

from . import context
from .chores import Chores
from .core.account import Account
from .core.balance import Balance, balance_of
from .core.commands import Command
from .core.decide import Declined
from .core.events import decode
from .core.learned import Learned
from .core.pricing import Price
from .core.rating import Markup
from .core.record import Record, record_of
from .credits.administration import Administration
from .credits.asking import each_in_thread, in_thread, ledger_errors
from .credits.bookkeeping import Bookkeeping
from .credits.reading import Reading
from .credits.topups import Hook, TopUps
from .errors import ConfigurationError, Denied, first_refusal
from .export.follower import Follower
from .export.inference import traceparent
from .export.jsonl import json_lines
from .export.metrics import Metrics
from .export.posting import Opened, post_to
from .export.signing import Signer
from .export.telemetry import telemetry
from .forks import renew_in_child
from .ids import new_id, now_us
from .ledger.journal import Entry, Journal
from .ledger.ledger import Ledger
from .ledger.ticket import LedgerUnavailable as Unavailable
from .ledger.ticket import Ticket
from .prices.book import Book
from .providers.row import Row
from .providers.table import ROWS
from .transport.refusal import denied_from

if TYPE_CHECKING:
    from .offers.meters import Meters
    from .settings import Settings
    from .transport.flight import Flight

logger = logging.getLogger("lava_middleware")

KNOWN_MOST = 10_000
"""Customers of whom a process remembers that they have terms."""
LEARNED_NOTE = "learned"
"""Under this name the lessons are kept beside the journal."""


class Lava(Administration, Bookkeeping, Reading):
    """A ledger with the gate in front of it. Thread-safe; one for the whole process is the usual number.

    `Lava("sqlite:///lava.db", markup="1.20", ...)` or `Lava.from_env()`. Every setting is a keyword or a LAVA_*
    variable; see the README. Raises ConfigurationError for one that cannot work, LedgerUnavailable if the ledger
    cannot be opened. Close it when done (`close()`, or as a context manager): nothing that was acknowledged depends on
    that, what is still queued is written a little earlier.
    """

    def __init__(
        self,
        ledger: str | None = None,
        *,
        clock: Callable[[], int] = now_us,
        exporters: tuple[Follower, ...] = (),
        top_up: Hook | None = None,
        **settings: Any,
    ) -> None:
        from .settings import configure  # brings pydantic, which nothing on the way of a call needs

        self.settings: Settings = configure(ledger, settings)
        self.clock = clock
        self.monotonic = time.monotonic
        self.new_id = new_id
        # What can be wrong with the settings is found out before a file is made.
        if self.settings.post_to is not None and self.settings.post_to == self.settings.ledger:
            raise ConfigurationError("post_to names the ledger itself; the ledger of record is another one")
        self.book = _book(self.settings)
        self.markup = Markup(self.settings.markup)
        self.meters = _meters(self.settings, self.markup)
        self.catalogue = self.settings.catalogue
        self._known: LRUCache[str, bool] = LRUCache(KNOWN_MOST)
        self._known_lock = threading.Lock()
        renew_in_child(self, _known_lock=threading.Lock)
        self.quoted: dict[tuple[str, str | None], tuple[Row, Price | None]] = {}
        """(model, provider) → what quotes found for it."""
        self.hosts = _rows_at(self.settings.hosts, _own_rows(self.settings, self.book))
        self.by_path = self.settings.unlisted == "by_path"
        with ledger_errors():
            self._opened = open_journal(self.settings)
        self.ledger = Ledger(self._opened, clock=clock, pending_path=self.settings.pending)
        self.journal: Journal = self.ledger.journal
        """As anybody beside the ledger may use it: what a collector ends meanwhile is handed over (T35)."""
        self.topups = None
        """Nothing is bought without a hook, nor while one only observes."""
        if top_up is not None and self.settings.mode == "enforce":
            self.topups = TopUps(self.ledger, top_up, self.settings.top_up_wait_s)
        self.learned = self._read_lessons()
        self.metrics = Metrics()
        self._open: dict[int, Flight] = {}
        """Exchanges under way, for the watcher of stalls."""
        self._passed: deque[tuple[str, str, str]] = deque()
        """(day, reason, host) of each request that passed; folded and written by the chores."""
        self.pictures: deque[Callable[[], None]] = deque()
        """Spans that are to be ended where no call waits; ended by the chores."""
        self._taught = 0
        self._closed = False
        self._chores = Chores(self._do_chores)
        _OPEN_LAVAS.add(self)
        self._followers = (*exporters, *self._own_followers())
        for follower in self._followers:
            follower.start(self)

    @classmethod
    def from_env(cls, **settings: Any) -> Lava:
        """Configured from LAVA_* variables; keywords win over them."""
        return cls(**settings)

    def __repr__(self) -> str:
        return f"<Lava {self.settings.mode}>"

    def __enter__(self) -> Lava:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What one reads --------------------------------------------------------------------------------------------------

    def balance(self, customer: str) -> Balance:
        """What the customer has now, as the ledger (not this process's memory) says."""
        return balance_of(self._account(customer), self.clock())

    abalance = in_thread(balance)

    def records(self, customer: str) -> Iterator[Record]:
        """The customer's usage records, newest first, read in short pages as you iterate."""
        for entry in self.entries(customer):
            record = record_of_entry(entry)
            if record is not None:
                yield record

    def arecords(self, customer: str) -> AsyncIterator[Record]:
        """`records` for async code: `async for`."""
        return each_in_thread(self.records(customer))

    def entries(self, customer: str) -> Iterator[Entry]:
        """All entries of the customer's journal, newest first, read in short pages as you iterate."""
        before: int | None = None
        while page := self._page(context.checked_id(customer), before):
            yield from page
            before = page[-1].version

    def _page(self, customer: str, before: int | None) -> list[Entry]:
        with ledger_errors():
            return self.journal.entries(customer, before=before, limit=200)

    def _account(self, customer: str) -> Account:
        with ledger_errors():
            return self.ledger.look(context.checked_id(customer))

    # Instrumenting ---------------------------------------------------------------------------------------------------

    def instrument(self) -> Lava:
        """Meter every client of httpx, httpx2 and aiohttp in this process, those that exist already included; calls to
        providers through requests and botocore, which are not metered, are refused.

        Repeats harmlessly. The first Lava that instruments is the process's default; a second one raises
        ConfigurationError (it can still be used through its own middleware or `charge_to`).
        """
        from .transport.gate import GATE
        from .transport.guards import guard
        from .transport.instrument import instrument

        context.set_default(self)
        instrument(lambda: GATE)
        guard(GATE.verdict)
        return self

    def charge_to(self, customer: str, **frame: Any) -> Any:
        """`charge_to` that also says that this Lava acts."""
        return context.charge_to(customer, lava=self, **frame)

    def unbilled(self, reason: str = "") -> Any:
        """`unbilled` for calls that nobody is charged for."""
        return context.unbilled(reason, lava=self)

    def current(self) -> Any:
        return context.current()

    def close(self) -> None:
        """Write down what is queued, stop the threads, close the ledger. Safe to call twice.

        In a signal handler that came in the middle of ledger work, a thread does it as soon as that is over.
        """
        if self._closed:
            return
        if self.ledger.is_at_work:
            threading.Thread(target=self.close, name="lava-close").start()
            return
        self._closed = True
        context.drop_default(self)
        self._chores.stop()
        self._end_open("closing")
        self._do_chores()
        self._save_lessons()
        if self.topups is not None:
            self.topups.close()
        self._end_open("closing")  # whose answer came meanwhile
        self.ledger.close()
        for follower in self._followers:  # after the ledger's last word, so that they hear it
            follower.close()
        self._opened.close()

    def _end_open(self, how: str) -> None:
        """Settle what is still open by what is known of it now: nobody will be there to do it later."""
        for flight in list(self._open.values()):
            flight.abandoned(how)

    def _apply(self, customer: str, command: Command) -> Ticket:
        return self.ledger.apply(context.checked_id(customer), command)

    def known(self, customer: str) -> bool:
        """Whether this process has seen that the customer has terms."""
        with self._known_lock:
            return customer in self._known

    def know(self, customer: str) -> None:
        with self._known_lock:
            self._known[customer] = True

    # What flights need -----------------------------------------------------------------------------------------------

    def awake(self) -> None:
        """This process serves: start what works beside the calls, in the processes that a server forks too.

        Exporters catch up on what earlier processes left. Costs next to nothing when they run already.
        """
        self._chores.start()
        if self.topups is not None:
            self.topups.awake()
        for follower in self._followers:
            follower.wake()

    def opened(self, flight: Flight) -> None:
        self._open[id(flight)] = flight
        self.awake()

    def closed(self, flight: Flight) -> None:
        self._open.pop(id(flight), None)

    def ask(self, customer: str, command: Command, *, record: str | None = None, wait_s: float = 0.0) -> Ticket:
        """Ask the ledger for credit; where that is lacking, the answer may wait for a purchase."""
        if self._closed:  # the ledger itself is closed later: nobody would end what it let out until then
            ticket = Ticket(customer, command, None)
            ticket.fail(Unavailable("the ledger was closed"))
            return ticket
        ticket = self.ledger.apply(customer, command, record=record, wait_s=wait_s)
        return ticket if self.topups is None else self.topups.answer(ticket, record)

    def denied(self, customer: str, declined: Declined, **more: Any) -> Denied:
        """The ledger's no as the application and its client will see it."""
        strict = self.settings.unknown_accounts == "refuse" and declined.reason == "insufficient_credit"
        if strict:
            account = self.ledger.seen(customer)  # it was looked at just now, and an event loop may be waiting
            if account is not None and account.version == 0:
                return Denied("customer_unknown", **more)
        return denied_from(declined, self.clock(), **more)

    def refused(self, denied: Denied, seconds: float | None = None) -> None:
        """`seconds`: how long the gate took to say so, where it asked the ledger."""
        first_refusal(denied)
        self.metrics.decided("denied", denied.reason, seconds)

    def lets_through_unreachable(self) -> bool:
        """Whether calls may go out while the ledger cannot be asked."""
        return self.settings.mode == "observe" or self.settings.on_ledger_outage == "open"

    def count_passed(self, reason: str, host: str) -> None:
        """One more request that passed without being metered, or would have been refused."""
        day = datetime.fromtimestamp(self.clock() / 1_000_000, UTC).date().isoformat()
        self._passed.append((day, reason, host))
        self.metrics.passed(reason)
        self._chores.start()

    def post(
        self,
        customer: str,
        command: Command,
        record: str | None,
        *,
        binding: context.Binding | None = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Tell the ledger how an exchange ended. Never waits or raises. `then` is called once it is written."""
        self._taught += 1
        ticket = self.ledger.apply(customer, command, record=record)
        if record is not None:
            ticket.on_done(lambda: self._posted(ticket, record, binding))
        if then is not None:
            ticket.on_done(then)

    def _posted(self, ticket: Ticket, record: str, binding: context.Binding | None) -> None:
        try:
            receipt = ticket.result()
        except Exception as error:  # nothing may reach the application from here; what happened is in the log
            logger.error("the ledger refused the ending of an exchange (%s); see lava doctor", type(error).__name__)
            return
        if binding is not None and receipt.event is not None:
            made = record_of(
                receipt.event,
                record,
                customer=ticket.account,
                at=self.clock(),
                seq=receipt.seq,
                balance_after=receipt.available,
            )
            if made is not None:
                binding.add(made)

    def trace_context(self) -> str:
        """W3C traceparent of the current span, or an empty string."""
        return traceparent(trace.get_current_span())

    # Chores ----------------------------------------------------------------------------------------------------------

    def _do_chores(self) -> None:
        self._write_passed()
        self._end_stalled()
        while self.pictures:
            self.pictures.popleft()()
        if self._taught:
            self._taught = 0
            self._save_lessons()

    def _write_passed(self) -> None:
        counts = Counter(self._passed.popleft() for _ in range(len(self._passed)))
        for passed, count in counts.items():
            try:
                self.journal.bump(*passed, count)
            except Exception:  # the ledger is busy or away: keep the counts for the next time
                self._passed.extend([passed] * count)

    def _end_stalled(self) -> None:
        patience = self.settings.stall_s
        now = self.monotonic()
        for flight in list(self._open.values()):
            if flight.reading or now - flight.last_read <= patience:
                continue
            if self.settings.mode == "observe":
                flight.abandoned("stalled")  # settled; whoever reads on gets the rest
            else:
                flight.stalled()

    def _read_lessons(self) -> Learned:
        try:
            text = self.journal.note(LEARNED_NOTE)
            return Learned.from_text(text) if text else Learned()
        except Exception:
            return Learned()  # a cache: what cannot be read is learned anew

    def _save_lessons(self) -> None:
        with contextlib.suppress(Exception):
            self.journal.save_note(LEARNED_NOTE, self.learned.to_text())

    def _own_followers(self) -> Iterator[Follower]:
        if self.settings.export_jsonl is not None:
            yield json_lines(self.settings.export_jsonl)
        if self.settings.webhook_url is not None and self.settings.webhook_secret is not None:
            from .export.webhook import webhook

            yield webhook(
                self.settings.webhook_url, self.settings.webhook_secret, records=self.settings.webhook_records
            )
        if self.settings.post_to is not None:
            record = Opened(partial(open_journal, replace(self.settings, ledger=self.settings.post_to)))
            yield post_to(record, finish=record.close)
        signer = Signer(self.settings.span_key) if self.settings.span_key else None
        yield telemetry(self.metrics, spans=self.settings.tracing, signer=signer)


_OPEN_LAVAS: weakref.WeakSet[Lava] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Streams that a script left open are settled by what is known of them, not left to the next process's recovery.

    Registered after the ledger's own hook, so it runs before that.
    """
    for lava in list(_OPEN_LAVAS):
        with contextlib.suppress(Exception):
            lava._end_open("exit")


def open_journal(settings: Settings) -> Journal:
    """The journal that the settings name."""
    if settings.ledger is None:
        from .ledger.memory import MemoryJournal

        return MemoryJournal()
    if isinstance(settings.ledger, str):
        from .ledger.postgres.journal import PostgresJournal

        return PostgresJournal(settings.ledger, durability=settings.durability)
    from .ledger.sqlite import SqliteJournal

    return SqliteJournal(settings.ledger, durability=settings.durability)


def record_of_entry(entry: Entry) -> Record | None:
    """The usage record of an entry, or None if the entry bills nothing."""
    return record_of(
        decode(entry.kind, entry.event),
        entry.record,
        customer=entry.account,
        at=entry.at,
        seq=entry.seq,
        balance_after=entry.balance_after,
    )


def _book(settings: Settings) -> Book:
    from .prices.overlay import PricesError

    try:
        return Book(settings.prices)
    except PricesError as error:
        raise ConfigurationError(str(error)) from None


def _meters(settings: Settings, markup: Markup) -> Meters:
    from .offers.meters import Meters, MetersError, read

    try:
        return Meters({} if settings.meters is None else read(settings.meters), markup)
    except MetersError as error:
        raise ConfigurationError(str(error)) from None


def _own_rows(settings: Settings, book: Book) -> dict[str, Row]:
    """The rows that the operator adds, by name."""
    if settings.providers is None:
        return {}
    from .providers.operator import ProvidersError, read

    named = {name for names in settings.hosts.values() for name in names}
    try:
        return read(settings.providers, named=named, price_lists=book.providers)
    except ProvidersError as error:
        raise ConfigurationError(str(error)) from None


def _rows_at(hosts: Mapping[str, tuple[str, ...]], own: Mapping[str, Row]) -> dict[str, tuple[Row, ...]]:
    """The operator's hosts with the rows of the providers that are there; his own rows stand first."""
    known = {**ROWS, **own}
    unknown = sorted({name for names in hosts.values() for name in names} - set(known))
    if unknown:
        raise ConfigurationError(f"hosts names {unknown[0]!r}, which is not one of {', '.join(sorted(known))}")
    found: dict[str, tuple[Row, ...]] = {}
    for row in own.values():
        for host in row.hosts:
            found[host] = (*found.get(host, ()), row)
    for host, names in hosts.items():
        found[host] = (*found.get(host, ()), *(known[name] for name in names))
    return found
