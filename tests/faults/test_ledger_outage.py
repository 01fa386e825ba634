"""A ledger that is locked, full, replaced, read-only or corrupt: a policy is obeyed, and nothing billable is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Lava, LedgerUnavailable, denied
from lava_middleware.testing import Barrier, FakeProvider, Script
from tests.ledger.replay import check_journal

from . import players
from .kit import (
    CHAT,
    FORKSERVER,
    aclient_of,
    chat,
    client_of,
    eventually,
    kinds,
    lava_at,
    nothing_is_held,
    run_processes,
)
from .players import fill, make_room


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextlib.contextmanager
def locked_by_another_process(ledger: Path, seconds: float | None = None) -> Iterator[None]:
    """For so long, or as long as the block takes."""
    gate = FORKSERVER.Barrier(2)
    process = FORKSERVER.Process(target=players.keep_locked, args=(str(ledger), gate, seconds))
    process.start()
    gate.wait(30)
    yield
    if seconds is None:
        gate.wait(30)
    process.join(30)
    assert process.exitcode == 0


# Locked ---------------------------------------------------------------------------------------------------------------


def test_a_call_waits_for_a_locked_ledger_and_passes(ledger: Path) -> None:
    """T28: a busy file is waited for, within the deadline."""
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        with lava.charge_to("acme"), locked_by_another_process(ledger, 0.7):
            started = time.monotonic()
            assert client.post(CHAT, json=chat()).status_code == 200
            assert time.monotonic() - started > 0.4
        eventually(lambda: kinds(lava, "acme") == ["granted", "held", "settled"])


def test_a_ledger_that_stays_locked_refuses_calls_and_loses_no_settlement(ledger: Path) -> None:
    """T27: short deadlines; what has happened is posted when the file is free, and nobody waits for that."""
    barrier = Barrier()
    with (
        FakeProvider(Script(barrier=barrier)) as provider,
        lava_at(provider, ledger) as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "5")
        with lava.charge_to("acme"):
            running = in_thread(lambda: client.post(CHAT, json=chat()))
            provider.wait_until(lambda one: one.count == 1)
            with locked_by_another_process(ledger):
                barrier.release()
                assert running().status_code == 200
                settled_in = time.monotonic()
                refused = client.post(CHAT, json=chat())
                assert time.monotonic() - settled_in > 1.5, "it is waited for, within the deadline"
            assert refused.status_code == 429
            assert refused.headers["x-should-retry"] == "false"
            assert int(refused.headers["retry-after"]) >= 1
            assert json.loads(refused.content)["lava"]["code"] == "ledger_unavailable"
            assert provider.count == 1
            eventually(lambda: kinds(lava, "acme") == ["granted", "held", "settled"])
            assert client.post(CHAT, json=chat()).status_code == 200
        eventually(lambda: nothing_is_held(lava, "acme"))
        check_journal(lava.journal)


def test_a_task_is_refused_by_a_locked_ledger_as_a_thread_is(ledger: Path) -> None:
    """T27: what the ledger met while the task waited is an answer too, never an exception of ours."""

    async def main() -> tuple[int, bytes]:
        async with aclient_of(provider) as client:
            refused = await client.post(CHAT, json=chat())
            async with client.stream("POST", CHAT, json=chat(stream=True)) as response:
                await response.aread()
        return refused.status_code, response.content

    with FakeProvider() as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", "5")
        lava.ledger._deadline_s = 0.2
        assert lava.ledger.owner, "it has said who it is before"
        with lava.charge_to("acme"), locked_by_another_process(ledger):
            status, streamed = asyncio.run(main())
        assert status == 429
        assert b"ledger_unavailable" in streamed
        assert provider.count == 0
        check_journal(lava.journal)


def test_a_stream_whose_ledger_is_locked_in_the_middle_ends_cleanly(ledger: Path) -> None:
    """T3, T27: in both colours the wait for more credit ends in a cut, not in an exception."""
    barrier = Barrier()
    script = Script(output_tokens=900, tokens_per_chunk=10, barrier=barrier)

    async def read() -> bytes:
        body = chat(1000, stream=True)
        async with aclient_of(provider) as client, client.stream("POST", CHAT, json=body) as response:
            return b"".join([data async for data in response.aiter_raw()])

    def read_in_thread() -> bytes:
        with client_of(provider) as client, client.stream("POST", CHAT, json=chat(1000, stream=True)) as response:
            return b"".join(response.iter_raw())

    with FakeProvider(script) as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", "5")
        lava.ledger._deadline_s = 0.3
        with lava.charge_to("acme"):
            running = in_thread(read_in_thread), in_thread(lambda: asyncio.run(read()))
            provider.wait_until(lambda one: one.count == 2)
            with locked_by_another_process(ledger):
                barrier.release()
                bodies = [wait() for wait in running]
        for body in bodies:
            assert b'"finish_reason":"length"' in body
            assert b"ledger_unavailable" in body
        eventually(lambda: nothing_is_held(lava, "acme"))
        assert len(list(lava.records("acme"))) == 2
        check_journal(lava.journal)


def in_thread(work: Any) -> Any:
    """Start it in a thread that has today's context; call what you get for its result."""
    from concurrent.futures import ThreadPoolExecutor

    from lava_middleware import bind_context

    pool = ThreadPoolExecutor(1)
    made = pool.submit(bind_context(work))
    pool.shutdown(wait=False)
    return lambda: made.result(30)


