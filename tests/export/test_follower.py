"""Every record reaches its target at least once with the same id, whatever fails in between (G3, G8)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.record import Record
from lava_middleware.export import follower as module
from lava_middleware.export.follower import Follower, PermanentRefusal, RetryLater, lag_of
from lava_middleware.export.jsonl import json_lines
from lava_middleware.ledger.journal import Busy, Entry, Journal
from lava_middleware.ledger.sqlite import SqliteJournal

from .conftest import START, Host, eventually, post

Following = Callable[[Follower, Host], Follower]
FORK = multiprocessing.get_context("fork")

# From Python 3.12 on: these tests fork on purpose, as prefork servers do.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Target:
    """Takes records, unless told what to do with them instead."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.batches: list[int] = []
        self.answer: Callable[[Sequence[Record]], None] = lambda records: None

    def __call__(self, records: Sequence[Record]) -> None:
        self.batches.append(len(records))
        self.answer(records)
        self.ids += [record.id for record in records]


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_S", "IDLE_POLL_S", "STANDBY_S", "UNWANTED_POLL_S", "BACKOFF_FIRST_S", "BACKOFF_MOST_S"):
        monkeypatch.setattr(module, name, 0.01)


def _follower(target: Target, **settings: Any) -> Follower:
    return Follower("target", target, poll_s=0.01, **settings)


def test_records_arrive_in_order_and_the_cursor_follows(host: Host, target: Target, following: Following) -> None:
    post(host.journal, "a", "b")
    follower = following(_follower(target), host)
    eventually(lambda: target.ids == ["a", "b"])
    post(host.journal, "c")
    eventually(lambda: host.journal.cursor("target") == host.journal.last_seq())
    assert target.ids == ["a", "b", "c"]
    eventually(lambda: follower.lag.pending == 0)


def test_a_new_follower_goes_on_where_the_last_one_stopped(host: Host, target: Target) -> None:
    for name in ("a", "b"):
        post(host.journal, name)
        follower = _follower(target)
        follower.start(host)
        assert follower.drain()
    assert target.ids == ["a", "b"]


def test_nothing_is_sent_before_it_is_durable(
    host: Host, target: Target, monkeypatch: pytest.MonkeyPatch, following: Following
) -> None:
    """T14: an exporter that is ahead of the disk has billed what a power loss takes back."""
    durable = threading.Event()
    monkeypatch.setattr(type(host.journal), "sync", lambda self, timeout_s: durable.is_set())
    post(host.journal, "a")
    following(_follower(target), host)
    time.sleep(0.1)
    assert target.ids == []
    durable.set()
    eventually(lambda: target.ids == ["a"])


