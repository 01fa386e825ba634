"""Processes killed at any instant of hold, extend, settle: nothing acknowledged is lost, nothing is left held."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.account import Account
from lava_middleware.core.commands import Grant
from lava_middleware.core.events import Adjusted, Settled, decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import from_state, to_state
from lava_middleware.ledger import ledger as ledger_module
from lava_middleware.ledger.journal import Journal
from lava_middleware.ledger.ledger import Ledger
from tests import postgres

from ..ledger.conftest import OpenPostgres, OpenSqlite
from ..ledger.replay import all_entries, check_journal
from . import ledger_players
from .kit import FORKSERVER, eventually, run_processes

TTL_S = 1.5
"""On PostgreSQL a process is dead here after so long without a heartbeat; a file's lock tells at once."""


@dataclass(frozen=True)
class Killing:
    open: Callable[[], Journal]
    processes: int
    """On one host, or each as if on a host of its own."""
    holds: int
    """More than they end before somebody can kill them."""


@pytest.fixture(params=["sqlite", "postgres"])
def killing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killing]:
    monkeypatch.setattr(ledger_module, "RECOVER_S", TTL_S / 4)  # who looks for the dead, looks all the while
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        yield Killing(OpenSqlite(path, "process_crash"), 2, 600)
        with contextlib.closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return
    url = postgres.fresh_url()
    yield Killing(OpenPostgres(url, TTL_S), 8, 100)
    postgres.drop(url)


@contextlib.contextmanager
def used(killing: Killing) -> Iterator[tuple[Journal, Ledger]]:
    journal = killing.open()
    ledger = Ledger(journal, deadline_s=30)
    try:
        yield journal, ledger
    finally:
        ledger.close()
        journal.close()


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_nothing_acknowledged_is_lost_and_no_hold_stays_when_processes_are_killed(
    killing: Killing, tmp_path: Path, seed: int, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T9, T14, T15, T19, G2, G3: each acknowledged settlement stands once; recovery, in a process that lives on, ends
    the rest; the refold of the entries is what memory and the snapshots say."""
    told = tmp_path / "told"
    told.touch()
    each = -(-soak_count(300) // killing.processes)
    with used(killing) as (journal, ledger):
        run_processes(
            ledger_players.keep_killing_children,
            [(killing.open, seed + number, each, str(told)) for number in range(killing.processes)],
            within_s=3_600,
        )
        eventually(lambda: no_dead_are_left(journal, ledger), 120)
        acknowledged = [line.split() for line in told.read_text().splitlines()]
        assert len(acknowledged) > each * killing.processes
        check_journal(journal)
        late = sum(
            settled_late(journal, customer, hold, int(charge), ledger.owner) for customer, hold, charge in acknowledged
        )
        for customer in journal.accounts():
            account = ledger.look(customer)
            assert account.holds == {}
            assert account.reserved() == 0
            assert to_state(refolded(journal, customer)) == to_state(account)
            check_snapshot(journal, customer)
        endings = Counter((one.account, one.key) for one in all_entries(journal) if one.kind == Settled.kind)
        assert set(endings.values()) == {1}
        figures(
            f"{each * killing.processes} killed in {killing.processes} processes: {len(acknowledged)} acknowledged, "
            f"{ledger.counters.recovered} ended by the one that lived, {late} of them said more later"
        )


def no_dead_are_left(journal: Journal, ledger: Ledger) -> bool:
    ledger.recover()
    return {mark.owner for mark in journal.owners()} <= {ledger.owner}


def settled_late(journal: Journal, customer: str, hold: str, charge: int, owner: str) -> bool:
    """The settlement stands once. True: its process had been taken for dead, so it is an adjustment."""
    (entry,) = journal.find(customer, [f"end:{hold}"])
    event = decode(entry.kind, entry.event)
    assert isinstance(event, Settled)
    if not event.lost_owner:
        assert event.charge == charge
        assert entry.record == f'{{"id":"{hold}"}}'
        return False
    assert owner.startswith("pg-"), "a file's lock is held for as long as its process lives"
    (late,) = journal.find(customer, [f"late:{hold}"])
    adjusted = decode(late.kind, late.event)
    assert isinstance(adjusted, Adjusted)
    assert event.charge + adjusted.charge == charge
    return True


def refolded(journal: Journal, customer: str, version: int = 2**62) -> Account:
    account = Account()
    for entry in journal.since(customer, 1):
        if entry.version <= version:
            evolve(account, decode(entry.kind, entry.event), entry.at)
    return account


def check_snapshot(journal: Journal, customer: str) -> None:
    """A snapshot, where there is one, is what the entries up to it add up to."""
    snapshot = journal.snapshot(customer)
    if snapshot is not None:
        assert from_state(snapshot.state) == refolded(journal, customer, snapshot.version)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_recovery_itself_can_be_killed_at_any_instant(
    killing: Killing, rng: random.Random, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T9: what one recovery leaves, the next one ends, and what several find at once is ended once."""
    rounds = soak_count(20)
    holds = killing.holds * (rounds + 1)
    with used(killing) as (_, ledger):
        ledger.apply("customer-0", Grant("all", 10**9)).wait(30)
    holder = FORKSERVER.Process(target=ledger_players.hold_many_and_die, args=(killing.open, holds))
    holder.start()
    holder.join(300)
    assert holder.exitcode == 0
    killed = 0
    with contextlib.closing(killing.open()) as journal:
        for _ in range(rounds):
            killed += kill_while_they_recover(killing, journal, rng)
    assert killed
    with used(killing) as (journal, ledger):
        left = len(ledger.look("customer-0").holds)
        assert left < holds, "those that were killed have ended some"
        eventually(lambda: no_dead_are_left(journal, ledger), 120)
        assert ledger.look("customer-0").holds == {}
        check_journal(journal)
        endings = [entry.key for entry in all_entries(journal) if entry.kind == Settled.kind]
        assert len(endings) == len(set(endings)) == holds
        figures(f"{killed} killed while they recovered: {holds - left} of {holds} holds ended by them, {left} after")


def kill_while_they_recover(killing: Killing, journal: Journal, rng: random.Random) -> int:
    """Processes that all find the same dead are killed once they have ended a few holds; how many were killed."""
    enough = journal.last_seq() + rng.randrange(1, 20)
    recoverers: list[Any] = [
        FORKSERVER.Process(target=ledger_players.recover_to_the_end, args=(killing.open,))
        for _ in range(killing.processes)
    ]
    for one in recoverers:
        one.start()
    eventually(lambda: journal.last_seq() >= enough or not all(one.is_alive() for one in recoverers), 300)
    time.sleep(rng.uniform(0, 0.01))
    for one in recoverers:
        one.kill()
        one.join()
    exits = Counter(one.exitcode for one in recoverers)
    assert exits.keys() <= {-signal.SIGKILL, 0}, "it ended by itself: its error is above"  # 0: it was done already
    return exits[-signal.SIGKILL]
