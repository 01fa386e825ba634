"""This file knows how the parts are put together: ledger, prices, terms, exporters and clock make one `Lava`."""

from __future__ import annotations

import atexit
import contextlib
import logging
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from . import context
from .chores import Chores
from .core.account import CATEGORIES, Account
from .core.balance import Balance, balance_of
from .core.commands import Command, Grant, SetTerms
from .core.decide import Conflict, Declined
from .core.events import decode
from .core.learned import Learned
from .core.money import AmountError, ticks_of
from .core.rating import Markup
from .core.record import Record, record_of
from .core.terms import Limit, TermsError
from .core.windows import zone_of
from .errors import ConfigurationError, Denied, LedgerUnavailable, first_refusal
from .export.follower import Follower
from .export.jsonl import json_lines
from .export.metrics import Metrics
from .export.telemetry import telemetry
from .ids import new_id, now_us
from .ledger.journal import Busy, Entry, Journal, JournalUnavailable
from .ledger.ledger import Ledger
from .ledger.ticket import LedgerUnavailable as Unavailable
from .ledger.ticket import Ticket
from .prices.book import Book
from .providers.row import Row
from .providers.table import ROWS
from .transport.refusal import denied_from

if TYPE_CHECKING:
    from .settings import Settings
    from .transport.flight import Flight

logger = logging.getLogger("lava_middleware")

LEARNED_NOTE = "learned"
"""Under this name the lessons are kept beside the journal."""