def test_a_stream_that_cannot_ask_for_more_ends_cleanly_and_is_billed(ledger: Path) -> None:
    """T3, T27: closed policy, in the middle of an answer."""
    with FakeProvider(Script(output_tokens=900, tokens_per_chunk=10)) as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", "5")
        with (
            client_of(provider) as client,
            lava.charge_to("acme"),
            client.stream("POST", CHAT, json=chat(1000, stream=True)) as response,
        ):
            chunks = response.iter_raw()
            got = next(chunks)
            fill(lava)
            got += b"".join(chunks)
        assert b'"finish_reason":"length"' in got
        assert b"ledger_unavailable" in got
        assert lava.ledger.look("acme").holds, "its settlement waits"
        make_room(lava)
        eventually(lambda: nothing_is_held(lava, "acme"))
        (record,) = lava.records("acme")
        assert record.facts["stopped"] == "ledger_unavailable"
        assert 0 < record.usage.output_tokens < 900
        assert record.overrun.ticks == 0
        check_journal(lava.journal)


def test_a_task_cancelled_while_a_locked_ledger_decides_leaves_no_hold(ledger: Path) -> None:
    """T45: whoever answers the authorize gives the hold back; nothing was sent."""

    async def main() -> None:
        async with aclient_of(provider) as client:
            task = asyncio.create_task(client.post(CHAT, json=chat()))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with FakeProvider() as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", "5")
        assert lava.ledger.owner
        with lava.charge_to("acme"), locked_by_another_process(ledger):
            asyncio.run(main())
        time.sleep(0.1)
        eventually(lambda: nothing_is_held(lava, "acme"))
        assert provider.count == 0
        assert lava.balance("acme").available.ticks == 50_000_000_000
        check_journal(lava.journal)


# Full -----------------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_calls_and_lets_them_out_again(ledger: Path) -> None:
    """T27: closed policy."""
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 200
            fill(lava)
            for _ in range(5):
                answer = client.post(CHAT, json=chat())
                assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
            assert provider.count == 1
            with pytest.raises(LedgerUnavailable, match="full"):
                lava.grant("acme", "1", key="paid")
            make_room(lava)
            lava.grant("acme", "1", key="paid")
            assert client.post(CHAT, json=chat()).status_code == 200
        assert provider.count == 2
        eventually(lambda: nothing_is_held(lava, "acme"))
        assert lava.balance("acme").balance.ticks > 59_000_000_000
        check_journal(lava.journal)


