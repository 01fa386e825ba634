"""This file knows how to be everything around the pure parts: the clock, the journal, the processes, the provider.

Nothing in it waits, sleeps or opens anything: one history is a function of its seed. What is real is what the library
decides with: decide, evolve, the exchange table and the flight that follows it, plans, bounds, prices and bills, the
dialects' meters, accounts and the appender, recovery, the follower, the frames of who pays.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from types import SimpleNamespace
from typing import Any

from lava_middleware import context
from lava_middleware.core.carry import Posting
from lava_middleware.core.commands import Adjust, Authorize, Command, Grant, Report, Settle, Void
from lava_middleware.core.decide import Declined, LedgerRuleError
from lava_middleware.core.events import Held
from lava_middleware.core.learned import Learned
from lava_middleware.core.money import AmountError
from lava_middleware.core.pricing import Price
from lava_middleware.core.rating import Markup
from lava_middleware.core.record import Facts, Record
from lava_middleware.core.terms import TermsError
from lava_middleware.errors import Denied
from lava_middleware.export.follower import Follower, RetryLater
from lava_middleware.ledger.accounts import Accounts
from lava_middleware.ledger.appender import Appender, TooManyLosses
from lava_middleware.ledger.counters import Counters
from lava_middleware.ledger.journal import Busy, Entry, JournalUnavailable, Outcome, OwnerMark, Snapshot
from lava_middleware.ledger.presence import Presence
from lava_middleware.ledger.recovery import recover, settlement_of
from lava_middleware.ledger.ticket import LedgerUnavailable, Ticket
from lava_middleware.transport.flight import Flight
from lava_middleware.transport.plan import Plan
from lava_middleware.transport.refusal import denied_from

from . import selling
from .answers import ANSWERS, FAILURES, MODELS, PLANS, Answer
from .judge import Judge

START = 1_790_000_000_000_000
CUSTOMERS = selling.CUSTOMERS
TASKS = 3
ENDINGS = (Settle, Void, Report)
FAULTS = ("busy", "overtaken", "refused", "lost", "crash before", "crash after")
"""What can happen between deciding and learning that it was written: another writer has the journal; another process
was faster; it cannot be written; it was written and nobody was told; the process dies before it, or after it."""


class Crash(BaseException):
    """A process dies in the middle of a line."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process


class Store:
    """The one journal of all processes."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.all: list[Entry] = []
        self.accounts: dict[str, list[Entry]] = {}
        self.keys: dict[tuple[str, str], Entry] = {}
        self.cursors: dict[str, int] = {}
        self.buried: list[int] = []
        self.owners: dict[str, list[Any]] = {}
        """Owner → [low seq, alive]."""
        self.snapshots: dict[str, Snapshot] = {}

    def put(self, entries: Sequence[Entry], predecessor: tuple[int, int], asked: Command | None) -> tuple[Outcome, int]:
        account = entries[0].account
        lines = self.accounts.setdefault(account, [])
        version, at = predecessor
        if version and not (version <= len(lines) and lines[version - 1].at == at):
            return Outcome.NO_PREDECESSOR, 0
        if version != len(lines) or any((account, one.key) in self.keys for one in entries if one.key is not None):
            return Outcome.CONFLICT, 0
        for entry in entries:
            numbered = entry._replace(seq=len(self.all) + 1)
            self.all.append(numbered)
            lines.append(numbered)
            if entry.key is not None:
                self.keys[account, entry.key] = numbered
            self.judge.committed(numbered, asked, entries[0].at)
        return Outcome.APPENDED, len(self.all)


class View:
    """The journal as one process sees it: with the faults that are in store for it."""

    generation = 0

    def __init__(self, store: Store, process: Process | None) -> None:
        self._store = store
        self._process = process

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        process = self._process
        assert process is not None
        fault, process.fault = process.fault, ""
        if not fault:
            return self._store.put(entries, predecessor, process.asked)
        if fault == "busy":
            raise Busy
        if fault == "refused":
            raise JournalUnavailable("simulated: the disk is full")
        if fault == "crash before":
            raise Crash(process)
        if fault == "overtaken":
            process.world.overtake(process, entries[0].account)
        answer = self._store.put(entries, predecessor, process.asked)
        if fault == "lost":
            raise JournalUnavailable("simulated: the answer was lost")
        if fault == "crash after":
            raise Crash(process)
        return answer

    def since(self, account: str, version: int) -> list[Entry]:
        return self._store.accounts.get(account, [])[max(version - 1, 0) :]

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        found = self._store.keys
        return sorted((found[account, key] for key in keys if (account, key) in found), key=lambda one: one.version)

    def entries(self, account: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        lines = self._store.accounts.get(account, [])
        end = len(lines) if before is None else min(max(before - 1, 0), len(lines))
        return lines[max(end - limit, 0) : end][::-1]

    def read(self, after: int, limit: int = 500) -> list[Entry]:
        return self._store.all[after : after + limit]

    def last_seq(self) -> int:
        return len(self._store.all)

    def snapshot(self, account: str) -> Snapshot | None:
        return self._store.snapshots.get(account)

    def owners(self) -> list[OwnerMark]:
        return [OwnerMark(owner, low, alive) for owner, (low, alive) in self._store.owners.items()]

    def forget_owner(self, owner: str) -> None:
        self._store.owners.pop(owner, None)

    def advance_owner(self, owner: str, low_seq: int) -> None:
        if owner in self._store.owners:
            self._store.owners[owner][0] = low_seq

    def register_owner(self) -> str:
        assert self._process is not None
        return self._process.owner

    def sync(self, timeout_s: float) -> bool:
        return True

    def cursor(self, follower: str) -> int:
        return self._store.cursors.get(follower, 0)

    def save_cursor(self, follower: str, seq: int, last: Entry | None = None) -> None:
        self._store.cursors[follower] = seq

    def bury(self, follower: str, seq: int, reason: str) -> None:
        self._store.buried.append(seq)


class Book:
    """The price list."""

    version = "simulated"

    def find(self, providers: tuple[str, ...], model: str) -> Price | None:
        return MODELS.get(model)


class Metrics:
    """Counts nothing, whatever there is to count."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _nothing(*said: object, **more: object) -> None:
    return


