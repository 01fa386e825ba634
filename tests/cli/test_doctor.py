"""doctor finds what does not add up, and shows what an operator should look at."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.events import decode
from lava_middleware.core.state import STATE_FORMAT, to_state
from lava_middleware.ledger import audit as module
from lava_middleware.ledger.audit import audit
from lava_middleware.ledger.journal import Snapshot
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.memory import MemoryJournal
from lava_middleware.ledger.sqlite import SqliteJournal

from .conftest import Lava, facts, live_a_little

NOW = 2_000_000_000_000_000
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def journal() -> MemoryJournal:
    """With an open ledger on it, so that the owner of the open hold is alive."""
    journal = MemoryJournal()
    ledger = Ledger(journal)
    live_a_little(ledger)
    live_a_little(ledger, "beta")
    ledger.close()
    return journal


def tamper(path: Path, sql: str, *parameters: object) -> None:
    with sqlite3.connect(path) as raw:
        assert raw.execute(sql, parameters).rowcount == 1
    raw.close()


def test_a_sound_journal_adds_up(journal: MemoryJournal) -> None:
    found = audit(journal, NOW)
    assert found.difference_count == 0
    assert (found.entries, found.accounts) == (16, 2)
    assert found.granted == 10 * 10**10
    assert found.charged == 2 * 2 * 10**10 // 50
    assert found.records == {"settled": 2, "reported": 2}
    assert found.bases == {"reported": 2, "counted": 2}
    assert found.overruns == {"unheld": 2}
    assert [hold.id for hold in found.holds] == ["h3", "h3"]


def test_accounts_that_are_folded_up_in_between_are_the_same(
    journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T29: memory does not grow with the number of customers beyond what their state takes as text."""
    expected = audit(journal, NOW)
    monkeypatch.setattr(module, "ACCOUNTS_THAWED", 1)
    assert audit(journal, NOW) == expected


def test_what_is_appended_meanwhile_is_left_for_the_next_time(journal: MemoryJournal) -> None:
    ledger = Ledger(journal)
    once = [lambda: live_a_little(ledger, "gamma")]

    def progress(done: int, total: int) -> None:
        if once:
            once.pop()()

    found = audit(journal, NOW, progress)
    ledger.close()
    assert found.entries == 16
    assert found.difference_count == 0
    assert audit(journal, NOW).entries == 24


def test_a_snapshot_that_is_not_what_the_entries_add_up_to_is_found(journal: MemoryJournal) -> None:
    from lava_middleware.core.account import Account
    from lava_middleware.core.evolve import evolve

    account = Account()
    for entry in journal.since("acme", 1)[:5]:
        evolve(account, decode(entry.kind, entry.event), entry.at)
    snapshot = Snapshot("acme", account.version, account.at, STATE_FORMAT, to_state(account))
    journal.save_snapshots([snapshot])
    found = audit(journal, NOW)
    assert (found.snapshots, found.difference_count) == (1, 0)
    account.debt += 1
    journal.save_snapshots([Snapshot("acme", account.version, account.at, STATE_FORMAT, to_state(account))])
    found = audit(journal, NOW)
    assert [(one.version, one.what) for one in found.differences] == [
        (5, "the snapshot is not what the entries add up to")
    ]
    assert "acme" not in repr(found.differences), "reprs reach logs"
    journal.save_snapshots([Snapshot("acme", account.version, account.at, STATE_FORMAT, "[]")])
    assert "cannot be folded on" in audit(journal, NOW).differences[0].what
    journal.save_snapshots([Snapshot("acme", account.version, account.at + 1, STATE_FORMAT, "[]")])
    assert audit(journal, NOW).difference_count == 0, "of another history: readers ignore it too"


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE journal SET balance_after = balance_after + 1 WHERE seq = 4", "balance on the entry"),
        ("UPDATE journal SET event = replace(event, '200000000', '200000001') WHERE seq = 4", "balance on the entry"),
        ("UPDATE journal SET kind = 'settled.9' WHERE seq = 4", "newer release"),
        ('UPDATE journal SET event = \'{"hold":"nobody"}\' WHERE seq = 4', "cannot be folded"),
        ("UPDATE journal SET event = 'garbage' WHERE seq = 4", "cannot be folded"),
        ("DELETE FROM journal WHERE seq = 1", "entries are missing"),
        ("UPDATE journal SET at = 1 WHERE seq = 4", "not later"),
    ],
)
def test_doctor_finds_a_changed_journal(lava: Lava, lived: Path, sql: str, what: str) -> None:
    tamper(lived, sql)
    done = lava("doctor")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENCES" in done.stdout
    assert what in done.stdout
    found = json.loads(lava("doctor", "--json").stdout)
    assert not found["ok"]
    assert what in str(found["differences"])
    assert max(map(len, done.stdout.splitlines())) <= 100


