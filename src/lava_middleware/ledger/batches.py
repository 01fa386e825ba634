"""This file knows how commands that arrive while an append is in flight are decided and appended together.

For journals that answer from afar. One thread takes what has arrived, decides it in order on the accounts as they will
be, and appends all of it in one statement. Nobody is answered before the commit. An account whose append was refused
is put back, and its commands are decided anew; after two such losses with everybody else locked out of the accounts.
"""

from __future__ import annotations

import itertools
import logging
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeAlias, cast

from ..core.account import Account
from ..core.decide import keys_of
from ..core.events import Lapsed
from ..core.state import from_state, to_state
from .accounts import LOOK_AFTER_LOSS, Accounts, Slot
from .appender import RULED_OUT, Appender, TooManyLosses
from .backlog import is_ending, jitter
from .collector import Collector, Openings, Overtaken
from .counters import Counters
from .entries import entries_of
from .journal import (
    Appended,
    Busy,
    Entry,
    Journal,
    JournalUnavailable,
    Outcome,
    Refused,
    Unreachable,
)
from .presence import Presence
from .ticket import Receipt, Ticket

BATCH_MOST = 64
"""Entries in one statement (one command may bring a few more)."""
LOSSES_BEFORE_ALONE = 2
ALONE_FOR = 16
"""Batches with an account that go alone at once, after one of its commands had to: others write to it as well."""
_OVERTAKEN_MOST = 3
_LOST_MOST = 2
"""Times that one command is repeated because the connection was lost under it."""
_HOPELESS = 200
BUSY_MOST = 8
"""Commands of an account that is busy in one batch: others come as well, however many wait for that one."""

IDLE_S = 1.0
"""Between two looks after the journal while there is nothing to do."""
_LATE = "the ledger is busy: it could not decide in time"

_numbers = itertools.count()

_log = logging.getLogger("lava_middleware")


class Job:
    """A ticket on its way through a batch, and whoever waits for the outcome on a thread of his own."""

    __slots__ = ("deadline", "lost", "number", "reply", "ticket")

    def __init__(self, ticket: Ticket, reply: SimpleQueue[Any] | None = None) -> None:
        self.ticket = ticket
        self.reply = reply
        self.number = next(_numbers)
        self.deadline = ticket.deadline
        self.lost = 0


Answer: TypeAlias = tuple[Job, Receipt | Exception, int, int]
"""(whose, what, entries of the account in this batch before it, and after it)"""


class Answers(Protocol):
    """What the ledger does with outcomes."""

    def is_behind(self, ticket: Ticket) -> bool: ...
    def consider(self, slot: Slot) -> None: ...
    def committed(self, ticket: Ticket, receipt: Receipt) -> None: ...
    def conclude(self, ticket: Ticket, receipt: Receipt) -> None: ...
    def met(self, ticket: Ticket, error: Exception) -> None: ...