def test_the_first_call_ever_on_a_full_disk_is_refused_and_raises_nothing(ledger: Path) -> None:
    """The process cannot even register as an owner of holds."""
    run_processes(players.grant_once, [(str(ledger), "acme", 10**10)])
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        fill(lava)
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 429
        assert provider.count == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [True, False])
def test_with_policy_open_a_call_passes_and_is_recorded_when_the_ledger_is_back(
    ledger: Path, stream: bool, first: bool
) -> None:
    """T14, T27: open never means unrecorded. It stands in the pending file before its first byte leaves."""
    barrier = Barrier()
    with (
        FakeProvider(Script(barrier=barrier)) as provider,
        lava_at(provider, ledger, on_ledger_outage="open") as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "5")
        pending = Path(f"{ledger}.pending")
        with lava.charge_to("acme"):
            if not first:
                barrier.release()
                client.post(CHAT, json=chat())
            fill(lava)
            running = in_thread(lambda: client.post(CHAT, json=chat(stream=stream)))
            provider.wait_until(lambda one: one.count == (1 if first else 2))
            (line,) = pending.read_bytes().splitlines()
            assert json.loads(line)["sent"] is True
            barrier.release()
            assert running().status_code == 200
        assert len(pending.read_bytes().splitlines()) == 1, "it stays until its end is in the ledger"
        make_room(lava)
        eventually(lambda: "reported" in kinds(lava, "acme"))
        eventually(lambda: lava.ledger.recover() or not pending.read_bytes())
        record = next(lava.records("acme"))
        assert (record.kind, record.basis, record.overrun_cause) == ("reported", "reported", "unheld")
        assert record.facts["unheld"] == "ledger_unavailable"
        assert record.usage.output_tokens == 40
        assert kinds(lava, "acme").count("reported") == 1
        check_journal(lava.journal)


def test_with_policy_open_a_stream_goes_on_beyond_its_hold_and_says_so(ledger: Path) -> None:
    """T27, G5: it was held; what it used above that is an overrun with its cause."""
    script = Script(output_tokens=900, tokens_per_chunk=10)
    with FakeProvider(script) as provider, lava_at(provider, ledger, on_ledger_outage="open") as lava:
        lava.grant("acme", "5")
        body = chat(1000, stream=True)
        with client_of(provider) as client, lava.charge_to("acme"), client.stream("POST", CHAT, json=body) as response:
            chunks = response.iter_raw()
            got = next(chunks)
            fill(lava)
            got += b"".join(chunks)
        assert b'"finish_reason":"stop"' in got
        make_room(lava)
        eventually(lambda: nothing_is_held(lava, "acme"))
        (record,) = lava.records("acme")
        assert (record.kind, record.usage.output_tokens, record.overrun_cause) == ("settled", 900, "unheld")
        assert record.overrun.ticks > 0
        check_journal(lava.journal)


def test_with_policy_open_what_is_owed_nothing_for_leaves_nothing_behind(ledger: Path) -> None:
    with (
        FakeProvider(Script(status=500)) as provider,
        lava_at(provider, ledger, on_ledger_outage="open") as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "5")
        fill(lava)
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 500
        eventually(lambda: not Path(f"{ledger}.pending").read_bytes())
        make_room(lava)
        lava.ledger.recover()
        assert kinds(lava, "acme") == ["granted"]


def test_with_policy_open_a_call_is_refused_if_it_can_be_recorded_nowhere(ledger: Path, tmp_path: Path) -> None:
    """T14, T27: the pending file is on the full disk as well."""
    (tmp_path / "here").mkdir()
    pending = tmp_path / "here" / "kept"
    with (
        FakeProvider() as provider,
        lava_at(provider, ledger, on_ledger_outage="open", pending=str(pending)) as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "5")
        fill(lava)
        pending.parent.rmdir()
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 429
        assert provider.count == 0


