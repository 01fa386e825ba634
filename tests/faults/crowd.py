"""This file knows how to keep processes at work on one ledger, to kill them, and to judge what they leave behind.

What they tell is kept apart from the ledger: a process that tells a settlement has had the answer that it is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lava_middleware import Lava
from lava_middleware.core.events import Held
from lava_middleware.ids import now_us
from lava_middleware.lava import record_of_entry
from lava_middleware.ledger.audit import audit
from lava_middleware.ledger.journal import Journal
from lava_middleware.testing import FakeProvider, Script
from lava_middleware.testing.served import Served
from tests.ledger.replay import Replay

from . import players
from .kit import FORKSERVER, eventually, lava_at, nothing_is_held

CUSTOMERS = ("plenty", "little", "limited")
"""Who never runs out; who gets a little again and again, which soon expires; who may use so many tokens a month."""
LIMIT_TOKENS = 200_000
PATIENCE_S = 300.0
"""How long anything may take that is waited for: a soak of hours runs at the lowest priority beside other work."""


@dataclass(frozen=True)
class Told:
    """One settlement that a process knows to be written, and when on the machine's clock: its call began, it knew."""

    began_ns: int
    knew_ns: int
    customer: str
    id: str


class Crowd:
    """Processes on one ledger, a file or the URL of another. `place`: a directory for what they tell and export."""

    def __init__(
        self,
        provider: FakeProvider,
        ledger: Path | str,
        place: Path,
        rng: random.Random,
        *,
        size: int,
        jumps: bool = False,
    ) -> None:
        self.provider = provider
        self.ledger = ledger
        self.export = (place if isinstance(ledger, str) else ledger.parent) / "usage.jsonl"
        self.place = place
        self.kills = 0
        self._rng = rng
        self._size = size
        self._jumps = jumps
        self._started = 0
        self._running: list[Any] = []
        for name in players.TELLS:
            (place / name).touch()
        self.export.touch()
        with lava_at(provider, ledger) as lava:
            lava.grant("plenty", "100000", key="start")
            lava.grant("limited", "100000", key="start")
            lava.limit("limited", LIMIT_TOKENS)

    def __enter__(self) -> Crowd:
        self.fill_up()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.join()
        self._running.clear()

    def fill_up(self) -> None:
        """Start as many as are missing, and wait until all are at work."""
        while len(self._running) < self._size:
            self._started += 1
            arguments = (self.provider.url, str(self.ledger), str(self.export), str(self.place))
            seed = self._rng.randrange(2**32)
            process = FORKSERVER.Process(target=players.live_until_killed, args=(*arguments, seed, self._jumps))
            process.start()
            self._running.append(process)
        eventually(partial(_has_grown_to, self.place / "ready", self._started), PATIENCE_S)

    def kill(self, number: int = 0) -> None:
        """Kill the one that has lived longest, or the next after it."""
        process = self._running.pop(number)
        assert process.is_alive(), "it ended by itself: its error is above"
        process.kill()
        process.join()
        self.kills += 1

    def kill_all(self) -> None:
        while self._running:
            self.kill()

    def kill_some(self, kills: int, longest_s: float) -> None:
        """Kill one at a random instant and put another in its place, again and again."""
        for _ in range(kills):
            self.fill_up()
            time.sleep(self._rng.uniform(0, 1) ** 2 * longest_s)
            self.kill()

    def oldest_pid(self) -> int:
        pid: int = self._running[0].pid
        return pid

    def pids(self) -> list[int]:
        return [process.pid for process in self._running]

    def told(self) -> list[Told]:
        lines = [line.split() for line in (self.place / "told").read_text().splitlines()]
        return [Told(int(began), int(knew), customer, id) for began, knew, customer, id in lines]

    def size_of(self, tell: str) -> int:
        return (self.place / tell).stat().st_size

    def wait_for(self, tell: str, more: int, within_s: float = PATIENCE_S) -> None:
        """Until so many bytes more have been told in this way."""
        eventually(partial(_has_grown_to, self.place / tell, self.size_of(tell) + more), within_s)

    def wait_for_silence(self, tell: str, for_s: float = 0.5, within_s: float = PATIENCE_S) -> None:
        """Until nobody has told anything of this kind for a while."""
        until = time.monotonic() + within_s
        size, since = self.size_of(tell), time.monotonic()
        while time.monotonic() - since < for_s:
            assert time.monotonic() < until, "they still go on"
            time.sleep(0.02)
            if (now := self.size_of(tell)) != size:
                size, since = now, time.monotonic()


