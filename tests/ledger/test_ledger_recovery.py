"""The holds of processes that died are settled as outcomes unknown; those of the living are nobody else's business."""

from __future__ import annotations

import json
import multiprocessing
from contextlib import closing

import pytest

from lava_middleware.core.commands import Report
from lava_middleware.core.decide import UnknownHold
from lava_middleware.core.events import Adjusted, Settled, Voided, decode

from . import players
from .conftest import Place
from .ledger_kit import ask_for, eventually, grant, opened, settle
from .replay import check_journal

SPAWN = multiprocessing.get_context("spawn")


def die_with_holds(place: Place, *numbers: int, holds: int = 3) -> list[str]:
    out = SPAWN.Queue()
    processes = [SPAWN.Process(target=players.leave_holds_open, args=(place.open, n, holds, out)) for n in numbers]
    for process in processes:
        process.start()
    owners = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    with closing(place.open()) as journal:
        eventually(lambda: not any(mark.alive and mark.owner in owners for mark in journal.owners()))
    return owners


def test_the_holds_of_a_dead_process_are_settled_and_the_process_forgotten(dying: Place) -> None:
    """T9, T10: sent, outcome unknown: charged by the policy that was fixed at hold time, never free."""
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        owners = die_with_holds(dying, 1, 2)
        ledger.recover()
        eventually(lambda: not ledger.look("acme").holds)  # whoever came first: this thread, the ledger's, or process 2
        account = ledger.look("acme")
        assert account.holds == {}
        assert account.available(2**62) == 1000 - 6 * 60
        assert not set(owners) & {mark.owner for mark in journal.owners()}
        assert ledger.recover() == 0
        entries = [entry for entry in journal.read(0) if entry.kind == Settled.kind]
        assert len(entries) == 6
        assert all(decode(entry.kind, entry.event).lost_owner for entry in entries)  # type: ignore[union-attr]
        record = json.loads(entries[0].record or "")
        assert record["ending"] == "owner_lost"
        assert record["usage"] == {"input": 12, "output": 30}
    check_journal(journal)
    journal.close()


def test_the_ledgers_thread_recovers_by_itself(dying: Place) -> None:
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
    die_with_holds(dying, 1)
    with opened(journal) as ledger:
        ticket = ledger.apply("acme", ask_for(ledger, 800), wait_s=20)
        assert ticket.wait(20).events, "credit that a dead process held comes free while one waits for it"
        eventually(lambda: len(ledger.look("acme").holds) == 1)
        assert ledger.counters.recovered == 3
    check_journal(journal)
    journal.close()


def test_a_process_that_lives_keeps_its_holds_though_others_recover(dying: Place) -> None:
    """T9, T41: neither its own recovery nor a second ledger in the same process touches what is still on its way."""
    journal = dying.open()
    with opened(journal) as ledger, opened(dying.open()) as second:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "mine")).wait(10)
        die_with_holds(dying, 1)
        second.recover()
        ledger.recover()
        assert set(ledger.look("acme").holds) == {"mine"}
        second._journal.close()
    journal.close()


def test_several_that_recover_at_once_settle_each_hold_once(dying: Place) -> None:
    journal = dying.open()
    with opened(journal) as a, opened(journal) as b:
        a.apply("acme", grant(10_000)).wait(10)
        die_with_holds(dying, 1, holds=60)
        a.later(lambda: a.recover())
        b.later(lambda: b.recover())
        eventually(lambda: not a.look("acme").holds)
        a.close()
        b.close()
        assert a.counters.recovered + b.counters.recovered == 60
    check_journal(journal)
    journal.close()


def test_what_a_dead_process_still_says_is_an_adjustment_of_the_record(dying: Place) -> None:
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        die_with_holds(dying, 1, holds=1)
        ledger.recover()
        adjusted = ledger.apply("acme", settle("1-0", 80)).wait(10)
        assert isinstance(adjusted.event, Adjusted)
        assert adjusted.event.charge == 20
    check_journal(journal)
    journal.close()


def test_recovery_starts_reading_where_the_dead_process_may_have_had_holds_open(dying: Place) -> None:
    """The owner's low mark moves up while it lives, so that recovery does not read the whole history."""
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(10_000)).wait(10)
        for number in range(50):
            ledger.apply("acme", ask_for(ledger, 1, f"call-{number}")).wait(10)
            if number != 30:
                ledger.apply("acme", settle(f"call-{number}", 1)).wait(10)
        (held,) = journal.find("acme", ["hold:call-30"])
        ledger._advance_owner()
        (mark,) = [mark for mark in journal.owners() if mark.owner == ledger.owner]
        assert held.seq - 3 <= mark.low_seq <= held.seq
        ledger.apply("acme", settle("call-30", 1)).wait(10)
        ledger._advance_owner()
        (mark,) = [mark for mark in journal.owners() if mark.owner == ledger.owner]
        assert mark.low_seq == journal.last_seq() + 1
    journal.close()


def test_two_customers_may_have_holds_of_the_same_id(dying: Place) -> None:
    """T9: an application names its jobs customer by customer. Of two with one name the end of one is not that of the
    other: when the process dies, recovery still starts reading at the one that is open; and who has none has none."""
    journal = dying.open()
    with opened(journal) as ledger:
        for customer in ("acme", "globex", "initech"):
            ledger.apply(customer, grant(1000)).wait(10)
        for customer in ("acme", "globex"):
            assert ledger.apply(customer, ask_for(ledger, 100, "job-1")).wait(10).events
        ledger.apply("acme", settle("job-1", 60)).wait(10)
        ledger._advance_owner()
        (held,) = journal.find("globex", ["hold:job-1"])
        (mark,) = [mark for mark in journal.owners() if mark.owner == ledger.owner]
        assert mark.low_seq <= held.seq
        stranger = ledger.apply("initech", settle("job-1", 60))
        with pytest.raises(UnknownHold):
            stranger.wait(10)
        assert ledger.look("initech").available(2**62) == 1000
    journal.close()


@pytest.mark.parametrize("count", [600])
def test_recovery_of_many_holds_leaves_room_for_callers(dying: Place, count: int) -> None:
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(10**6)).wait(10)
        ledger.apply("other", grant(10**6)).wait(10)
        die_with_holds(dying, 1, holds=count)
        ledger.later(ledger._recover)
        assert ledger.apply("other", ask_for(ledger, 1)).wait(5).events
        ledger.recover()
        assert ledger.counters.recovered == count
        assert len(ledger.look("acme").holds) == 0
    journal.close()


def test_a_customers_own_report_of_that_id_is_not_the_call_of_a_dead_process(dying: Place) -> None:
    """T9: only a call that left without its hold is paid for already; a report has an id of its customer's choice."""
    journal = dying.open()
    with opened(journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        first, second = "1-0", "1-1"  # before they are held, for recovery begins by itself
        ledger.apply("acme", Report(first, 5), record='{"operation":"report"}').wait(10)
        ledger.apply("acme", Report(second, 5), record='{"operation":"chat"}').wait(10)
    die_with_holds(dying, 1, holds=2)
    with opened(journal) as ledger:
        ledger.recover()
        eventually(lambda: not ledger.look("acme").holds)
        ended = {entry.key: entry.kind for entry in journal.read(0) if entry.key in (f"end:{first}", f"end:{second}")}
    assert ended == {f"end:{first}": Settled.kind, f"end:{second}": Voided.kind}
    check_journal(journal)
    journal.close()
