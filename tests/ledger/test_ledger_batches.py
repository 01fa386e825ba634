"""What holds for the thread that appends in batches, on a journal that fails as a server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.commands import Report, SetTerms, StartRun
from lava_middleware.core.events import Settled
from lava_middleware.core.terms import Limit, Plan, Terms, TermsError
from lava_middleware.ledger.batches import BATCH_MOST
from lava_middleware.ledger.journal import Appended, Busy, Outcome, Unreachable
from lava_middleware.ledger.ledger import Ledger, LedgerUnavailable
from lava_middleware.testing import FrozenClock

from .distant import Appends, Distant
from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal


@contextmanager
def something_in_flight(journal: Distant, ledger: Ledger) -> Iterator[None]:
    """What is asked for in the block goes together, after it."""
    journal.gate.clear()
    journal.waiting.clear()
    ledger.apply("in flight", grant(1))
    assert journal.waiting.wait(10)
    try:
        yield
    finally:
        journal.gate.set()


def test_a_thread_with_the_id_of_the_one_that_ended_appends_to_the_journal(tmp_path: Path) -> None:
    """The system gives ids anew. What such a thread ends after close() was taken for part of a batch: told, not
    written."""
    journal = Distant()
    with opened(journal, pending_path=tmp_path / "pending") as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        assert ledger._batches is not None
        collector = ledger._batches._collector
        writer = collector.thread
        assert writer
        ledger.close()
        collector.thread = collector.thread and threading.get_ident()  # as if this one had been given its id
        assert isinstance(ledger.apply("acme", settle("call", 4)).wait(10).event, Settled)
        assert [entry.key for entry in journal.read(0)][-1] == "end:call"


# -- a hold whose answer was lost


def _lost(journal: Distant) -> Callable[[Appends], list[Appended]]:
    """It is carried out, and nobody hears of it."""

    def lost(appends: Appends) -> list[Appended]:
        journal.carry_out(appends)
        raise Unreachable("the answer was lost")

    return lost


def _late(journal: Distant) -> list[Callable[[Appends], list[Appended]]]:
    """It is given up, and carried out just before the statement that repeats it."""
    given_up: list[Appends] = []

    def give_up(appends: Appends) -> list[Appended]:
        given_up.append(appends)
        raise Unreachable("nobody answered")

    def overtaken(appends: Appends) -> list[Appended]:
        journal.carry_out(given_up.pop())
        return [one._replace(key_taken=not one.seqs) for one in journal.carry_out(appends)]

    return [give_up, overtaken]


@pytest.mark.parametrize("becomes", [lambda journal: [_lost(journal)], _late], ids=["lost", "late"])
def test_a_hold_that_is_found_when_it_is_repeated_is_still_under_way(becomes: Any) -> None:
    """T9: else the process says that it has none open below what comes next, and when it dies nobody looks there."""
    journal = Distant()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        journal.meets += becomes(journal)
        held = ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        assert held.repeated
        (seq,) = [entry.seq for entry in journal.read(0) if entry.key == "hold:call"]
        for _ in range(3):
            ledger.apply("acme", grant(1)).wait(10)
        ledger._presence.advance()
        assert [mark.low_seq <= seq for mark in journal.owners()] == [True]
        ledger.apply("acme", settle("call", 4)).wait(10)
        ledger._presence.advance()
        assert [mark.low_seq for mark in journal.owners()] == [journal.last_seq() + 1], "and afterwards it is not"


def test_of_a_batch_that_was_written_in_part_the_rest_alone_is_busy() -> None:
    """T9: the hold that was made is known to be open; the one that was not is asked for again until its time is up."""
    journal = Distant()

    def in_part(appends: Appends) -> list[Appended]:
        written = journal.carry_out(appends[:1])
        return written + [Appended(Outcome.BUSY) for _ in appends[1:]]

    with opened(journal) as ledger:
        for account in ("a", "b"):
            ledger.apply(account, grant(100)).wait(10)
        with something_in_flight(journal, ledger):
            journal.meets += [journal.carry_out, in_part]
            tickets = [ledger.apply(account, ask_for(ledger, 10, f"call-{account}")) for account in ("a", "b")]
        assert [ticket.wait(10).repeated for ticket in tickets] == [False, False]
        assert set(ledger._presence.opens) >= {("a", "call-a"), ("b", "call-b")}
        assert [set(keys) for keys in journal.statements[-2:]] == [{"hold:call-a", "hold:call-b"}, {"hold:call-b"}]


def test_commands_of_one_customer_keep_their_order_when_more_than_fit_are_refused() -> None:
    """What did not fit into a batch was put in line before what was refused of it."""
    journal = Distant()

    def refused(appends: Appends) -> list[Appended]:
        return [Appended(Outcome.CONFLICT) for _ in appends]

    with opened(journal) as ledger:
        warning = Limit("tokens", "tokens", 100, on_reach="warn", thresholds=(10, 20, 30))
        ledger.apply("acme", SetTerms(Terms().with_limit(warning))).wait(10)
        with something_in_flight(journal, ledger):
            journal.meets += [journal.carry_out, refused]
            keys = [f"report-{number}" for number in range(BATCH_MOST)]
            tickets = [ledger.apply("acme", Report(key, 1, 1, 0)) for key in keys]
        for ticket in tickets:
            ticket.wait(10)
        assert len(journal.statements[2]) == BATCH_MOST, "one for each threshold, so that not all reports fit"
        assert [entry.key for entry in journal.read(0) if entry.key in {f"report:{key}" for key in keys}] == [
            f"report:{key}" for key in keys
        ]


def test_a_command_behind_one_that_the_journal_will_refuse_is_answered_in_its_turn() -> None:
    """A hold that has ended is asked for again under its id: in the batch it seems open, and has no end that fits."""
    journal = Distant()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        with something_in_flight(journal, ledger):
            commands = settle("call", 4), ask_for(ledger, 10, "call"), settle("call", 4), ask_for(ledger, 20, "next")
            tickets = [ledger.apply("acme", command) for command in commands]
        receipts = [ticket.wait(10) for ticket in tickets]
        assert [(one.repeated, one.available) for one in receipts] == [(False, 96), (True, 96), (True, 96), (False, 76)]
        check_journal(journal)


def test_what_is_due_before_a_command_that_may_not_be_is_written_all_the_same() -> None:
    """A run that would have expired before it began is answered as any other mistake is, and nothing is undone."""
    journal, clock = Distant(), FrozenClock()
    with opened(journal, clock=clock) as ledger:
        ledger.apply("acme", SetTerms(Terms(1, plan=Plan("pro", credits=10, cycle="day")))).wait(10)
        clock.advance(3 * 24 * 3600)
        with pytest.raises(TermsError, match="future"):
            ledger.apply("acme", StartRun("late", budget=1, calls_most=None, expires=clock() - 1)).wait(10)
        assert [entry.kind for entry in journal.since("acme", 1)][-1] == "cycled.1"


def test_a_busy_customer_with_many_calls_leaves_room_for_others() -> None:
    """T27: as many of its commands as fill a batch wait; another one's is in the next batch all the same."""
    journal = Distant()

    def acme_is_busy(appends: Appends) -> list[Appended]:
        busy = [entries[0].account == "acme" for entries, _ in appends]
        if all(busy):
            raise Busy
        free = [one for one, is_busy in zip(appends, busy, strict=True) if not is_busy]
        told = iter(journal.carry_out(free))
        return [Appended(Outcome.BUSY) if is_busy else next(told) for is_busy in busy]

    with opened(journal, deadline_s=20) as ledger:
        for account in ("acme", "other"):
            ledger.apply(account, grant(1)).wait(10)
        with something_in_flight(journal, ledger):
            journal.meets += [journal.carry_out] + [acme_is_busy] * 5
            many = [ledger.apply("acme", grant(1, f"acme-{number}")) for number in range(2 * BATCH_MOST)]
            other = ledger.apply("other", grant(1, "other"))
        for ticket in (other, *many):
            ticket.wait(10)
        keys = [entry.key for entry in journal.read(0) if entry.account != "in flight"]
        assert keys[2:] == ["grant:other", *(f"grant:acme-{number}" for number in range(len(many)))]


