"""What happens to commands while the journal is busy, unavailable, or gone for good."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import trio

from lava_middleware.core.commands import Authorize, Grant, Report, Settle, Void
from lava_middleware.core.events import Held, Reported, Settled
from lava_middleware.ledger.journal import Entry, Outcome
from lava_middleware.ledger.ledger import LedgerUnavailable
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.pending import Pending, decode_line, encode_line
from lava_middleware.ledger.ticket import Ticket

from .ledger_kit import Troubled, ask_for, eventually, grant, hold_id, opened, settle
from .replay import check_journal


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="lava_middleware")


def test_an_ending_is_handed_over_to_the_ledgers_thread_when_the_journal_is_busy() -> None:
    """T38: the ledger has a thread of its own; settling never waits."""
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 50, "call")).wait(10)
        journal.busy = 20
        ticket = ledger.apply("acme", settle("call", 20))
        assert isinstance(ticket.wait(10).event, Settled)
        assert journal.appended_by[-1] == "lava-ledger"
        assert ledger.counters.handed_over == 1
        assert ledger.counters.retries >= 1
    check_journal(journal)


def test_a_call_waits_on_the_ledgers_thread_not_on_its_own() -> None:
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        journal.busy = 20
        assert isinstance(ledger.apply("acme", ask_for(ledger, 50)).wait(10).event, Held)
        assert journal.appended_by[-1] == "lava-ledger"


def test_endings_wait_in_order_for_a_journal_that_is_gone_and_calls_are_told_at_once() -> None:
    """T14, T27: nothing is lost while the disk is away; what cannot be decided is answered, not waited for."""
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        holds = [hold_id() for _ in range(20)]
        for hold in holds:
            ledger.apply("acme", ask_for(ledger, 10, hold)).wait(10)
        journal.unavailable = True
        endings = [ledger.apply("acme", settle(hold, 3)) for hold in holds]
        with pytest.raises(LedgerUnavailable, match="bring it back"):
            ledger.apply("acme", ask_for(ledger, 10)).wait(10)
        assert not any(ticket.done for ticket in endings)
        journal.unavailable = False
        for ticket in endings:
            assert isinstance(ticket.wait(10).event, Settled)
        settled = [entry.key for entry in journal.read(0) if entry.kind == Settled.kind]
        assert settled == [f"end:{hold}" for hold in holds]
    check_journal(journal)


class Picky(Troubled):
    """It takes everything but the ending of one hold."""

    picky = True

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        if self.picky and any(entry.key == "end:odd" for entry in entries):
            return Outcome.CONFLICT, 0
        return super().append(entries, predecessor)


def test_an_ending_that_the_journal_refuses_for_good_holds_nobody_up_and_is_kept(tmp_path: Path) -> None:
    """T14, T27: it stands aside and is told; the ledger is not taken for gone, and at the end it is in the file."""
    journal = Picky()
    with opened(journal, pending_path=tmp_path / "pending") as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "odd")).wait(10)
        odd = ledger.apply("acme", settle("odd", 5))
        eventually(lambda: ledger._backlog.parked)
        with pytest.raises(LedgerUnavailable, match="kept") as error:
            odd.wait(10)
        assert error.value.unsure
        for number in range(5):
            ledger.apply("acme", ask_for(ledger, 10, f"call-{number}")).wait(10)
            assert isinstance(ledger.apply("acme", settle(f"call-{number}", 5)).wait(10).event, Settled)
        assert not odd.done
        assert ledger._backlog.down_s == 0
    ((account, command, _),) = [decode_line(line) for line in (tmp_path / "pending").read_bytes().splitlines()]
    assert (account, command) == ("acme", settle("odd", 5))
    check_journal(journal)


@pytest.mark.parametrize("library", ["thread", "asyncio", "trio"])
def test_who_waits_for_an_ending_that_stands_aside_is_told_and_not_left_waiting(library: str, tmp_path: Path) -> None:
    """T14, T38: it may stand there for ever; whoever only wants to hear how it ends is told once it has."""
    journal, ends = Picky(), []
    told: SimpleQueue[BaseException] = SimpleQueue()

    async def settled(ticket: Ticket) -> None:
        with pytest.raises(LedgerUnavailable, match="kept") as error:
            await ticket
        told.put(error.value)

    def wait(ticket: Ticket) -> None:
        with pytest.raises(LedgerUnavailable, match="kept") as error:
            ticket.wait(10)
        told.put(error.value)

    ways = {
        "thread": wait,
        "asyncio": lambda one: asyncio.run(settled(one)),
        "trio": lambda one: trio.run(settled, one),
    }
    with opened(journal, pending_path=tmp_path / "pending") as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "odd")).wait(10)
        journal.busy = 100  # it waits before it is set aside
        odd = ledger.apply("acme", settle("odd", 5))
        odd.on_done(lambda: ends.append(odd.result().event))
        thread = threading.Thread(target=ways[library], args=(odd,), daemon=True)
        thread.start()
        assert told.get(timeout=10)
        thread.join(10)
        assert not ends
        journal.picky = False
        ledger.recover()
        eventually(lambda: ends)
        assert isinstance(odd.wait(10).event, Settled)
    check_journal(journal)


def test_an_append_whose_answer_was_lost_finds_itself_in_the_tail() -> None:
    """The outcome is looked up, never guessed: nothing is written twice."""
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 50, "call")).wait(10)
        journal.lose_answer = True
        assert ledger.apply("acme", settle("call", 20)).wait(10).repeated
        assert ledger.look("acme").available(2**62) == 80
    check_journal(journal)


def test_a_hold_whose_answer_was_lost_is_given_back() -> None:
    """T9, T45: its caller was told that there is none, so nobody else would end it while this process lives."""
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        journal.lose_answer = True
        ticket = ledger.apply("acme", ask_for(ledger, 50, "call"))
        with pytest.raises(LedgerUnavailable) as caught:
            ticket.wait(10)
        assert caught.value.unsure
        eventually(lambda: not ledger.look("acme").holds)
        assert ledger.look("acme").available(2**62) == 100
    check_journal(journal)


def test_too_many_endings_on_their_way_stop_new_calls() -> None:
    """T14: the backlog is bounded by letting no further call out."""
    journal = Troubled()
    with opened(journal, backlog_most=5) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        for number in range(5):
            ledger.apply("acme", ask_for(ledger, 10, f"call-{number}")).wait(10)
        journal.busy = -1
        for number in range(5):
            ledger.apply("acme", settle(f"call-{number}", 3))
        eventually(lambda: len(ledger._backlog) == 5)
        with pytest.raises(LedgerUnavailable, match="too many endings"):
            ledger.apply("acme", ask_for(ledger, 10)).wait(10)
        assert ledger.counters.backlog_refused == 1
        journal.busy = 0
        eventually(lambda: not ledger.look("acme").holds)


def test_what_cannot_be_written_at_close_is_kept_and_posted_by_the_next_start(tmp_path: Path) -> None:
    """T14, T19: nothing billable lives only in memory."""
    journal = Troubled()
    path = tmp_path / "ledger.db.pending"
    with opened(journal, pending_path=path) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        for number in range(3):
            ledger.apply("acme", ask_for(ledger, 10, f"call-{number}")).wait(10)
        journal.unavailable = True
        tickets = [ledger.apply("acme", settle(f"call-{number}", 3), record='{"r":1}') for number in range(3)]
        ledger.close(0.2)
        assert [ticket.wait(1).events for ticket in tickets] == [(), (), ()]
        assert ledger.counters.kept == 3
    assert len(path.read_bytes().splitlines()) == 3
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    journal.unavailable = False
    with opened(journal, pending_path=path) as ledger:
        ledger.apply("acme", ask_for(ledger, 1, "wakes-the-thread")).wait(10)
        eventually(lambda: not path.read_bytes())
        assert set(ledger.look("acme").holds) == {"wakes-the-thread"}
        assert ledger.look("acme").available(2**62) == 1000 - 9 - 1
        assert [entry.record for entry in journal.read(0) if entry.kind == Settled.kind] == ['{"r":1}'] * 3
        ledger.apply("acme", Void("wakes-the-thread", "unsent")).wait(10)
    check_journal(journal)


def test_an_ending_after_close_is_kept_when_the_journal_has_gone(tmp_path: Path) -> None:
    journal = Troubled()
    with opened(journal, pending_path=tmp_path / "kept") as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        ledger.close()
        journal.close()
        assert ledger.apply("acme", settle("call", 3)).wait(1).events == ()
        assert len((tmp_path / "kept").read_bytes().splitlines()) == 1


def test_reports_beyond_the_bound_go_to_the_pending_file(tmp_path: Path) -> None:
    """Open never means unrecorded: what does not fit the memory is written down, and posted when the ledger is back."""
    journal = Troubled()
    with opened(journal, backlog_most=2, pending_path=tmp_path / "kept") as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        journal.busy = -1
        tickets = [ledger.apply("acme", Report(f"r{number}", 1)) for number in range(6)]
        for ticket in tickets[2:]:
            assert ticket.wait(10).events == ()
        journal.busy = 0
        for ticket in tickets[:2]:
            assert isinstance(ticket.wait(10).event, Reported)
        ledger.recover()
        assert ledger.look("acme").available(2**62) == 94
        assert (tmp_path / "kept").read_bytes() == b""
    check_journal(journal)


def test_a_report_can_be_kept_by_hand_while_the_ledger_is_away(tmp_path: Path) -> None:
    """The policy `open` records before it lets a call out that it cannot hold."""
    journal = Troubled()
    with opened(journal, pending_path=tmp_path / "kept") as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        journal.unavailable = True
        assert ledger.keep("acme", Report("call", 30), '{"id":"call"}')
        journal.unavailable = False
        ledger.recover()
        assert ledger.look("acme").available(2**62) == 70
    with opened(MemoryJournal()) as ledger:
        assert not ledger.keep("acme", Report("call", 30)), "without a file nothing was recorded, and it says so"


@pytest.mark.parametrize(
    "command",
    [
        Settle("call", 12, 3, 4, cause="late", absorb=True),
        Void("call", "unsent"),
        Report("doc", 5, 1, 2, forgive=True, scopes=(("model", "gpt-4o"), ("user", "ü"))),
        Grant("invoice", 100, "promo", 3, 10, 20),
    ],
)
def test_a_kept_line_is_read_as_it_was_written(command: Any) -> None:
    assert decode_line(encode_line("acme\n", command, '{"a":"é"}')) == ("acme\n", command, '{"a":"é"}')


def test_an_authorize_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only endings"):
        Pending(tmp_path / "kept").keep("acme", Authorize("h", "o", 1, 0, 0, 0, 0), None)


def test_a_line_that_cannot_be_posted_stays_and_the_others_go(tmp_path: Path) -> None:
    pending = Pending(tmp_path / "kept")
    for key in "abc":
        pending.keep("acme", Report(key, 1), None)
    with (tmp_path / "kept").open("ab") as file:
        file.write(b"half a li\n")

    def apply(account: str, command: Any, record: str | None) -> None:
        if command.key == "b":
            raise LedgerUnavailable("not now")

    assert sum(pending.post(apply)) == 2
    lines = (tmp_path / "kept").read_bytes().splitlines()
    assert [decode_line(lines[0])[1], lines[1]] == [Report("b", 1), b"half a li"]


def test_threads_keep_whole_lines(tmp_path: Path) -> None:
    pending = Pending(tmp_path / "kept")

    def keep(thread: int) -> None:
        for number in range(20):
            pending.keep("acme", Report(f"{thread}-{number}", 1), None)

    threads = [threading.Thread(target=keep, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = {decode_line(line)[1].key for line in (tmp_path / "kept").read_bytes().splitlines()}  # type: ignore[union-attr]
    assert len(keys) == 80


def test_an_account_with_an_entry_of_a_newer_release_is_refused_and_its_endings_are_kept(tmp_path: Path) -> None:
    """An unknown kind is never skipped: what it means for the balance is not known here."""
    journal = MemoryJournal()
    with opened(journal, pending_path=tmp_path / "kept") as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        last = journal.since("acme", 2)[0]
        newer = Entry("acme", 3, "gifted.7", None, 100, "{}", None, last.at + 1)
        journal.append([newer], (2, last.at))
        with pytest.raises(LedgerUnavailable, match="upgrade"):
            ledger.apply("acme", ask_for(ledger, 10)).wait(10)
        with pytest.raises(LedgerUnavailable, match="upgrade"):
            ledger.look("acme")
        ledger.apply("acme", settle("call", 3))
        ledger.apply("other", grant(1)).wait(10)
        eventually(lambda: ledger._backlog.parked)
    assert len((tmp_path / "kept").read_bytes().splitlines()) == 1


def test_an_unwritable_pending_file_is_told_and_nothing_else_breaks(tmp_path: Path) -> None:
    directory = tmp_path / "not-there"
    with opened(Troubled(), pending_path=directory / "kept") as ledger:
        assert not ledger.keep("acme", Report("call", 30))
    assert not os.path.exists(directory)


def test_no_message_names_a_customer(caplog: pytest.LogCaptureFixture) -> None:
    """T32."""
    caplog.set_level(logging.DEBUG, logger="lava_middleware")
    journal = Troubled()
    with opened(journal) as ledger:
        ledger.apply("secret-customer", grant(100)).wait(10)
        ledger.apply("secret-customer", ask_for(ledger, 10, "call")).wait(10)
        ticket = ledger.apply("secret-customer", Void("never", "unsent"))
        journal.unavailable = True
        ledger.apply("secret-customer", settle("call", 3))
        ledger.close(0.1)
        for one in (ticket, ledger.apply("secret-customer", grant(1))):
            with pytest.raises(Exception, match=r".") as caught:
                one.wait(1)
            assert "secret-customer" not in str(caught.value)
    assert "secret-customer" not in caplog.text
    assert caplog.text
