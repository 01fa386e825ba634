"""Processes killed at any instant of hold, extend, settle: nothing acknowledged is lost, nothing is left held."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.account import Account, evolve, from_state, to_state
from lava_middleware.core.commands import Authorize, Extend, Grant, Settle, Void
from lava_middleware.core.events import Settled, decode
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.sqlite import SqliteJournal

from ..ledger.replay import check_journal

SPAWN = multiprocessing.get_context("spawn")

CUSTOMERS = 3


def serve_and_be_killed(path: str, seed: int, rounds: int, acknowledged: int) -> None:
    """A warmed process that forks a child again and again; each child works until it is killed.

    An acknowledgement is a line in a pipe, written after the settlement was answered.
    """
    rng = random.Random(seed)
    for number in range(rounds):
        child = os.fork()
        if not child:
            try:
                work(path, f"{seed}-{number}", acknowledged)
            finally:
                os._exit(1)  # only if it was not killed: an error
        time.sleep(rng.uniform(0.01, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"


def work(path: str, name: str, acknowledged: int) -> None:
    """Calls of every shape, for ever."""
    rng = random.Random(name)
    ledger = Ledger(SqliteJournal(path, "process_crash"), deadline_s=30)
    count = 0
    while True:
        count += 1
        customer, hold = f"customer-{rng.randrange(CUSTOMERS)}", f"{name}-{count}"
        command = Authorize(hold, ledger.owner, 20, 10, 1_000_000, 40, 40, expected=25, grows=True)
        if ledger.apply(customer, command, record=f'{{"id":"{hold}","estimate":[10,5]}}').wait(30).declined:
            ledger.apply(customer, Grant(hold, 50_000)).wait(30)
            continue
        shape = rng.random()
        if shape < 0.3:
            ledger.apply(customer, Extend(hold, 1_000_000, 100, 40)).wait(30)
        if shape < 0.1:
            continue  # left open: a call that is still on its way when the process dies
        if shape < 0.2:
            ledger.apply(customer, Void(hold, "unsent")).wait(30)
        else:
            charge = rng.randrange(10, 70)
            ledger.apply(customer, Settle(hold, charge, 10, 20, "cap_ignored"), record=f'{{"id":"{hold}"}}').wait(30)
            os.write(acknowledged, f"{customer} {hold} {charge}\n".encode())


def read_all(pipe: int) -> list[tuple[str, str, int]]:
    lines = []
    with os.fdopen(pipe) as file:
        for line in file:
            if line.endswith("\n"):
                customer, hold, charge = line.split()
                lines.append((customer, hold, int(charge)))
    return lines


def run_killed_children(path: str, seed: int, rounds: int, out: Any) -> None:
    """In a process of its own, so that the forks inherit nothing of the tests."""
    reader, writer = os.pipe()
    drain = os.fork()
    if not drain:  # reads along, so that the pipe never fills
        os.close(writer)
        out.put(read_all(reader))
        out.close()
        out.join_thread()
        os._exit(0)
    os.close(reader)
    try:
        serve_and_be_killed(path, seed, rounds, writer)
    finally:
        os.close(writer)
        os.waitpid(drain, 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_and_no_hold_stays_when_processes_are_killed(
    tmp_path: Path, seed: int, soak_count: Callable[[int], int]
) -> None:
    """T9, T14, T19, G2, G3: each acknowledged settlement stands once; recovery ends the rest; the refold agrees."""
    path = str(tmp_path / "ledger.db")
    SqliteJournal(path).close()
    rounds = soak_count(200)
    out = SPAWN.Queue()
    killers = [
        SPAWN.Process(target=run_killed_children, args=(path, seed + number, -(-rounds // 2), out)) for number in (0, 1)
    ]
    for killer in killers:
        killer.start()
    acknowledged = [line for _ in killers for line in out.get(timeout=500)]
    for killer in killers:
        killer.join(60)
        assert killer.exitcode == 0
    assert len(acknowledged) > rounds

    journal = SqliteJournal(path)
    ledger = Ledger(journal)
    try:
        ledger.recover()
        check_journal(journal)
        for customer, hold, charge in acknowledged:
            (entry,) = journal.find(customer, [f"end:{hold}"])
            event = decode(entry.kind, entry.event)
            assert isinstance(event, Settled)
            assert (event.charge, event.lost_owner) == (charge, False)
            assert entry.record == f'{{"id":"{hold}"}}'
        assert {mark.owner for mark in journal.owners()} <= {ledger.owner}, "every dead process is done with"
        for customer in journal.accounts():
            account = ledger.look(customer)
            assert account.holds == {}
            assert account.reserved() == 0
            assert to_state(refolded(journal, customer)) == to_state(account)
            check_snapshot(journal, customer)
    finally:
        ledger.close()
        journal.close()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def refolded(journal: SqliteJournal, customer: str, version: int = 2**62) -> Account:
    account = Account()
    for entry in journal.since(customer, 1):
        if entry.version <= version:
            evolve(account, decode(entry.kind, entry.event), entry.at)
    return account


def check_snapshot(journal: SqliteJournal, customer: str) -> None:
    """A snapshot, where there is one, is what the entries up to it add up to."""
    snapshot = journal.snapshot(customer)
    if snapshot is not None:
        assert from_state(snapshot.state) == refolded(journal, customer, snapshot.version)


def recover_for_ever(path: str) -> None:
    ledger = Ledger(SqliteJournal(path, "process_crash"), deadline_s=30)
    ledger.recover()
    os._exit(0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_recovery_itself_can_be_killed_at_any_instant(
    tmp_path: Path, rng: random.Random, soak_count: Callable[[int], int]
) -> None:
    """What one recovery leaves, the next one ends; each hold is ended once."""
    path = str(tmp_path / "ledger.db")
    journal = SqliteJournal(path)
    ledger = Ledger(journal)
    try:
        ledger.apply("customer-0", Grant("all", 10**9)).wait(30)
        holder = SPAWN.Process(target=hold_many_and_die, args=(path, 400))
        holder.start()
        holder.join(60)
        for _ in range(soak_count(30)):
            recoverer = SPAWN.Process(target=recover_for_ever, args=(path,))
            recoverer.start()
            time.sleep(rng.uniform(0.25, 0.45))
            recoverer.kill()
            recoverer.join(60)
        ledger.recover()
        assert ledger.look("customer-0").holds == {}
        check_journal(journal)
        endings = [entry.key for entry in journal.read(0, 10**6) if entry.kind == Settled.kind]
        assert len(endings) == len(set(endings)) == 400
    finally:
        ledger.close()
        journal.close()


def hold_many_and_die(path: str, holds: int) -> None:
    ledger = Ledger(SqliteJournal(path, "process_crash"), deadline_s=30)
    for count in range(holds):
        ledger.apply("customer-0", Authorize(f"h{count}", ledger.owner, 10, 0, 0, 0, 0, expected=5)).wait(30)
    os._exit(0)