class _Line:
    """What one account has in this batch."""

    __slots__ = ("answers", "backup", "jobs", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.jobs: list[Job] = []
        self.answers: list[Answer] = []
        self.backup: tuple[Account, int, int] | None = None


class Batches:
    """Started when first needed. `put` takes no lock and may be called anywhere, by a finaliser too (T35)."""

    def __init__(
        self,
        collector: Collector,
        accounts: Accounts,
        presence: Presence,
        clock: Callable[[], int],
        counters: Counters,
        answers: Answers,
        begin: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._collector = collector
        self._journal = collector.journal
        self._accounts = accounts
        self._presence = presence
        self._openings = Openings(presence)
        self._appender = Appender(cast(Journal, collector), accounts, cast(Presence, self._openings), clock, counters)
        self._clock = clock
        self._counters = counters
        self._answers = answers
        self._begin, self._end = begin, end
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        """What was taken out of the queue, in its order."""
        self._again: list[Job] = []
        """What is to be decided anew, or did not fit into this batch."""
        self._busy: set[str] = set()
        """Accounts that the last batch found busy."""
        self._alone_for: dict[str, int] = {}
        self._doubtful: dict[str, int] = {}
        """Account → the version behind which an append may still be carried out though it was given up."""
        self._thread: Thread | None = None
        self.running = False

    def start(self) -> None:
        """The caller sees to it that this is called once."""
        self._thread = Thread(target=self._run, name="lava-writer", daemon=True)
        self._thread.start()
        self.running = True

    def put(self, ticket: Ticket) -> None:
        """Have it decided with the next batch; `conclude` or `met` is called with it, on the thread."""
        self._queue.put(Job(ticket))

    def run(self, ticket: Ticket) -> Receipt:
        """The receipt, once it is committed. Raises what Appender.attempt raises; then nothing is tried again."""
        reply: SimpleQueue[Any] = SimpleQueue()
        self._queue.put(Job(ticket, reply))
        outcome = reply.get()
        if isinstance(outcome, Exception):
            raise outcome
        return cast(Receipt, outcome)

    def stop(self, timeout_s: float) -> bool:
        """Do what was put, then end. False if that took longer."""
        if self._thread is None:
            return True
        self.running = False
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def left(self) -> list[Ticket]:
        """What somebody put while it stopped."""
        tickets = []
        with suppress(Empty):
            while True:
                job = self._queue.get_nowait()
                if job is not None and job.reply is None:
                    tickets.append(job.ticket)
                elif job is not None and job.reply is not None:
                    job.reply.put(Busy())
        return tickets

    # On the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._begin()
        self._collector.thread = get_ident()
        self._journal.writes_here()
        try:
            self._go_on()
        finally:  # the system gives its id to a thread that comes later, for which there is no batch to append with
            self._collector.thread = 0
            self._journal.writes_here(False)
            self._end()

    def _go_on(self) -> None:
        stopping = False
        while not stopping or self._waiting or not self._queue.empty():
            jobs, told = self._take(wait=not stopping)
            stopping = stopping or told
            if jobs:
                self._work(jobs)
                self._put_back()
            _safely(self._journal.maintain)  # the ledger's thread may be long at one thing, and this one lives

    def _take(self, *, wait: bool) -> tuple[list[Job], bool]:
        """(what goes into the next batch, in its order; whether the order to stop was among what has arrived)"""
        jobs: list[Job] = []
        later: list[Job] = []
        of_busy = dict.fromkeys(self._busy, 0)
        stop = False
        while len(jobs) < BATCH_MOST and not stop:
            try:
                idle = wait and not jobs and not later
                job = self._waiting.popleft() if self._waiting else self._queue.get(idle, IDLE_S)
            except Empty:
                break
            if job is None:
                stop = True
                continue
            if _comes_too_late(job):
                self._meet(job, JournalUnavailable(_LATE))
                continue
            if of_busy and (account := job.ticket.account) in of_busy:
                of_busy[account] += 1
                if of_busy[account] > BUSY_MOST:
                    later.append(job)
                    continue
            jobs.append(job)
        self._waiting.extendleft(reversed(later))
        return jobs, stop

    def _put_back(self) -> None:
        """What is done again comes before what came later, in its old order: that is the order of an account's."""
        self._waiting.extendleft(sorted(self._again, key=lambda job: job.number, reverse=True))
        self._again = []

    def _work(self, jobs: list[Job]) -> None:
        self._busy = set()
        lines: dict[str, _Line] = {}
        for job in jobs:
            account = job.ticket.account
            if account not in lines:
                lines[account] = _Line(self._accounts.slot(account))
            lines[account].jobs.append(job)
        alone = [line for line in lines.values() if self._must_be_alone(line)]
        self._do([line for line in lines.values() if line not in alone], self._together)
        self._do(alone, self._alone)

    def _do(self, lines: list[_Line], work: Callable[[list[_Line]], None]) -> None:
        if not lines:
            return
        try:
            self._guarded(lines, work)
        except Exception as error:  # a mistake of ours: whoever waits is told, and the thread goes on
            _log.exception("a batch of the ledger failed")
            for line in lines:
                line.slot.account = None
                line.answers = []
                for job in line.jobs:
                    if not job.ticket.done:
                        job.ticket.unsure = True
                        self._meet(job, error)
        for line in lines:
            self._answer(line)

    def _must_be_alone(self, line: _Line) -> bool:
        account = line.slot.id
        left = self._alone_for.get(account, 0)
        if left > 1:
            self._alone_for[account] = left - 1
        elif left:
            del self._alone_for[account]
        if any(job.ticket.losses >= LOSSES_BEFORE_ALONE for job in line.jobs):
            self._alone_for[account] = ALONE_FOR
            return True
        return left > 0

    def _guarded(self, lines: list[_Line], work: Callable[[list[_Line]], None]) -> None:
        """With the slots' locks. Only this thread ever has more than one of them, so nobody waits in a circle."""
        with ExitStack() as locks:
            for line in lines:
                locks.enter_context(line.slot.lock)
            self._collector.begin()
            work(lines)

    def _together(self, lines: list[_Line]) -> None:
        """Decide, append: whoever is overtaken in between is refused by the journal."""
        try:
            if wanted := self._to_read(lines):
                self._collector.bring(wanted, self._journal.tails(wanted))
        except Exception as error:
            for line in lines:
                self._failed(line, error, sent=False)
            return
        appending = self._decided(lines)
        if not appending:
            return
        try:
            outcomes = self._journal.append_many(self._groups(appending))
        except Exception as error:
            for line in appending:
                self._failed(line, error)
            return
        self._settle(appending, outcomes)

    def _alone(self, lines: list[_Line]) -> None:
        """With everybody else locked out of these accounts: tails, decide, append."""
        for line in lines:
            line.slot.look_first = line.slot.look_first or 1
        outcomes: Sequence[Appended] = ()
        appending: list[_Line] = []
        try:
            wanted = self._to_read(lines)
            with self._journal.alone(wanted) as alone:
                self._collector.bring(wanted, alone.tails)
                appending = self._decided(lines)
                if appending:
                    outcomes = alone.commit(self._groups(appending))
        except Exception as error:
            if isinstance(error, Busy) and len(lines) > 1 and not appending:
                self._one_by_one(lines)
                return
            for line in lines:
                self._failed(line, error)
            return
        self._settle(appending, outcomes)

    def _one_by_one(self, lines: list[_Line]) -> None:
        """Somebody has one of these accounts, and may have it for long: the others do not wait for that."""
        for line in lines:
            self._collector.begin()
            self._alone([line])

    def _to_read(self, lines: list[_Line]) -> list[tuple[str, int]]:
        """(account, version) of the tails that deciding will ask for; snapshots are brought along."""
        cold = [line.slot.id for line in lines if self._is_cold(line.slot)]
        if cold:
            found = self._journal.snapshots(cold)
            self._collector.snapshots = {account: found.get(account) for account in cold}
        wanted = []
        for slot in [line.slot for line in lines]:
            if slot.id in self._collector.snapshots:
                snapshot = self._collector.snapshots[slot.id]
                wanted.append((slot.id, snapshot.version if snapshot is not None else 1))
            elif slot.account is not None and (slot.unsure or slot.look_first):
                wanted.append((slot.id, slot.account.version))
        return wanted

    def _is_cold(self, slot: Slot) -> bool:
        return slot.account is None or slot.generation != self._journal.generation

    def _decided(self, lines: list[_Line]) -> list[_Line]:
        """Those of them that have something to append now."""
        for line in lines:
            self._decide(line)
        return [line for line in lines if line.slot.id in self._collector.groups]

    def _groups(self, lines: list[_Line]) -> list[tuple[list[Entry], tuple[int, int]]]:
        return [self._collector.groups[line.slot.id] for line in lines]

    def _settle(self, lines: list[_Line], outcomes: Sequence[Appended]) -> None:
        for line, appended in zip(lines, outcomes, strict=True):
            if appended.outcome is Outcome.APPENDED:
                self._commit(line, appended.seqs)
            elif appended.outcome is Outcome.BUSY:
                self._failed(line, Busy())
            else:
                self._lose(line, appended)

    def _decide(self, line: _Line) -> None:
        """Decide the account's commands, one after another, on the account as it will be."""
        for _ in range(_OVERTAKEN_MOST):
            self._back_up(line)
            try:
                self._decide_all(line)
                return
            except Overtaken:
                self._counters.conflicts += 1
                self._take_back(line)
        self._failed(line, Busy())

    def _decide_all(self, line: _Line) -> None:
        slot, collector = line.slot, self._collector
        for position, job in enumerate(line.jobs):
            before = collector.count(slot.id)
            if before >= BATCH_MOST:
                self._leave_for_later(line, position)
                return
            outcome: Receipt | Exception
            try:
                outcome = self._appender.attempt(slot, job.ticket, behind=self._answers.is_behind(job.ticket))
            except RULED_OUT as error:
                outcome = error
            except (Busy, JournalUnavailable) as error:  # it could not be read
                self._failed(line, error, sent=False)
                return
            except Overtaken:
                raise
            except Exception as error:
                if before and isinstance(error, TooManyLosses):  # the journal will refuse something that is before it
                    job.ticket.losses = 0
                    self._leave_for_later(line, position)
                    return
                self._take_back(line)
                line.jobs.remove(job)
                self._meet(job, error)
                raise Overtaken from None  # the others once more, without it
            line.answers.append((job, outcome, before, collector.count(slot.id)))
        self._see_that_nothing_comes_late(slot)

    def _leave_for_later(self, line: _Line, position: int) -> None:
        """What stands there and behind it is decided when it is known what became of all that is before it."""
        self._again.extend(line.jobs[position:])
        del line.jobs[position:]

    def _see_that_nothing_comes_late(self, slot: Slot) -> None:
        """An append that was given up may still be on its way and be carried out later, when nobody waits for it.

        It fits only behind the entry it was decided on. So if nothing has been appended there, an entry that changes
        nothing is: then it comes too late for good.
        """
        version, account = self._doubtful.get(slot.id), slot.account
        if version is None or account is None:
            return
        if self._collector.count(slot.id):
            return
        if account.version != version:
            del self._doubtful[slot.id]
        else:
            now = max(self._clock(), account.at + 1)
            entries, folded = entries_of(slot.id, account, (Lapsed(),), now, None)
            self._collector.append(entries, (account.version, account.at))
            slot.account = folded

    def _back_up(self, line: _Line) -> None:
        """A copy of an account that others write too; one that is ours alone is rather read again if need be."""
        slot = line.slot
        line.backup = None
        if slot.look_first and slot.account is not None and not slot.unsure:
            line.backup = from_state(to_state(slot.account)), slot.tail_entries, slot.tail_bytes

    # Outcomes, still with the locks ----------------------------------------------------------------------------------

    def _take_back(self, line: _Line) -> None:
        """Nothing of it was written: the account is as it was before."""
        slot = line.slot
        self._openings.taken_back(slot.id)
        self._collector.discard(slot.id)
        line.answers = []
        slot.account = None
        if line.backup is not None:
            slot.account, slot.tail_entries, slot.tail_bytes = line.backup
            line.backup = None

    def _commit(self, line: _Line, seqs: Sequence[int]) -> None:
        slot = line.slot
        self._doubtful.pop(slot.id, None)
        self._openings.committed(slot.id)
        self._collector.known_seq = self._presence.known_seq = max(self._presence.known_seq, seqs[-1])
        line.answers = [
            (job, _numbered(outcome, seqs[after - 1]) if after > before else outcome, before, after)
            for job, outcome, before, after in line.answers
        ]
        self._answers.consider(slot)

    def _lose(self, line: _Line, appended: Appended) -> None:
        slot = line.slot
        self._counters.conflicts += 1
        entries, _ = self._collector.groups[slot.id]
        self._take_back(line)
        if appended.outcome is Outcome.NO_PREDECESSOR:
            self._presence.doubt()
            slot.account = None
        slot.look_first = LOOK_AFTER_LOSS
        taken = self._keys_taken(slot.id, entries) if appended.key_taken else set()
        for job in line.jobs:
            job.ticket.losses += 1
            if taken.intersection(keys_of(job.ticket.command)):
                job.ticket.unsure = True  # it stands in the journal already: look it up before deciding
        self._retry(line, Refused("the ledger refuses an entry again and again: run `lava doctor`"))

    def _keys_taken(self, account: str, entries: Iterable[Entry]) -> set[str | None]:
        try:
            return {found.key for found in self._journal.find(account, [one.key for one in entries if one.key])}
        except (Busy, JournalUnavailable):
            return set()

    def _failed(self, line: _Line, error: Exception, *, sent: bool = True) -> None:
        """Nobody knows whether it was written, unless it was not even sent, or the journal was merely busy."""
        slot = line.slot
        known = not sent or isinstance(error, Busy)
        if not known:
            for job, _, before, after in line.answers:
                job.ticket.unsure = job.ticket.unsure or after > before
            if slot.id in self._collector.groups:
                _, (version, _) = self._collector.groups[slot.id]
                self._doubtful[slot.id] = max(version, self._doubtful.get(slot.id, version))
            self._openings.unknown(slot.id)
            line.backup = None
        self._take_back(line)
        slot.unsure = slot.unsure or not known
        jobs, line.jobs = line.jobs, []
        for job in jobs:
            job.lost += isinstance(error, Unreachable)
            self._once_more(job, error)
        if isinstance(error, Busy):
            self._busy.add(slot.id)
            time.sleep(jitter())

    def _retry(self, line: _Line, hopeless: Exception) -> None:
        jobs, line.jobs = line.jobs, []
        for job in jobs:
            if job.ticket.losses >= _HOPELESS:
                self._meet(job, hopeless)
            else:
                self._again.append(job)

    def _once_more(self, job: Job, error: Exception) -> None:
        if isinstance(error, Busy) and job.reply is None and job.deadline <= time.monotonic():
            error = JournalUnavailable(_LATE)
        passing = isinstance(error, Busy) or (isinstance(error, Unreachable) and job.lost <= _LOST_MOST)
        if passing and job.reply is None and job.deadline > time.monotonic():
            self._again.append(job)
        else:
            self._meet(job, error)

    # Without the locks -----------------------------------------------------------------------------------------------

    def _answer(self, line: _Line) -> None:
        committed, conclude = self._answers.committed, self._answers.conclude
        for job, outcome, before, after in line.answers:
            if isinstance(outcome, Exception):
                self._meet(job, outcome)
                continue
            if after > before and outcome.seq:
                _safely(committed, job.ticket, outcome)
            if job.reply is not None:
                job.reply.put(outcome)
            else:
                _safely(conclude, job.ticket, outcome)

    def _meet(self, job: Job, error: Exception) -> None:
        if job.reply is not None:
            job.reply.put(error)
        else:
            _safely(self._answers.met, job.ticket, error)


def _safely(tell: Callable[..., object], *what: object) -> None:
    """What others do with an answer is no reason for the thread to end."""
    try:
        tell(*what)
    except Exception:
        _log.exception("something that the ledger's writer called failed")


def _comes_too_late(job: Job) -> bool:
    """Whether a question has waited so long for its turn that nobody waits for it any more."""
    return job.reply is None and not is_ending(job.ticket) and job.deadline <= time.monotonic()


def _numbered(outcome: Receipt | Exception, seq: int) -> Receipt | Exception:
    if isinstance(outcome, Exception) or not outcome.events or outcome.repeated:
        return outcome
    return outcome._replace(seq=seq)
