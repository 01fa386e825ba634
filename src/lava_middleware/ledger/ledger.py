"""This file knows how to answer one command on one account, at once where possible, from accounts in memory.

    apply(account, command) -> Ticket       decided on the caller's thread, in one statement, when nobody is in the way

A busy journal: a question (authorize, extend, grant, terms) waits on the ledger's own thread, an ending (settle, void,
report) is handed over to it and stays until it is written. Nobody waits while holding a lock, and no lock is taken
twice by one thread: what a garbage collector runs in the middle of a line of ours is handed over too (T35).
"""

from __future__ import annotations

import atexit
import itertools
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

from ..core.account import Account, from_state, to_state
from ..core.commands import Authorize, Command, Extend, Report, Settle, Void
from ..core.decide import Declined, LedgerRuleError, UnknownHold
from ..core.events import Held, UnknownKind
from ..core.money import AmountError
from .accounts import Accounts
from .appender import LOSSES_MOST, Appender, TooManyLosses
from .backlog import Backlog, is_ending, jitter
from .counters import Counters
from .journal import Busy, Entry, Journal, JournalUnavailable
from .pending import Pending
from .presence import Presence
from .recovery import recover, settlement_of
from .snapshots import ENTRIES_LEAST, Snapshots
from .thread import Duty, LedgerThread
from .ticket import LedgerUnavailable, Receipt, Ticket
from .waiters import OVERTAKEN_MOST, Queue, Waiters

__all__ = ["Ledger", "LedgerUnavailable", "Receipt", "Ticket", "now_us"]

_log = logging.getLogger("lava_middleware")

T = TypeVar("T")

