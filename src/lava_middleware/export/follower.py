"""This file knows how to follow the journal: hand over every usage record at least once, in order, and remember where.

The journal is the outbox. A follower reads short chunks above its cursor, waits until they are as durable as the
setting promises, hands over the records in them, and only then moves the cursor. A crash between the two repeats
records with the same id. Of all followers of one name on one ledger, one is at work; when it ends another goes on.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias

from ..core.events import UnknownKind, decode
from ..core.record import Record, record_of
from ..ledger.journal import Busy, Entry, Journal
from .lease import Lease
from .metrics import exported, watch

logger = logging.getLogger("lava_middleware")

CHUNK = 200
"""Entries read at once: an open reader stops checkpoints (T47)."""
POLL_S = 0.2
IDLE_POLL_S = 1.0
STANDBY_S = 1.0
"""How often those who are not at work ask whether the one who was has gone."""
UNWANTED_POLL_S = 5.0
SYNC_TIMEOUT_S = 5.0
INSIST_TIMES = 500
"""About a second and a half."""
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
RETRY_AFTER_MOST_S = 3600.0


class Sent(Protocol):
    """What is handed over of one entry."""

    @property
    def seq(self) -> int: ...


Choose: TypeAlias = Callable[[Journal, Entry], Sent | None]
"""What of an entry is handed over; None: nothing."""


class PermanentRefusal(Exception):
    """The target will never take this: the payload itself is wrong. It becomes a dead letter, and the rest goes on."""


class RetryLater(Exception):
    """The target cannot take it now, and perhaps said when to come back."""

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Host(Protocol):
    """What a follower needs of a Lava."""

    @property
    def journal(self) -> Journal: ...

    @property
    def clock(self) -> Callable[[], int]: ...


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a follower is behind."""

    pending: int
    """Entries of the journal it has still to pass; not all of them carry a record."""
    oldest_age_s: float
    """Age of the oldest of them; 0 when there is none."""


