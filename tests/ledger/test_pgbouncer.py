"""A real PgBouncer in transaction mode in between: a few server connections for everybody, another at every turn.

What needs a session (a prepared statement's name, a SET, a session's lock, a LISTEN) would fail here or hurt somebody
else. All that a journal promises, and what is PostgreSQL's alone, is asked of it once more through the pooler.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lava_middleware.ledger.journal import JournalUnavailable
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.postgres.journal import PostgresJournal
from lava_middleware.ledger.postgres.psycopg import Link
from lava_middleware.ledger.ticket import LedgerUnavailable
from tests import postgres
from tests.faults import test_postgres as troubles
from tests.faults.kit import FORKSERVER, run_processes

from . import players, test_journal_contract, test_postgres
from .conftest import SOON_S, OpenPostgres, Place
from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal

POOL = 3

DIRECTLY = {
    # test → why it does not go through a pooler.
    "test_who_may_only_use_the_tables_can_use_the_ledger": "this pooler lets everybody in as one user",
    "test_the_journal_can_be_written_alone": "no journal in PostgreSQL offers exclusive()",
    "test_errors_name_neither_passwords_nor_customers": "its URLs lead nowhere",
    "test_processes_on_the_same_accounts_leave_histories_without_gaps": "two processes do so below, with more at stake",
    "test_all_of_it_works_through_a_pooler_that_swaps_connections": "it brings a pooler of its own",
}
globals().update(
    (name, one)
    for module in (test_journal_contract, test_postgres)
    for name, one in vars(module).items()
    if name.startswith("test_") and name not in DIRECTLY
)


@pytest.fixture(scope="module")
def pgbouncer() -> Iterator[postgres.Pgbouncer]:
    with postgres.Pgbouncer(_server(), default_pool_size=str(POOL)) as one:
        yield one


@pytest.fixture
def url(pgbouncer: postgres.Pgbouncer) -> Iterator[str]:
    with _fresh(pgbouncer) as made:
        yield made


@pytest.fixture(autouse=True)
def _looked_at_from_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that knows nothing of ledgers knows nothing of poolers either: after five times psycopg prepares."""
    raw, there = test_postgres.raw, _server()

    def direct(url: str, **more: Any) -> Any:
        return raw(f"{there}?{url.partition('?')[2]}", **more)

    monkeypatch.setattr(test_postgres, "raw", direct)


@pytest.fixture
def place(url: str) -> Place:
    return Place(OpenPostgres(url), shared=True)


def _server() -> str:
    return postgres.fresh_url().partition("?")[0]


@contextmanager
def _fresh(pgbouncer: postgres.Pgbouncer) -> Iterator[str]:
    """A ledger behind the pooler that nobody has used yet."""
    made = postgres.fresh_url()
    yield pgbouncer.url + "?" + made.partition("?")[2]
    postgres.drop(made)


def test_connections_are_really_swapped(pgbouncer: postgres.Pgbouncer) -> None:
    """Or nothing here would show anything: one client meets several servers, and all clients meet the same few."""
    seen: list[set[int]] = []

    def ask() -> None:
        link = Link(pgbouncer.url, 10)
        seen.append({link.fetch("SELECT pg_backend_pid()")[0][0] for _ in range(100)})
        link.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert max(map(len, seen)) > 1
    assert len(set().union(*seen)) <= POOL


def test_processes_and_threads_share_a_few_connections_and_no_credit(
    pgbouncer: postgres.Pgbouncer, url: str, seed: int, soak_count: Callable[[int], int]
) -> None:
    """T1, T9, G4: two processes of three threads each hold, extend, settle, void and leave holds behind, until all are
    declined; what is in the journal adds up, and what memory says is that."""
    place, accounts = OpenPostgres(url, SOON_S), 2
    names = [f"customer-{number}" for number in range(accounts)]
    with closing(place()) as journal, opened(journal, deadline_s=20) as ledger:
        for name in names:
            ledger.apply(name, grant(2_000)).wait(10)
        told = run_processes(
            players.play_until_declined,
            [(place, number, seed, 3, soak_count(100), accounts) for number in range(2)],
        )
        assert [errors for errors, *_ in told] == [[], []]
        assert len(pgbouncer.show("servers")) <= POOL
        eventually(lambda: ledger.recover() or not any(ledger.look(name).holds for name in names), 60)
        totals = check_journal(journal)
        for name in names:
            account = ledger.look(name)
            assert account.holds == {}
            assert (account.version, account.charged, account.debt) == (
                totals[name].version,
                totals[name].charged,
                totals[name].debt,
            )


