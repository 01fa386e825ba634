"""This file knows how to answer one command on one account, at once where possible, from accounts in memory.

    apply(account, command) -> Ticket       decided on the caller's thread, in one statement, when nobody is in the way

A busy journal: a question (authorize, extend, grant, terms) waits on the ledger's own thread, an ending (settle, void,
report) is handed over to it and stays until it is written. On a journal that answers from afar all commands go through
a thread that appends them in batches. Nobody waits while holding a lock, and no lock is taken
twice by one thread: what a garbage collector runs in the middle of a line of ours is handed over too (T35).
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from ..core.account import Account
from ..core.commands import Adjust, Authorize, Command, Extend, Report, Settle, Void
from ..core.decide import UnknownHold, as_of
from ..core.events import Held, UnknownKind
from ..core.record import is_of_a_call, scopes_in
from ..core.state import from_state, to_state
from . import flush  # noqa: F401  # its exit hook stands before ours, so it runs after it, when all is written
from .accounts import Accounts, Slot
from .appender import LOSSES_MOST, RULED_OUT, Appender, TooManyLosses
from .backlog import Backlog, is_ending, jitter
from .batches import Batches
from .collector import Collector
from .counters import Counters
from .journal import BatchJournal, Busy, Entry, Journal, JournalUnavailable
from .leaving import Leaving
from .pending import Pending
from .presence import Presence
from .recovery import recover, settlement_of
from .snapshots import ENTRIES_LEAST, Snapshots
from .thread import Duty, LedgerThread
from .ticket import LedgerUnavailable, Receipt, Ticket
from .waiters import OVERTAKEN_MOST, Queue, Waiters
from .waiting import Waiting, refuse

__all__ = ["Ledger", "LedgerUnavailable", "Receipt", "Ticket", "now_us"]

_log = logging.getLogger("lava_middleware")

T = TypeVar("T")

NAPS_S = (0.00005, 0.00005, 0.0001, 0.0002)
"""How long a caller's own thread, which may run an event loop, sleeps between attempts on a busy journal."""
TICK_S = 0.04
"""Between two looks after the journal while there is traffic."""
IDLE_S = 1.0
"""Between two looks after the journal while there is none."""
OWNER_S = 1.0
RECOVER_S = 5.0
CLOSE_S = 5.0

_LEDGERS: weakref.WeakSet[Ledger] = weakref.WeakSet()

