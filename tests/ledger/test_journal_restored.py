"""Yesterday's copy of a file is moved over it: its -wal, which stays, is never taken for that of the copy (T42)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lava_middleware.ledger.sqlite import SqliteJournal

from .test_journal_faults import _backup, _opened, _tick, append, check_integrity, run, versions

OTHER = f"""
import sys
from {__package__}.test_journal_faults import *
from {__package__}.test_journal_faults import _tick

def read_all(journal):
    try:
        return len(journal.read(0))
    except Busy:
        return "busy"

journal = SqliteJournal(sys.argv[1])
versions(journal)
print("open", flush=True)
for command in sys.stdin:
    print(eval(command), flush=True)
"""
"""A process that has the ledger open and does nothing, looks at nothing, until it is told."""


class Other:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def does(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()


@contextmanager
def other(ledger: Path) -> Iterator[Other]:
    command = [sys.executable, "-c", OTHER, str(ledger)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield Other(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "lava.db"


def yesterdays(ledger: Path, journal: SqliteJournal, first: int, last: int) -> Path:
    """A copy with so much in it."""
    append(journal, first, last)
    copy = ledger.with_name(f"copy-{last}.db")
    _backup(ledger, copy)
    return copy


def test_what_a_killed_process_left_is_not_read_into_the_copy(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _opened(ledger) as journal:
        copy = yesterdays(ledger, journal, 1, 30)
    run("append(SqliteJournal(ARGUMENTS[0]), 31, 90); os._exit(0)", ledger)
    assert ledger.with_name("lava.db-wal").stat().st_size > 0, "as a process leaves it that is killed"
    os.replace(copy, ledger)
    with caplog.at_level(logging.CRITICAL), _opened(ledger) as journal:
        assert versions(journal) == list(range(1, 31))
        append(journal, 31, 40)
    assert "set aside" in caplog.text
    assert ledger.with_name("lava.db-wal.of-replaced-ledger").exists(), "nothing is deleted"
    check_integrity(ledger)


def test_what_was_copied_together_stays_together(ledger: Path, tmp_path: Path) -> None:
    run("append(SqliteJournal(ARGUMENTS[0]), 1, 60); os._exit(0)", ledger)
    there = tmp_path / "there"
    there.mkdir()
    for file in tmp_path.glob("lava.db*"):
        (there / file.name).write_bytes(file.read_bytes())
    with _opened(there / "lava.db") as journal:
        assert versions(journal) == list(range(1, 61))
    with _opened(ledger) as journal:
        assert versions(journal) == list(range(1, 61)), "and where it was before"


def test_who_notices_late_leaves_the_new_files_alone(ledger: Path) -> None:
    """The first to notice opens the copy, with a -wal of its own. It has any inode, the old one's too, once that is
    free: after two replacements who slept through both may find the number that it remembers."""
    with _opened(ledger) as journal:
        copy, later = yesterdays(ledger, journal, 1, 10), yesterdays(ledger, journal, 11, 20)
        append(journal, 21, 30)
        with other(ledger) as sleeper:
            for number, (restored, last) in enumerate([(later, 20), (copy, 10)], 1):
                os.replace(restored, ledger)
                _tick(journal)
                assert (journal.generation, versions(journal)) == (number, list(range(1, last + 1)))
                append(journal, last + 1, 25)
            assert sleeper.does("_tick(journal)") == "None"
            assert sleeper.does("journal.generation") == "1"
            assert sleeper.does("versions(journal)") == str(list(range(1, 26)))
            append(journal, 26, 30)
            assert sleeper.does("append(journal, 31, 35)") == "None"
            assert versions(journal) == list(range(1, 36))
    check_integrity(ledger)
    with _opened(ledger) as journal:
        assert versions(journal) == list(range(1, 36))


def test_a_connection_that_is_opened_late_is_to_the_file_that_is_in_use(ledger: Path) -> None:
    """Each process opens some only when it needs them; one to the copy would find the -wal of the other."""
    with _opened(ledger) as journal:
        copy = yesterdays(ledger, journal, 1, 10)
        append(journal, 11, 20)
        with other(ledger) as sleeper:
            os.replace(copy, ledger)
            assert sleeper.does("read_all(journal)") == "busy"
            _tick(journal)
            append(journal, 11, 12)
            sleeper.does("_tick(journal)")
            assert sleeper.does("versions(journal)") == str(list(range(1, 13)))
    check_integrity(ledger)