class Lava:
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
        **settings: Any,
    ) -> None:
        from .settings import configure  # brings pydantic, which nothing on the way of a call needs

        self.settings: Settings = configure(ledger, settings)
        self.clock = clock
        self.monotonic = time.monotonic
        self.new_id = new_id
        # What can be wrong with the settings is found out before a file is made.
        self.book = _book(self.settings)
        self.markup = Markup(self.settings.markup)
        self.hosts = _rows_at(self.settings.hosts)
        with _ledger_errors():
            self._opened = open_journal(self.settings)
        self.ledger = Ledger(self._opened, clock=clock, pending_path=self.settings.pending)
        self.journal: Journal = self.ledger.journal
        """As anybody beside the ledger may use it: what a collector ends meanwhile is handed over (T35)."""
        self.learned = self._read_lessons()
        self.metrics = Metrics()
        self._open: dict[int, Flight] = {}
        """Exchanges under way, for the watcher of stalls."""
        self._passed: deque[tuple[str, str, str]] = deque()
        """(day, reason, host) of each request that passed; folded and written by the chores."""
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

    # What the operator does ------------------------------------------------------------------------------------------

    def grant(
        self,
        customer: str,
        credits: object,
        *,
        key: str | None = None,
        category: str = "top_up",
        priority: int = 0,
        starts: datetime | None = None,
        expires: datetime | None = None,
    ) -> Balance:
        """Add credits ("5.00", a Decimal or an Amount) and give the balance after it.

        `key` makes it idempotent: an invoice number, a payment event's id. The same key with the same content changes
        nothing; with other content it raises Conflict. Without a key each call is a new grant.
        Raises AmountError, IdError, LedgerUnavailable (then whether it was written is unknown: repeat it with a key).
        """
        with _ledger_errors():
            self._apply(customer, self._grant(credits, key, category, priority, starts, expires)).wait()
        return self.balance(customer)

    async def agrant(
        self,
        customer: str,
        credits: object,
        *,
        key: str | None = None,
        category: str = "top_up",
        priority: int = 0,
        starts: datetime | None = None,
        expires: datetime | None = None,
    ) -> Balance:
        """`grant` for async code."""
        with _ledger_errors():
            await self._apply(customer, self._grant(credits, key, category, priority, starts, expires))
        return self.balance(customer)

    def _grant(
        self,
        credits: object,
        key: str | None,
        category: str,
        priority: int,
        starts: datetime | None,
        expires: datetime | None,
    ) -> Grant:
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 1_000_000:
            raise AmountError("a grant's priority must be a whole number within a million")
        amount = ticks_of(credits, what="credits")
        if amount <= 0:
            raise AmountError("a grant must be more than 0 credits")
        if category not in CATEGORIES:
            raise AmountError(f"a grant's category must be one of {', '.join(CATEGORIES)}")
        if key is not None and not (isinstance(key, str) and 1 <= len(key) <= 255 and key.isprintable()):
            raise AmountError("a grant's key must be 1 to 255 printable characters")
        begins = None if starts is None else _microseconds(starts, "starts")
        ends = None if expires is None else _microseconds(expires, "expires")
        if ends is not None and ends <= max(begins or 0, self.clock()):
            raise AmountError("a grant must expire in the future, and after it starts")
        return Grant(key or self.new_id(), amount, category, priority, begins, ends)

    def limit(
        self,
        customer: str,
        quantity: int | None,
        unit: str = "tokens",
        *,
        window: str = "month",
        zone: str = "UTC",
        name: str | None = None,
    ) -> Balance:
        """Put a hard limit in force: at most `quantity` of `unit` per `window`. None takes the limit away.

        Counted from now on; setting it again under the same name (default "unit/window") keeps what was counted.
        Raises TermsError for a limit that cannot be enforced.
        """
        if not isinstance(zone, str) or not (name is None or isinstance(name, str)):
            raise TermsError("a limit's zone and name must be strings")
        zone_of(zone)
        name = name or f"{unit}/{window}"
        while True:
            terms = self._account(customer).terms
            if quantity is None:
                if all(one.name != name for one in terms.limits):
                    return self.balance(customer)
                changed = terms.without_limit(name)
            else:
                changed = terms.with_limit(Limit(name, unit, quantity, window, zone))
            # A conflict: somebody else changed the terms in between. Read them again.
            with contextlib.suppress(Conflict), _ledger_errors():
                self._apply(customer, SetTerms(changed)).wait()
                return self.balance(customer)

    def balance(self, customer: str) -> Balance:
        """What the customer has now, as the ledger (not this process's memory) says."""
        return balance_of(self._account(customer), self.clock())

    async def abalance(self, customer: str) -> Balance:
        """`balance` for async code."""
        return self.balance(customer)

    def records(self, customer: str) -> Iterator[Record]:
        """The customer's usage records, newest first, read in short pages as you iterate."""
        for entry in self.entries(customer):
            record = record_of_entry(entry)
            if record is not None:
                yield record

    def entries(self, customer: str) -> Iterator[Entry]:
        """All entries of the customer's journal, newest first, read in short pages as you iterate."""
        before: int | None = None
        while page := self._page(context.checked_id(customer), before):
            yield from page
            before = page[-1].version

    def _page(self, customer: str, before: int | None) -> list[Entry]:
        with _ledger_errors():
            return self.journal.entries(customer, before=before, limit=200)

    def _account(self, customer: str) -> Account:
        with _ledger_errors():
            return self.ledger.look(context.checked_id(customer))

    # Instrumenting ---------------------------------------------------------------------------------------------------

    def instrument(self) -> Lava:
        """Meter every httpx and httpx2 client of this process, those that exist already included; calls to providers
        through aiohttp, requests and botocore, which are not metered, are refused.

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
        """Write down what is queued, stop the threads, close the ledger. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        context.drop_default(self)
        self._chores.stop()
        self._end_open("closing")
        self._do_chores()
        self._save_lessons()
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

    # What flights need -----------------------------------------------------------------------------------------------

    def awake(self) -> None:
        """This process serves: start what works beside the calls, in the processes that a server forks too.

        Exporters catch up on what earlier processes left. Costs next to nothing when they run already.
        """
        self._chores.start()
        for follower in self._followers:
            follower.wake()

    def opened(self, flight: Flight) -> None:
        self._open[id(flight)] = flight
        self.awake()

    def closed(self, flight: Flight) -> None:
        self._open.pop(id(flight), None)

    def denied(self, customer: str, declined: Declined, **more: Any) -> Denied:
        """The ledger's no as the application and its client will see it."""
        strict = self.settings.unknown_accounts == "refuse" and declined.reason == "insufficient_credit"
        if strict:
            with contextlib.suppress(Unavailable):  # it answered just now; then the first answer will do
                if self.ledger.look(customer).version == 0:
                    return Denied("customer_unknown", **more)
        return denied_from(declined, self.clock(), **more)

    def refused(self, denied: Denied) -> None:
        first_refusal(denied)
        self.metrics.decided("denied", denied.reason)

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
        span = trace.get_current_span().get_span_context()
        if not span.is_valid:
            return ""
        return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"

    # Chores ----------------------------------------------------------------------------------------------------------

    def _do_chores(self) -> None:
        self._write_passed()
        self._end_stalled()
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
        yield telemetry(self.metrics, spans=self.settings.tracing)


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


@contextlib.contextmanager
def _ledger_errors() -> Iterator[None]:
    """What the ledger or its journal says of itself, as the error that users catch."""
    try:
        yield
    except (Unavailable, JournalUnavailable, Busy) as error:
        raise LedgerUnavailable(Denied("ledger_unavailable", str(error))) from None


def _book(settings: Settings) -> Book:
    from .prices.overlay import PricesError

    try:
        return Book(settings.prices)
    except PricesError as error:
        raise ConfigurationError(str(error)) from None


def _rows_at(hosts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Row, ...]]:
    """The operator's hosts with the rows of the providers they speak as."""
    unknown = sorted({name for names in hosts.values() for name in names} - set(ROWS))
    if unknown:
        raise ConfigurationError(f"hosts names {unknown[0]!r}, which is not one of {', '.join(sorted(ROWS))}")
    return {host: tuple(ROWS[name] for name in names) for host, names in hosts.items()}


def _microseconds(moment: datetime, name: str) -> int:
    if moment.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone")
    return int(moment.timestamp() * 1_000_000)