def test_an_outage_holds_records_back_and_healing_drains_to_empty(
    host: Host, target: Target, following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    """G8: after an outage the followers drain. Said once when it begins, not at every try (T31)."""

    def fail(_: Sequence[Record]) -> None:
        raise ConnectionError("nobody there")

    target.answer = fail
    post(host.journal, *(f"r{number}" for number in range(450)))
    follower = following(_follower(target), host)
    host.now = START + 7_000_000
    eventually(lambda: len(target.batches) > 5 and follower.lag.oldest_age_s > 6)
    assert target.ids == []
    assert host.journal.cursor("target") == 0
    assert follower.lag.pending == 450
    assert len([one for one in caplog.records if "cannot deliver" in one.getMessage()]) == 1
    target.answer = lambda records: None
    eventually(lambda: len(target.ids) == 450)
    assert target.ids == [f"r{number}" for number in range(450)]
    eventually(lambda: follower.lag.pending == 0)
    assert host.journal.dead_letters() == []


def test_a_permanent_refusal_becomes_a_dead_letter_and_the_rest_goes_on(host: Host, target: Target) -> None:
    def refuse_poison(records: Sequence[Record]) -> None:
        if any(record.id.startswith("poison") for record in records):
            raise PermanentRefusal("422 the payload is wrong")

    target.answer = refuse_poison
    post(host.journal, "a", "b", "poison1", "c", "d", "e", "poison2")
    follower = _follower(target)
    follower.start(host)
    follower.drain()
    assert target.ids == ["a", "b", "c", "d", "e"]
    assert host.journal.cursor("target") == host.journal.last_seq()
    buried = host.journal.dead_letters()
    assert [(name, reason) for name, _, reason in buried] == [("target", "422 the payload is wrong")] * 2
    assert sorted(seq for _, seq, _ in buried) == [3, 7]


def test_what_a_batch_got_through_before_it_failed_is_not_sent_again(host: Host, target: Target) -> None:
    """Halving a refused batch sends parts of it: each part that went through moves the cursor."""

    def refuse_then_break(records: Sequence[Record]) -> None:
        if len(records) > 2:
            raise PermanentRefusal("too large")
        if records[0].id == "c":
            raise RetryLater

    target.answer = refuse_then_break
    post(host.journal, "a", "b", "c", "d")
    follower = _follower(target)
    follower.start(host)
    with pytest.raises(RetryLater):
        follower.drain()
    assert host.journal.cursor("target") == 2
    target.answer = lambda records: None
    follower.drain()
    assert target.ids == ["a", "b", "c", "d"]


def test_a_target_that_says_when_to_come_back_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.5)
    monkeypatch.setattr(module, "BACKOFF_MOST_S", 60.0)
    pauses = [module._backoff_s(failures, ConnectionError()) for failures in range(1, 20)]
    assert 0.25 <= pauses[0] <= 0.5
    assert all(30 <= pause <= 60 for pause in pauses[8:])
    assert module._backoff_s(1, RetryLater(retry_after_s=17)) == 17
    assert module._backoff_s(1, RetryLater(retry_after_s=1e9)) == module.RETRY_AFTER_MOST_S
    assert module._backoff_s(1, RetryLater()) <= 0.5


def test_a_busy_ledger_does_not_make_it_send_twice(host: Host, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """T28: between sending and noting it, another writer has the file."""
    saved, refusals = type(host.journal).save_cursor, iter(range(5))

    def busy(journal: Journal, follower: str, seq: int, last: Entry) -> None:
        if next(refusals, None) is not None:
            raise Busy
        saved(journal, follower, seq, last)  # type: ignore[arg-type]  # of whichever journal this is

    monkeypatch.setattr(type(host.journal), "save_cursor", busy)
    post(host.journal, "a")
    follower = _follower(target)
    follower.start(host)
    follower.drain()
    follower.drain()
    assert target.ids == ["a"]


def test_records_that_are_too_old_to_be_shown_are_passed_over(host: Host, target: Target) -> None:
    post(host.journal, "a")
    host.now = START + 3_601 * 1_000_000
    follower = _follower(target, oldest_s=3600)
    follower.start(host)
    follower.drain()
    assert target.ids == []
    assert host.journal.cursor("target") == 1


def test_nothing_is_read_while_nobody_wants_it(host: Host, target: Target, following: Following) -> None:
    wanted = threading.Event()
    post(host.journal, "a")
    following(_follower(target, wanted=wanted.is_set), host)
    time.sleep(0.05)
    assert target.ids == []
    assert host.journal.cursors() == []
    wanted.set()
    eventually(lambda: target.ids == ["a"])
    eventually(lambda: host.journal.cursors() == [("target", 1)])


def test_a_follower_starts_no_thread_before_it_is_woken(host: Host, target: Target) -> None:
    """T36: a master process that configures and then forks has no thread that could hold a lock."""
    follower = _follower(target)
    follower.start(host)
    assert not [one for one in threading.enumerate() if one.name.startswith("lava-follow")]
    follower.close()
    follower.wake()
    assert not [one for one in threading.enumerate() if one.name.startswith("lava-follow")]


def test_many_threads_that_wake_it_start_it_once(host: Host, target: Target, following: Following) -> None:
    follower = _follower(target)
    follower.start(host)
    barrier = threading.Barrier(8)

    def wake() -> None:
        barrier.wait()
        follower.wake()

    wakers = [threading.Thread(target=wake) for _ in range(8)]
    for waker in wakers:
        waker.start()
    for waker in wakers:
        waker.join()
    assert len([one for one in threading.enumerate() if one.name == "lava-follow-target"]) == 1
    follower.close()


def test_of_two_followers_in_one_process_one_is_at_work(host: Host, following: Following) -> None:
    """T41: locks of the operating system never conflict within a process."""
    first, second = Target(), Target()
    at_work = following(_follower(first), host)
    post(host.journal, "a")
    eventually(lambda: first.ids == ["a"])
    following(_follower(second), host)
    post(host.journal, "b")
    eventually(lambda: first.ids == ["a", "b"])
    at_work.close()
    post(host.journal, "c")
    eventually(lambda: second.ids == ["c"])
    assert first.ids == ["a", "b"]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 64, ".hidden"])
