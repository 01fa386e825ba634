"""Whatever the telemetry of the process does, the records are the same, and all of them leave the building (G8)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Lava

from .conftest import eventually
from .hostile import CALLS, SETTINGS

PROGRAM = Path(__file__).with_name("hostile.py")
ENVIRONMENTS = {
    "environment limits": {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "3", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "8"},
    "environment disabled": {"OTEL_SDK_DISABLED": "true"},
}
BY_SPANS = {
    # setting → how many records the spans alone brought to a ledger of record; None: it is not wired to one
    "plain": range(CALLS, CALLS + 1),
    "sampled 1 %": range(CALLS // 2),
    "attribute length": range(1),
    "attribute count": range(CALLS, CALLS + 1),  # the last ones stay, and the record is among them
    "environment limits": range(1),
    "environment disabled": range(1),
    "fork": range(CALLS // 2, CALLS + 1),  # what the child had queued may be lost with it
    "terminated": range(CALLS + 1),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """Every setting's process, two at a time; each gives the directory with its ledgers."""
    with ThreadPoolExecutor(2, thread_name_prefix="hostile") as pool:
        yield {name: pool.submit(run, name, tmp_path_factory.mktemp("hostile")) for name in SETTINGS}


def run(name: str, directory: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), str(directory), name],
        env={**os.environ, **ENVIRONMENTS.get(name, {})},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == (-signal.SIGTERM if name == "terminated" else 0), done.stderr[-3_000:]
    return directory


def told(lava: Lava) -> dict[str, Any]:
    """Records by id, without what each ledger says for itself."""
    own = {"seq", "balance_after", "debt", "posted"}
    return {
        one.id: {name: value for name, value in one.to_dict().items() if name not in own}
        for one in lava.records("acme")
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_the_records_are_the_same_and_all_of_them_arrive(runs: dict[str, Future[Path]], name: str) -> None:
    """Spans lose what they lose. The ledger has it, the follower brings it to the ledger of record, a file has it;
    after a SIGTERM the next process that serves does what was left (T19)."""
    directory = runs[name].result()
    record, lines = directory / "record.db", directory / "usage.jsonl"
    with Lava(f"sqlite:///{directory / 'lava.db'}", post_to=f"sqlite:///{record}", export_jsonl=str(lines)) as lava:
        lava.awake()
        last = lava.journal.last_seq()
        eventually(lambda: all(lava.journal.cursor(who) == last for who in ("ledger-of-record", "jsonl")))
        records = list(lava.records("acme"))
        first = told(lava)
        assert not lava.journal.dead_letters()
    assert [(one.kind, one.charge, one.basis) for one in records] == [
        ("settled", records[0].charge, "reported")
    ] * CALLS
    assert {json.loads(line)["id"] for line in lines.read_text().splitlines()} == set(first)
    with Lava(f"sqlite:///{record}") as second:
        assert told(second) == first
    if name in BY_SPANS:
        with Lava(f"sqlite:///{directory / 'spans.db'}") as by_spans:
            brought = told(by_spans)
        assert len(brought) in BY_SPANS[name]
        assert {id: first[id] for id in brought} == brought
