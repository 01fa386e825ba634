"""What is said to a ledger that closes, or has closed, is written or kept: whatever its threads are at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.commands import Report
from lava_middleware.core.events import Reported, Settled
from lava_middleware.ledger.journal import Busy, Entry, Outcome
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.pending import decode_line
from lava_middleware.ledger.ticket import Ticket

from .distant import Distant
from .ledger_kit import ask_for, grant, opened, settle
from .replay import check_journal


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="lava_middleware")


def test_what_is_left_for_later_after_the_end_is_done_at_once() -> None:
    """T35: a stream that is dropped when all is over settles as well as one that is closed."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 50, "call")).wait(10)
    ledger.later(lambda: ledger.apply("acme", settle("call", 5)))
    assert [entry.kind for entry in journal.read(0)][-1] == Settled.kind
    check_journal(journal)


def test_in_the_middle_of_ledger_work_it_is_done_at_the_end_of_that() -> None:
    """T35: the collector may have come between two lines of ours, with a lock held."""
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
    with ledger.at_work():
        ledger.later(lambda: ledger.apply("acme", Report("call", 5)))
        assert len(journal.read(0)) == 1
    assert [entry.kind for entry in journal.read(0)][-1] == Reported.kind


def test_who_hands_something_over_in_the_moment_of_the_close_sees_to_it() -> None:
    journal = MemoryJournal()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        put = ledger._thread.put

        def put_late(thunk: Callable[[], object]) -> None:
            ledger._thread.put = put  # type: ignore[method-assign]
            closing = threading.Thread(target=ledger.close)
            closing.start()
            closing.join()
            put(thunk)

        ledger._thread.put = put_late  # type: ignore[method-assign]
        with ledger.at_work():
            ticket = ledger.apply("acme", Report("call", 5))
        assert isinstance(ticket.wait(10).event, Reported)
    check_journal(journal)


def test_so_does_who_sends_it_to_a_writer_that_has_just_ended() -> None:
    journal = Distant()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 50, "call")).wait(10)
        assert ledger._batches is not None
        put = ledger._batches.put

        def put_late(ticket: Ticket) -> None:
            closing = threading.Thread(target=ledger.close)
            closing.start()
            closing.join()
            put(ticket)

        ledger._batches.put = put_late  # type: ignore[method-assign]
        assert isinstance(ledger.apply("acme", settle("call", 5)).wait(10).event, Settled)
    check_journal(journal)


class Hanging(MemoryJournal):
    """Busy until it is told otherwise."""

    busy = False

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        if self.busy:
            raise Busy
        return super().append(entries, predecessor)


def test_a_close_beside_a_thread_that_does_not_end_keeps_every_ending(tmp_path: Path) -> None:
    """T14: two never work at one backlog; each ending is in the file, its caller is told, and nothing is lost when the
    thread goes on."""
    journal: Any = Hanging()
    count = 6
    with opened(journal, pending_path=tmp_path / "pending") as ledger:
        for number in range(count):
            ledger.apply(f"c{number}", grant(100)).wait(10)
            ledger.apply(f"c{number}", ask_for(ledger, 50, "call")).wait(10)
        go_on, begun = threading.Event(), threading.Event()
        journal.busy = True

        def be_long() -> None:
            begun.set()
            go_on.wait(30)

        ledger.later(be_long)
        assert begun.wait(10)
        tickets = [ledger.apply(f"c{number}", settle("call", 5), record="{}") for number in range(count - 1)]
        ledger.later(lambda: tickets.append(ledger.apply(f"c{count - 1}", settle("call", 5), record="{}")))
        journal.busy = False
        ledger.close(-0.9)
        assert len(tickets) == count
        assert all(ticket.done for ticket in tickets)
        lines = [decode_line(line) for line in (tmp_path / "pending").read_bytes().splitlines()]
        assert sorted(account for account, _, _ in lines) == [f"c{number}" for number in range(count)]
        assert {record for _, _, record in lines} == {"{}"}
        assert ledger._thread._thread is not None
        go_on.set()
        ledger._thread._thread.join(10)
        late = ledger.apply("c0", Report("late", 1))
        assert isinstance(late.wait(10).event, Reported)
    with opened(journal, pending_path=tmp_path / "pending") as again:
        again.recover()
        assert not any(again.look(f"c{number}").holds for number in range(count))
        assert (tmp_path / "pending").read_bytes() == b""
    check_journal(journal)
