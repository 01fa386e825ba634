"""What the pending file says of calls that left without a hold: their end counts, and an orphan's word is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.commands import Command, Report
from lava_middleware.core.decide import Conflict
from lava_middleware.ledger import pending as module
from lava_middleware.ledger.pending import Pending, decode_line


class Ledger:
    """Takes what is posted, each key once."""

    def __init__(self) -> None:
        self.posted: dict[str, int] = {}

    def __call__(self, account: str, command: Command, record: str | None) -> None:
        assert isinstance(command, Report)
        if self.posted.setdefault(command.key, command.charge) != command.charge:
            raise Conflict("this key exists with another charge")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db.pending"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_an_open_call_is_posted_by_nobody(path: Path, ledger: Ledger) -> None:
    """T9: neither by its own process nor by another. (A lock belongs to an opened file: two objects, two owners.)"""
    mine, others = Pending(path), Pending(path)
    mine.sent("acme", Report("call", 50), "{}")
    assert sum(mine.post(ledger)) == sum(others.post(ledger)) == 0
    assert not ledger.posted
    mine.over("call", owed=True)


def test_the_call_of_a_dead_process_is_posted_once(path: Path, ledger: Ledger) -> None:
    """T14, T19."""
    dead = Pending(path)
    dead.sent("acme", Report("call", 50), "{}")
    dead.forget()  # closes its descriptor, as the end of the process does
    assert sum(Pending(path).post(ledger)) == 1
    assert sum(Pending(path).post(ledger)) == 0
    assert ledger.posted == {"call": 50}
    assert path.read_bytes() == b""


def test_an_end_that_is_in_the_ledger_is_the_last_word(path: Path, ledger: Ledger) -> None:
    pending = Pending(path)
    pending.sent("acme", Report("call", 50), "{}")
    ledger("acme", Report("call", 33), "{}")
    pending.over("call", owed=True)
    assert sum(pending.post(ledger)) == 1
    assert ledger.posted == {"call": 33}


def test_an_end_that_is_in_the_file_is_the_last_word(path: Path, ledger: Ledger) -> None:
    pending = Pending(path)
    pending.sent("acme", Report("call", 50), "{}")
    pending.keep("acme", Report("call", 33), "{}")
    pending.over("call", owed=True)
    assert sum(pending.post(ledger)) == 2
    assert ledger.posted == {"call": 33}


def test_a_call_that_owes_nothing_is_struck_out(path: Path, ledger: Ledger) -> None:
    pending = Pending(path)
    for key in ("a", "b"):
        pending.sent("acme", Report(key, 50), "{}")
    pending.over("a", owed=False)
    assert len(path.read_bytes().splitlines()) == 1
    pending.over("b", owed=True)
    sum(pending.post(ledger))
    assert ledger.posted == {"b": 50}


def test_while_one_call_is_open_the_words_on_others_wait(path: Path, ledger: Ledger) -> None:
    first, second = Pending(path), Pending(path)
    first.sent("acme", Report("a", 50), "{}")
    second.sent("acme", Report("b", 60), "{}")
    first.forget()
    assert sum(second.post(ledger)) == 0
    second.over("b", owed=True)
    assert sum(second.post(ledger)) == 2
    assert ledger.posted == {"a": 50, "b": 60}


def test_a_call_is_not_let_out_while_the_words_of_the_dead_are_posted(path: Path) -> None:
    """Else its own word might be taken for one of them."""
    dead, late = Pending(path), Pending(path)
    dead.sent("acme", Report("a", 50), "{}")
    dead.forget()
    refused: list[BaseException] = []

    def apply(*_: Any) -> None:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            late.sent("acme", Report("b", 60), "{}")
        refused.append(raised.value)

    sum(Pending(path).post(apply))
    assert refused
    late.sent("acme", Report("b", 60), "{}")
    late.over("b", owed=True)


def test_many_are_posted_a_moments_worth_at_a_time(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """T27: the ledger's thread has calls to answer in between, and whoever keeps something waits for one moment only.
    What cannot be posted stays in its place and holds nobody up."""
    monkeypatch.setattr(module, "AT_ONCE_S", 0.0)
    pending = Pending(path)
    for key in ("a", "not now", "b"):
        pending.keep("acme", Report(key, 50), None)

    def apply(account: str, command: Any, record: str | None) -> None:
        if command.key == "not now":
            raise Conflict("not now")
        ledger(account, command, record)

    steps = pending.post(apply)
    assert next(steps) == 1
    assert ledger.posted == {"a": 50}
    pending.keep("acme", Report("c", 50), None)
    assert list(steps) == [0, 1]
    assert ledger.posted == {"a": 50, "b": 50}, "what is kept meanwhile has its turn the next time"
    assert list(pending.post(apply)) == [0, 1]
    assert [decode_line(line)[1] for line in path.read_bytes().splitlines()] == [Report("not now", 50)]


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """T14: what was posted is posted again, which changes nothing."""
    pending = Pending(path)
    for key in ("a", "b"):
        pending.keep("acme", Report(key, 50), None)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def only_a(account: str, command: Any, record: str | None) -> None:
        if command.key == "b":
            raise Conflict("not this one")
        ledger(account, command, record)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert sum(pending.post(only_a)) == 0
    assert path.read_bytes() == before
    assert sum(pending.post(ledger)) == 2
    assert ledger.posted == {"a": 50, "b": 50}


def test_a_writer_that_waited_for_the_lock_writes_into_the_file_that_is_there_now(path: Path, ledger: Ledger) -> None:
    """The file is replaced, not rewritten: a line must not land in the one that nobody reads any more."""
    import threading

    pending = Pending(path)
    for key in ("a", "b"):
        pending.keep("acme", Report(key, 50), None)
    threads: list[threading.Thread] = []

    def apply(account: str, command: Any, record: str | None) -> None:
        if command.key == "a":
            threads.append(threading.Thread(target=pending.keep, args=("acme", Report("c", 70), None)))
            threads[0].start()
            raise Conflict("not now")
        ledger(account, command, record)

    assert sum(pending.post(apply)) == 1
    threads[0].join(10)
    assert sum(pending.post(ledger)) == 2
    assert ledger.posted == {"a": 50, "b": 50, "c": 70}