def test_a_process_killed_during_an_outage_leaves_its_call_to_be_posted(ledger: Path) -> None:
    """T14, T19: what left is owed, by the policy for unknown outcomes."""
    barrier = Barrier()
    with FakeProvider() as provider, lava_at(provider, ledger) as lava:
        lava.grant("acme", "5")
        provider.queue(Script(), Script(barrier=barrier))
        gate = FORKSERVER.Barrier(2)
        process = FORKSERVER.Process(target=players.leave_during_outage, args=(provider.url, str(ledger), gate))
        process.start()
        gate.wait(30)
        provider.wait_until(lambda one: one.count == 2)
        lava.ledger.recover()
        assert "reported" not in kinds(lava, "acme"), "as long as it lives, its word is waited for"
        process.kill()
        process.join()
        barrier.release()
        eventually(lambda: lava.ledger.recover() or "reported" in kinds(lava, "acme"))
        record = next(lava.records("acme"))
        assert (record.kind, record.basis) == ("reported", "estimated")
        assert record.facts["ending"] == "owner_lost"
        assert record.charge.ticks > 0
        eventually(lambda: not Path(f"{ledger}.pending").read_bytes())
        lava.ledger.recover()
        assert kinds(lava, "acme").count("reported") == 1


def test_a_disk_that_is_full_when_a_call_ends_gets_its_settlement_later(ledger: Path) -> None:
    """T14: the call was held; its ending waits in memory, and its hold for recovery should the process die."""
    barrier = Barrier()
    with (
        FakeProvider(Script(barrier=barrier)) as provider,
        lava_at(provider, ledger) as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "5")
        with lava.charge_to("acme"):
            running = in_thread(lambda: client.post(CHAT, json=chat()))
            provider.wait_until(lambda one: one.count == 1)
            fill(lava)
            barrier.release()
            assert running().status_code == 200
        time.sleep(0.1)
        assert kinds(lava, "acme") == ["granted", "held"]
        make_room(lava)
        eventually(lambda: kinds(lava, "acme") == ["granted", "held", "settled"])
        assert next(lava.records("acme")).basis == "reported"


def test_what_a_full_disk_kept_out_at_close_is_posted_by_the_next_start(ledger: Path) -> None:
    """T14, T19."""
    barrier = Barrier()
    with FakeProvider(Script(barrier=barrier)) as provider:
        with lava_at(provider, ledger) as lava, client_of(provider) as client:
            lava.grant("acme", "5")
            with lava.charge_to("acme"):
                running = in_thread(lambda: client.post(CHAT, json=chat()))
                provider.wait_until(lambda one: one.count == 1)
                fill(lava)
                barrier.release()
                running()
        with lava_at(provider, ledger) as lava:
            lava.ledger.recover()
            assert kinds(lava, "acme") == ["granted", "held", "settled"]
            assert next(lava.records("acme")).basis == "reported"
            check_journal(lava.journal)


# Replaced, read-only, corrupt -----------------------------------------------------------------------------------------


def put_back(copy: Path, path: Path) -> None:
    """Restore an older state into the file in use, as `.restore` of the sqlite3 shell does."""
    with contextlib.closing(sqlite3.connect(copy)) as source, contextlib.closing(sqlite3.connect(path)) as target:
        source.backup(target)


def test_a_ledger_put_back_to_yesterday_while_calls_run_is_believed_and_their_use_is_owed(
    ledger: Path, tmp_path: Path
) -> None:
    """T42: memory of a lost future is dropped; a call whose hold is gone is posted as a report."""
    barrier = Barrier()
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "0.01")
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 200
            put_back(ledger, tmp_path / "yesterday.db")
            lava.grant("acme", "5")
            provider.queue(Script(barrier=barrier))
            running = in_thread(lambda: client.post(CHAT, json=chat()))
            provider.wait_until(lambda one: one.count == 2)
            put_back(tmp_path / "yesterday.db", ledger)
            barrier.release()
            assert running().status_code == 200
            eventually(lambda: "reported" in kinds(lava, "acme"))
            assert lava.balance("acme").balance.ticks < 100_000_000, "the grant of the lost future is gone"
            assert client.post(CHAT, json=chat(3000)).status_code == 402
            assert client.post(CHAT, json=chat(10)).status_code == 200
        eventually(lambda: nothing_is_held(lava, "acme"))
        assert [record.usage.output_tokens for record in lava.records("acme")] == [10, 40, 40]
        check_journal(lava.journal)


