"""What happens between calls on SQLite: flushes and checkpoints (T28, T40)."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lava_middleware.ledger import checkpoint, flush, sqlite_file
from lava_middleware.ledger.journal import Entry, Outcome
from lava_middleware.ledger.sqlite import SqliteJournal

from .test_journal_processes import hear, other, tell


def append(journal: SqliteJournal, first: int, last: int, size: int = 100) -> None:
    for n in range(first, last + 1):
        one = Entry("acme", n, "held.1", f"hold:{n}", 0, "{}", "r" * size, n)
        assert journal.append([one], (n - 1, n - 1))[0] is Outcome.APPENDED


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "lava.db"


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the -wal file was flushed."""
    times: list[float] = []
    real = flush.flush

    def noting(descriptor: int) -> None:
        times.append(time.monotonic())
        real(descriptor)

    monkeypatch.setattr(flush, "flush", noting)
    return times


@pytest.fixture
def journal(ledger: Path, flushes: list[float]) -> Iterator[SqliteJournal]:
    with closing(SqliteJournal(ledger)) as opened:
        opened.sync(5)
        flushes.clear()
        yield opened


# -- flushes


@pytest.mark.alone
def test_a_flush_follows_the_first_unflushed_commit_even_under_load(
    journal: SqliteJournal, flushes: list[float]
) -> None:
    """T40: armed by the last commit it would never fire while commits keep coming."""
    started, number = time.monotonic(), 0
    while time.monotonic() - started < 0.5:
        number += 1
        append(journal, number, number)
    gaps = [b - a for a, b in zip([started, *flushes], flushes, strict=False)]
    assert len(flushes) >= 5
    assert sorted(gaps)[len(gaps) // 2] < 0.08


def test_an_idle_ledger_is_not_flushed(journal: SqliteJournal, flushes: list[float]) -> None:
    append(journal, 1, 3)
    _wait_for(lambda: flushes)
    time.sleep(3 * flush.INTERVAL_S)
    assert len(flushes) == 1


def test_sync_waits_for_a_flush_that_began_after_it(journal: SqliteJournal, flushes: list[float]) -> None:
    for number in range(1, 6):
        append(journal, number, number)
        asked = time.monotonic()
        assert journal.sync(5)
        assert flushes[-1] >= asked


def test_no_append_waits_for_a_flush(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """T40: the thread that flushes has no lock that a commit needs."""
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(flush, "flush", lambda _: (begun.set(), go.wait(10)))
    append(journal, 1, 1)
    assert begun.wait(5)
    try:
        append(journal, 2, 200)
        assert not journal.sync(0.01)
    finally:
        go.set()
    assert journal.sync(5)


def test_process_crash_leaves_the_flush_out(ledger: Path, flushes: list[float]) -> None:
    with closing(SqliteJournal(ledger, "process_crash")) as journal:
        append(journal, 1, 3)
        assert journal.sync(0)
        time.sleep(2 * flush.INTERVAL_S)
    assert flushes == []


def test_of_two_settings_on_one_file_the_stronger_one_holds(ledger: Path, flushes: list[float]) -> None:
    with closing(SqliteJournal(ledger, "process_crash")) as one, closing(SqliteJournal(ledger, "power_loss")):
        append(one, 1, 3)
        _wait_for(lambda: flushes)


def test_closing_flushes_what_is_left(ledger: Path, flushes: list[float]) -> None:
    journal = SqliteJournal(ledger)
    journal.sync(5)
    count = len(flushes)
    append(journal, 1, 1)
    journal.close()
    assert len(flushes) == count + 1


# -- checkpoints


def test_no_call_checkpoints_and_upkeep_does(journal: SqliteJournal, ledger: Path) -> None:
    append(journal, 1, 2_000)
    size = os.path.getsize(ledger)
    assert os.path.getsize(f"{ledger}-wal") > 2**20, "an append has checkpointed"
    journal.maintain()
    assert os.path.getsize(ledger) > size + 2**18


def test_an_idle_ledger_gives_the_space_of_a_long_wal_file_back(
    journal: SqliteJournal, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "IDLE_S", 0.1)
    append(journal, 1, 600, size=8_000)
    assert os.path.getsize(f"{ledger}-wal") > checkpoint.TRUNCATE_ABOVE
    _wait_for(lambda: journal.maintain() or os.path.getsize(f"{ledger}-wal") == 0)
    append(journal, 601, 602)


def test_a_long_wal_file_is_started_over_although_commits_keep_coming(
    journal: SqliteJournal, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "RESTART_ABOVE", 2**20)
    high = 0
    for start in range(1, 4_000, 100):
        append(journal, start, start + 99)
        journal._file._checkpointer._not_before = 0.0
        journal.maintain()
        high = max(high, os.path.getsize(f"{ledger}-wal"))
    assert high < 4 * 2**20


def test_one_process_is_elected_and_the_next_takes_over(journal: SqliteJournal, ledger: Path) -> None:
    code = """
        journal = SqliteJournal(ARGUMENTS[0])
        for _ in range(2):
            journal.maintain()
            journal.maintain()
            say(0 in journal._file._checkpointer._lock._held)
            sys.stdin.readline()
    """
    with other(code, ledger) as process:
        assert hear(process) == "True"
        append(journal, 1, 5)
        journal.maintain()
        assert 0 not in journal._file._checkpointer._lock._held
        process.kill()
        process.wait()
        journal.maintain()
        journal.maintain()
        assert 0 in journal._file._checkpointer._lock._held


def test_without_any_checkpointer_sqlite_keeps_the_wal_file_short_itself(
    journal: SqliteJournal, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SILENCE_S", 0.1)
    monkeypatch.setattr(sqlite_file, "NEGLECT_S", 0.1)
    number = 0
    until = time.monotonic() + 10
    while not journal._file._checkpointer.automatic:  # nobody calls maintain()
        assert time.monotonic() < until
        number += 1
        append(journal, number, number)
    size = os.path.getsize(f"{ledger}-wal")
    append(journal, number + 1, number + 3_000)  # 25 MB of frames
    assert os.path.getsize(f"{ledger}-wal") < size + 2 * checkpoint.AUTOMATIC_PAGES * 2_072
    journal.maintain()
    assert not journal._file._checkpointer.automatic


def test_a_checkpointer_that_hangs_is_not_counted_on(
    journal: SqliteJournal, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SILENCE_S", 0.2)
    code = """
        journal = SqliteJournal(ARGUMENTS[0])
        journal.maintain()
        journal.maintain()
        say("elected")
        sys.stdin.readline()
        while True:
            journal.maintain()
            time.sleep(0.02)
    """
    with other(code, ledger) as process:
        assert hear(process) == "elected"
        _wait_for(lambda: journal.maintain() or journal._file._checkpointer.automatic)
        tell(process)
        _wait_for(lambda: journal.maintain() or not journal._file._checkpointer.automatic)


def test_appends_under_upkeep_are_all_there(journal: SqliteJournal, ledger: Path, rng: random.Random) -> None:
    stop = threading.Event()

    def tend() -> None:
        while not stop.is_set():
            journal._file._checkpointer._not_before = 0.0
            journal.maintain()
            time.sleep(rng.random() / 200)

    keeper = threading.Thread(target=tend)
    keeper.start()
    try:
        append(journal, 1, 3_000)
    finally:
        stop.set()
        keeper.join()
    assert len(journal.since("acme", 1)) == 3_000


# -- versions of SQLite


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_releases_of_sqlite_whose_checkpoints_can_race_are_known(version: tuple[int, int, int], bug: bool) -> None:
    assert sqlite_file.checkpoints_can_race(version) is bug


@pytest.mark.parametrize(("version", "times"), [((3, 50, 6), 1), ((3, 51, 3), 0)])
def test_start_up_says_once_that_checkpoints_can_race(
    version: tuple[int, int, int],
    times: int,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    monkeypatch.setattr(sqlite_file, "_advised", False)
    caplog.set_level(logging.INFO, logger="lava_middleware")
    for _ in range(2):
        SqliteJournal(ledger).close()
    said = [one for one in caplog.records if "one process checkpoint at a time" in one.getMessage()]
    assert [one.levelname for one in said] == ["INFO"] * times


def _wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
