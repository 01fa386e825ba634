"""Admission is exact whatever the number of threads and processes: nobody ever spends what somebody else holds."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.commands import Grant, SetTerms
from lava_middleware.core.events import Held, Settled
from lava_middleware.core.state import to_state
from lava_middleware.core.terms import Limit, Terms
from lava_middleware.ledger import appender
from lava_middleware.ledger.journal import Entry, Outcome
from lava_middleware.ledger.ledger import Ledger, LedgerUnavailable
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

from . import players
from .conftest import Place
from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal

SPAWN = multiprocessing.get_context("spawn")


def run_processes(target: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Start one process for each argument tuple; what each put into its queue."""
    out = SPAWN.Queue()
    processes = [SPAWN.Process(target=target, args=(*one, out)) for one in arguments]
    for process in processes:
        process.start()
    results = [out.get(timeout=110) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return results


def test_a_hundred_threads_that_can_afford_ten_get_ten(place: Place) -> None:
    """T1, T43: check and act are one append, and one lock lies around decide, append and evolve."""
    journal = place.open()
    with opened(journal, deadline_s=30) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        passed: list[bool] = []
        gate = threading.Barrier(100)

        def call() -> None:
            ask = ask_for(ledger, 100)
            gate.wait()
            passed.append(ledger.apply("acme", ask).wait(60).declined is None)

        threads = [threading.Thread(target=call) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(passed) == 100
        assert sum(passed) == 10
    check_journal(journal)
    journal.close()


def test_four_processes_that_can_afford_ten_get_ten(shared: Place) -> None:
    """T1: the journal itself refuses the second entry on the same predecessor."""
    journal = shared.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
    gate = SPAWN.Barrier(4)
    passed = run_processes(players.hold_only, [(shared.open, number, 25, 100, gate) for number in range(4)])
    assert sum(passed) == 10
    check_journal(journal)
    journal.close()


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("accounts", [1, 3])
def test_random_play_of_four_processes_never_admits_more_than_there_is(
    accounts: int, dying: Place, seed: int, soak_count: Callable[[int], int]
) -> None:
    """T1, T43, G4: grants of odd sizes, a limit, overruns, holds left open, until everybody was declined many times."""
    journal = dying.open()
    with opened(journal) as ledger:
        for account in range(accounts):
            name = f"customer-{account}"
            ledger.apply(name, SetTerms(Terms().with_limit(Limit("monthly", "tokens", 40_000)))).wait(10)
            for number, amount in enumerate((1, 7, 997, 4001, 13_577)):
                priority = number % 3
                expires = (time.time_ns() // 1000 + 1_500_000) if number == 3 else None
                ledger.apply(name, Grant(f"g{number}", amount, priority=priority, expires=expires)).wait(10)
    declines = soak_count(50)
    results = run_processes(
        players.play_until_declined, [(dying.open, number, seed, 3, declines, accounts) for number in range(4)]
    )
    assert [errors for errors, *_ in results] == [[]] * 4
    with opened(journal) as ledger:
        eventually(lambda: ledger.recover() or _nothing_held(ledger, accounts), 60)
        totals = check_journal(journal)
        for name, total in totals.items():
            account = ledger.look(name)
            assert account.holds == {}
            assert (account.version, account.charged, account.debt) == (total.version, total.charged, total.debt)
            assert (account.posted, account.incurred) == (total.posted, total.incurred)
    journal.close()


def test_a_grant_in_one_process_is_seen_by_the_next_call_in_another(shared: Place) -> None:
    """T44: a refusal is never told from memory alone. Two ledgers stand for two processes: they share no memory."""
    journal = shared.open()
    with opened(journal) as a, opened(journal) as b:
        assert a.apply("acme", ask_for(a, 100)).wait(10).declined is not None
        b.apply("acme", grant(100)).wait(10)
        assert a.apply("acme", ask_for(a, 100)).wait(10).declined is None
        b.apply("acme", grant(50)).wait(10)
        assert a.look("acme").available(2**62) == 50
    journal.close()


def test_a_hold_made_in_one_process_can_be_settled_in_another(shared: Place) -> None:
    journal = shared.open()
    with opened(journal) as a, opened(journal) as b:
        b.apply("acme", grant(100)).wait(10)
        a.apply("acme", ask_for(a, 60, "call")).wait(10)
        assert isinstance(b.apply("acme", settle("call", 50)).wait(10).event, Settled)
        assert a.apply("acme", settle("call", 50)).wait(10).repeated
    journal.close()


def test_a_loser_reads_the_tail_and_decides_again(shared: Place) -> None:
    journal = shared.open()
    with opened(journal) as a, opened(journal) as b:
        a.apply("acme", grant(1000)).wait(10)
        b.look("acme")
        a.apply("acme", ask_for(a, 900)).wait(10)
        assert b.apply("acme", ask_for(b, 50)).wait(10).declined is None
        assert b.counters.conflicts == 1
        a.apply("acme", grant(1)).wait(10)
        b.apply("acme", grant(1)).wait(10)
        assert b.counters.conflicts == 1, "after a loss the tail is looked at first for a while"
    check_journal(journal)
    journal.close()


def _nothing_held(ledger: Ledger, accounts: int) -> bool:
    return not any(ledger.look(f"customer-{account}").holds for account in range(accounts))


def copy_of(path: Path, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(to)) as target:
        source.backup(target)


def put_back(copy: Path, path: Path) -> None:
    """Restore an older state into the file in use, as `.restore` of the sqlite3 shell does."""
    with contextlib.closing(sqlite3.connect(copy)) as source, contextlib.closing(sqlite3.connect(path)) as target:
        source.backup(target)


def test_a_ledger_put_back_to_an_older_state_is_believed_and_memory_is_not(tmp_path: Path) -> None:
    """T42: what is appended builds on an entry that is there; an account from the lost future is dropped."""
    path = tmp_path / "ledger.db"
    journal = SqliteJournal(path)
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        copy_of(path, tmp_path / "copy.db")
        ledger.apply("acme", grant(900)).wait(10)
        put_back(tmp_path / "copy.db", path)
        assert ledger.apply("acme", ask_for(ledger, 500)).wait(10).declined is not None
        assert ledger.apply("acme", ask_for(ledger, 80)).wait(10).declined is None
        assert ledger.look("acme").available(2**62) == 20
    check_journal(journal)
    journal.close()


def test_an_older_state_that_grew_again_is_told_apart_by_its_times(tmp_path: Path) -> None:
    """T42: the same version of the same customer is another entry."""
    path = tmp_path / "ledger.db"
    journal = SqliteJournal(path)
    with opened(journal) as ledger, opened(journal) as other:
        ledger.apply("acme", grant(100)).wait(10)
        copy_of(path, tmp_path / "copy.db")
        ledger.apply("acme", grant(900)).wait(10)
        put_back(tmp_path / "copy.db", path)
        other.apply("acme", grant(1)).wait(10)
        assert ledger.look("acme").available(2**62) == 101
    check_journal(journal)
    journal.close()


def test_what_a_lost_hold_used_is_posted_as_a_report(tmp_path: Path) -> None:
    """The hold was committed and the call was made, then the ledger was put back to before it: it is still owed."""
    path = tmp_path / "ledger.db"
    journal = SqliteJournal(path)
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        copy_of(path, tmp_path / "copy.db")
        ledger.apply("acme", ask_for(ledger, 60, "call")).wait(10)
        put_back(tmp_path / "copy.db", path)
        receipt = ledger.apply("acme", settle("call", 45), record='{"id":"call"}').wait(10)
        assert receipt.event is not None
        assert receipt.event.kind == "reported.1"
        assert ledger.look("acme").available(2**62) == 55
        (entry,) = journal.find("acme", ["report:call"])
        assert entry.record == '{"id":"call"}'
    journal.close()


@contextlib.contextmanager
def kept_busy(path: Path) -> Any:
    """Another process's write transaction. (Another connection of this process does as well: SQLite locks both out.)"""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield writer
        if writer.in_transaction:
            writer.execute("ROLLBACK")


def test_a_call_waits_for_a_busy_file_and_an_ending_is_handed_over(tmp_path: Path) -> None:
    """T38: settling never waits; what was handed over is in as soon as the file is free."""
    journal = SqliteJournal(tmp_path / "ledger.db")
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
        with kept_busy(tmp_path / "ledger.db"):
            ending = ledger.apply("acme", settle("first", 60))
            question = ledger.apply("acme", ask_for(ledger, 100))
            assert not ending.done
            assert not question.done
            assert ledger.counters.handed_over == 1
        assert isinstance(ending.wait(10).event, Settled)
        assert isinstance(question.wait(10).event, Held)
    journal.close()


def test_a_call_gives_a_busy_file_up_at_its_deadline_and_an_ending_never(tmp_path: Path) -> None:
    """T27: short deadlines for questions; endings stay."""
    journal = SqliteJournal(tmp_path / "ledger.db")
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
        ledger._deadline_s = 0.1
        with kept_busy(tmp_path / "ledger.db"):
            ending = ledger.apply("acme", settle("first", 60))
            question = ledger.apply("acme", ask_for(ledger, 100, "second"))
            with pytest.raises(LedgerUnavailable):
                question.wait(10)
            assert not ending.done
        assert isinstance(ending.wait(10).event, Settled)
        assert ledger.look("acme").holds == {}
    journal.close()


def test_threads_share_few_accounts_and_memory_stays_right(tmp_path: Path) -> None:
    """T43: after a storm of threads the cached accounts equal the refold."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        for account in range(3):
            ledger.apply(f"customer-{account}", grant(100_000)).wait(10)

        def storm(thread: int) -> None:
            for number in range(150):
                account, hold = f"customer-{number % 3}", f"{thread}-{number}"
                ledger.apply(account, ask_for(ledger, 11, hold)).wait(10)
                ledger.apply(account, settle(hold, number % 13)).wait(10)

        threads = [threading.Thread(target=storm, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.counters.conflicts == 0
        with opened(journal) as fresh:
            for account in range(3):
                name = f"customer-{account}"
                assert to_state(ledger.look(name)) == to_state(fresh.look(name))
    check_journal(journal)


def test_followers_are_woken_by_a_commit(tmp_path: Path) -> None:
    with opened(MemoryJournal()) as ledger:
        woken: list[bool] = []
        follower = threading.Thread(target=lambda: woken.append(ledger.wait_for_commit(10.0)))
        follower.start()
        eventually(lambda: ledger._sleepers)
        ledger.apply("acme", grant(1)).wait(10)
        follower.join()
        assert woken == [True]
        assert ledger.wait_for_commit(10.0, after=0)
        assert not ledger.wait_for_commit(0.01, after=1)


def test_no_more_than_the_bound_of_memory_for_an_account() -> None:
    """At most 5 kB for each cached account."""
    import tracemalloc

    journal = MemoryJournal()
    with opened(journal) as ledger:
        names = [f"customer-{number}" for number in range(500)]
        for name in names:
            for key in range(3):
                ledger.apply(name, grant(1000, f"g{key}")).wait(10)
            ledger.apply(name, ask_for(ledger, 10)).wait(10)
    with opened(journal) as ledger:
        ledger.look("warm-up")
        tracemalloc.start()
        try:
            for name in names:
                ledger._ask(name, lambda account: None)
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size / len(names) < 5_000


class AlwaysFaster(MemoryJournal):
    """A journal on which somebody else appends to the account just before every append of ours, unless we are alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rival: Callable[[], object] | None = None
        self.alone = 0

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        if self.rival is not None and not self.alone:
            rival, self.rival = self.rival, None
            rival()
            self.rival = rival
        return super().append(entries, predecessor)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        self.alone += 1
        try:
            yield
        finally:
            self.alone -= 1


def test_who_loses_eight_races_goes_on_alone() -> None:
    """A busy customer's call is not starved by luckier processes."""
    journal = AlwaysFaster()
    with opened(journal) as ledger, opened(journal) as rival:
        ledger.apply("acme", grant(999)).wait(10)
        rival.apply("acme", grant(1)).wait(10)
        journal.rival = lambda: rival.apply("acme", grant(1)).wait(10)
        assert isinstance(ledger.apply("acme", ask_for(ledger, 10)).wait(10).event, Held)
        journal.rival = None
        assert ledger.counters.conflicts == 8
        assert ledger.look("acme").available(2**62) == 998
    check_journal(journal)


def test_two_processes_that_repeat_one_grant_give_it_once(shared: Place) -> None:
    """A key that somebody else has just used is looked up, and the first receipt is everybody's."""
    journal = shared.open()
    with opened(journal) as a, opened(journal) as b:
        b.look("acme")
        first = a.apply("acme", grant(100, "invoice-81")).wait(10)
        again = b.apply("acme", grant(100, "invoice-81")).wait(10)
        assert again.repeated
        assert again.event == first.event
        assert b.look("acme").available(2**62) == 100
    journal.close()


def test_an_interrupted_caller_leaves_no_hold_and_loses_no_ending() -> None:
    """Ctrl-C between the commit and the answer: the caller has no ticket, so the ledger itself sees to it."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "settled")).wait(10)
        interrupted: list[bool] = []

        evolve = appender.evolve

        def interrupt(*arguments: Any) -> None:
            if not interrupted and threading.current_thread() is threading.main_thread():
                interrupted.append(True)
                raise KeyboardInterrupt
            evolve(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(appender, "evolve", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ledger.apply("acme", ask_for(ledger, 50, "gone"))
            eventually(lambda: set(ledger.look("acme").holds) == {"settled"})
            interrupted.clear()
            with pytest.raises(KeyboardInterrupt):
                ledger.apply("acme", settle("settled", 7))
        eventually(lambda: not ledger.look("acme").holds)
        assert ledger.look("acme").available(2**62) == 93
        assert ledger.counters.unposted == 0
    check_journal(journal)