def _hold_and_die(path: Path) -> None:
    journal = SqliteJournal(path)
    live_a_little(Ledger(journal), "dead")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_doctor_tells_holds_of_the_living_from_those_of_the_dead(lava_process: Lava, path: Path) -> None:
    """T9, T10: a hold whose owner died is shown, and settled by the next process that serves calls."""
    child = FORK.Process(target=_hold_and_die, args=(path,))
    child.start()
    child.join(30)
    journal = SqliteJournal(path)
    ledger = Ledger(journal)
    found = json.loads(lava_process("doctor", "--json").stdout)
    assert found["ok"]
    assert [(hold["customer"], hold["state"]) for hold in found["holds"]] == [("dead", "dead")]
    assert "dead" in lava_process("doctor").stdout
    live_a_little(ledger, "alive")
    states = {hold["customer"]: hold["state"] for hold in json.loads(lava_process("doctor", "--json").stdout)["holds"]}
    assert states["alive"] == "alive"
    ledger.close()
    journal.close()


def test_doctor_shows_followers_dead_letters_and_what_passed(lava: Lava, lived: Path) -> None:
    journal = SqliteJournal(lived)
    journal.save_cursor("jsonl", 3)
    journal.bury("jsonl", 2, "422 the payload is wrong")
    journal.bump("2999-01-01", "unbilled:health check", "api.openai.com", 12)
    journal.bump("2999-01-02", "unbilled:health check", "api.openai.com", 30)
    journal.bump("2000-01-01", "unbilled:long ago", "api.openai.com", 7)
    journal.close()
    done = lava("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "no progress where nobody watches"
    for words in ("jsonl", "422 the payload is wrong", "health check", "42", sqlite3.sqlite_version, "power_loss"):
        assert words in done.stdout
    assert "long ago" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    found: dict[str, Any] = json.loads(lava("doctor", "--json").stdout)
    (follower,) = found["followers"]
    assert follower["name"] == "jsonl"
    assert follower["pending"] >= 5
    assert follower["oldest_age_s"] > 0
    assert len(found["passed"]) == 3
    assert found["dead_letters"] == [{"follower": "jsonl", "seq": 2, "reason": "422 the payload is wrong"}]


def test_doctor_shows_what_waits_in_the_pending_file(lava: Lava, lived: Path) -> None:
    Path(f"{lived}.pending").write_text("{}\n")
    assert f"{lived}.pending" in lava("doctor").stdout
    assert json.loads(lava("doctor", "--json").stdout)["pending_file"] == f"{lived}.pending"


@pytest.mark.parametrize("absorb", [False, True])
def test_an_overrun_that_comes_late_is_added_up_as_any_other(absorb: bool) -> None:
    """What an owner says that was taken for dead: it stands on the correction."""
    from lava_middleware.core.commands import Authorize, Grant, Settle

    journal = MemoryJournal()
    ledger = Ledger(journal)
    for command in (
        Grant("g", 10),
        Authorize("call", "gone", 3, 0, 0, 0, 0, expected=2),
        Settle("call", 2, 0, 0, lost_owner=True),
        Settle("call", 8, 0, 0, "cap_ignored", absorb=absorb),
    ):
        ledger.apply("acme", command).wait(10)
    ledger.close()
    found = audit(journal, NOW)
    assert (found.charged, found.overrun, found.absorbed) == (3 if absorb else 8, 5, 5 * absorb)
    assert found.overruns == {"cap_ignored": 1}


def test_outcomes_nobody_knows_are_counted_by_how_they_ended() -> None:
    from lava_middleware.core.commands import Report

    journal = MemoryJournal()
    ledger = Ledger(journal)
    for name, ending, answered, basis in (
        ("a", "cancelled", 0, "estimated"),
        ("b", "lost", 0, "estimated"),
        ("c", "owner_lost", 0, "estimated"),
        ("d", "closed", 5, "counted"),
    ):
        record = facts(name, ending=ending, answered=answered, basis=basis)
        ledger.apply("acme", Report(name, 1), record=record).wait(10)
    ledger.close()
    assert audit(journal, NOW).unknown_outcomes == {"cancelled": 1, "lost": 1, "owner_lost": 1}
