"""This file knows how to have credits bought when they run out: once per customer, while others never wait for it.

The ledger decides whether to buy (`topup_started`, with a key), the operator's hook charges the card under that key, a
grant of the same key ends it. Whatever dies in between, the hook is called again with the same key: it is the payment
provider's idempotency key. Single flight is the ledger's: of a purchase under way there is one entry, and only the
process in its key calls the hook, or, when that one is dead, the process that has the lease to look after such.

All that is kept here belongs to one thread, the keeper; others only put calls on its queue (T35). The hook runs on
threads of its own, one per purchase.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from ..core.commands import FailTopup, Grant, StartTopup
from ..core.decide import Declined, LedgerRuleError
from ..core.events import Granted, TopupFailed, TopupStarted, UnknownKind, decode
from ..core.money import Amount, Ticks
from ..export.lease import Lease
from ..forks import renew_in_child
from ..ids import new_id
from ..ledger.journal import Busy, Entry, JournalUnavailable
from ..ledger.ledger import Ledger
from ..ledger.ticket import LedgerUnavailable, Receipt, Ticket

logger = logging.getLogger("lava_middleware")

Hook: TypeAlias = Callable[[str, Amount, str], Any]
"""hook(customer, amount, key) charges the customer's card by so many credits. It returns, or raises where that failed;
TryAgain where nobody knows. It may be an async function."""

LACKS_CREDIT: Final = ("insufficient_credit", "request_exceeds_credit", "credit_on_hold")
HOOKS_MOST: Final = 32
"""Hooks at work at a time; the next ones wait in line. One that hangs is not counted after STUCK_S."""
STUCK_S = 60.0
WATCH_S = 0.25
"""How often calls that wait look after a purchase that another process makes."""
SWEEP_S = 2.0
"""How often one process looks for purchases whose own process is dead."""
TELL_AGAIN_S = 1.0
UNSURE_TIMES: Final = 8
UNSURE_FIRST_S = 5.0
UNSURE_MOST_S: Final = 300.0
ROUNDS_MOST: Final = 5
"""Purchases that one call may wait for, where others keep taking what was bought."""
QUIET_S: Final = 60.0
CHUNK: Final = 500
NAME: Final = "topups"
"""Of the cursor and of the lease."""

_RUNNING: set[str] = set()
"""Keys of the purchases that this process is making. All its ledgers share it: they are one owner."""


class TryAgain(Exception):
    """Raise it in a hook where nobody knows whether the card was charged: it is called again with the same key."""


def says_nothing(error: BaseException) -> bool:
    """Whether it says nothing about the card: the connection failed. Anything else that a hook raises is a no."""
    libraries = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return isinstance(error, (TryAgain, OSError, *(library.TransportError for library in libraries)))


class Later(Ticket):
    """The answer to a call that may wait for a purchase."""

    __slots__ = ("_before",)

    def __init__(self, ticket: Ticket, record: str | None) -> None:
        super().__init__(ticket.account, ticket.command, record, ticket.wait_s)
        self._before = ticket

    def withdraw(self) -> None:
        super().withdraw()
        self._before.withdraw()

    def goes_on_as(self, ticket: Ticket) -> None:
        """From now on this one is under way."""
        self._before = ticket
        if self.withdrawn:
            ticket.withdraw()


class _Call:
    """One that was refused, and what it was told."""

    __slots__ = ("declined", "refused", "rounds", "ticket", "until")

    def __init__(self, ticket: Later, refused: Receipt, declined: Declined, until: float) -> None:
        self.ticket = ticket
        self.refused = refused
        self.declined = declined
        self.until = until
        self.rounds = 0


class _Purchase:
    """One customer's, from the question whether to buy to its end."""

    __slots__ = (
        "again_at",
        "amount",
        "asked",
        "calls",
        "customer",
        "end",
        "key",
        "state",
        "stuck_at",
        "tries",
        "written_off",
    )

    def __init__(self, customer: str) -> None:
        self.customer = customer
        self.asked = self.key = ""
        self.amount: Ticks = 0
        self.calls: list[_Call] = []
        self.state = "asking"
        """"asking" the ledger, "hook" at work or in line, "again" later, "elsewhere", "telling" the ledger its end."""
        self.end: Grant | FailTopup | None = None
        self.again_at = float("inf")
        """time.monotonic() when it is to be looked at."""
        self.stuck_at = float("inf")
        self.tries = 0
        self.written_off = False


