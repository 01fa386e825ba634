"""Bad files, bad disks, bad neighbours: each a clear error, and nothing that was acknowledged is lost."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.ledger import filesystem, schema, sqlite_file
from lava_middleware.ledger.journal import Busy, Entry, JournalUnavailable, Outcome, Snapshot
from lava_middleware.ledger.sqlite import SqliteJournal

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses what only Linux has")


def line(version: int, account: str = "acme", size: int = 100) -> Entry:
    return Entry(account, version, "held.1", f"hold:{version}", 0, "{}", "r" * size, version)


def append(journal: SqliteJournal, first: int, last: int, account: str = "acme", size: int = 100) -> None:
    for n in range(first, last + 1):
        while True:
            try:
                outcome, _ = journal.append([line(n, account, size)], (n - 1, n - 1))
                break
            except Busy:  # another process of the test is writing
                time.sleep(0.001)
        assert outcome is Outcome.APPENDED


def versions(journal: SqliteJournal, account: str = "acme") -> list[int]:
    return [one.version for one in journal.since(account, 1)]


def check_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def run(code: str, *arguments: object) -> str:
    """Run code in another process with what this module has at hand; its output."""
    prelude = f"from {__name__} import *\nimport os, sys, time\nARGUMENTS = sys.argv[1:]\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "lava.db"


# -- files that are no ledger


def test_a_file_that_was_overwritten_is_refused_by_sqlites_own_word(ledger: Path) -> None:
    """T34: nobody but SQLite looks into it."""
    ledger.write_bytes(b"these are not the bytes of a database" * 100)
    with pytest.raises(JournalUnavailable, match=r"is not an SQLite database .* restore it from a backup"):
        SqliteJournal(ledger)
    assert ledger.read_bytes().startswith(b"these are not")


def test_a_corrupt_page_is_an_error_that_says_what_to_do(ledger: Path) -> None:
    with closing(SqliteJournal(ledger)) as journal:
        append(journal, 1, 200)
    with ledger.open("r+b") as file:
        file.seek(2048)
        file.write(b"\xff" * (os.path.getsize(ledger) - 2048))
    with (
        pytest.raises(JournalUnavailable, match=r"is corrupt: .* restore it from a backup"),
        _opened(ledger) as journal,
    ):
        journal.since("acme", 1)


def test_another_programs_database_is_refused_and_left_as_it_was(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as raw:
        raw.execute("CREATE TABLE users (id)")
    before = ledger.read_bytes()
    with pytest.raises(JournalUnavailable, match="another program's"):
        SqliteJournal(ledger)
    assert ledger.read_bytes() == before
    assert os.listdir(ledger.parent) == [ledger.name]


def test_an_empty_file_becomes_a_ledger(ledger: Path) -> None:
    ledger.touch()
    with _opened(ledger) as journal:
        append(journal, 1, 1)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere/lava.db", "does not exist: create it"),
        (".", "is a directory"),
        ("second name.db", "hard link"),
    ],
)
def test_an_impossible_place_is_refused_with_what_to_do(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "first.db").touch()
    os.link(tmp_path / "first.db", tmp_path / "second name.db")
    with pytest.raises(JournalUnavailable, match=words):
        SqliteJournal(tmp_path / place)


def test_a_network_file_system_is_refused_before_anything_is_made(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {ledger.parent} rw - nfs4 host:/x rw\n"
    monkeypatch.setattr(filesystem, "read_mountinfo", lambda: text)
    with pytest.raises(JournalUnavailable, match="network file system"):
        SqliteJournal(ledger)
    assert os.listdir(ledger.parent) == []


def test_a_path_with_signs_that_mean_something_in_a_url_is_just_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "50%41 ?mode=ro#x & y.db"
    with _opened(odd) as journal:
        append(journal, 1, 2)
    assert odd.exists()


# -- schema


def test_a_file_of_a_newer_release_is_refused(ledger: Path) -> None:
    SqliteJournal(ledger).close()
    with closing(sqlite3.connect(ledger)) as raw, raw:
        raw.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(JournalUnavailable, match=r"newer release \(schema 99, .*upgrade"):
        SqliteJournal(ledger)


def test_an_older_file_is_migrated_step_by_step_and_keeps_its_entries(ledger: Path) -> None:
    with _opened(ledger) as journal:
        append(journal, 1, 3)
    steps = (*schema.MIGRATIONS, ("ALTER TABLE notes ADD COLUMN at INTEGER",), ("CREATE TABLE later (a)",))
    with closing(sqlite3.connect(ledger, isolation_level=None)) as raw:
        schema.prepare(raw, str(ledger), steps)
        schema.prepare(raw, str(ledger), steps)
        assert raw.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == ("3",)
        assert raw.execute("SELECT count(*) FROM journal").fetchone() == (3,)


def test_a_migration_that_fails_leaves_the_file_as_it_was(ledger: Path) -> None:
    SqliteJournal(ledger).close()
    steps = (*schema.MIGRATIONS, ("CREATE TABLE later (a)", "CREATE TABLE journal (a)"))
    with closing(sqlite3.connect(ledger, isolation_level=None)) as raw:
        with pytest.raises(sqlite3.OperationalError):
            schema.prepare(raw, str(ledger), steps)
        assert raw.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == ("1",)
        assert not raw.execute("SELECT 1 FROM sqlite_master WHERE name = 'later'").fetchall()


def test_processes_that_open_a_new_ledger_at_once_all_get_it(ledger: Path) -> None:
    results: list[str] = []
    code = """
        with closing(SqliteJournal(ARGUMENTS[0])) as journal:
            append(journal, 1, 20, account=ARGUMENTS[1])
            print("done")
    """
    threads = [threading.Thread(target=lambda n=n: results.append(run(code, ledger, f"a{n}"))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["done\n"] * 6
    with _opened(ledger) as journal:
        assert journal.last_seq() == 120


def test_a_copy_made_by_vacuum_into_is_a_ledger(ledger: Path, tmp_path: Path) -> None:
    """Such a copy is not in WAL mode until it is opened."""
    copy = tmp_path / "copy.db"
    with _opened(ledger) as journal:
        append(journal, 1, 5)
        with closing(sqlite3.connect(ledger)) as raw:
            raw.execute("VACUUM INTO ?", (str(copy),))
    with _opened(copy) as journal:
        assert versions(journal) == [1, 2, 3, 4, 5]
        append(journal, 6, 6)
        assert (tmp_path / "copy.db-wal").exists()


# -- neighbours


def test_a_lock_that_another_process_keeps_is_busy_at_once_and_over_when_it_ends(ledger: Path) -> None:
    with _opened(ledger) as journal:
        append(journal, 1, 1)
        ready, code = (
            ledger.with_name("ready"),
            """
            raw = sqlite3.connect(ARGUMENTS[0], isolation_level=None)
            raw.execute("BEGIN IMMEDIATE")
            open(ARGUMENTS[1], "w").close()
            time.sleep(3)
        """,
        )
        keeper = threading.Thread(target=run, args=(code, ledger, ready))
        keeper.start()
        _wait_for(ready.exists)
        started = time.monotonic()
        with pytest.raises(Busy):
            journal.append([line(2)], (1, 1))
        assert time.monotonic() - started < 2, "it waited inside SQLite"
        assert versions(journal) == [1]
        keeper.join()
        append(journal, 2, 2)


def test_a_reader_left_open_stops_neither_appends_nor_for_ever_the_checkpoints(ledger: Path) -> None:
    """T47."""
    with _opened(ledger) as journal:
        append(journal, 1, 50)
        with closing(sqlite3.connect(ledger, isolation_level=None)) as raw:
            raw.execute("BEGIN")
            half_read = raw.execute("SELECT * FROM journal")
            half_read.fetchone()
            append(journal, 51, 100)
            journal.maintain()
            append(journal, 101, 150)
            assert _frames_left(ledger) > 0
            half_read.close()
        _tick(journal)
        assert _frames_left(ledger) == 0


def test_our_own_reads_end_at_once(ledger: Path) -> None:
    """T47: after every kind of read a checkpoint finds nobody in its way."""
    with _opened(ledger) as journal:
        append(journal, 1, 50)
        journal.read(0, 3)
        journal.entries("acme", limit=2)
        journal.accounts(limit=1)
        journal.find("acme", ["hold:1"])
        journal.since("acme", 40)
        journal.owners()
        assert _frames_left(ledger, "RESTART") == 0


# -- disks


def test_a_full_database_refuses_the_append_and_keeps_what_it_has(ledger: Path) -> None:
    with _opened(ledger) as journal:
        append(journal, 1, 10)
        pages = journal._file.writer.fetch("PRAGMA page_count")[0][0]
        journal._file.writer.fetch(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(JournalUnavailable, match="full: make room; nothing was written"):
            append(journal, 11, 1_000, size=1_000)
        kept = len(versions(journal))
        journal._file.writer.fetch("PRAGMA max_page_count=1000000")
        append(journal, kept + 1, kept + 5)
        assert versions(journal) == list(range(1, kept + 6))
    check_integrity(ledger)


@LINUX
def test_a_limit_on_file_sizes_refuses_the_append_and_does_not_kill(ledger: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: EFBIG, and SIGXFSZ, which Python ignores."""
    said = run(
        """
        import resource
        journal = SqliteJournal(ARGUMENTS[0])
        append(journal, 1, 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            append(journal, 11, 1_000)
        except JournalUnavailable as error:
            print(error)
        kept = len(versions(journal))
        journal.maintain()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        append(journal, kept + 1, kept + 5)
        print(kept, journal.sync(5))
        journal.close()
        """,
        ledger,
    ).splitlines()
    assert "full or failing disk" in said[0]
    kept, synced = said[1].split()
    assert synced == "True"
    with _opened(ledger) as journal:
        assert versions(journal) == list(range(1, int(kept) + 6))
    check_integrity(ledger)