BOOK, METRICS = Book(), Metrics()


class Process:
    """A process of the application: what a flight takes for its Lava, and the ledger behind it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.owner = name
        self.fault = ""
        self.asked: Command | None = None
        """What it tries to write, with what is due before it."""
        self.skew = 0
        self.settings = world.settings
        self.learned = Learned()
        self.book, self.metrics, self.markup = BOOK, METRICS, world.markup
        self.ledger = self
        self.journal = View(world.store, self)
        self.accounts = Accounts(self.journal, 100, Counters())  # type: ignore[arg-type]
        self.presence = Presence(self.journal)  # type: ignore[arg-type]
        self.presence.owner = name
        world.store.owners[name] = [len(world.store.all) + 1, True]
        self.appender = Appender(self.journal, self.accounts, self.presence, self.clock, Counters())  # type: ignore[arg-type]
        self.backlog: deque[Ticket] = deque()
        self.jobs: deque[Callable[[], object]] = deque()
        self.alive = True
        """False: everybody takes it for dead. If it is not, what it says from now on comes late."""
        self.running = True

    opened = closed = refused = count_passed = staticmethod(_nothing)
    """What a Lava tells others of a flight changes nothing for it."""

    # What a flight asks of a Lava -------------------------------------------------------------------------------------

    def clock(self) -> int:
        return self.world.now + self.skew

    def monotonic(self) -> float:
        return self.world.now / 1_000_000

    def denied(self, customer: str, declined: Declined, **more: Any) -> Denied:
        return denied_from(declined, self.clock(), **more)

    def lets_through_unreachable(self) -> bool:
        return self.settings.mode == "observe" or self.settings.on_ledger_outage == "open"

    def post(
        self, customer: str, command: Command, record: str | None, *, binding: object = None, then: Any = None
    ) -> None:
        self.world.judge.said(command, self.settings)
        ticket = self.apply(customer, command, record=record)
        if then is not None:
            ticket.on_done(then)

    # What a flight asks of a ledger -----------------------------------------------------------------------------------

    def ask(self, account: str, command: Command, *, record: str | None = None, wait_s: float = 0.0) -> Ticket:
        return self.apply(account, command, record=record, wait_s=wait_s)

    def apply(self, account: str, command: Command, *, record: str | None = None, wait_s: float = 0.0) -> Ticket:
        ticket = Ticket(account, command, record, wait_s)
        self.attempt(ticket)
        return ticket

    def attempt(self, ticket: Ticket) -> None:
        """Once; what cannot be written now stands in the backlog, as the ledger's thread would have it.

        Who was taken for dead and forgotten asks for nothing new, for nobody would look after that hold: it registers
        anew first, and is another owner then. All it has to say is how its exchanges end.
        """
        if not self.alive and isinstance(ticket.command, Authorize):
            self._failed(ticket, LedgerUnavailable("simulated: this process is not registered any more"))
            return
        self.asked = ticket.command
        try:
            receipt = self.appender.attempt(self.accounts.slot(ticket.account), ticket)
        except (Busy, TooManyLosses):
            self.backlog.append(ticket)
        except JournalUnavailable as error:
            if isinstance(ticket.command, ENDINGS):
                self.backlog.append(ticket)
            else:
                self._failed(ticket, LedgerUnavailable(str(error), unsure=ticket.unsure))
        except (LedgerRuleError, AmountError, TermsError) as error:
            self._failed(ticket, error)
        else:
            declined = receipt.declined
            if declined is not None and declined.waitable and ticket.wait_s and self.world.chance(0.5):
                ticket.wait_s = 0.0
                self.backlog.append(ticket)
            else:
                ticket.resolve(receipt)
            self.world.judge.folded(ticket.account, self.accounts.slot(ticket.account).account)

    def _failed(self, ticket: Ticket, error: Exception) -> None:
        command = ticket.command
        if isinstance(command, Authorize) and ticket.unsure:
            self.backlog.append(Ticket(ticket.account, Void(command.hold, "unsure"), None))
        if isinstance(command, ENDINGS) and not (isinstance(command, Void) and command.reason == "unsure"):
            self.world.judge.ending_refused(command, error)
        ticket.fail(error)

    def later(self, job: Callable[[], object]) -> None:
        self.jobs.append(job)

    def keep_sent(self, account: str, command: Command, record: str) -> bool:
        assert isinstance(command, Report)
        self.world.pending[command.key] = (self, account, command, record)
        return True

    def sent_over(self, key: str, *, owed: bool) -> None:
        if not owed:
            self.world.pending.pop(key, None)

    # What its ledger does beside --------------------------------------------------------------------------------------

    def work(self) -> None:
        """Try everything that waits, once."""
        for _ in range(len(self.jobs)):
            self.jobs.popleft()()
        for _ in range(len(self.backlog)):
            self.attempt(self.backlog.popleft())

    def recover(self) -> None:
        """End the holds of the dead, as the ledger's thread does, and post what they had sent without one."""
        for _ in recover(self.journal, self._end_lost_hold):  # type: ignore[arg-type]
            pass
        for key, (process, account, command, record) in list(self.world.pending.items()):
            if not process.running:
                self.attempt(Ticket(account, command, record))
                self.world.pending.pop(key, None)

    def _end_lost_hold(self, entry: Entry, held: Held) -> bool:
        slot = self.accounts.slot(entry.account)
        self.accounts.ready(slot)
        self.accounts.refresh(slot)
        assert slot.account is not None
        found = settlement_of(slot.account, entry, held)
        if found is None:
            return False
        if held.hold in self.world.pending or self.journal.find(entry.account, [f"report:{held.hold}"]):
            # Nobody knew of the hold: the call left without one, and is reported so.
            found = Void(held.hold, "unsure"), None
        self.asked = found[0]
        receipt = self.appender.attempt(slot, Ticket(entry.account, *found))
        return not receipt.repeated