def test_of_accounts_that_are_written_alone_one_that_cannot_be_had_keeps_no_other_waiting() -> None:
    """T27: neither those that others write as well, nor those that nobody else does."""
    journal = Distant()

    def but_the_last_refused(appends: Appends) -> list[Appended]:
        return [Appended(Outcome.CONFLICT) for _ in appends[:-1]] + journal.carry_out(appends[-1:])

    def refused(appends: Appends) -> list[Appended]:
        return [Appended(Outcome.CONFLICT) for _ in appends]

    with opened(journal, deadline_s=20) as ledger:
        for account in ("held", "contended", "calm"):
            ledger.apply(account, grant(1)).wait(10)
        journal.cannot_be_had = {"held"}
        with something_in_flight(journal, ledger):
            journal.meets += [journal.carry_out, but_the_last_refused, refused]
            held, contended, calm = (ledger.apply(account, grant(1)) for account in ("held", "contended", "calm"))
        assert calm.wait(10).seq
        assert contended.wait(10).seq
        assert not held.done
        assert ledger.apply("calm", grant(1)).wait(10).seq
        assert not held.done
        journal.cannot_be_had = set()
        assert held.wait(10).seq


def test_whatever_a_call_does_once_it_is_told_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """It ended with what a callback raised, and every later call waited for ever."""
    journal = Distant()

    def mistaken() -> None:
        raise ZeroDivisionError

    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        with something_in_flight(journal, ledger):
            tickets = [ledger.apply("acme", command) for command in (grant(1), settle("none", 1), grant(2))]
            told: list[bool] = []
            for ticket in tickets[:2]:
                ticket.on_done(mistaken)
                ticket.on_done(lambda: told.append(True))
        assert tickets[2].wait(10).seq
        assert told == [True, True], "who else waits for such a call is told, too"
        assert ledger.apply("acme", grant(1)).wait(10).seq
    assert "ZeroDivisionError" in caplog.text