_DROP_PRIVILEGES = """
import ctypes
class Header(ctypes.Structure): _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
none = (ctypes.c_uint32 * 6)()  # no capability: root obeys the modes of files like everybody else
assert ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), none) == 0
"""


@LINUX
@pytest.mark.parametrize("exists", [False, True], ids=["new file", "existing file"])
def test_a_read_only_directory_is_an_error_that_names_permissions(ledger: Path, exists: bool) -> None:
    if exists:
        with _opened(ledger) as journal:
            append(journal, 1, 1)
        ledger.chmod(0o444)
    ledger.parent.chmod(0o555)
    code = textwrap.dedent("""
        try:
            journal = SqliteJournal(ARGUMENTS[0])
            journal.append([line(2)], (1, 1))
        except JournalUnavailable as error:
            print(error)
    """)
    try:
        said = run(_DROP_PRIVILEGES + code, ledger)
    finally:
        ledger.parent.chmod(0o755)
    assert "directory" in said
    assert "permission" in said or "may read and write" in said


def test_a_disk_that_refuses_a_flush_stops_the_ledger(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel reports a failed write-back once: a second flush that succeeds would prove nothing."""

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    with _opened(ledger) as journal:
        append(journal, 1, 1)
        assert journal.sync(5)
        monkeypatch.setattr("lava_middleware.ledger.flush.flush", failing)
        with caplog.at_level(logging.CRITICAL):
            assert not journal.sync(0.5)
        monkeypatch.undo()
        with pytest.raises(JournalUnavailable, match="check the disk and restart"):
            append(journal, 2, 2)
        assert "Input/output error" in caplog.text


# -- a file that is moved or replaced under us


def test_a_replaced_file_is_noticed_and_the_generation_rises(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    """T42: yesterday's copy is moved into place while the process runs; today's -wal file is still there."""
    backup = ledger.with_name("yesterday.db")
    with _opened(ledger) as journal:
        owner = journal.register_owner()
        append(journal, 1, 30)
        _backup(ledger, backup)
        append(journal, 31, 60)
        journal.maintain()
        os.replace(backup, ledger)
        with caplog.at_level(logging.CRITICAL):
            _tick(journal)
        assert "was replaced while in use" in caplog.text
        assert journal.generation == 1
        assert versions(journal) == list(range(1, 31))
        assert journal.append([line(61)], (60, 60)) == (Outcome.NO_PREDECESSOR, 0)
        append(journal, 31, 40)
        assert owner in [mark.owner for mark in journal.owners() if mark.alive]
    check_integrity(ledger)
    with _opened(ledger) as journal:
        assert versions(journal) == list(range(1, 41))


def test_a_file_replaced_during_a_pause_is_noticed_by_the_next_append(ledger: Path) -> None:
    backup = ledger.with_name("yesterday.db")
    with _opened(ledger) as journal:
        append(journal, 1, 5)
        _backup(ledger, backup)
        append(journal, 6, 9)
        os.replace(backup, ledger)
        time.sleep(sqlite_file.PAUSE_S * 1.5)
        assert journal.append([line(10)], (9, 9)) == (Outcome.NO_PREDECESSOR, 0)
        assert journal.generation == 1


def test_a_ledger_put_back_by_sqlites_backup_is_noticed_by_its_predecessor(ledger: Path) -> None:
    """T42: the backup API writes yesterday's pages into the open file; no inode changes."""
    backup = ledger.with_name("yesterday.db")
    with _opened(ledger) as journal:
        append(journal, 1, 10)
        _backup(ledger, backup)
        append(journal, 11, 20)
        with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(ledger)) as target:
            source.backup(target)
        assert journal.append([line(21)], (20, 20)) == (Outcome.NO_PREDECESSOR, 0)
        append(journal, 11, 12)
    check_integrity(ledger)