class TopUps:
    """Buys for one Lava. `wait_s`: how long a call that ran dry waits for a purchase."""

    def __init__(self, ledger: Ledger, hook: Hook, wait_s: float) -> None:
        self._ledger = ledger
        self._hook = hook
        self._wait_s = wait_s
        self._pid = 0
        self._closed = False
        self._lease = Lease(ledger.journal, NAME)
        self._lock = threading.Lock()
        renew_in_child(self, _lock=threading.Lock)
        self._begin()
        ledger.watch = self.seen

    def _begin(self) -> None:
        """What belongs to one process."""
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._purchases: dict[str, _Purchase] = {}
        self._line: deque[_Purchase] = deque()
        self._busy = 0
        self._quiet: dict[str, float] = {}
        self._sweep_at = 0.0
        self._position: int | None = None
        self._generation = 0
        self._saved = 0
        self._open: dict[str, tuple[str, Ticks, int]] = {}
        """Customer → (key, amount, seq) of what the journal says is under way."""

    # For everybody ----------------------------------------------------------------------------------------------------

    def awake(self) -> bool:
        """See to it that the keeper runs here; False: it cannot any more. Not for finalisers."""
        if self._pid == os.getpid():
            return not self._closed
        with self._lock:
            if self._closed:
                return False
            if self._pid != os.getpid():
                self._begin()
                thread = threading.Thread(target=self._run, name="lava-topups", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter shuts down
                    return False
                self._thread, self._pid = thread, os.getpid()
        return True

    def answer(self, ticket: Ticket, record: str | None) -> Ticket:
        """The ticket, or one that waits for a purchase first where the ledger's answer is that credit is lacking."""
        if (ticket.done and not self._helps(ticket)) or not self.awake():
            return ticket
        later = Later(ticket, record)
        ticket.on_done(lambda: self._decided(later, ticket))
        return later

    def seen(self, customer: str, available: Ticks) -> None:
        """Something was posted, and so much is left. Takes no lock: a finaliser may have posted it."""
        account = self._ledger.seen(customer)
        if account is None or (top_up := account.terms.top_up) is None or available >= top_up.below:
            return
        if account.topup is not None or account.topups_stopped:
            return
        if self._pid == os.getpid():
            self._queue.put(partial(self._low, customer))
        else:  # on the ledger's thread a thread can be started
            self._ledger.later(partial(self._begin_with, customer))

    def close(self, timeout_s: float = 5.0) -> None:
        """Refuse who waits, give hooks at work so long to end, stop. What is not over then is repeated later."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._thread is not None and self._pid == os.getpid():
            self._close_by = time.monotonic() + timeout_s
            self._queue.put(None)
            self._thread.join(timeout_s + 2.0)
        self._ledger.watch = None

    # Calls ------------------------------------------------------------------------------------------------------------

    def _helps(self, ticket: Ticket) -> bool:
        """Whether the answer is a no that a purchase may turn into a yes."""
        try:
            declined = ticket.result().declined
        except Exception:
            return False
        if declined is None or declined.reason not in LACKS_CREDIT or ticket.withdrawn:
            return False
        account = self._ledger.seen(ticket.account)
        if account is None:
            return True  # the ledger will say
        top_up = account.terms.top_up
        if top_up is None or account.topups_stopped:
            return False
        # What would not suffice is bought only where the terms say so in any case.
        return declined.available < top_up.below or declined.available + top_up.amount >= declined.required

    def _decided(self, later: Later, ticket: Ticket) -> None:
        """The first answer is there; on whatever thread decided it."""
        if not self._helps(ticket):
            _pass_on(ticket, later)
            return
        refused = ticket.result()
        assert refused.declined is not None
        call = _Call(later, refused, refused.declined, time.monotonic() + self._wait_s)
        self._put(partial(self._dry, call))

    def _put(self, work: Callable[[], object]) -> None:
        self._queue.put(work)
        if self._stopped:  # nobody is there any more who would take it
            self._drain()

    def _drain(self) -> None:
        with suppress(Empty):
            while True:
                work = self._queue.get_nowait()
                if work is not None:
                    work()

    def _dry(self, call: _Call) -> None:
        if self._stopped or call.ticket.withdrawn:
            call.ticket.resolve(call.refused)
            return
        call.rounds += 1
        purchase = self._purchases.get(call.ticket.account)
        if purchase is None:
            purchase = self._start(call.ticket.account, call.declined.required)
        purchase.calls.append(call)

    def _begin_with(self, customer: str) -> None:
        if self.awake():
            self._put(partial(self._low, customer))

    def _low(self, customer: str) -> None:
        if customer not in self._purchases and not self._stopped and self._quiet.get(customer, 0.0) < time.monotonic():
            self._start(customer, 0)

    def _try_again(self, call: _Call) -> None:
        later = call.ticket
        if later.withdrawn:
            later.resolve(call.refused)
            return
        ticket = self._ledger.apply(later.account, later.command, record=later.record)
        later.goes_on_as(ticket)
        ticket.on_done(lambda: self._put(partial(self._tried, call, ticket)))

    def _tried(self, call: _Call, ticket: Ticket) -> None:
        if self._helps(ticket) and call.rounds < ROUNDS_MOST and time.monotonic() < call.until:
            call.refused = ticket.result()
            assert call.refused.declined is not None
            call.declined = call.refused.declined
            self._dry(call)
            return
        _pass_on(ticket, call.ticket)

    # One purchase -----------------------------------------------------------------------------------------------------

    def _start(self, customer: str, required: Ticks) -> _Purchase:
        purchase = self._purchases[customer] = _Purchase(customer)
        try:
            purchase.asked = f"topup-{self._ledger.owner}-{new_id()}"
        except LedgerUnavailable:
            self._queue.put(partial(self._over, purchase, passed=False))
            return purchase
        ticket = self._ledger.apply(customer, StartTopup(purchase.asked, required))
        ticket.on_done(lambda: self._put(partial(self._answered, purchase, ticket)))
        return purchase

    def _answered(self, purchase: _Purchase, ticket: Ticket) -> None:
        """The ledger has said whether to buy."""
        if self._stopped:
            return
        try:
            receipt = ticket.result()
        except Exception as error:
            logger.error("a top-up could not be asked for (%s)", type(error).__name__)
            self._over(purchase, passed=False)
            return
        if receipt.declined is not None:
            self._calm(purchase.customer)
            self._over(purchase, passed=receipt.declined.reason == "topup_not_needed")
            return
        started = receipt.event
        assert isinstance(started, TopupStarted)
        purchase.key, purchase.amount = started.key, started.amount
        if started.key == purchase.asked:
            self._buy(purchase)
        else:
            self._watch(purchase)

    def _calm(self, customer: str) -> None:
        """Nothing is bought now (the cap is reached): not every settlement needs to hear that."""
        if len(self._quiet) > 10_000:
            self._quiet.clear()
        self._quiet[customer] = time.monotonic() + QUIET_S

    def _watch(self, purchase: _Purchase) -> None:
        """Another process makes it, or another Lava of this one."""
        purchase.state, purchase.again_at = "elsewhere", time.monotonic() + WATCH_S

    def _buy(self, purchase: _Purchase) -> None:
        if purchase.key in _RUNNING:
            self._watch(purchase)
            return
        _RUNNING.add(purchase.key)
        purchase.state, purchase.again_at = "hook", float("inf")
        self._line.append(purchase)
        self._next_in_line()

    def _next_in_line(self) -> None:
        while self._line and self._busy < HOOKS_MOST:
            purchase = self._line.popleft()
            work = threading.Thread(target=self._call_hook, args=(purchase,), name="lava-topup-hook", daemon=True)
            try:
                work.start()
            except RuntimeError:
                self._line.appendleft(purchase)
                return
            self._busy += 1
            purchase.written_off, purchase.stuck_at = False, time.monotonic() + STUCK_S

    def _call_hook(self, purchase: _Purchase) -> None:
        """On a thread of its own. What it says is handed to the keeper; no word of it gets into a log."""
        failure, unsure = "", False
        try:
            said = self._hook(purchase.customer, Amount(purchase.amount), purchase.key)
            if inspect.iscoroutine(said):
                said = asyncio.run(said)
            if said is False:
                failure = "refused"
        except BaseException as error:
            failure, unsure = type(error).__name__, says_nothing(error)
        self._put(partial(self._bought, purchase, failure, unsure))
        if self._stopped:
            _RUNNING.discard(purchase.key)

    def _bought(self, purchase: _Purchase, failure: str, unsure: bool) -> None:
        if self._stopped:
            return  # the next one who looks repeats it, with the same key
        self._busy -= not purchase.written_off
        purchase.stuck_at = float("inf")
        self._next_in_line()
        if unsure:
            purchase.tries += 1
            if purchase.tries < UNSURE_TIMES:
                pause_s = min(UNSURE_FIRST_S * 2 ** (purchase.tries - 1), UNSURE_MOST_S)
                purchase.state, purchase.again_at = "again", time.monotonic() + pause_s
                logger.warning("a top-up's outcome is unknown (%s); it is repeated with the same key", failure)
                return
        if failure:
            logger.warning("a top-up failed (%s); no other is tried before a grant or new terms", failure)
            purchase.end = FailTopup(purchase.key, failure)
        else:
            purchase.end = Grant(purchase.key, purchase.amount, "top_up")
        self._tell(purchase)

    def _tell(self, purchase: _Purchase) -> None:
        assert purchase.end is not None
        purchase.state, purchase.again_at = "telling", float("inf")
        ticket = self._ledger.apply(purchase.customer, purchase.end)
        ticket.on_done(lambda: self._put(partial(self._told, purchase, ticket)))

    def _told(self, purchase: _Purchase, ticket: Ticket) -> None:
        if self._stopped:
            return
        try:
            ticket.result()
        except LedgerRuleError:
            pass  # the hook has granted it itself, or another process has ended it
        except Exception as error:
            logger.error("a top-up's end could not be written yet (%s)", type(error).__name__)
            purchase.again_at = time.monotonic() + TELL_AGAIN_S
            return
        self._over(purchase, passed=isinstance(purchase.end, Grant))

    def _over(self, purchase: _Purchase, *, passed: bool) -> None:
        """Let those who waited try again, or tell them what they had been told."""
        if self._purchases.get(purchase.customer) is purchase:
            del self._purchases[purchase.customer]
        if purchase.state != "elsewhere":
            _RUNNING.discard(purchase.key)
        calls, purchase.calls = purchase.calls, []
        for call in calls:
            if passed:
                self._try_again(call)
            else:
                call.ticket.resolve(call.refused)

    # The keeper -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = 0.0
        while True:
            try:
                work = self._queue.get(timeout=max(0.0, due - time.monotonic()))
                if work is None:
                    break
                work()
            except Empty:
                pass
            except Exception:
                logger.exception("lava: a top-up met a mistake of ours")
            try:
                due = self._look()
            except Exception:
                logger.exception("lava: looking after top-ups failed; it is tried again")
                due = time.monotonic() + 1.0
        self._stop()

    def _stop(self) -> None:
        for purchase in self._purchases.values():
            _refuse(purchase, float("inf"))
        while any(one.state in ("hook", "telling") for one in self._purchases.values()):
            try:
                work = self._queue.get(timeout=self._close_by - time.monotonic())
            except (Empty, ValueError):
                break
            with suppress(Exception):
                if work is not None:
                    work()
        self._stopped = True
        for purchase in self._purchases.values():
            _refuse(purchase, float("inf"))
            if purchase.state != "hook" or purchase in self._line:
                _RUNNING.discard(purchase.key)
        self._drain()
        self._lease.give_up()

    def _look(self) -> float:
        """What time has brought; time.monotonic() when to look again."""
        now = time.monotonic()
        for purchase in list(self._purchases.values()):
            _refuse(purchase, now)
            if purchase.stuck_at <= now:
                self._write_off(purchase)
            if purchase.again_at <= now:
                self._go_on(purchase)
        if self._sweep_at <= now:
            self._sweep_at = time.monotonic() + (0.0 if self._sweep() else SWEEP_S)
        due = self._sweep_at
        for purchase in self._purchases.values():
            due = min(due, purchase.again_at, purchase.stuck_at, *(call.until for call in purchase.calls))
        return due

    def _write_off(self, purchase: _Purchase) -> None:
        """Its hook hangs: others do not wait for it. It stays the one purchase of this customer."""
        purchase.stuck_at, purchase.written_off = float("inf"), True
        self._busy -= 1
        logger.error("a top_up hook has not come back for %d s: give the payment client a time-out", STUCK_S)
        self._next_in_line()

    def _go_on(self, purchase: _Purchase) -> None:
        purchase.again_at = float("inf")
        if purchase.state == "elsewhere":
            self._look_elsewhere(purchase)
        elif purchase.state == "telling":
            self._tell(purchase)
        elif purchase.state == "again":
            purchase.state = "hook"
            self._line.append(purchase)
            self._next_in_line()

    def _look_elsewhere(self, purchase: _Purchase) -> None:
        if not purchase.calls:
            del self._purchases[purchase.customer]  # nobody here waits for it
            return
        try:
            under_way = self._under_way(purchase.customer)
        except LedgerUnavailable:
            purchase.again_at = time.monotonic() + 1.0
            return
        if under_way == purchase.key:
            purchase.again_at = time.monotonic() + WATCH_S
        else:
            self._over(purchase, passed=True)

    def _under_way(self, customer: str) -> str | None:
        return self._ledger.ask(customer, lambda account: account.topup.key if account.topup is not None else None)

    # Purchases of the dead --------------------------------------------------------------------------------------------

    def _sweep(self) -> bool:
        """Read on in the journal; True: there is more. At its end, take over what nobody alive is making."""
        try:
            if not self._lease.take():
                self._position = None
                return False
            journal = self._ledger.journal
            if self._position is None or journal.generation != self._generation:
                self._generation = journal.generation
                self._position = self._saved = journal.cursor(NAME)
                self._open.clear()
            entries = journal.read(self._position, CHUNK)
            for entry in entries:
                self._note(entry)
            if entries:
                self._position = entries[-1].seq
            if len(entries) >= CHUNK:
                return True
            self._save(min([self._position, *(seq - 1 for _, _, seq in self._open.values())]))
            self._take_over()
        except (Busy, JournalUnavailable, LedgerUnavailable, UnknownKind, OSError):
            pass  # the next look
        return False

    def _note(self, entry: Entry) -> None:
        if entry.kind == TopupStarted.kind:
            started = decode(entry.kind, entry.event)
            assert isinstance(started, TopupStarted)
            self._open[entry.account] = started.key, started.amount, entry.seq
        elif entry.account in self._open and entry.kind in (TopupFailed.kind, Granted.kind):
            ended = decode(entry.kind, entry.event)
            if isinstance(ended, TopupFailed | Granted) and ended.key == self._open[entry.account][0]:
                del self._open[entry.account]

    def _save(self, cursor: int) -> None:
        """A cursor never passes what is still under way: whoever starts there finds it."""
        if cursor != self._saved:
            self._ledger.journal.save_cursor(NAME, cursor)
            self._saved = cursor

    def _take_over(self) -> None:
        orphans = {
            customer: (key, amount)
            for customer, (key, amount, _) in self._open.items()
            if key not in _RUNNING and getattr(self._purchases.get(customer), "state", "elsewhere") == "elsewhere"
        }
        if not orphans:
            return
        me = self._ledger.owner
        alive = {mark.owner for mark in self._ledger.journal.owners() if mark.alive} - {me}
        for customer, (key, amount) in orphans.items():
            if owner_in(key) in alive or self._under_way(customer) != key:
                continue
            purchase = self._purchases.setdefault(customer, _Purchase(customer))
            purchase.key, purchase.amount = key, amount
            self._buy(purchase)


def owner_in(key: str) -> str:
    """The process that a purchase's key names."""
    return key.removeprefix("topup-").rpartition("-")[0]


def _refuse(purchase: _Purchase, now: float) -> None:
    """Answer those whose time is up, or whom nobody wants any more."""
    due = [call for call in purchase.calls if call.until <= now or call.ticket.withdrawn]
    if due:
        purchase.calls = [call for call in purchase.calls if call not in due]
        for call in due:
            call.ticket.resolve(call.refused)


def _pass_on(ticket: Ticket, later: Later) -> None:
    try:
        receipt = ticket.result()
    except Exception as error:
        later.fail(error)
    else:
        later.resolve(receipt)


def _after_fork_in_child() -> None:
    _RUNNING.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