class Follower:
    """Hands the journal's usage records to `deliver`, at least once each, from a thread of its own.

    `deliver(records)` gets up to some hundred at once, oldest first. What it raises decides what becomes of them:
    PermanentRefusal makes dead letters (a refused batch is halved until the guilty ones are found), anything else
    holds them back and is tried again, later and later, at most a minute apart; RetryLater may say when.

    `name` names the cursor and the lock file. `oldest_s`: records older than that are passed over. `wanted`: while it
    says False nothing is read and the cursor stays. `choose` hands over something else than usage records.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[Any]], None],
        *,
        chunk: int = CHUNK,
        poll_s: float = POLL_S,
        oldest_s: float | None = None,
        wanted: Callable[[], bool] = lambda: True,
        finish: Callable[[], None] = lambda: None,
        choose: Choose | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ValueError("a follower's name is 1 to 63 letters, digits, dots, dashes or underscores")
        self.name = name
        self.lag = Lag(0, 0.0)
        """As of the last look; of the one who is at work only."""
        self._deliver = deliver
        self._chunk = chunk
        self._poll_s = poll_s
        self._oldest_s = oldest_s
        self._wanted = wanted
        self._finish = finish
        self._choose = choose or _record_in
        self._host: Host | None = None
        self._lease: Lease | None = None
        self._pid = 0
        self._thread: threading.Thread | None = None
        self._calls: SimpleQueue[bool] = SimpleQueue()
        """What the thread sleeps on: True says look again, False says stop."""
        self._closed = False
        self._failures = 0
        watch(self)

    def __repr__(self) -> str:
        return f"<Follower {self.name}>"

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        """Follow this Lava's journal from the first wake() on. Starts no thread: the process may still fork."""
        if self._host is not None:
            raise ValueError("this follower has a ledger already: make another one for another Lava")
        self._host = host
        self._lease = Lease(host.journal, self.name)

    def wake(self) -> None:
        """There is, or soon will be, something to do: see to it that the thread runs. Cheap; not for finalisers."""
        if self._pid != os.getpid() and not self._closed:
            self._begin()

    def close(self, timeout_s: float = 2.0) -> None:
        """Look once more, then stop; what is not sent by then stays in the journal. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None and self._pid == os.getpid():
            self._calls.put(False)
            self._thread.join(timeout_s)
        self._pid = 0

    def _begin(self) -> None:
        if self._host is None:
            raise ValueError("a follower is woken after start()")
        with _begin_lock:
            if self._pid == os.getpid():
                return
            calls = self._calls = SimpleQueue()
            self._thread = threading.Thread(
                target=self._run, args=(calls,), name=f"lava-follow-{self.name}", daemon=True
            )
            self._thread.start()
            self._pid = os.getpid()

    def _run(self, calls: SimpleQueue[bool]) -> None:
        going = True
        while going:
            pause_s = self._look()
            going = _next_call(calls, pause_s)
        self._look()
        assert self._lease is not None
        self._lease.give_up()
        self._finish()

    def _look(self) -> float:
        """Drain what is there; the seconds to wait before looking again."""
        try:
            if not self._wanted():
                return UNWANTED_POLL_S
            assert self._lease is not None
            if not self._lease.take():
                self.lag = Lag(0, 0.0)
                return STANDBY_S
            moved = self.drain()
        except Exception as error:
            return self._hold_back(error)
        if self._failures:
            self._failures = 0
            logger.info("lava: exporter %s works again", self.name)
        return self._poll_s if moved else max(self._poll_s, IDLE_POLL_S)

    def _hold_back(self, error: Exception) -> float:
        if isinstance(error, Busy):
            return self._poll_s
        if isinstance(error, UnknownKind):
            assert self._lease is not None
            self._lease.give_up()  # a process of the newer release can go on
        self._failures += 1
        if self._failures == 1:
            logger.warning(
                "lava: exporter %s cannot deliver and will try again (%s: %.200s); nothing is lost, see lava doctor",
                self.name,
                type(error).__name__,
                error,
            )
        return _backoff_s(self._failures, error)

    # Work ------------------------------------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Hand over everything there is, chunk by chunk; whether there was anything. Raises what `deliver` raises."""
        assert self._host is not None
        journal = self._host.journal
        moved = False
        while True:
            cursor = journal.cursor(self.name)
            entries = journal.read(cursor, self._chunk)
            self._note_lag(journal, cursor, entries)
            if not entries:
                return moved
            # All that was read was appended before this flush begins, by whichever process.
            if not journal.sync(SYNC_TIMEOUT_S):
                raise RetryLater("the ledger could not be flushed to disk in time")
            read = {entry.seq: entry for entry in entries}
            last = self._hand_over(journal, [made for made in map(self._to_send, entries) if made is not None], read)
            if last != entries[-1].seq:
                self._save_cursor(journal, entries[-1])
            moved = True

    def _to_send(self, entry: Entry) -> Sent | None:
        assert self._host is not None
        if self._oldest_s is not None and self._host.clock() - entry.at > self._oldest_s * 1_000_000:
            return None
        return self._choose(self._host.journal, entry)

    def _hand_over(self, journal: Journal, records: list[Sent], read: Mapping[int, Entry]) -> int:
        """Deliver or bury them and move the cursor to the last of them; its seq."""
        if not records:
            return 0
        try:
            self._deliver(records)
        except PermanentRefusal as refusal:
            if len(records) > 1:
                middle = len(records) // 2
                self._hand_over(journal, records[:middle], read)
                return self._hand_over(journal, records[middle:], read)
            reason = str(refusal)[:500]
            _insist(lambda: journal.bury(self.name, records[0].seq, reason))
            exported(self.name, "refused", 1)
            logger.error("lava: exporter %s was refused a record for good; see dead letters in lava doctor", self.name)
        except Exception:
            exported(self.name, "held", len(records))
            raise
        else:
            exported(self.name, "sent", len(records))
        self._save_cursor(journal, read[records[-1].seq])
        return records[-1].seq

    def _save_cursor(self, journal: Journal, last: Entry) -> None:
        """Not if the journal was put back to an older state during the delivery: there the number may be another
        entry's, which would be passed over (T42). The cursor is an older one then, too, and what follows it comes."""
        _insist(lambda: journal.save_cursor(self.name, last.seq, last))

    def _note_lag(self, journal: Journal, cursor: int, entries: list[Entry]) -> None:
        assert self._host is not None
        self.lag = lag_of(journal, cursor, self._host.clock(), entries)


def _record_in(_: Journal, entry: Entry) -> Record | None:
    return record_of(
        decode(entry.kind, entry.event),
        entry.record,
        customer=entry.account,
        at=entry.at,
        seq=entry.seq,
        balance_after=entry.balance_after,
    )


def _insist(write: Callable[[], None]) -> None:
    """Write although others write too: to give up here would send again what was sent."""
    for _ in range(INSIST_TIMES):
        try:
            return write()
        except Busy:
            time.sleep(random.uniform(0.0005, 0.005))
    return write()


def lag_of(journal: Journal, cursor: int, now: int, entries: Sequence[Entry] | None = None) -> Lag:
    """How far a follower with this cursor is behind at `now` (microseconds since 1970)."""
    first = journal.read(cursor, 1) if entries is None else entries
    if not first:
        return Lag(0, 0.0)
    return Lag(journal.last_seq() - cursor, max(0.0, (now - first[0].at) / 1_000_000))


def _next_call(calls: SimpleQueue[bool], pause_s: float) -> bool:
    """Sleep until called or until the pause is over; False: stop."""
    try:
        return calls.get(timeout=pause_s)
    except Empty:
        return True


def _backoff_s(failures: int, error: Exception) -> float:
    """Twice as long after each failure, up to a minute, jittered; never sooner than the target asked for."""
    ceiling = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 20))
    pause_s = random.uniform(ceiling / 2, ceiling)
    asked = getattr(error, "retry_after_s", None) if isinstance(error, RetryLater) else None
    return pause_s if asked is None else max(pause_s, min(asked, RETRY_AFTER_MOST_S))


def _after_fork_in_child() -> None:
    global _begin_lock
    _begin_lock = threading.Lock()


_begin_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