def test_several_go_on_alone_although_there_are_fewer_connections(url: str) -> None:
    """Each sits on a connection for as long as its transaction lasts; who waits for the same account sits on one, too.

    The commit goes over the connection that has the lock, so nobody waits for a connection that only he could free.
    """
    with closing(PostgresJournal(url, timeout_s=10)) as first:
        first.append([test_journal_contract.entry(1)], (0, 0))
    versions: list[int] = []

    def add() -> None:
        with closing(PostgresJournal(url, timeout_s=20)) as journal:
            for _ in range(10):
                with journal.alone([("acme", 1)]) as alone:
                    last = alone.tails["acme"][-1]
                    one = test_journal_contract.entry(last.version + 1)
                    (told,) = alone.commit([([one], (last.version, last.at))])
                    assert told.seqs
                    versions.append(one.version)

    threads = [threading.Thread(target=add) for _ in range(2 * POOL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(2, 20 * POOL + 2))


def test_a_lease_and_holds_of_a_process_that_died_are_taken_over(url: str) -> None:
    """T9: beats are seen through the pooler, and a client that is cut off from it is not dead before its time."""
    place = OpenPostgres(url, SOON_S)
    with closing(place()) as journal, opened(journal, deadline_s=20) as ledger:
        ledger.apply("acme", grant(1_000)).wait(10)
        process = FORKSERVER.Process(target=_hold_lease_and_die, args=(place,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert not journal.take_lease("jsonl")
        assert [mark.alive for mark in journal.owners()] == [True, True]
        eventually(lambda: journal.take_lease("jsonl"), 30)
        eventually(lambda: ledger.recover() or not ledger.look("acme").holds, 30)
        check_journal(journal)


def _hold_lease_and_die(place: Callable[[], PostgresJournal]) -> None:
    journal = place()
    ledger = Ledger(journal)
    assert ledger.apply("acme", ask_for(ledger, 100, "left")).wait(20).declined is None
    assert journal.take_lease("jsonl")
    os._exit(0)


def test_a_pool_that_others_have_used_up_is_an_outage_that_ends(pgbouncer: postgres.Pgbouncer, url: str) -> None:
    """T27: a question is refused in time, what has happened is written when there is a connection again."""
    with (
        closing(PostgresJournal(url, timeout_s=0.5)) as journal,
        opened(journal, deadline_s=1.0) as ledger,
    ):
        ledger.apply("acme", grant(1_000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
        hogs = [psycopg.connect(pgbouncer.url) for _ in range(POOL)]
        for hog in hogs:
            hog.execute("SELECT 1")
        ending = ledger.apply("acme", settle("first", 60))
        with pytest.raises(LedgerUnavailable):
            ledger.apply("acme", ask_for(ledger, 100, "second")).wait(20)
        assert not ending.done
        for hog in hogs:
            hog.close()
        assert ending.wait(20).event is not None
        eventually(lambda: not _held(ledger))
        assert ledger.look("acme").available(2**62) == 940


def _held(ledger: Ledger) -> bool:
    try:
        return bool(ledger.look("acme").holds)
    except LedgerUnavailable:
        return True


def test_what_a_pooler_cannot_pass_on_is_told_at_once(url: str) -> None:
    """Not as a server that is away: it is so at every attempt."""
    with pytest.raises(JournalUnavailable, match=r"refuses options in the ledger's URL.*ignore_startup_parameters"):
        PostgresJournal(url + "&options=-c%20statement_timeout%3D5000", timeout_s=60)


def test_why_a_connection_is_refused_is_told_to_whoever_asks_next(url: str) -> None:
    """Within the pause between two attempts, too."""
    link = Link(url.partition("?")[0] + "?sslmode=require", 0.3)
    for _ in range(5):
        with pytest.raises(JournalUnavailable, match="does not support SSL"):
            link.fetch("SELECT 1")


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_pooler_that_dies_and_clients_that_are_killed_lose_nothing_and_double_nothing(
    tmp_path: Path, rng: random.Random, soak_count: Callable[[int], int]
) -> None:
    """T9, T14, T15, T46, G2, G3, G4: as where the server does; the transactions of a pooler that died are ended by the
    server, which tells nobody. A follower that read all the while missed nothing."""
    deaths, ready, acknowledged = soak_count(40), tmp_path / "ready", tmp_path / "acknowledged"
    ready.touch()
    acknowledged.touch()
    with postgres.Pgbouncer(_server(), default_pool_size=str(POOL)) as pgbouncer, _fresh(pgbouncer) as url:
        PostgresJournal(url).close()
        with troubles._followed(url) as seen:
            clients: Any = troubles._Clients(url, rng, ready, acknowledged)
            try:
                for number in range(deaths):
                    clients.keep(4)
                    clients.kill_one()
                    pgbouncer.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
                    time.sleep(rng.uniform(0, 0.3))
                    pgbouncer.start()
            finally:
                clients.kill_all()
            with closing(PostgresJournal(url, timeout_s=10, owner_ttl_s=2.0)) as journal:
                troubles._check(journal, acknowledged, seen, deaths)
