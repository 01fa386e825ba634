"""Processes that are killed at random instants of hold, stream, settle and export lose nothing and double nothing."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.events import Held
from lava_middleware.ids import now_us
from lava_middleware.lava import record_of_entry
from lava_middleware.ledger.audit import audit
from lava_middleware.testing import FakeProvider, Script
from lava_middleware.testing.served import Served
from tests.ledger.replay import all_entries, check_journal

from . import players
from .kit import FORKSERVER, eventually, lava_at, nothing_is_held

AT_ONCE = 2
CUSTOMERS = ("customer-0", "customer-1", "customer-2")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_processes_lose_no_settlement_and_double_none(
    tmp_path: Path, rng: random.Random, soak_count: Callable[[int], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """T9, T14, T19, G1, G2, G3: acknowledged is exactly once in the ledger, sent is held, held is ended by recovery,
    and the export has every record with its id."""
    kills = soak_count(200)
    ledger, export = tmp_path / "ledger.db", tmp_path / "usage.jsonl"
    ready, acknowledged = tmp_path / "ready", tmp_path / "acknowledged"
    for path in (ready, acknowledged, export):
        path.touch()

    def script(_: Served) -> Script:
        return Script(output_tokens=rng.choice((20, 150)), tokens_per_chunk=2, chunk_delay_s=rng.choice((0, 0.0005)))

    with FakeProvider(script) as provider:
        with lava_at(provider, ledger) as lava:
            for customer in CUSTOMERS:
                lava.grant(customer, "1000", key="start")
        arguments = (provider.url, str(ledger), str(export))
        _kill_at_random(rng, kills, arguments, ready, acknowledged)
        provider.wait_idle()

        with lava_at(provider, ledger, export_jsonl=str(export)) as lava:
            lava.ledger.recover()
            assert nothing_is_held(lava, *CUSTOMERS), "every hold was resolved"
            entries = list(all_entries(lava.journal))
            check_journal(lava.journal)
            found = audit(lava.journal, now_us())
            assert found.differences == []
            assert found.holds == []
            for follower in lava._followers:
                follower.wake()
            eventually(lambda: lava.journal.cursor("jsonl") >= entries[-1].seq, 30)
        records = [record for entry in entries if (record := record_of_entry(entry)) is not None]
        ids = Counter(record.id for record in records)
        assert max(ids.values()) == 1, "a record id stands once"
        settled = {record.id for record in records if record.kind == "settled"}
        told = [line for line in acknowledged.read_text().split("\n") if line]
        assert set(told) <= settled, "what was acknowledged is in the ledger"
        exported = [json.loads(line) for line in export.read_text().splitlines()]
        assert {one["id"] for one in exported} == set(ids)
        assert len({json.dumps(one, sort_keys=True) for one in exported}) == len(ids), "repeated as it was"
        holds = sum(entry.kind == Held.kind for entry in entries)
        assert provider.count <= holds, "nothing was sent without a committed hold"
        assert holds == sum(ids.values()) + sum(entry.kind.startswith("voided") for entry in entries)
        with contextlib.closing(sqlite3.connect(ledger)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        expired = sum(record.kind == "expired" for record in records)
        assert expired, "some were killed in the middle of a call"
        with capsys.disabled():
            print(
                f"\n{kills} kills: {len(records)} records, {len(told)} acknowledged, {expired} settled by recovery,"
                f" {len(exported) - len(ids)} exported twice"
            )


def _has_grown_to(path: Path, size: int) -> bool:
    return path.stat().st_size >= size


def _kill_at_random(
    rng: random.Random, kills: int, arguments: tuple[Any, ...], ready: Path, acknowledged: Path
) -> None:
    """Start processes, kill each at a random instant after it has begun, until so many are dead."""
    running: list[Any] = []
    started = 0
    try:
        for _ in range(kills):
            while len(running) < AT_ONCE:
                started += 1
                more = (*arguments, rng.randrange(2**32), str(ready), str(acknowledged))
                process = FORKSERVER.Process(target=players.call_until_killed, args=more)
                process.start()
                running.append(process)
            eventually(partial(_has_grown_to, ready, started), 60)
            time.sleep(rng.uniform(0, 0.3) ** 2 * 3)
            process = running.pop(0)
            assert process.is_alive(), "it ended by itself: its error is above"
            process.kill()
            process.join()
    finally:
        for process in running:
            process.kill()
            process.join()
