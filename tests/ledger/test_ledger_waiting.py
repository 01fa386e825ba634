"""Who waits for credit that open calls hold, how long, and in which order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.commands import Authorize, Extend, SetTerms, Settle, Void
from lava_middleware.core.events import Extended, Held
from lava_middleware.core.terms import Limit, Terms
from lava_middleware.ledger.ledger import Ledger, Ticket
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    journal = MemoryJournal()
    with opened(journal) as made:
        yield made
    check_journal(journal)


def waiting(ledger: Ledger, number: int = 1) -> None:
    eventually(lambda: len(ledger._waiters) == number)


def test_a_call_waits_until_a_hold_ends(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    ticket = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
    assert not ticket.done
    ledger.apply("acme", settle("first", 20)).wait(10)
    assert isinstance(ticket.wait(10).event, Held)
    assert ledger.counters.waits == 1


def test_a_wait_ends_in_the_refusal_when_time_is_up(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    started = time.monotonic()
    declined = ledger.apply("acme", ask_for(ledger, 80), wait_s=0.15).wait(10).declined
    assert declined is not None
    assert declined.reason == "credit_on_hold"
    assert 0.14 < time.monotonic() - started < 2


def test_what_no_ending_can_make_pass_is_refused_at_once(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ticket = ledger.apply("acme", ask_for(ledger, 101), wait_s=30)
    assert ticket.done
    assert ticket.result().declined is not None


@pytest.mark.parametrize("how", ["void", "grant"])
def test_whatever_frees_credit_wakes_those_who_wait(ledger: Ledger, how: str) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 60, "first")).wait(10)
    ticket = ledger.apply("acme", ask_for(ledger, 60), wait_s=30)
    waiting(ledger)
    ledger.apply("acme", Void("first", "unsent") if how == "void" else grant(60)).wait(10)
    assert isinstance(ticket.wait(10).event, Held)


def test_a_raised_limit_wakes_those_who_wait(ledger: Ledger) -> None:
    ledger.apply("acme", SetTerms(Terms().with_limit(Limit("monthly", "tokens", 100)))).wait(10)
    ledger.apply("acme", Authorize("first", ledger.owner, 0, 60, 0, 0, 0)).wait(10)
    ticket = ledger.apply("acme", Authorize("second", ledger.owner, 0, 60, 0, 0, 0), wait_s=30)
    waiting(ledger)
    ledger.apply("acme", SetTerms(ledger.look("acme").terms.with_limit(Limit("monthly", "tokens", 200)))).wait(10)
    assert isinstance(ticket.wait(10).event, Held)


def test_those_who_wait_pass_in_order_of_arrival(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    passed: list[int] = []
    tickets: list[Ticket] = []
    for number, ticks in enumerate((60, 30, 50)):
        ticket = ledger.apply("acme", ask_for(ledger, ticks, f"waiter-{number}"), wait_s=30)
        ticket.on_done(lambda number=number: passed.append(number))  # type: ignore[misc]
        tickets.append(ticket)
        waiting(ledger, number + 1)
    ledger.apply("acme", settle("first", 0)).wait(10)
    tickets[1].wait(10)
    assert passed == [0, 1]
    assert not tickets[2].done
    ledger.apply("acme", settle("waiter-0", 0)).wait(10)
    assert isinstance(tickets[2].wait(10).event, Held)


def test_a_call_that_may_wait_stands_behind_those_who_wait_already(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 50, "first")).wait(10)
    big = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
    waiting(ledger)
    small = ledger.apply("acme", ask_for(ledger, 10), wait_s=30)
    waiting(ledger, 2)
    assert not small.done
    ledger.apply("acme", settle("first", 0)).wait(10)
    assert isinstance(big.wait(10).event, Held)
    assert isinstance(small.wait(10).event, Held)


def test_calls_that_do_not_wait_overtake_but_not_for_ever(ledger: Ledger) -> None:
    ledger.apply("acme", grant(1000)).wait(10)
    ledger.apply("acme", ask_for(ledger, 500, "first")).wait(10)
    big = ledger.apply("acme", ask_for(ledger, 900), wait_s=30)
    waiting(ledger)
    answers = [ledger.apply("acme", ask_for(ledger, 1)).wait(10) for _ in range(40)]
    passed = [answer.events for answer in answers if answer.events]
    refused = [answer.declined for answer in answers if answer.declined]
    assert len(passed) == 16
    assert {declined.reason for declined in refused} == {"credit_on_hold"}
    ledger.apply("acme", settle("first", 0)).wait(10)
    assert isinstance(big.wait(10).event, Held)
    assert ledger.apply("acme", ask_for(ledger, 1)).wait(10).events


def test_an_open_stream_is_served_before_a_new_call(ledger: Ledger) -> None:
    ledger.apply("acme", grant(164)).wait(10)
    ledger.apply("acme", Authorize("stream", ledger.owner, 0, 0, 1_000_000, 64, 64, grows=True)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    call = ledger.apply("acme", ask_for(ledger, 100), wait_s=30)
    waiting(ledger)
    more = ledger.apply("acme", Extend("stream", 1_000_000, 100, 32), wait_s=30)
    waiting(ledger, 2)
    ledger.apply("acme", settle("first", 0)).wait(10)
    assert isinstance(more.wait(10).event, Extended)
    assert not call.done
    ledger.apply("acme", Settle("stream", 64, 0, 64)).wait(10)
    assert isinstance(call.wait(10).event, Held)


def test_an_ending_in_another_process_wakes_those_who_wait_here(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "ledger.db")
    with opened(journal) as a, opened(journal) as b:
        a.apply("acme", grant(100)).wait(10)
        b.apply("acme", ask_for(b, 100, "first")).wait(10)
        ticket = a.apply("acme", ask_for(a, 80), wait_s=30)
        waiting(a)
        b.apply("acme", settle("first", 0)).wait(10)
        assert isinstance(ticket.wait(10).event, Held)
    journal.close()


def test_whom_nobody_wants_any_more_leaves_the_queue(ledger: Ledger) -> None:
    """T45: a caller that was cancelled takes nothing from those behind it."""
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    gone = ledger.apply("acme", ask_for(ledger, 100), wait_s=30)
    stays = ledger.apply("acme", ask_for(ledger, 100), wait_s=30)
    waiting(ledger, 2)
    gone.withdraw()
    ledger.apply("acme", settle("first", 0)).wait(10)
    assert isinstance(stays.wait(10).event, Held)
    assert gone.wait(10).declined is not None


def test_closing_refuses_those_who_wait(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    ticket = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
    waiting(ledger)
    ledger.close()
    assert ticket.wait(1).declined is not None


def test_a_task_awaits_a_ticket_while_its_loop_goes_on(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)

    async def main() -> Any:
        ticket = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
        asyncio.get_running_loop().call_later(0.02, lambda: ledger.apply("acme", settle("first", 0)))
        return await asyncio.wait_for(ticket_of(ticket), 10)

    async def ticket_of(ticket: Ticket) -> Any:
        return await ticket

    assert isinstance(asyncio.run(main()).event, Held)


def test_a_cancelled_task_leaves_a_ticket_that_still_tells_how_it_ended(ledger: Ledger) -> None:
    """T45: the hold may commit after the cancel; whoever asked on_done hears of it and can give it back."""
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    told = threading.Event()

    async def main() -> Ticket:
        ticket = ledger.apply("acme", ask_for(ledger, 80, "late"), wait_s=30)
        task = asyncio.ensure_future(ticket_of(ticket))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ticket.on_done(told.set)
        return ticket

    async def ticket_of(ticket: Ticket) -> Any:
        return await ticket

    ticket = asyncio.run(main())
    ledger.apply("acme", settle("first", 0)).wait(10)
    assert told.wait(10)
    assert isinstance(ticket.result().event, Held)


def test_a_trio_task_awaits_a_ticket(ledger: Ledger) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)

    async def end_the_first() -> None:
        await trio.sleep(0.02)
        ledger.apply("acme", settle("first", 0))

    async def main() -> Any:
        async with trio.open_nursery() as nursery:
            ticket = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
            nursery.start_soon(end_the_first)
            with trio.fail_after(10):
                return await ticket

    assert isinstance(trio.run(main).event, Held)


def test_a_thread_that_waits_too_short_is_told_so(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100)).wait(10)
    ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10)
    ticket = ledger.apply("acme", ask_for(ledger, 80), wait_s=30)
    with pytest.raises(TimeoutError):
        ticket.wait(0.01)
    with pytest.raises(RuntimeError, match="not decided yet"):
        ticket.result()