class Exchange:
    """One attempt on the wire, seen from outside: what the provider sent and what the application got."""

    __slots__ = (
        "answer",
        "at",
        "customer",
        "cut",
        "flight",
        "got",
        "id",
        "pieces",
        "process",
        "sent",
        "state",
        "ticket",
        "visible",
    )

    def __init__(
        self, name: str, customer: str, process: Process, flight: Flight, answer: Answer, hidden: bool
    ) -> None:
        self.id = name
        self.customer = customer
        self.process = process
        self.flight = flight
        self.answer = answer
        self.visible = answer.without_usage if hidden else answer.body
        self.state = "asking"
        self.ticket: Ticket | None = None
        self.at = 0
        """Bytes of the answer that have come."""
        self.got = 0
        """Bytes of it that the application has."""
        self.cut = False

    def __repr__(self) -> str:
        return f"{self.id} {self.state}"


class World:
    """One history."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.chance: Callable[[float], bool] = lambda share: rng.random() < share
        self.now = START
        self.settings = SimpleNamespace(
            mode="enforce" if self.chance(0.85) else "observe",
            on_exhausted=rng.choice(("end", "end", "raise")),
            overrun=rng.choice(("charge", "charge", "absorb")),
            on_unknown_outcome=rng.choice(("expected", "expected", "input", "bound", "void")),
            on_ledger_outage=rng.choice(("closed", "open")),
            clamp=rng.choice(("missing", "always", "never")),
            hold_share=rng.choice((1, 3)),
            min_output_tokens=rng.choice((16, 64)),
            hold_wait_s=rng.choice((0.0, 2.0)),
            stall_s=600,
        )
        self.markup = rng.choice(_MARKUPS)
        self.judge = Judge(self.settings)
        self.store = Store(self.judge)
        self.pending: dict[str, tuple[Process, str, Report, str]] = {}
        """What left without a hold while the ledger was away: a file, so it outlives its process."""
        self._names = 0
        self.processes = [self.new_process(), self.new_process()]
        self.late: list[Process] = []
        """Taken for dead, and running."""
        self.exchanges: list[Exchange] = []
        self.opened: dict[str, Exchange] = {}
        """Every exchange there ever was."""
        self.owned: dict[str, Process] = {}
        """Exchange or piece of work → the process that is to end it."""
        self.work: dict[str, tuple[str, Process, Authorize, Ticket]] = {}
        """What is reserved: (customer, process, what was asked, the last answer)."""
        self.shop: dict[str, tuple[str, int]] = {}
        """Key of a purchase → (customer, what the operator's hook took for it); 0: it said no."""
        self.corrections: list[tuple[str, Adjust]] = []
        self.posts: list[Posting] = []
        """Of another ledger, on their way."""
        self.tasks: list[tuple[Context, list[Any]]] = [(Context(), []) for _ in range(TASKS)]
        """(its context, the frames it is in) of each task of the application."""
        self.delivered: dict[str, Record] = {}
        self.sink = ""
        """What the exporters' target does next; empty: take it."""
        self.follower = Follower("sink", self._deliver, chunk=20)
        self.follower._host = SimpleNamespace(journal=View(self.store, None), clock=lambda: self.now)  # type: ignore[assignment]
        self.log: list[str] | None = None
        for customer in CUSTOMERS:
            selling.begin(self, customer)
            self.processes[0].apply(customer, Grant("first", rng.choice((0, 20_000_000, 500_000_000))))

    def note(self, what: str) -> None:
        """Part of the story that is printed when it ends badly."""
        if self.log is not None:
            self.log.append(what)

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    def new_process(self) -> Process:
        return Process(self, self.name("p"))

    def kill(self, process: Process) -> None:
        """It is gone, with all that it had in memory; another one takes its place."""
        process.running = False
        process.backlog.clear()
        process.jobs.clear()
        self._take_for_dead(process)
        self.exchanges = [one for one in self.exchanges if one.process is not process]
        if process in self.late:
            self.late.remove(process)

    def lose_sight(self, process: Process) -> None:
        """It runs, and everybody takes it for dead."""
        self._take_for_dead(process)
        self.late.append(process)

    def _take_for_dead(self, process: Process) -> None:
        if process.alive:
            process.alive = False
            if process.owner in self.store.owners:
                self.store.owners[process.owner][1] = False
            self.processes[self.processes.index(process)] = self.new_process()

    def overtake(self, slow: Process, account: str) -> None:
        """Another process writes to the same account between somebody's decision and its append."""
        other = next(one for one in self.processes if one is not slow)
        other.fault = ""
        other.apply(account, Grant(self.name("gift"), 1_000))

    def open(self, process: Process, task: int) -> Exchange | None:
        """A call made in a task: whoever pays there is asked for a hold."""
        running, frames = self.tasks[task]
        payer = running.run(context.payer)
        if payer is None or isinstance(payer, context.Unbilled):
            return None
        plan, price, hidden = self.rng.choice(PLANS)
        answers = FAILURES if self.chance(0.1) else ANSWERS[plan["dialect"].name, plan["intent"].stream]
        answer = self.rng.choice(answers)
        name = self.name("x")
        made = Plan(customer=payer.customer, **self.priced(plan, price))
        model = plan["intent"].model
        facts = Facts(id=name, provider="sim", host="sim.test", model=model, stream=plan["intent"].stream)
        if self.chance(0.5):
            named = dict(selling.scopes(self, payer.customer, model=model))
            facts.user, facts.key, facts.meter = (named.get(scope, "") for scope in ("user", "key", "meter"))
            facts.tags = (("team", named["team"]),) if "team" in named else ()
            facts.runs = (named["run"],) if "run" in named else ()
        exchange = Exchange(name, frames[-1][0], process, Flight(process, made, facts), answer, hidden)  # type: ignore[arg-type]
        self.judge.bound[name] = exchange.customer
        self.opened[name] = exchange
        self.owned[name] = process
        self.exchanges.append(exchange)
        exchange.ticket = exchange.flight.authorize()
        return exchange

    def priced(self, plan: dict[str, Any], rates: tuple[int, int]) -> dict[str, Any]:
        ceiling = self.markup.ceiling
        return {**plan, "input_rate": ceiling(rates[0]), "output_rate": ceiling(rates[1]), "fees": 0, "binding": None}

    def _deliver(self, records: Sequence[Record]) -> None:
        """The exporters' target: whatever it does, it must change nothing but when it has the records."""
        outage, self.sink = self.sink, ""
        if outage == "away":
            raise ConnectionError("simulated: the target is away")
        taken: Iterable[Record] = records if outage != "half" else records[: len(records) // 2]
        for record in taken:
            before = self.delivered.setdefault(record.id, record)
            self.judge.same_record(before, record)
        if outage in ("half", "answer lost"):
            raise RetryLater("simulated: the answer was lost", retry_after_s=1)


_MARKUPS = (Markup(), Markup("1.20"), Markup("0.333333"))