_INSIDE: set[int] = set()
"""Threads that are in the middle of ledger work. Whatever a collector makes them do beside it is handed over."""


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class Ledger:
    """All customers' accounts over one journal. Safe for any number of threads, tasks and ledgers on the same journal.

    `deadline_s`: how long a question may find the journal busy. `pending_path`: the file for what cannot be written,
    by default the journal's path + ".pending". The journal stays open when the ledger closes.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        clock: Callable[[], int] = now_us,
        deadline_s: float = 2.0,
        cache_size: int = 10_000,
        backlog_most: int = 10_000,
        pending_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._journal = journal
        self.journal: Journal = cast(Journal, _AtWork(journal, self.at_work))
        """The journal for everybody else: what a collector ends while one of its methods runs is handed over (T35)."""
        self.counters = Counters()
        self._clock = clock
        self._deadline_s = deadline_s
        self._cache_size = cache_size
        self._backlog_most = backlog_most
        beside = getattr(journal, "path", None)
        path = pending_path if pending_path is not None else f"{beside}.pending" if beside else None
        self._pending = Pending(path) if path is not None else None
        self._closed = self._closing = False
        self.watch: Callable[[str, int], object] | None = None
        """Told of each customer to whom something was posted, and what is left. It neither blocks, locks nor raises."""
        self._begin()
        _LEDGERS.add(self)

    def _begin(self) -> None:
        """Everything that belongs to one process; a forked child begins anew (T36)."""
        seen, self._batches = self._journal, None
        self._presence = Presence(self._journal)
        if getattr(self._journal, "batches", False):
            collector = Collector(cast(BatchJournal, self._journal))
            seen = cast(Journal, collector)
        self.accounts = Accounts(seen, self._cache_size, self.counters, self._presence.doubt)
        self._appender = Appender(seen, self.accounts, self._presence, self._clock, self.counters)
        if seen is not self._journal:
            self._batches = self._make_batches(collector)
        self._snapshots = Snapshots(self._journal)
        self._waiters = Waiters()
        self._backlog = Backlog(self._attempt, self._conclude, self._failed, self.counters)
        self._sleepers: deque[SimpleQueue[None]] = deque()
        self._recovery: Iterator[None] | None = None
        self._seen_seq = self._polled_seq = 0
        self._idle = True
        self._start_lock = allocate_lock()
        self._work = Duty(self._backlog.work)
        self._waiting = Waiting(
            self._waiters,
            self.counters,
            attempt=self._attempt,
            failed=self._failed,
            put=lambda thunk: self._thread.put(thunk),
            decide_together=self._decide_together,
        )
        self._poll = Duty(self._waiting.look)
        self._tick = Duty(self._maintain)
        duties = (self._work, self._poll, self._tick, Duty(self._advance_owner), Duty(self._recover))
        self._thread = LedgerThread(duties, self._finish, lambda: _INSIDE.add(get_ident()))
        self._leaving = Leaving(
            self._thread,
            self._backlog,
            self._batches,
            self._pending,
            self.counters,
            accept=self._accept,
            at_work=self.at_work,
        )

    def _make_batches(self, collector: Collector) -> Batches:
        return Batches(
            collector,
            self.accounts,
            self._presence,
            self._clock,
            self.counters,
            _Outcomes(self),
            lambda: _INSIDE.add(get_ident()),
            lambda: _INSIDE.discard(get_ident()),
        )

    # Commands ---------------------------------------------------------------------------------------------------------

    def apply(self, account_id: str, command: Command, *, record: str | None = None, wait_s: float = 0.0) -> Ticket:
        """Have the command decided and written; the ticket is usually done already. Raises nothing by itself.

        `record` is written beside the event. `wait_s`: how long a refusal may wait for an open hold to end. An ending
        (settle, void, report) that cannot be written now is kept and written later: its caller need not wait for it.
        """
        ticket = Ticket(account_id, command, record, wait_s)
        me = get_ident()
        if me in _INSIDE:
            self._hand_over(ticket)
            return ticket
        try:
            _INSIDE.add(me)
            receipt = self._at_once(ticket)
            if receipt is not None:
                self._conclude(ticket, receipt)
        except BaseException:
            self._interrupted(ticket)
            raise
        finally:
            _INSIDE.discard(me)
        if self._closed:
            self._do_the_rest()
        return ticket

    def _at_once(self, ticket: Ticket) -> Receipt | None:
        """The receipt if it can be had on this thread now; else the ticket has failed or is on its way elsewhere."""
        if not self._thread.running and not self._closed:
            self._start()
        if self._must_wait(ticket):
            return None
        if self._batches is not None and self._batches.running:
            ticket.deadline = time.monotonic() + self._deadline_s
            self._batches.put(ticket)
            return None  # if the writer has just ended: see _do_the_rest
        try:
            try:
                return self._attempt(ticket)
            except Busy:
                return self._after_naps(ticket)
        except (Busy, JournalUnavailable, TooManyLosses, UnknownKind, *RULED_OUT) as error:
            self._met(ticket, error)
        except Exception as error:  # a mistake of ours, or a signal's: it may have come after the commit
            ticket.unsure = True
            self._met(ticket, error)
        return None

    def _met(self, ticket: Ticket, error: Exception) -> None:
        """What an attempt met: whoever is told, or goes on with it."""
        if isinstance(error, Busy | TooManyLosses):
            self._hand_over(ticket)
        elif isinstance(error, RULED_OUT) or not is_ending(ticket):
            self._failed(ticket, error)
        else:
            self._hand_over(ticket)

    def _after_naps(self, ticket: Ticket) -> Receipt:
        """A few more attempts when another process is just writing: it is done sooner than a thread wakes."""
        self.counters.busy += 1
        for nap_s in NAPS_S:
            time.sleep(nap_s)
            with suppress(Busy):
                return self._attempt(ticket)
        raise Busy

    def _interrupted(self, ticket: Ticket) -> None:
        """Something (Ctrl-C) stopped the caller in the middle: it gets no ticket, so nobody else can see to this."""
        command = ticket.command
        if isinstance(command, Authorize):

            def give_back() -> None:
                self._hand_over(Ticket(ticket.account, Void(command.hold, "unsure"), None))

            ticket.withdraw()
            ticket.on_done(give_back)  # at once, or when whoever has it is done with it
            if not ticket.done:
                give_back()  # perhaps nobody has it
        elif is_ending(ticket):
            ticket.unsure = True
            self._hand_over(ticket)

    def _must_wait(self, ticket: Ticket) -> bool:
        """Whether there is a reason not even to try: then the ticket has been sent where it belongs."""
        if is_ending(ticket):
            if self._backlog.down_s and not self._closed:
                self._hand_over(ticket)  # no use in finding out once more that the journal cannot be written
                return True
            return False
        if self._closed:
            ticket.fail(LedgerUnavailable("the ledger was closed"))
            return True
        if isinstance(ticket.command, Authorize):
            if len(self._backlog) >= self._backlog_most:
                self.counters.backlog_refused += 1
                ticket.fail(LedgerUnavailable("too many endings wait to be written: no call is let out before that"))
                return True
            if ticket.wait_s > 0 and ticket.account in self._waiters:
                ticket.wait_until = time.monotonic() + ticket.wait_s
                self._thread.put(partial(self._enqueue, ticket))
                return True
        return False

    def _attempt(self, ticket: Ticket) -> Receipt:
        """One attempt, under the account's lock. Raises what Appender.attempt raises."""
        if self._batches is not None and self._batches.running:
            return self._batches.run(ticket)
        if ticket.losses >= LOSSES_MOST and (exclusive := getattr(self._journal, "exclusive", None)) is not None:
            return self._attempt_alone(ticket, exclusive)
        queue = self._waiters.queue(ticket.account) if self._waiters.queues else None
        behind = queue is not None and not ticket.wait_until and self._is_behind(ticket, queue)
        slot = self.accounts.slot(ticket.account)
        with slot.lock:
            receipt = self._appender.attempt(slot, ticket, behind=behind)
            self._snapshots.consider(slot)
        if receipt.seq:
            self._committed(ticket, receipt, queue)
        return receipt

    def _attempt_alone(self, ticket: Ticket, exclusive: Callable[[], object]) -> Receipt:
        """The same with nobody else writing. If the end of it fails, nothing in memory is trusted."""
        slot = self.accounts.slot(ticket.account)
        with slot.lock:
            try:
                with exclusive():  # type: ignore[attr-defined]  # ExclusiveJournal
                    receipt = self._appender.attempt(slot, ticket)
            except BaseException:
                slot.account = None
                raise
        if receipt.seq:
            self._committed(ticket, receipt, self._waiters.queue(ticket.account))
        return receipt

    def _is_behind(self, ticket: Ticket, queue: Queue) -> bool:
        """A call that does not wait may pass those who do, but not for ever."""
        if not isinstance(ticket.command, Authorize) or not queue.calls or queue.overtaken < OVERTAKEN_MOST:
            return False
        self.counters.overtaken += 1
        return True

    def _committed(self, ticket: Ticket, receipt: Receipt, queue: Queue | None) -> None:
        self._seen_seq = receipt.seq
        if self._idle:
            self._idle = False
            self._thread.put(self._tick.call)
        while self._sleepers:
            try:
                self._sleepers.popleft().put(None)
            except IndexError:
                break
        if queue is not None and not ticket.wait_until:
            if isinstance(ticket.command, Authorize):
                queue.overtaken += 1
            elif not isinstance(ticket.command, Extend):
                self._waiting.stir(queue, ticket.account)

    def _hand_over(self, ticket: Ticket) -> None:
        """Give it to the ledger's thread. Takes no lock, so a finaliser may end up here."""
        if self._closed:
            self._leaving.keep_or_fail(ticket)
            return
        if is_ending(ticket):
            self.counters.handed_over += 1
        ticket.deadline = time.monotonic() + self._deadline_s
        self.later(partial(self._accept, ticket))

    def _conclude(self, ticket: Ticket, receipt: Receipt) -> None:
        """Resolve the ticket, or let it wait for an open hold to end."""
        if self.watch is not None and receipt.seq and isinstance(ticket.command, Settle | Report | Adjust):
            self.watch(ticket.account, receipt.available)
        declined = receipt.declined
        if declined is None or not declined.waitable or ticket.wait_s <= 0 or ticket.withdrawn or self._closing:
            ticket.resolve(receipt)
            return
        ticket.wait_until = ticket.wait_until or time.monotonic() + ticket.wait_s
        ticket.declined = receipt
        self._thread.put(partial(self._enqueue, ticket))

    def _failed(self, ticket: Ticket, error: Exception) -> None:
        """Answer with the error; see to what may have been written, and to what must not be lost."""
        command = ticket.command
        if isinstance(error, JournalUnavailable | UnknownKind):
            error = LedgerUnavailable(str(error), unsure=ticket.unsure)
        if isinstance(command, Authorize) and ticket.unsure:
            # It may have been written although nobody was told: then it is given back, else nothing happens.
            self._hand_over(Ticket(ticket.account, Void(command.hold, "unsure"), None))
        if isinstance(error, UnknownHold) and isinstance(command, Settle) and self._made(ticket.account, command.hold):
            self._report_instead(ticket, command)
            return
        if is_ending(ticket) and not (isinstance(command, Void) and command.reason == "unsure"):
            self.counters.unposted += 1
            _log.error("a %s was refused by the ledger: %s", type(command).__name__.lower(), error)
        if isinstance(command, Void):
            self._presence.ended(ticket.account, command.hold)
        ticket.fail(error)

    def _made(self, account_id: str, hold: str) -> bool:
        """Whether this process has made the hold and does not know of its end."""
        return (account_id, hold) in self._presence.opens

    def _report_instead(self, ticket: Ticket, settle: Settle) -> None:
        """The hold was made here, but the journal has been put back to before it: what was used is still owed.

        How much was held is known to nobody any more, so the operator cannot bear (`absorb`) what exceeds it.
        """
        self.counters.lost_holds += 1
        self._presence.ended(ticket.account, settle.hold)
        _log.error("the ledger was put back to before a hold: its settlement is posted as a report")
        ticket.command = Report(
            settle.hold,
            settle.charge,
            settle.input_tokens,
            settle.output_tokens,
            forgive=settle.forgive,
            scopes=scopes_in(ticket.record),
            units=settle.units,
            tiers=settle.tiers,
            metered=settle.metered,
        )
        self._hand_over(ticket)

    # Reading ----------------------------------------------------------------------------------------------------------

    def look(self, account_id: str) -> Account:
        """A copy of the account as the journal has it now. Raises LedgerUnavailable."""
        return self.ask(account_id, lambda account: from_state(to_state(account)))

    def ask(self, account_id: str, question: Callable[[Account], T]) -> T:
        """What the function says about the account as the journal has it now. It must not change it, nor keep it."""
        return self._patiently(partial(self._ask, account_id, question))

    def seen(self, account_id: str) -> Account | None:
        """The account as this process saw it last, at no cost; None: not in memory. To look at, never to decide by."""
        return self.accounts.seen(account_id)

    def _ask(self, account_id: str, question: Callable[[Account], T]) -> T:
        slot = self.accounts.slot(account_id)
        with slot.lock:
            self.accounts.refresh(slot)
            assert slot.account is not None
            self._snapshots.consider(slot)
            return question(as_of(slot.account, self._clock()))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While a thread uses the journal itself: what a collector makes it end meanwhile is handed over (T35)."""
        me = get_ident()
        if me in _INSIDE:
            yield
            return
        _INSIDE.add(me)
        try:
            yield
        finally:
            _INSIDE.discard(me)
            if self._closed:
                self._do_the_rest()

    @property
    def is_at_work(self) -> bool:
        """Whether this thread is in the middle of ledger work: then it must not wait for others that are."""
        return get_ident() in _INSIDE

    @property
    def in_order(self) -> bool:
        """Whether commands are decided in the order in which they are asked for: of a file, a busy one is overtaken."""
        return self._batches is not None

    @property
    def owner(self) -> str:
        """The id of this process on this journal: it stands on every hold made here. Raises LedgerUnavailable."""
        owner = self._presence.owner
        if owner is None and self._batches is not None:
            return self._presence.named(cast(BatchJournal, self._journal).name_owner())
        return owner or self._patiently(self._presence.register)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it, again while the journal is busy, until the deadline. Raises LedgerUnavailable."""
        until = time.monotonic() + self._deadline_s
        while True:
            try:
                with self.at_work():
                    return work()
            except (Busy, TooManyLosses):
                if time.monotonic() > until:
                    raise LedgerUnavailable("the ledger is busy: it could not answer in time") from None
                time.sleep(jitter())
            except (JournalUnavailable, UnknownKind) as error:
                raise LedgerUnavailable(str(error)) from error

    # Followers and finalisers -----------------------------------------------------------------------------------------

    def later(self, thunk: Callable[[], object]) -> None:
        """Have it called on the ledger's thread. Takes no lock and starts nothing: for finalisers (T35).

        Once the ledger is closed it is called here, or, in the middle of ledger work, at the end of that.
        """
        self._thread.put(thunk)
        if self._closed:  # looked at afterwards: nobody else may come to see what was put
            self._do_the_rest()

    @property
    def seen_seq(self) -> int:
        """Seq of the last entry that this process appended."""
        return self._seen_seq

    def wait_for_commit(self, timeout_s: float, after: int = 0) -> bool:
        """Sleep until this process has appended an entry with a seq above `after`, at most so long.

        False on time-out: look all the same, for other processes append too and wake nobody here.
        """
        if self._seen_seq > after:
            return True
        bell: SimpleQueue[None] = SimpleQueue()
        self._sleepers.append(bell)
        if self._seen_seq > after:
            return True
        try:
            bell.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def wake_followers(self) -> None:
        """End every `wait_for_commit` now: something is closing."""
        for bell in list(self._sleepers):
            bell.put(None)

    # On the ledger's thread -------------------------------------------------------------------------------------------

    def _accept(self, ticket: Ticket) -> None:
        many = isinstance(ticket.command, Report) and len(self._backlog) >= self._backlog_most
        if many and self._leaving.keep(ticket):
            return
        self._backlog.add(ticket)
        self._work.call()

    def _enqueue(self, ticket: Ticket) -> None:
        if self._closing:
            refuse(ticket)
            return
        due = self._waiting.add(ticket)
        if due is not None:
            self._poll.due = due if self._poll.due is None else min(self._poll.due, due)

    def _decide_together(self, ticket: Ticket) -> bool:
        """Send it to the batches, where there are any, for its last answer."""
        if self._batches is None or not self._batches.running:
            return False
        ticket.wait_s, ticket.deadline = 0.0, time.monotonic() + self._deadline_s
        self._batches.put(ticket)
        return True

    def _maintain(self) -> float:
        before = self._polled_seq
        self._polled_seq = self._seen_seq
        self._idle = before == self._polled_seq
        self._journal.maintain()
        self._snapshots.write()
        return IDLE_S if self._idle else TICK_S

    def _advance_owner(self) -> float:
        with suppress(Busy, JournalUnavailable):
            self._presence.settle_doubt()
            self._presence.advance()
        return OWNER_S

    def _recover(self) -> float:
        """A step of recovery: what dead processes left open, what this or another one could not write."""
        if self._recovery is None:
            self._recovery = self._recovery_steps()
        try:
            next(self._recovery)
            return jitter()
        except StopIteration:
            pass
        except (Busy, JournalUnavailable, UnknownKind):
            pass
        self._recovery = None
        return RECOVER_S

    def _recovery_steps(self) -> Iterator[None]:
        self._presence.settle_doubt()
        doubts = self._presence.doubts
        if (yield from recover(self._journal, self._end_lost_hold, self._presence.to_search)):
            self._presence.searched(doubts)
        if self._backlog.parked:
            self._backlog.unpark()
            self._work.call()
        if self._pending and not self._backlog:
            for _ in self._pending.post(self._post_kept):
                yield

    def _end_lost_hold(self, entry: Entry, held: Held) -> bool:
        if held.owner == self._presence.owner and self._made(entry.account, held.hold):
            return False  # an exchange of this process that is under way
        found = self._ask(entry.account, lambda account: settlement_of(account, entry, held))
        if found is None:
            return False
        ticket = Ticket(entry.account, *found)
        if self._left_without(entry.account, held.hold):
            ticket = Ticket(entry.account, Void(held.hold, "unsure"), None)
        try:
            receipt = self._attempt(ticket)
        except TooManyLosses:
            raise Busy from None
        if receipt.repeated:
            return False  # another recovery was here first
        self.counters.recovered += 1
        return True

    def _left_without(self, account_id: str, hold: str) -> bool:
        """Whether the call left although nobody was told of its hold (the answer was lost, and policy let it pass).

        Then it is reported, and to settle the hold too would charge it twice.
        """
        if self._pending is not None and self._pending.tells_of(account_id, hold):
            return True
        return any(is_of_a_call(entry.record) for entry in self._journal.find(account_id, [f"report:{hold}"]))

    def _post_kept(self, account_id: str, command: Command, record: str | None) -> None:
        self._patiently(partial(self._attempt, Ticket(account_id, command, record)))

    # Recovery on request, start and end -------------------------------------------------------------------------------

    def recover(self) -> int:
        """End the holds of dead processes and post what was kept, now and on this thread. Returns how many holds.

        Raises LedgerUnavailable. The ledger's thread does the same at its start and every few seconds.
        """
        before = self.counters.recovered
        self._patiently(lambda: deque(self._recovery_steps(), maxlen=0))
        return self.counters.recovered - before

    def keep(self, account_id: str, command: Command, record: str | None = None) -> bool:
        """Write an ending or a report to the pending file, fsynced, to be posted when the ledger is back.

        False if there is no such file, or it cannot be written: then nothing was recorded.
        """
        return self._leaving.keep(Ticket(account_id, command, record))

    def keep_sent(self, account_id: str, report: Report, record: str) -> bool:
        """Write to the pending file that a call leaves without a hold, and what it owes if nothing more is heard of it.

        False: nothing was written, so nobody would know of the call. End it with `sent_over`.
        """
        if self._pending is None:
            return False
        try:
            self._pending.sent(account_id, report, record)
        except (OSError, ValueError) as error:
            _log.error("the pending file could not be written: %s", error)
            return False
        return True

    def sent_over(self, key: str, *, owed: bool) -> None:
        """Such a call has ended; what it owed, if it did, is posted or kept."""
        if self._pending is not None:
            try:
                self._pending.over(key, owed=owed)
            except OSError as error:
                _log.error("the pending file could not be written: %s", error)

    def _start(self) -> None:
        with self._start_lock:
            if not self._thread.running and not self._closing:
                with suppress(RuntimeError):  # the interpreter shuts down: close() does what the thread would have done
                    self._thread.start()
                    if self._batches is not None:
                        self._batches.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is on its way, keep what cannot be written, stop the thread. Safe to repeat.

        What waits for credit is refused; an ending that comes later is tried at once, or kept in the pending file.
        """
        if self._closed:
            return
        self._leaving.until = time.monotonic() + timeout_s
        with self._start_lock:
            self._closing = True
        stopped = self._thread.stop(timeout_s + 1.0)
        if not stopped:
            _log.error("the ledger's thread did not end in time: what it was to write is kept in the pending file")
        if self._batches is not None and not self._batches.stop(timeout_s + 1.0):
            _log.error("the ledger's writer did not end in time")
        self._closed = True
        self._do_the_rest(in_any_case=True)
        self.wake_followers()

    def _do_the_rest(self, *, in_any_case: bool = False) -> None:
        """What threads have left that have ended. Not in the middle of ledger work (T35), but at its end."""
        if get_ident() not in _INSIDE:
            self._leaving.do_the_rest(in_any_case=in_any_case)

    def _finish(self) -> None:
        """The last thing the ledger's thread does."""
        self._waiting.refuse_all()
        self._leaving.bring_in_all()
        self._snapshots.write()
        self._snapshots.save(self.accounts.with_tail_of(ENTRIES_LEAST // 4))
        _INSIDE.discard(get_ident())

    def _forget_parent(self) -> None:
        """In a forked child: threads, queues, locks and accounts were the parent's."""
        if self._pending is not None:
            self._pending.forget()
        self._begin()


class _Outcomes:
    """What becomes of a command that went through a batch."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def is_behind(self, ticket: Ticket) -> bool:
        queue = self._ledger._waiters.queue(ticket.account)
        return queue is not None and not ticket.wait_until and self._ledger._is_behind(ticket, queue)

    def consider(self, slot: Slot) -> None:
        self._ledger._snapshots.consider(slot)

    def committed(self, ticket: Ticket, receipt: Receipt) -> None:
        self._ledger._committed(ticket, receipt, self._ledger._waiters.queue(ticket.account))

    def conclude(self, ticket: Ticket, receipt: Receipt) -> None:
        self._ledger._conclude(ticket, receipt)

    def met(self, ticket: Ticket, error: Exception) -> None:
        self._ledger._met(ticket, error)


class _AtWork:
    """An object whose methods run as ledger work."""

    def __init__(self, inner: object, at_work: Callable[[], AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._at_work = at_work

    def __getattr__(self, name: str) -> object:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def at_work(*arguments: object, **named: object) -> object:
            with self._at_work():
                return found(*arguments, **named)

        return at_work


def _after_fork_in_child() -> None:
    _INSIDE.clear()
    for ledger in list(_LEDGERS):
        ledger._forget_parent()


def _close_all() -> None:
    for ledger in list(_LEDGERS):
        ledger.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