NAPS_S = (0.00005, 0.00005, 0.0001, 0.0002)
"""How long a caller's own thread, which may run an event loop, sleeps between attempts on a busy journal."""
TICK_S = 0.04
"""Between two looks after the journal while there is traffic."""
IDLE_S = 1.0
"""Between two looks after the journal while there is none."""
POLL_S = 0.05
"""Between two looks at what other processes ended, while somebody waits here."""
POLL_MOST = 64
"""Accounts with a queue that one such look tries."""
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
        self._close_by = 0.0
        self._begin()
        _LEDGERS.add(self)

    def _begin(self) -> None:
        """Everything that belongs to one process; a forked child begins anew (T36)."""
        self.accounts = Accounts(self._journal, self._cache_size, self.counters)
        self._presence = Presence(self._journal)
        self._appender = Appender(self._journal, self.accounts, self._presence, self._clock, self.counters)
        self._snapshots = Snapshots(self._journal)
        self._waiters = Waiters()
        self._backlog = Backlog(self._attempt, self._conclude, self._failed, self.counters)
        self._sleepers: deque[SimpleQueue[None]] = deque()
        self._recovery: Iterator[None] | None = None
        self._seen_seq = self._polled_seq = 0
        self._idle = True
        self._start_lock = allocate_lock()
        self._work = Duty(self._backlog.work)
        self._poll = Duty(self._poll_waiters)
        self._tick = Duty(self._maintain)
        duties = (self._work, self._poll, self._tick, Duty(self._advance_owner), Duty(self._recover))
        self._thread = LedgerThread(duties, self._finish, lambda: _INSIDE.add(get_ident()))

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
        _INSIDE.add(me)
        try:
            receipt = self._at_once(ticket)
        except BaseException:
            self._interrupted(ticket)
            raise
        finally:
            _INSIDE.discard(me)
        if receipt is not None:
            self._conclude(ticket, receipt)
        return ticket

    def _at_once(self, ticket: Ticket) -> Receipt | None:
        """The receipt if it can be had on this thread now; else the ticket has failed or is on its way elsewhere."""
        if not self._thread.running and not self._closed:
            self._start()
        if self._must_wait(ticket):
            return None
        try:
            try:
                return self._attempt(ticket)
            except Busy:
                return self._after_naps(ticket)
        except (Busy, TooManyLosses):
            self._hand_over(ticket)
        except JournalUnavailable as error:
            if is_ending(ticket):
                self._hand_over(ticket)
            else:
                self._failed(ticket, error)
        except (LedgerRuleError, AmountError) as error:
            self._failed(ticket, error)
        except Exception as error:
            if not is_ending(ticket):
                self._failed(ticket, error)
            else:
                self._hand_over(ticket)
        return None

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
            self._hand_over(Ticket(ticket.account, Void(command.hold, "unsure"), None))
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
                self._thread.put(partial(self._try_queue, ticket.account))

    def _hand_over(self, ticket: Ticket) -> None:
        """Give it to the ledger's thread. Takes no lock, so a finaliser may end up here."""
        if self._closed:
            self._keep_or_fail(ticket)
            return
        if is_ending(ticket):
            self.counters.handed_over += 1
        ticket.deadline = time.monotonic() + self._deadline_s
        self._thread.put(partial(self._accept, ticket))

    def _conclude(self, ticket: Ticket, receipt: Receipt) -> None:
        """Resolve the ticket, or let it wait for an open hold to end."""
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
        if isinstance(error, UnknownHold) and isinstance(command, Settle) and command.hold in self._presence.opens:
            self._report_instead(ticket, command)
            return
        if is_ending(ticket) and not (isinstance(command, Void) and command.reason == "unsure"):
            self.counters.unposted += 1
            _log.error("a %s was refused by the ledger: %s", type(command).__name__.lower(), error)
        if isinstance(command, Void):
            self._presence.ended(command.hold)
        ticket.fail(error)

    def _report_instead(self, ticket: Ticket, settle: Settle) -> None:
        """The hold was made here, but the journal has been put back to before it: what was used is still owed."""
        self.counters.lost_holds += 1
        self._presence.ended(settle.hold)
        _log.error("the ledger was put back to before a hold: its settlement is posted as a report")
        ticket.command = Report(
            settle.hold, settle.charge, settle.input_tokens, settle.output_tokens, forgive=settle.forgive
        )
        self._hand_over(ticket)

    # Reading ----------------------------------------------------------------------------------------------------------

    def look(self, account_id: str) -> Account:
        """A copy of the account as the journal has it now. Raises LedgerUnavailable."""
        return self.ask(account_id, lambda account: from_state(to_state(account)))

    def ask(self, account_id: str, question: Callable[[Account], T]) -> T:
        """What the function says about the account as the journal has it now. It must not change it, nor keep it."""
        return self._patiently(partial(self._ask, account_id, question))

    def _ask(self, account_id: str, question: Callable[[Account], T]) -> T:
        slot = self.accounts.slot(account_id)
        with slot.lock:
            self.accounts.refresh(slot)
            assert slot.account is not None
            self._snapshots.consider(slot)
            return question(slot.account)

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

    @property
    def owner(self) -> str:
        """The id of this process on this journal: it stands on every hold made here. Raises LedgerUnavailable."""
        return self._presence.owner or self._patiently(self._presence.register)

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
        """Have it called on the ledger's thread. Takes no lock and starts nothing: for finalisers (T35)."""
        self._thread.put(thunk)

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
        if isinstance(ticket.command, Report) and len(self._backlog) >= self._backlog_most and self._keep(ticket):
            return
        self._backlog.add(ticket)
        self._work.call()

    def _enqueue(self, ticket: Ticket) -> None:
        if self._closing:
            ticket.resolve(_refusal(ticket))
            return
        self.counters.waits += 1
        self._waiters.add(ticket)
        self._try_queue(ticket.account)  # what it waits for may have happened before it stood in line
        due = min(ticket.wait_until, time.monotonic() + POLL_S)
        self._poll.due = due if self._poll.due is None else min(self._poll.due, due)

    def _try_queue(self, account_id: str) -> None:
        """Let the heads of the account's lines try again, until one of them still has to wait."""
        queue = self._waiters.queue(account_id)
        if queue is None:
            return
        for line in queue.heads():
            while line and self._passes(line[0]):
                line.popleft()
                queue.overtaken = 0
        self._waiters.tidy(account_id)

    def _passes(self, ticket: Ticket) -> bool:
        """Try one that waits; True once it has its answer."""
        if ticket.withdrawn:
            ticket.resolve(_refusal(ticket))
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

    def _poll_waiters(self) -> float | None:
        for ticket in self._waiters.take_due(time.monotonic()):
            if not self._passes(ticket):
                ticket.resolve(_refusal(ticket))
        if not self._waiters:
            return None
        for account_id in self._waiters.accounts(POLL_MOST):
            self._try_queue(account_id)
        return self._until_next_poll()

    def _until_next_poll(self) -> float | None:
        due = self._waiters.due_at()
        return None if due is None else max(0.0, min(POLL_S, due - time.monotonic()))

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
        yield from recover(self._journal, self._end_lost_hold)
        if self._backlog.parked:
            self._backlog.unpark()
            self._work.call()
        if self._pending and not self._backlog:
            self._pending.post(self._post_kept)

    def _end_lost_hold(self, entry: Entry, held: Held) -> bool:
        found = self._ask(entry.account, lambda account: settlement_of(account, entry, held))
        if found is None:
            return False
        command, record = found
        try:
            receipt = self._attempt(Ticket(entry.account, command, record))
        except TooManyLosses:
            raise Busy from None
        if receipt.repeated:
            return False  # another recovery was here first
        self.counters.recovered += 1
        return True

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
        return self._keep(Ticket(account_id, command, record))

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

    def _keep(self, ticket: Ticket) -> bool:
        if self._pending is None:
            return False
        try:
            self._pending.keep(ticket.account, ticket.command, ticket.record)
        except (OSError, ValueError) as error:
            _log.error("the pending file could not be written: %s", error)
            return False
        self.counters.kept += 1
        if not ticket.done:
            ticket.resolve(Receipt(()))
        return True

    def _keep_or_fail(self, ticket: Ticket) -> None:
        """For what can no longer be written: into the pending file, else into the log."""
        if is_ending(ticket) and self._keep(ticket):
            return
        if is_ending(ticket):
            self.counters.unposted += 1
            _log.error("an ending could not be written, and there is no pending file for it")
        ticket.fail(LedgerUnavailable("the ledger was closed before this could be written", unsure=ticket.unsure))

    def _start(self) -> None:
        with self._start_lock:
            if not self._thread.running and not self._closed:
                with suppress(RuntimeError):  # the interpreter shuts down: close() does what the thread would have done
                    self._thread.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is on its way, keep what cannot be written, stop the thread. Safe to repeat.

        What waits for credit is refused; an ending that comes later is tried at once, or kept in the pending file.
        """
        if self._closed:
            return
        self._close_by = time.monotonic() + timeout_s
        self._closing = True
        if not self._thread.stop(timeout_s + 1.0):
            _log.error("the ledger's thread did not end in time")
        self._closed = True
        for _ in range(2):  # what was put while it stopped, and what that put
            self._thread.drain()
            self._bring_in_the_rest()
        self.wake_followers()

    def _finish(self) -> None:
        """The last thing the ledger's thread does."""
        for ticket in self._waiters.take_all():
            ticket.resolve(_refusal(ticket))
        self._bring_in_the_rest()
        self._snapshots.write()
        self._snapshots.save(self.accounts.with_tail_of(ENTRIES_LEAST // 4))
        _INSIDE.discard(get_ident())

    def _bring_in_the_rest(self) -> None:
        backlog = self._backlog
        backlog.unpark()
        while (pause := backlog.work()) is not None and time.monotonic() + pause < self._close_by:
            time.sleep(pause)
        for ticket in itertools.chain(backlog.endings, backlog.parked, backlog.questions):
            self._keep_or_fail(ticket)
        backlog.endings.clear()
        backlog.questions.clear()
        backlog.parked.clear()

    def _forget_parent(self) -> None:
        """In a forked child: threads, queues, locks and accounts were the parent's."""
        if self._pending is not None:
            self._pending.forget()
        self._begin()


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


def _refusal(ticket: Ticket) -> Receipt:
    """What one that waited is told in the end: its last refusal, if it ever got to one."""
    return ticket.declined or Receipt((), Declined("credit_on_hold", waitable=True))


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
