"""Processes that share a ledger file: locks, forks, deaths."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.ledger.connection import Connection
from lava_middleware.ledger.journal import Busy, Entry, JournalUnavailable, Outcome, OwnerMark
from lava_middleware.ledger.sqlite import SqliteJournal

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def append(journal: SqliteJournal, first: int, last: int, account: str = "acme") -> None:
    for n in range(first, last + 1):
        one = Entry(account, n, "held.1", f"hold:{n}", 0, "{}", None, n)
        while True:
            try:
                outcome, _ = journal.append([one], (n - 1, n - 1))
                break
            except Busy:
                time.sleep(0.001)
        assert outcome is Outcome.APPENDED


def versions(journal: SqliteJournal, account: str = "acme") -> list[int]:
    return [one.version for one in journal.since(account, 1)]


def mark_of(journal: SqliteJournal, owner: str) -> OwnerMark | None:
    return next((mark for mark in journal.owners() if mark.owner == owner), None)


def check_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def other(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, running code with what this module has at hand. Talk to it by lines."""
    prelude = f"from {__name__} import *\nARGUMENTS = sys.argv[1:]\ndef say(x): print(x, flush=True)\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def in_child(work: Callable[[], None], *, quietly: bool = True) -> int:
    """Fork, do the work in the child, and return how it ended: 0 if well. `quietly`: without an exit's finalisers."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0) if quietly else sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "lava.db"


@pytest.fixture
def journal(ledger: Path) -> Iterator[SqliteJournal]:
    with closing(SqliteJournal(ledger)) as opened:
        yield opened


# -- SQLite's own locks


def test_only_sqlite_opens_the_database_and_its_shm(ledger: Path) -> None:
    """T34: any other descriptor, when it is closed, drops all of SQLite's locks of the process."""
    code = """
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        for _ in range(2):
            journal = SqliteJournal(ARGUMENTS[0])
            journal.register_owner()
            append(journal, *((1, 20) if not _ else (21, 40)))
            for _ in range(3):
                journal.maintain()
                time.sleep(0.06)
            journal.sync(5)
            journal.owners()
            journal.close()
        say(sorted({os.path.basename(path) for path in opened if "lava.db" in path}))
    """
    with other(code, ledger) as process:
        assert hear(process) == str(
            ["lava.db-wal", "lava.db.checkpoint", "lava.db.companions", "lava.db.companions.new", "lava.db.owners"]
        )


@LINUX
def test_a_second_journal_that_closes_leaves_the_locks_of_the_first(journal: SqliteJournal, ledger: Path) -> None:
    """T34: two balances, both believed, if the other process took itself for the last one and deleted the -wal file."""
    append(journal, 1, 3)
    second = SqliteJournal(ledger)
    append(second, 4, 6)
    second.close()
    with closing(sqlite3.connect(ledger)) as raw:
        raw.execute("SELECT 1 FROM journal").fetchone()
    assert os.getpid() in _pids_with_locks(ledger)
    with other("with closing(SqliteJournal(ARGUMENTS[0])) as j: append(j, 7, 9)\nsay('closed')", ledger) as process:
        assert hear(process) == "closed"
    assert ledger.with_name("lava.db-wal").exists()
    append(journal, 10, 12)
    with other("with closing(SqliteJournal(ARGUMENTS[0])) as j: say(len(versions(j)))", ledger) as process:
        assert hear(process) == "12"