def test_a_process_whose_heart_fails_to_beat_once_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    journal = Distant()
    journal.upkeep_fails = True
    with opened(journal) as ledger:
        for _ in range(3):
            assert ledger.apply("acme", grant(1)).wait(10).seq
    assert "upkeep" in caplog.text


def test_the_thread_of_the_batches_looks_after_the_journal_while_it_is_idle() -> None:
    """T9: a heartbeat that only the ledger's thread gave stayed out while that one was at something long."""
    journal = Distant()
    at_one_thing, go_on = threading.Event(), threading.Event()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1)).wait(10)
        ledger.later(lambda: (at_one_thing.set(), go_on.wait(60)))
        try:
            assert at_one_thing.wait(10)
            before = journal.maintained
            eventually(lambda: journal.maintained >= before + 2)
        finally:
            go_on.set()


def test_a_question_whose_time_is_up_when_its_turn_comes_is_not_tried() -> None:
    """T27: it waited behind a statement that nobody answered; what has happened is written all the same."""
    journal = Distant()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(100)).wait(10)
        ledger.apply("acme", ask_for(ledger, 10, "call")).wait(10)
        ledger._deadline_s = 0.05
        with something_in_flight(journal, ledger):
            question = ledger.apply("acme", ask_for(ledger, 10, "late"))
            ending = ledger.apply("acme", settle("call", 4))
            time.sleep(0.1)
        with pytest.raises(LedgerUnavailable, match="in time") as refused:
            question.wait(10)
        assert not refused.value.unsure
        assert isinstance(ending.wait(10).event, Settled)
        assert "hold:late" not in [key for keys in journal.statements for key in keys]
