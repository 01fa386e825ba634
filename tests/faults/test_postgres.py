"""A server that restarts, a network that fails, clients that are killed: what was answered stands, once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from lava_middleware.core.account import Account
from lava_middleware.core.commands import Authorize, Grant, Settle
from lava_middleware.core.events import Adjusted, Held, Settled, decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.state import to_state
from lava_middleware.ledger.journal import Busy, JournalUnavailable
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.postgres.journal import PostgresJournal
from lava_middleware.ledger.ticket import LedgerUnavailable
from tests import postgres
from tests.ledger.replay import all_entries, check_journal
from tests.postgres_between import Network

from . import postgres_players
from .kit import FORKSERVER, eventually

DEADLINE_S = 2.0


@contextmanager
def far_away(timeout_s: float = 1.0) -> Iterator[tuple[Network, PostgresJournal, Ledger]]:
    """A ledger behind a network, with a customer who has 1,000."""
    url = postgres.fresh_url()
    where, _, schema = url.rpartition("?")
    with (
        Network(where) as network,
        closing(PostgresJournal(f"{network.url}?{schema}", timeout_s=timeout_s)) as journal,
    ):
        ledger = Ledger(journal, deadline_s=DEADLINE_S)
        try:
            ledger.apply("acme", Grant("start", 1000)).wait(10)
            yield network, journal, ledger
            check_journal(journal)
        finally:
            ledger.close()
    postgres.drop(url)


def hold(ledger: Ledger, name: str, ticks: int = 100) -> Authorize:
    return Authorize(name, ledger.owner, ticks, 0, 0, 0, 0)


def settle(name: str, charge: int = 60) -> Settle:
    return Settle(name, charge, 0, 0, cause="input_above_bound")


def once(needle: bytes) -> Callable[[bytes], bool]:
    """True for the first piece that has it in it."""
    left = [1]
    return lambda data: needle in data and bool(left) and bool(left.pop())


def test_an_append_whose_answer_was_lost_finds_itself() -> None:
    """T14, T15: it was committed, the line was cut before anybody heard of it. Repeated as it was, it stands once."""
    with far_away() as (network, journal, ledger):
        network.lose_answer = once(b"hold:call")
        receipt = ledger.apply("acme", hold(ledger, "call")).wait(10)
        assert isinstance(receipt.event, Held)
        assert receipt.repeated
        network.lose_answer = once(b"end:call")
        assert isinstance(ledger.apply("acme", settle("call")).wait(10).event, Settled)
        assert [entry.key for entry in journal.since("acme", 2)] == ["hold:call", "end:call"]
        assert ledger.look("acme").available(2**62) == 940


def test_a_whole_batch_whose_answer_was_lost_finds_itself() -> None:
    with far_away() as (network, _, ledger):
        network.lose_answer = once(b"hold:call-7")
        tickets = [ledger.apply("acme", hold(ledger, f"call-{n}", 50)) for n in range(30)]
        passed = [ticket.wait(10).declined is None for ticket in tickets]
        assert passed == [True] * 20 + [False] * 10
        assert len(ledger.look("acme").holds) == 20


def test_connections_that_were_cut_while_nobody_used_them_are_replaced() -> None:
    with far_away() as (network, journal, ledger):
        ledger.look("acme")
        before = network.accepted
        network.drop()
        receipt = ledger.apply("acme", hold(ledger, "call")).wait(10)
        assert isinstance(receipt.event, Held)
        assert not receipt.repeated, "it was seen before anything was sent"
        assert ledger.look("acme").available(2**62) == 900
        assert journal.read(0)
        assert network.accepted > before


def test_a_stalled_network_is_given_up_in_time_and_endings_come_in_later() -> None:
    """T27: a call is refused at its deadline; what has happened is kept and written when the server answers again."""
    with far_away(timeout_s=0.5) as (network, _, ledger):
        ledger.apply("acme", hold(ledger, "first")).wait(10)
        with network.stall():
            question = ledger.apply("acme", hold(ledger, "second"))
            ending = ledger.apply("acme", settle("first"))
            with pytest.raises(LedgerUnavailable):
                question.wait(20)
            with pytest.raises(LedgerUnavailable):
                ledger.look("acme")
            assert not ending.done
        assert isinstance(ending.wait(20).event, Settled)
        # The question may have been written after all: then it is given back, for nobody waits for it.
        eventually(partial(_nothing_held, ledger))
        assert ledger.look("acme").available(2**62) == 940


def test_an_append_that_arrives_when_nobody_waits_any_more_is_refused() -> None:
    """T45: the network kept it back, the caller was told no, and then it arrives: it does not become a hold.

    Giving a hold back that is not there leaves an entry that changes nothing where the late one would have fitted.
    """
    with far_away(timeout_s=0.5) as (network, journal, ledger):
        network.keep_back = lambda data: b"INSERT INTO" in data and b"hold:late" in data
        with pytest.raises(LedgerUnavailable):
            ledger.apply("acme", hold(ledger, "late")).wait(20)
        eventually(lambda: len(journal.since("acme", 1)) == 2)
        network.let_go.set()
        eventually(lambda: network.late == network.kept)
        assert network.late >= 1
        assert [entry.kind for entry in journal.since("acme", 1)] == ["granted.1", "lapsed.1"]
        assert ledger.apply("acme", hold(ledger, "next", 1000)).wait(10).declined is None
        assert set(ledger.look("acme").holds) == {"next"}


def _nothing_held(ledger: Ledger) -> bool:
    try:
        return not ledger.look("acme").holds
    except LedgerUnavailable:
        return False


def test_half_closed_connections_are_replaced() -> None:
    with far_away() as (network, _, ledger):
        for number in range(3):
            network.half_close()
            assert ledger.apply("acme", hold(ledger, f"call-{number}")).wait(10).declined is None
        assert len(ledger.look("acme").holds) == 3


def test_an_outage_is_waited_for_only_while_it_is_young() -> None:
    """T27: the first call waits a moment, for a restart takes no longer; later ones are told at once."""
    with far_away(timeout_s=0.5) as (network, _, ledger):
        network.refuse = True
        network.drop()
        with pytest.raises(LedgerUnavailable):
            ledger.apply("acme", hold(ledger, "first")).wait(20)
        began = time.monotonic()
        for number in range(3):
            with pytest.raises(LedgerUnavailable):
                ledger.apply("acme", hold(ledger, f"call-{number}")).wait(20)
        assert time.monotonic() - began < 2 * DEADLINE_S, "three that wait take longer"
        network.refuse = False
        eventually(partial(_passes, ledger))


def _passes(ledger: Ledger) -> bool:
    try:
        return ledger.apply("acme", hold(ledger, "again")).wait(20).declined is None
    except LedgerUnavailable:
        return False


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_restarts_kills_and_a_bad_network_lose_nothing_and_double_nothing(
    tmp_path: Path, rng: random.Random, soak_count: Callable[[int], int]
) -> None:
    """T9, T14, T15, T46, G2, G3, G4: 50 restarts of the server, every other one a crash, 100 clients killed, lines cut,
    stalled and half-closed. After healing: each settlement that was acknowledged stands once, with its charge and its
    record; nothing is held; memory, snapshots and refold agree; a follower that read all the while missed nothing."""
    restarts, kills = soak_count(50), soak_count(100)
    server = postgres.Server()
    schema = "?schema=chaos"
    ready, acknowledged = tmp_path / "ready", tmp_path / "acknowledged"
    ready.touch()
    acknowledged.touch()
    try:
        PostgresJournal(server.url + schema).close()
        with Network(server.url) as network, _followed(network.url + schema) as seen:
            clients = _Clients(network.url + schema, rng, ready, acknowledged)
            try:
                for number in range(max(restarts, kills)):
                    clients.keep(4)
                    if number < kills:
                        clients.kill_one()
                    if number * restarts // kills != (number + 1) * restarts // kills:
                        server.restart(signal.SIGQUIT if number % 4 < 2 else signal.SIGINT)
                    _trouble(network, rng)
            finally:
                clients.kill_all()
            with closing(PostgresJournal(server.url + schema, timeout_s=10, owner_ttl_s=2.0)) as journal:
                _check(journal, acknowledged, seen, kills)
    finally:
        server.remove()


def _trouble(network: Network, rng: random.Random) -> None:
    what = rng.randrange(4)
    if what == 0:
        network.drop()
    elif what == 1:
        network.half_close()
    elif what == 2:
        with network.stall():
            time.sleep(rng.uniform(0, 1.5))
    else:
        network.lose_answer = once(b"hold:")
    time.sleep(rng.uniform(0, 0.2))


class _Clients:
    def __init__(self, url: str, rng: random.Random, ready: Path, acknowledged: Path) -> None:
        self._url, self._rng, self._ready, self._acknowledged = url, rng, ready, acknowledged
        self._running: list[tuple[object, str]] = []
        self._started = 0

    def keep(self, count: int) -> None:
        while len(self._running) < count:
            self._started += 1
            name = f"client-{self._started}"
            arguments = (self._url, name, str(self._acknowledged), str(self._ready))
            process = FORKSERVER.Process(target=postgres_players.call_for_ever, args=arguments)
            process.start()
            self._running.append((process, name))

    def kill_one(self) -> None:
        """The oldest one, at a random instant after its first calls, and after one more was acknowledged to any."""
        process, _ = self._running.pop(0)
        before = self._acknowledged.stat().st_size
        eventually(lambda: self._acknowledged.stat().st_size > before, 60)
        eventually(lambda: f"{process.pid}\n" in self._ready.read_text(), 60)  # type: ignore[attr-defined]
        time.sleep(self._rng.uniform(0, 0.1))
        assert process.is_alive(), "it ended by itself: its error is above"  # type: ignore[attr-defined]
        process.kill()  # type: ignore[attr-defined]
        process.join()  # type: ignore[attr-defined]

    def kill_all(self) -> None:
        for process, _ in self._running:
            process.kill()  # type: ignore[attr-defined]
            process.join()  # type: ignore[attr-defined]


@contextmanager
def _followed(url: str) -> Iterator[Callable[[], list[int]]]:
    """A follower that reads through all of it; the seqs it has seen once it has come to the end."""
    seen: list[int] = []
    stop = threading.Event()
    journal = PostgresJournal(url, timeout_s=1.0)

    def follow() -> None:
        while True:
            last = stop.is_set()
            try:
                while rows := journal.read(seen[-1] if seen else 0, 100):
                    seen.extend(row.seq for row in rows)
                if last:
                    return
            except (Busy, JournalUnavailable):
                pass
            time.sleep(0.01)

    thread = threading.Thread(target=follow)
    thread.start()

    def all_seen() -> list[int]:
        stop.set()
        thread.join(60)
        return seen

    try:
        yield all_seen
    finally:
        stop.set()
        thread.join(60)
        journal.close()


def _check(journal: PostgresJournal, acknowledged: Path, seen: Callable[[], list[int]], at_least: int) -> None:
    ledger = Ledger(journal, deadline_s=10)
    customers = journal.accounts()
    try:
        eventually(lambda: ledger.recover() or not any(ledger.look(one).holds for one in customers), 60)
        eventually(lambda: {mark.owner for mark in journal.owners()} <= {ledger.owner} or ledger.recover(), 30)
        check_journal(journal)
        told = [line.split() for line in acknowledged.read_text().splitlines()]
        assert len(told) >= at_least
        for customer, name, charge in told:
            _check_settled(journal, customer, name, int(charge))
        for customer in customers:
            account = Account()
            for entry in journal.since(customer, 1):
                evolve(account, decode(entry.kind, entry.event), entry.at)
            assert to_state(account) == to_state(ledger.look(customer))
            assert account.reserved() == 0
        entries = list(all_entries(journal))
        assert seen() == [entry.seq for entry in entries], "each once, in the order in which they became final"
    finally:
        ledger.close()


def _check_settled(journal: PostgresJournal, customer: str, name: str, charge: int) -> None:
    (entry,) = journal.find(customer, [f"end:{name}"])
    event = decode(entry.kind, entry.event)
    assert isinstance(event, Settled)
    if event.lost_owner:  # it was taken for dead: then what it said is an adjustment of that
        (late,) = journal.find(customer, [f"late:{name}"])
        adjusted = decode(late.kind, late.event)
        assert isinstance(adjusted, Adjusted)
        assert event.charge + adjusted.charge == charge
    else:
        assert event.charge == charge
        assert entry.record == f'{{"id":"{name}"}}'