def test_journals_of_one_process_on_one_file_share_it_until_the_last_one_closes(
    journal: SqliteJournal, ledger: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(ledger)
    second, third = SqliteJournal(ledger), SqliteJournal(str(link))
    assert second._file is journal._file is third._file
    second.close()
    second.close()
    append(journal, 1, 1)
    append(third, 2, 2)
    third.close()
    with pytest.raises(JournalUnavailable, match="closed"):
        append(third, 3, 3)
    append(journal, 3, 3)


# -- forks


@LINUX
def test_a_forked_child_has_locks_of_its_own(journal: SqliteJournal, ledger: Path) -> None:
    """T36. A child that inherits SQLite's table of locks takes none: the parent's close deletes the -wal file under it,
    and what the child was told is appended is gone."""
    append(journal, 1, 2)
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            append(journal, 3, 3)
            os.write(to_parent[1], b"x")
            os.read(to_child[0], 1)
            append(journal, 4, 4)  # after the parent has closed the ledger
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.read(to_parent[0], 1)
    assert child in _pids_with_locks(ledger)
    journal.close()
    assert ledger.with_name("lava.db-wal").exists()
    os.write(to_child[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for end in (*to_child, *to_parent):
        os.close(end)
    with closing(SqliteJournal(ledger)) as again:
        assert versions(again) == [1, 2, 3, 4]
    check_integrity(ledger)


@pytest.mark.parametrize("how", ["at once", "after use", "through an ordinary exit"])
def test_the_end_of_a_forked_child_takes_nothing_from_its_parent(ledger: Path, how: str) -> None:
    """T36, T41: neither its locks, nor its life, nor its entries."""
    code = """
        journal = SqliteJournal(ARGUMENTS[0])
        owner = journal.register_owner()
        append(journal, 1, 5)
        def work():
            if ARGUMENTS[1] == "after use":
                assert versions(journal) == [1, 2, 3, 4, 5]
                assert journal.register_owner() != owner
                assert mark_of(journal, owner).alive
                append(journal, 1, 5, account="child")
                journal.maintain()
                journal.close()
        assert in_child(work, quietly=ARGUMENTS[1] != "through an ordinary exit") == 0
        append(journal, 6, 10)
        assert journal.register_owner() == owner
        say(owner)
        sys.stdin.readline()
    """
    with other(code, ledger, how) as process, closing(SqliteJournal(ledger)) as journal:
        owner = hear(process)
        mark = mark_of(journal, owner)
        assert mark is not None
        assert mark.alive
        assert [one.alive for one in journal.owners() if one.owner != owner] == ([False] if how == "after use" else [])
        assert versions(journal) == list(range(1, 11))
    check_integrity(ledger)


def test_a_fork_in_the_middle_of_other_threads_appends_harms_neither_side(journal: SqliteJournal, ledger: Path) -> None:
    """T36: whatever the other threads were doing, parent and child go on."""
    stop = threading.Event()
    counts = [0, 0]

    def write(number: int) -> None:
        while not stop.is_set():
            counts[number] += 1
            append(journal, counts[number], counts[number], account=f"thread {number}")
            journal.maintain()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    ended = [in_child(lambda n=n: append(journal, 1, 20, account=f"child {n}")) for n in range(10)]
    stop.set()
    for thread in threads:
        thread.join()
    assert ended == [0] * 10
    for number in range(10):
        assert versions(journal, f"child {number}") == list(range(1, 21))
    for number in range(2):
        assert versions(journal, f"thread {number}") == list(range(1, counts[number] + 1))
    check_integrity(ledger)


def test_a_child_made_behind_pythons_back_is_told_so(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    append(journal, 1, 1)
    monkeypatch.setattr(journal._file, "_pid", 1)
    with pytest.raises(JournalUnavailable, match="open the ledger after the fork"):
        append(journal, 2, 2)
    journal.maintain()


# -- owners


def test_a_second_opener_in_the_process_finds_the_first_alive_and_stays_alive_itself(
    journal: SqliteJournal, ledger: Path
) -> None:
    """T41: POSIX locks do not conflict within a process, and closing a descriptor drops them all."""
    owner = journal.register_owner()
    with closing(SqliteJournal(ledger)) as second:
        assert second.register_owner() == owner
        assert [mark.alive for mark in second.owners()] == [True]
    code = "with closing(SqliteJournal(ARGUMENTS[0])) as j: say([m.alive for m in j.owners()])"
    with other(code, ledger) as process:
        assert hear(process) == "[True]"


def test_an_owner_is_dead_when_its_process_is_however_it_ended(journal: SqliteJournal, ledger: Path) -> None:
    journal.register_owner()
    code = "j = SqliteJournal(ARGUMENTS[0]); say(j.register_owner()); sys.stdin.readline()"
    with other(code, ledger) as killed, other(code, ledger) as ended:
        owners = [hear(killed), hear(ended)]
        assert [mark.alive for mark in journal.owners()] == [True] * 3
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert {mark.owner for mark in journal.owners() if not mark.alive} == {owners[0]}
        tell(ended)
        ended.wait()
        assert {mark.owner for mark in journal.owners() if not mark.alive} == set(owners)


def test_a_byte_is_given_again_only_after_its_owner_is_forgotten(journal: SqliteJournal, ledger: Path) -> None:
    mine = journal.register_owner()
    code = "j = SqliteJournal(ARGUMENTS[0]); say(j.register_owner())"

    def come_and_go() -> str:
        with other(code, ledger) as process:
            owner = hear(process)
            process.wait()
            return owner

    first, second = come_and_go(), come_and_go()
    assert [one.split("-")[0] for one in (mine, first, second)] == ["0", "1", "2"]
    journal.forget_owner(first)
    third = come_and_go()
    assert third.split("-")[0] == "1"
    assert third != first


def test_an_owner_survives_the_removal_of_the_lock_file(journal: SqliteJournal, ledger: Path) -> None:
    owner = journal.register_owner()
    ledger.with_name("lava.db.owners").unlink()
    journal.maintain()
    code = "with closing(SqliteJournal(ARGUMENTS[0])) as j: say([(m.owner, m.alive) for m in j.owners()])"
    with other(code, ledger) as process:
        assert hear(process) == str([(owner, True)])


# -- deaths


def test_a_killed_writer_loses_no_acknowledged_append(ledger: Path) -> None:
    """T14, G3: the answer came after the commit; whenever the kill comes, what was answered is there."""
    code = """
        journal = SqliteJournal(ARGUMENTS[0], ARGUMENTS[1])
        account = ARGUMENTS[2]
        number = 0
        while True:
            number += 1
            append(journal, number, number, account)
            say(number)
            if number % 50 == 0:
                journal.maintain()
    """
    acknowledged = {}
    for number in range(6):
        with other(code, ledger, ("power_loss", "process_crash")[number % 2], f"a{number}") as process:
            hear(process)
            time.sleep(0.02 * number)
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            acknowledged[f"a{number}"] = int(([1, *process.stdout.read().split()])[-1])
    with closing(SqliteJournal(ledger)) as journal:
        for account, last in acknowledged.items():
            there = versions(journal, account)
            assert there == list(range(1, len(there) + 1))
            assert len(there) in (last, last + 1), "acknowledged entries are missing"
    check_integrity(ledger)


def _pids_with_locks(ledger: Path) -> set[int]:
    inodes = {os.stat(ledger).st_ino, os.stat(f"{ledger}-shm").st_ino}
    rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    return {int(row[-4]) for row in rows if int(row[-3].split(":")[2]) in inodes}


def test_no_thread_takes_its_own_process_for_dead_while_that_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T9, T41: recovery runs beside the first call. Whoever sees the row knows that it is this process's own."""
    seen: list[OwnerMark] = []
    with closing(SqliteJournal(tmp_path / "lava.db", "process_crash")) as journal:
        transaction = Connection.transaction

        def looked_at(self: Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
            done = transaction(self, work)
            seen.extend(journal.owners())
            return done

        monkeypatch.setattr(Connection, "transaction", looked_at)
        mine = journal.register_owner()
        assert [(mark.owner, mark.alive) for mark in seen] == [(mine, True)]
