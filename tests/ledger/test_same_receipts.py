"""Whatever is asked, and on whatever journal it is kept: the same receipts, the same entries, to the last digit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from lava_middleware.core.account import Account
from lava_middleware.core.decide import as_of
from lava_middleware.core.events import decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import to_state
from lava_middleware.ledger.journal import Entry, Journal
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.testing import FrozenClock

from .conftest import PLACES, OpenSqlite, Place
from .lives import Answer, Burst, Reference, answer_of, bursts
from .replay import all_entries

KEPT: dict[str, Callable[[Path], Place]] = {
    **PLACES,
    "sqlite": lambda directory: Place(OpenSqlite(directory / "lava.db", "process_crash"), shared=True),
}


class Played(NamedTuple):
    answers: list[Answer]
    entries: dict[str, list[Entry]]


class Processes:
    """One process on a ledger, or several that take turns: each has a ledger, a journal and a memory of its own."""

    def __init__(self, place: Place, clock: FrozenClock, count: int, cache_size: int) -> None:
        self.clock = clock
        self._place, self._cache_size = place, cache_size
        self.open = [self._opened() for _ in range(count)]

    def _opened(self) -> tuple[Journal, Ledger]:
        journal = self._place.open()
        return journal, Ledger(journal, clock=self.clock, deadline_s=60, cache_size=self._cache_size)

    def ledger(self, where: int) -> Ledger:
        return self.open[where % len(self.open)][1]

    def reopen(self, where: int) -> None:
        self.close(where)
        self.open[where % len(self.open)] = self._opened()

    def close(self, where: int) -> None:
        journal, ledger = self.open[where % len(self.open)]
        ledger.close()
        if self._place.shared:  # what is in memory goes with its journal
            journal.close()

    def close_all(self) -> None:
        for number in range(len(self.open)):
            self.close(number)


def played(place: Place, asked: list[Burst], *, processes: int, cache_size: int) -> Played:
    """What a ledger answers and writes. Nothing in it is believed that a fold of its entries does not say too."""
    clock = FrozenClock(asked[0].clock)
    with ExitStack() as stack:
        stack.callback(place.clean)
        running = Processes(place, clock, processes, cache_size)
        stack.callback(running.close_all)
        answers = []
        for burst in asked:
            clock.set(burst.clock)
            if burst.reopen:
                running.reopen(burst.where)
            ledger = running.ledger(burst.where)
            tickets = [ledger.apply(one.customer, one.command, record=one.record) for one in burst.asked]
            answers += [answer_of(ticket) for ticket in tickets]
        found = _written(running)
        running.reopen(0)
        assert _written(running) == found
    return Played(answers, found)


def _written(running: Processes) -> dict[str, list[Entry]]:
    """Each customer's entries; the account in memory and the snapshot are what they add up to."""
    written: dict[str, list[Entry]] = defaultdict(list)
    for journal, ledger in running.open:
        written.clear()
        for entry in all_entries(journal):
            written[entry.account].append(entry._replace(seq=0))
        for customer, entries in written.items():
            snapshot = journal.snapshot(customer)
            account = Account()
            for entry in entries:
                evolve(account, decode(entry.kind, entry.event), entry.at)
                if snapshot is not None and snapshot.version == entry.version:
                    assert snapshot.state == to_state(account)
            assert to_state(ledger.look(customer)) == to_state(as_of(account, running.clock()))
    return dict(written)


def check(seed: int, directory: Path, *, processes: int = 1, cache_size: int = 10_000) -> tuple[int, int]:
    """(commands, entries) of some lives that all journals and the reference agree about."""
    asked = bursts(seed)
    commands = [one for burst in asked for one in burst.asked]
    references: dict[str, Reference] = {}
    expected = []
    for burst in asked:
        for one in burst.asked:
            reference = references.setdefault(one.customer, Reference(one.customer))
            expected.append(reference.apply(one, burst.clock))
    entries = {customer: one.entries for customer, one in references.items() if one.entries}
    for name, make in KEPT.items():
        directory.mkdir(exist_ok=True)
        played_here = played(make(directory), asked, processes=processes, cache_size=cache_size)
        for number, (here, there) in enumerate(zip(played_here.answers, expected, strict=True)):
            assert here == there, f"{name}, command {number}: {commands[number]}"
        assert played_here.entries == entries, name
    return len(expected), sum(map(len, entries.values()))


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("processes", [1, 2])
def test_all_journals_answer_alike_and_write_the_same(
    tmp_path: Path, seed: int, processes: int, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T1, T15, T42, T44, G4: random lives of three customers, asked one by one and in bursts, over ledgers that are
    closed and opened again, whose memory holds every account or just one, by clocks that are set wrong for a while.

    On PostgreSQL a burst is decided ahead and appended in batches; two processes take turns and hear of each other by
    the journal only. Each answers what one does that looks at all there is before every command."""
    commands = entries = 0
    for number in range(soak_count(40)):
        life = seed * 1_000 + number
        try:
            more = check(life, tmp_path / str(number), processes=processes, cache_size=(10_000, 1)[number % 2])
        except AssertionError as wrong:
            raise AssertionError(f"check({life}, ..., {processes=}) goes wrong") from wrong
        commands, entries = commands + more[0], entries + more[1]
    figures(f"{commands:,} commands and {entries:,} entries, the same on {len(KEPT)} journals to the last digit")