def test_a_file_that_was_moved_away_stops_the_ledger_until_it_is_back(ledger: Path) -> None:
    away = ledger.with_name("elsewhere.db")
    with _opened(ledger) as journal:
        append(journal, 1, 5)
        os.rename(ledger, away)
        _tick(journal)
        with pytest.raises(JournalUnavailable, match="moved or deleted"):
            append(journal, 6, 6)
        assert not ledger.exists(), "an empty ledger was made in its place"
        os.rename(away, ledger)
        _tick(journal)
        append(journal, 6, 6)
        assert (versions(journal), journal.generation) == ([1, 2, 3, 4, 5, 6], 0)


def test_a_file_replaced_by_garbage_stops_the_ledger_until_it_is_repaired(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = ledger.with_name("yesterday.db")
    with _opened(ledger) as journal:
        append(journal, 1, 5)
        _backup(ledger, backup)
        (ledger.with_name("garbage")).write_bytes(b"garbage" * 1000)
        os.replace(ledger.with_name("garbage"), ledger)
        _tick(journal)
        with pytest.raises(JournalUnavailable, match=r"what is there now cannot be used: .*not an SQLite database"):
            append(journal, 6, 6)
        os.replace(backup, ledger)
        _wait_for(lambda: _tick(journal) or journal.generation == 1)
        assert versions(journal) == [1, 2, 3, 4, 5]


def _opened(path: Path) -> closing[SqliteJournal]:
    return closing(SqliteJournal(path))


def _backup(ledger: Path, to: Path) -> None:
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def _tick(journal: SqliteJournal) -> None:
    """Have upkeep done now, whatever was done a moment ago."""
    journal._file._checkpointer._not_before = 0.0
    journal.maintain()


def _frames_left(ledger: Path, mode: str = "PASSIVE") -> int:
    """Frames that a checkpoint by somebody else cannot move, because somebody reads."""
    with closing(sqlite3.connect(ledger, timeout=0, isolation_level=None)) as raw:
        busy, frames, moved = raw.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return int(busy or frames - moved)


def _wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


class _InterruptedAtBegin(sqlite3.Connection):
    """Ctrl-C comes at the end of the next BEGIN."""

    armed = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return self._interrupted(super().execute(sql, *parameters), sql)

    def cursor(self, *arguments: Any) -> Any:
        return super().cursor(_InterruptedCursor)

    def _interrupted(self, done: sqlite3.Cursor, sql: str) -> sqlite3.Cursor:
        if self.armed and sql.startswith("BEGIN"):
            self.armed = False
            raise KeyboardInterrupt
        return done


class _InterruptedCursor(sqlite3.Cursor):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        connection = self.connection
        assert isinstance(connection, _InterruptedAtBegin)
        return connection._interrupted(super().execute(sql, *parameters), sql)


def _exclusively(journal: SqliteJournal) -> None:
    with journal.exclusive():
        raise AssertionError("it was interrupted before")


@pytest.mark.parametrize("begin", [_exclusively, lambda journal: journal.save_snapshots([Snapshot("a", 1, 10, 1, "")])])
def test_a_transaction_that_is_interrupted_when_it_has_just_begun_is_over(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[SqliteJournal], None]
) -> None:
    """Else what is answered afterwards belongs to it, and is rolled back with it."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_InterruptedAtBegin))
    with closing(SqliteJournal(ledger)) as journal:
        append(journal, 1, 1)
        raw = journal._writer.raw
        assert isinstance(raw, _InterruptedAtBegin)
        raw.armed = True
        with pytest.raises(KeyboardInterrupt):
            begin(journal)
        assert not raw.armed
        append(journal, 2, 2)
        with closing(sqlite3.connect(ledger)) as other:
            assert other.execute("SELECT count(*) FROM journal").fetchone() == (2,)
