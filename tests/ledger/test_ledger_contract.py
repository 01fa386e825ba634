"""What one command leads to, on every journal alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.account import Account
from lava_middleware.core.commands import Authorize, Extend, Grant, Report, SetTerms, Settle, Void
from lava_middleware.core.decide import Conflict, UnknownHold
from lava_middleware.core.events import Adjusted, Extended, Granted, Held, Lapsed, Reported, Settled, Voided, decode
from lava_middleware.core.evolve import evolve
from lava_middleware.core.money import AmountError
from lava_middleware.core.state import to_state
from lava_middleware.core.terms import Limit, Terms
from lava_middleware.ledger.journal import Snapshot
from lava_middleware.ledger.ledger import Ledger, LedgerUnavailable
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

from .ledger_kit import Spied, ask_for, eventually, grant, opened, settle
from .replay import all_entries, check_journal


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "ledger.db")
    yield made
    check_journal(made)
    made.close()


@pytest.fixture
def ledger(journal: Any) -> Iterator[Ledger]:
    with opened(journal) as made:
        yield made


def available(ledger: Ledger, account: str = "acme") -> int:
    return ledger.look(account).available(2**62)


def test_a_granted_customer_is_held_and_settled_and_the_rest_is_given_back(ledger: Ledger) -> None:
    assert ledger.apply("acme", grant(1000)).wait(10).available == 1000
    held = ledger.apply("acme", ask_for(ledger, 700, "call")).wait(10)
    assert isinstance(held.event, Held)
    assert held.available == 300
    settled = ledger.apply("acme", settle("call", 250)).wait(10)
    assert isinstance(settled.event, Settled)
    assert settled.available == 750
    assert settled.seq > held.seq > 0


def test_what_cannot_be_paid_for_is_declined_and_nothing_is_written(ledger: Ledger, journal: Any) -> None:
    ledger.apply("acme", grant(100))
    declined = ledger.apply("acme", ask_for(ledger, 101)).wait(10)
    assert declined.declined is not None
    assert declined.declined.reason == "request_exceeds_credit"
    assert declined.events == ()
    assert len(list(all_entries(journal))) == 1


def test_a_stranger_is_declined_and_leaves_no_trace(ledger: Ledger, journal: Any) -> None:
    declined = ledger.apply("nobody", ask_for(ledger, 1)).wait(10).declined
    assert declined is not None
    assert declined.reason == "insufficient_credit"
    assert journal.last_seq() == 0


def test_a_repeated_authorize_gets_the_first_answer_whether_its_hold_is_open_or_ended(ledger: Ledger) -> None:
    ledger.apply("acme", grant(1000))
    ask = ask_for(ledger, 400, "call")
    first = ledger.apply("acme", ask).wait(10)
    again = ledger.apply("acme", ask).wait(10)
    assert again.repeated
    assert again.event == first.event
    ledger.apply("acme", settle("call", 1))
    after = ledger.apply("acme", ask).wait(10)
    assert after.repeated
    assert after.event == first.event
    assert available(ledger) == 999


def test_a_hold_ends_once_and_the_same_ending_again_is_the_first_receipt(ledger: Ledger) -> None:
    """T9: repeating an ending is harmless, another ending is a conflict."""
    ledger.apply("acme", grant(1000))
    ledger.apply("acme", ask_for(ledger, 400, "call"))
    first = ledger.apply("acme", settle("call", 300)).wait(10)
    again = ledger.apply("acme", settle("call", 300)).wait(10)
    assert again.repeated
    assert again.event == first.event
    with pytest.raises(Conflict):
        ledger.apply("acme", settle("call", 301)).wait(10)
    with pytest.raises(Conflict):
        ledger.apply("acme", Void("call", "late")).wait(10)
    assert available(ledger) == 700


def test_a_void_gives_everything_back(ledger: Ledger) -> None:
    ledger.apply("acme", grant(1000))
    ledger.apply("acme", ask_for(ledger, 400, "call"))
    assert isinstance(ledger.apply("acme", Void("call", "unsent")).wait(10).event, Voided)
    assert available(ledger) == 1000


def test_ending_or_extending_an_unknown_hold_says_so(ledger: Ledger) -> None:
    ledger.apply("acme", grant(1000))
    for command in (settle("never", 1), Void("never", "unsent"), Extend("never", 1, 1, 1)):
        ticket = ledger.apply("acme", command)
        with pytest.raises(UnknownHold):
            ticket.wait(10)


def test_a_hold_is_extended_while_there_is_credit(ledger: Ledger) -> None:
    ledger.apply("acme", grant(96))
    ledger.apply("acme", Authorize("call", ledger.owner, 0, 0, 1_000_000, 64, 64, grows=True))
    extended = ledger.apply("acme", Extend("call", 1_000_000, 1000, 64)).wait(10)
    assert isinstance(extended.event, Extended)
    assert extended.event.amount == 32
    declined = ledger.apply("acme", Extend("call", 1_000_000, 968, 32)).wait(10).declined
    assert declined is not None
    assert declined.reason == "insufficient_credit"


def test_a_grant_with_a_key_is_given_once(ledger: Ledger) -> None:
    first = ledger.apply("acme", grant(500, "invoice-81")).wait(10)
    again = ledger.apply("acme", grant(500, "invoice-81")).wait(10)
    assert again.repeated
    assert again.event == first.event
    with pytest.raises(Conflict):
        ledger.apply("acme", grant(501, "invoice-81")).wait(10)
    assert available(ledger) == 500


def test_a_report_is_posted_once_and_what_no_grant_covers_is_debt(ledger: Ledger) -> None:
    ledger.apply("acme", grant(100))
    first = ledger.apply("acme", Report("doc-77", 130), record='{"id":"doc-77"}').wait(10)
    assert isinstance(first.event, Reported)
    assert first.event.debt == 30
    assert ledger.apply("acme", Report("doc-77", 130)).wait(10).repeated
    assert available(ledger) == -30
    assert ledger.apply("acme", grant(100)).wait(10).available == 70


def test_a_limit_refuses_what_would_pass_it(ledger: Ledger) -> None:
    ledger.apply("acme", SetTerms(Terms().with_limit(Limit("monthly", "tokens", 100))))
    free = Authorize("call", ledger.owner, 0, 40, 0, 60, 60)
    assert ledger.apply("acme", free).wait(10).declined is None
    declined = ledger.apply("acme", replace(free, hold="other", output_tokens_min=1)).wait(10).declined
    assert declined is not None
    assert (declined.reason, declined.limit) == ("limit_reached", "monthly")


def test_the_record_stands_beside_the_event_that_bills(ledger: Ledger, journal: Any) -> None:
    ledger.apply("acme", Grant("short", 1000, expires=2))
    ledger.apply("acme", grant(1000))
    ledger.apply("acme", ask_for(ledger, 10, "call"), record='{"draft":1}')
    ledger.apply("acme", settle("call", 10), record='{"id":"call"}')
    records = [(entry.kind, entry.record) for entry in all_entries(journal) if entry.record]
    assert records == [("held.1", '{"draft":1}'), ("settled.1", '{"id":"call"}')]


def test_a_lapse_is_written_with_the_command_that_found_it(journal: Any) -> None:
    now = iter(range(1000, 10**9, 1000))
    with opened(journal, clock=lambda: next(now)) as ledger:
        ledger.apply("acme", Grant("old", 1000, expires=1500))
        receipt = ledger.apply("acme", grant(5)).wait(10)
        assert [type(event) for event in receipt.events] == [Lapsed, Granted]
        assert receipt.available == 5


def test_a_settlement_after_expiry_is_an_adjustment_that_names_the_hold(ledger: Ledger) -> None:
    ledger.apply("acme", grant(1000))
    ledger.apply("acme", ask_for(ledger, 400, "call", expected=100))
    ledger.apply("acme", Settle("call", 100, 0, 0, lost_owner=True)).wait(10)
    adjusted = ledger.apply("acme", settle("call", 250)).wait(10)
    assert isinstance(adjusted.event, Adjusted)
    assert adjusted.event.charge == 150
    assert ledger.apply("acme", settle("call", 250)).wait(10).repeated
    assert available(ledger) == 750


def test_an_absurd_amount_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    """T24."""
    ledger.apply("acme", grant(2**61))
    ticket = ledger.apply("acme", grant(2**61))
    with pytest.raises(AmountError):
        ticket.wait(10)
    assert available(ledger) == 2**61


def test_memory_and_refold_agree_after_everything(ledger: Ledger, journal: Any) -> None:
    for number in range(300):
        ledger.apply("acme", grant(100 + number))
        ledger.apply("acme", ask_for(ledger, 77, f"call-{number}"))
        if number % 3:
            ledger.apply("acme", settle(f"call-{number}", 40 + number % 60))
    folded = Account()
    for entry in journal.since("acme", 1):
        evolve(folded, decode(entry.kind, entry.event), entry.at)
    assert to_state(ledger.look("acme")) == to_state(folded)


def test_a_pair_is_two_statements_and_a_refusal_one_look(journal: Any) -> None:
    """T39: each statement may cost a hand-over of the interpreter; a guard that counts work, not seconds."""
    spied = Spied(journal)
    with opened(spied) as ledger:
        ledger.apply("acme", grant(1000))
        ledger.owner  # noqa: B018  # registers
        eventually(lambda: spied.calls["owners"])
        background = {"maintain", "owners", "advance_owner"}
        spied.calls.clear()
        ledger.apply("acme", ask_for(ledger, 400, "call")).wait(10)
        ledger.apply("acme", settle("call", 300)).wait(10)
        assert {name: n for name, n in spied.calls.items() if name not in background} == {"append": 2}
        spied.calls.clear()
        assert ledger.apply("acme", ask_for(ledger, 4000)).wait(10).declined
        assert {name: n for name, n in spied.calls.items() if name not in background} == {"since": 1}


def test_a_snapshot_is_taken_after_128_entries_and_saves_the_next_process_the_fold(journal: Any) -> None:
    with opened(journal) as ledger:
        for number in range(200):
            ledger.apply("acme", grant(1, f"k{number}"))
            ledger.apply("acme", Report(f"r{number}", 1))
        eventually(lambda: journal.snapshot("acme") is not None)
    snapshot = journal.snapshot("acme")
    spied = Spied(journal)
    with opened(spied) as other:
        assert to_state(other.look("acme")) == snapshot.state or other.look("acme").version > snapshot.version
        entries = journal.since("acme", 1)
        assert len(entries) == 400
    journal.save_snapshots([replace(snapshot, state="not even JSON")])
    with opened(journal) as third:
        assert third.look("acme").version == 400


def test_a_snapshot_of_another_history_is_not_believed(ledger: Ledger, journal: Any) -> None:
    """T42: a snapshot counts only where the journal holds the very entry it was taken after."""
    ledger.apply("acme", grant(1000))
    state = ledger.look("acme")
    lie = Account()
    evolve(lie, Granted("k", 9999, "top_up"), state.at - 1)
    journal.save_snapshots([Snapshot("acme", 1, state.at - 1, 1, to_state(lie))])
    with opened(journal) as other:
        assert available(other) == 1000


def test_an_account_that_left_memory_is_folded_again(journal: Any) -> None:
    with opened(journal, cache_size=2) as ledger:
        for name in "abcd" * 3:
            ledger.apply(name, grant(10))
        assert [available(ledger, name) for name in "abcd"] == [30, 30, 30, 30]
        assert len(ledger.accounts) == 2


def test_the_ledger_closes_twice_and_then_refuses_calls_but_takes_endings(journal: Any) -> None:
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000))
        ledger.apply("acme", ask_for(ledger, 400, "call"))
        ask = ask_for(ledger, 1)
        ledger.close()
        ledger.close()
        with pytest.raises(LedgerUnavailable):
            ledger.apply("acme", ask).wait(10)
        assert isinstance(ledger.apply("acme", settle("call", 300)).wait(10).event, Settled)