def test_a_follower_whose_name_could_not_name_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Follower(name, lambda records: None)


def test_lag_counts_what_a_cursor_has_still_to_pass(host: Host) -> None:
    assert lag_of(host.journal, 0, START).pending == 0
    post(host.journal, "a", "b", "c")
    lag = lag_of(host.journal, 1, START + 2_000_001)
    assert lag.pending == 2
    assert lag.oldest_age_s == 2.0


# Several processes, real files ---------------------------------------------------------------------------------------


def _child(work: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def _die_between_sending_and_noting(ledger: Path, out: Path) -> None:
    journal = SqliteJournal(ledger)
    follower = json_lines(out)
    follower.start(Host(journal))
    SqliteJournal.save_cursor = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    follower.drain()


def test_a_crash_between_sending_and_noting_it_sends_again_with_the_same_id(tmp_path: Path) -> None:
    """G3, T14: at least once, and the id tells which came twice."""
    ledger, out = tmp_path / "lava.db", tmp_path / "usage.jsonl"
    journal = SqliteJournal(ledger)
    post(journal, "a", "b")
    journal.close()
    child = _child(_die_between_sending_and_noting, ledger, out)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert len(out.read_text().splitlines()) == 2

    journal = SqliteJournal(ledger)
    follower = json_lines(out)
    follower.start(Host(journal))
    follower.drain()
    lines = out.read_text().splitlines()
    assert len(lines) == 4
    assert lines[:2] == lines[2:]
    follower.close()
    journal.close()


def _follow_for_ever(ledger: Path, out: Path) -> None:
    follower = json_lines(out)
    follower.start(Host(SqliteJournal(ledger)))
    follower.wake()
    signal.pause()


def test_when_the_process_that_drains_dies_another_takes_over(tmp_path: Path) -> None:
    """One drainer at a time on one ledger; nothing is sent twice while both live, nothing is missed when one dies."""
    ledger, outs = tmp_path / "lava.db", [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    SqliteJournal(ledger).close()
    children = [_child(_follow_for_ever, ledger, out) for out in outs]
    try:
        journal = SqliteJournal(ledger)
        sizes = lambda: [len(out.read_text().splitlines()) if out.exists() else 0 for out in outs]  # noqa: E731
        for number in range(20):
            post(journal, f"before{number}")
        eventually(lambda: sum(sizes()) == 20)
        eventually(lambda: journal.cursor("jsonl") == 20)
        assert sorted(sizes()) == [0, 20]
        busy = sizes().index(20)
        os.kill(children[busy].pid, signal.SIGKILL)
        children[busy].join(10)
        for number in range(20):
            post(journal, f"after{number}")
        eventually(lambda: sizes() == ([20, 20]))
        journal.close()
    finally:
        for child in children:
            child.kill()
            child.join(10)


def _post_in_child(host: Host, follower: Follower, out: Path) -> None:
    post(host.journal, "child", customer="other")
    follower.wake()
    eventually(lambda: out.exists() and "child" in out.read_text())
    os._exit(0)


def test_a_forked_child_follows_by_itself(tmp_path: Path) -> None:
    """T36: threads and locks stay behind in a fork; the child starts its own when it has something to do."""
    out = tmp_path / "usage.jsonl"
    host = Host(SqliteJournal(tmp_path / "lava.db"))
    follower = json_lines(out)
    follower.start(host)
    post(host.journal, "parent")
    follower.wake()
    eventually(lambda: out.exists() and "parent" in out.read_text())
    follower.close()
    other = json_lines(out)
    other.start(host)
    child = _child(_post_in_child, host, other, out)
    child.join(30)
    assert child.exitcode == 0
    assert len(out.read_text().splitlines()) == 2
    host.journal.close()