def _has_grown_to(path: Path, size: int) -> bool:
    return path.stat().st_size >= size


@contextlib.contextmanager
def stand_in(rng: random.Random) -> Iterator[FakeProvider]:
    """A provider whose answers take their time, more or less."""

    def script(_: Served) -> Script:
        return Script(output_tokens=rng.choice((20, 150)), tokens_per_chunk=2, chunk_delay_s=rng.choice((0, 0.0005)))

    with FakeProvider(script) as provider:
        yield provider


@dataclass
class Seen:
    """What a journal holds, read along, each entry checked against all before it (G4, G5, G2)."""

    last: int = 0
    holds: int = 0
    voids: int = 0
    replays: dict[str, Replay] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    """Records by kind."""
    records: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Id → (customer, whether its process lived to settle it)"""

    def read(self, journal: Journal) -> None:
        while entries := journal.read(self.last):
            for entry in entries:
                self.replays.setdefault(entry.account, Replay()).entry(entry)
                self.holds += entry.kind == Held.kind
                self.voids += entry.kind.startswith("voided")
                record = record_of_entry(entry)
                if record is not None:
                    assert record.id not in self.records, "a record id stands once"
                    self.records[record.id] = record.customer, record.kind != "expired"
                    self.kinds[record.kind] += 1
            self.last = entries[-1].seq

    def has(self, told: Iterable[Told]) -> None:
        """Each of them stands, once, on the customer who was bound, and nobody took its process for dead before."""
        for one in told:
            assert self.records.get(one.id) == (one.customer, True), "what was acknowledged is in the ledger"


def examine(crowd: Crowd, *, may_be_lost: Callable[[Told], bool] | None = None) -> tuple[Seen, str]:
    """After all have been killed: recovery ends every hold, every guarantee holds, the export has every record.

    `may_be_lost`: what an operator gave up by putting an older copy of the ledger in its place.
    """
    crowd.provider.wait_idle()
    told = crowd.told()
    kept = [one for one in told if may_be_lost is None or not may_be_lost(one)]
    with lava_at(crowd.provider, crowd.ledger, export_jsonl=str(crowd.export)) as lava:
        if isinstance(crowd.ledger, Path):
            lava.ledger.recover()
            assert nothing_is_held(lava, *CUSTOMERS), "recovery ends every hold"
        else:  # who is dead is known a while later
            eventually(lambda: lava.ledger.recover() or nothing_is_held(lava, *CUSTOMERS), 30)
        seen = Seen()
        seen.read(lava.journal)
        assert all(not replay.holds for replay in seen.replays.values())
        seen.has(kept)
        found = audit(lava.journal, now_us())
        assert (found.differences, found.holds) == ([], []), "the refold is what the snapshots and balances say"
        _drain(lava, seen.last)
        repeated = _check_export(crowd.export, seen, whole=may_be_lost is None)
    if may_be_lost is None:
        assert crowd.provider.count <= seen.holds, "nothing was sent without a committed hold"
        assert seen.holds == len(seen.records) + seen.voids, "every hold ended once"
    if isinstance(crowd.ledger, Path):
        with contextlib.closing(sqlite3.connect(crowd.ledger)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return seen, (
        f"{crowd.kills} kills: {len(seen.records):,} records, {len(kept):,} acknowledged and there,"
        f" {len(told) - len(kept):,} given up, {seen.kinds['expired']} settled by recovery, {repeated} exported twice"
    )


def _drain(lava: Lava, last: int) -> None:
    for follower in lava._followers:
        follower.wake()
    eventually(lambda: (lava.journal.cursor("jsonl") or 0) >= last, 120)


def _check_export(export: Path, seen: Seen, *, whole: bool) -> int:
    """Every record is there, a repeated one as it was; how many were repeated. After a restore there may be more."""
    lines: dict[str, int] = {}
    count = 0
    with export.open(encoding="utf-8") as file:
        for line in file:
            one, count = json.loads(line), count + 1
            same = hash(json.dumps(one, sort_keys=True))
            assert lines.setdefault(one["id"], same) == same or not whole, "repeated as it was"
    assert lines.keys() >= seen.records.keys(), "every record was exported"
    assert not whole or lines.keys() == seen.records.keys()
    return count - len(lines)


def resident_kb(pid: int) -> int:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
