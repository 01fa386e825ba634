"""Endings that arrive at the worst of moments: from a collector between any two of our lines, or after a fork."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lava_middleware.core.commands import Void
from lava_middleware.ledger.ledger import Ticket
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

from . import players
from .conftest import Place
from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal

SPAWN = multiprocessing.get_context("spawn")
OURS = str(Path("lava_middleware", "ledger"))


class Collector:
    """Runs a finaliser at the n-th line of the ledger's own code that this thread executes."""

    def __init__(self, at_line: int, finaliser: Callable[[], object]) -> None:
        self._left = at_line
        self._finaliser = finaliser
        self.ran = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if OURS not in frame.f_code.co_filename:
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.ran = True
                self._finaliser()
        return self

    def __enter__(self) -> Collector:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("way", ["later", "directly"])
def test_a_finaliser_between_any_two_lines_of_a_pair_settles_and_disturbs_nothing(
    kind: str, way: str, tmp_path: Path
) -> None:
    """T35: it takes no lock and touches no database, even where a generator's `finally` calls apply() itself."""
    journal: Any = MemoryJournal() if kind == "memory" else SqliteJournal(tmp_path / "ledger.db")
    with opened(journal) as ledger:
        ledger.apply("acme", grant(10**9)).wait(10)
        line = lines = 0
        while True:
            line += 1 if line < 150 else 3
            victim = f"victim-{line}"
            ledger.apply("acme", ask_for(ledger, 10, victim)).wait(10)

            def end(victim: str = victim) -> None:
                ledger.apply("acme", settle(victim, 7))

            ask = ask_for(ledger, 100, f"call-{line}")
            with Collector(line, end if way == "directly" else lambda end=end: ledger.later(end)) as collector:
                held = ledger.apply("acme", ask)
                ended = ledger.apply("acme", settle(ask.hold, 60))
                ledger.look("acme")
                ledger.journal.save_cursor("follower", line)
            held.wait(10)
            ended.wait(10)
            lines = line
            if not collector.ran:
                ledger.apply("acme", Void(victim, "unsent")).wait(10)
                break
        eventually(lambda: not ledger.look("acme").holds)
        assert lines > 100
        assert ledger.counters.unposted == 0
    check_journal(journal)
    journal.close()


def test_a_finaliser_in_the_ledgers_own_thread_settles_too() -> None:
    """T35: the collector chooses the thread, and the ledger's is as good as any."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(10**9)).wait(10)
        victims = [f"victim-{number}" for number in range(200)]
        for victim in victims:
            ledger.apply("acme", ask_for(ledger, 10, victim)).wait(10)
        left = iter(victims)

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if OURS in frame.f_code.co_filename:
                if event == "line" and (victim := next(left, None)) is not None:
                    ledger.apply("acme", settle(victim, 7))
                return trace
            return None

        done = threading.Event()

        def work() -> None:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                ledger._maintain()
                ledger._work.run()
                ledger.recover()
                for number in range(20):
                    ledger._accept(Ticket("acme", grant(1, f"more-{number}"), None))
                    ledger._work.run()
            finally:
                sys.settrace(before)
                done.set()

        ledger.later(work)
        assert done.wait(20)
        eventually(lambda: not ledger.look("acme").holds)
    check_journal(journal)


def test_putting_something_on_the_threads_list_takes_no_lock() -> None:
    """T35: whatever lock a thread holds, a finaliser in it gets through."""
    with opened(MemoryJournal()) as ledger:
        ledger.apply("acme", grant(10)).wait(10)
        done = threading.Event()
        slot = ledger.accounts.slot("acme")
        with slot.lock, ledger._start_lock, ledger.accounts._lock:
            ledger.later(done.set)
            assert done.wait(10)


def test_a_forked_child_leaves_its_parents_holds_and_list_alone(dying: Place) -> None:
    """T36: the child begins anew, as another owner; what the parent had on its list is the parent's."""
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
    out = SPAWN.Queue()
    process = SPAWN.Process(target=players.fork_with_a_hold_open, args=(dying.open, out))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    status, told_by_parent, holds, after = out.get(timeout=10)
    assert status == 0
    assert told_by_parent
    assert holds == {"parents", "childs"}
    assert after == {"parents"}
    check_journal(journal)
    journal.close()


def test_a_callback_may_end_a_hold_from_the_ledgers_thread() -> None:
    """T45: an approval that nobody wants any more is given back by whoever hears of it."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
        ticket = ledger.apply("acme", ask_for(ledger, 80, "late"), wait_s=30)
        ticket.on_done(lambda: ledger.apply("acme", Void("late", "withdrawn")))
        ledger.apply("acme", settle("first", 0)).wait(10)
        ticket.wait(10)
        eventually(lambda: not ledger.look("acme").holds)
    check_journal(journal)