def test_a_ledger_that_vanished_lets_nothing_out(ledger: Path) -> None:
    """T27: moved away while in use, for instance by a clean-up job."""
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 200
            ledger.rename(ledger.with_name("moved.db"))
            time.sleep(1.2)  # the path is looked at after a pause
            answer = client.post(CHAT, json=chat())
            assert answer.status_code == 429
            assert provider.count == 1
            ledger.with_name("moved.db").rename(ledger)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_ledger_cannot_be_opened_and_the_error_says_what_to_do(ledger: Path) -> None:
    with Lava(f"sqlite:///{ledger}"):
        pass
    ledger.chmod(0o400)
    with pytest.raises(LedgerUnavailable, match="permission"):
        Lava(f"sqlite:///{ledger}")


def test_a_ledger_that_becomes_read_only_refuses_calls(ledger: Path) -> None:
    """Learned from SQLite's own error (query_only stands for a file system that was remounted)."""
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        writer = lava.ledger._journal._file.writer  # type: ignore[attr-defined]
        writer.fetch("PRAGMA query_only=1")
        with lava.charge_to("acme"):
            answer = client.post(CHAT, json=chat())
            assert answer.status_code == 429
            with pytest.raises(Exception, match="429") as raised:
                answer.raise_for_status()
            decision = denied(raised.value)
            assert decision is not None
            assert decision.reason == "ledger_unavailable"
            assert provider.count == 0
            writer.fetch("PRAGMA query_only=0")
            assert client.post(CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize("damage", ["garbage", "header", "pages", "directory"])
def test_a_corrupt_ledger_is_an_error_at_start_that_says_what_to_do(ledger: Path, damage: str) -> None:
    """T34: it is learned from SQLite's error, never by opening the file."""
    if damage == "directory":
        ledger.mkdir()
    elif damage == "garbage":
        ledger.write_bytes(b"this is no ledger" * 1000)
    else:
        with Lava(f"sqlite:///{ledger}") as lava:
            for number in range(100):
                lava.grant(f"customer-{number}", "5")
        data = bytearray(ledger.read_bytes())
        data[: 100 if damage == "header" else 0] = os.urandom(100 if damage == "header" else 0)
        if damage == "pages":
            data[2048:] = os.urandom(len(data) - 2048)
        ledger.write_bytes(data)
    with pytest.raises(LedgerUnavailable) as raised, Lava(f"sqlite:///{ledger}") as lava:
        lava.grant("acme", "5")
    assert str(ledger) in str(raised.value)
    assert any(word in str(raised.value) for word in ("restore", "check the path", "name a file"))


def test_threads_that_call_during_an_outage_all_get_an_answer(ledger: Path) -> None:
    """T27, T38: nobody hangs, nobody gets an exception of ours."""
    with FakeProvider() as provider, lava_at(provider, ledger) as lava, client_of(provider) as client:
        lava.grant("acme", "5")
        stop = threading.Event()
        statuses: set[int] = set()
        problems: list[str] = []

        def call() -> None:
            try:
                while not stop.is_set():
                    with lava.charge_to("acme"):
                        statuses.add(client.post(CHAT, json=chat()).status_code)
            except Exception as error:
                problems.append(repr(error))

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.15)
            fill(lava)
            time.sleep(0.15)
            make_room(lava)
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert not problems
        assert statuses == {200, 429}
        eventually(lambda: nothing_is_held(lava, "acme"))
        settled = kinds(lava, "acme").count("settled")
        assert settled == provider.count
        check_journal(lava.journal)
