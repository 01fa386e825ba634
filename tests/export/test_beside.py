"""Beside other instrumentations, installed before or after us, no record changes and nothing is counted twice (G8)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ..conftest import SEED, SOAK

PACKAGES = Path(sys.prefix) / "telemetry"
PROGRAM = Path(__file__).with_name("beside.py")
ORDERS = ("ours-first", "theirs-first")
ALONE = ("httpx", "genai", "openai-v2", "openllmetry", "logfire", "sentry")
TOGETHER = ("httpx+genai", "sentry+openai-v2", "openllmetry", "logfire")
"""All of them too, in fewer processes."""


def chosen() -> list[tuple[str, str]]:
    """Each alone and in both orders with LAVA_SOAK; else together, in one order, by the seed."""
    if SOAK:
        return [(name, order) for name in ALONE for order in ORDERS]
    return [(name, ORDERS[(SEED + number) % 2]) for number, name in enumerate(TOGETHER)]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str], Future[dict[str, Any]]]]:
    """Two at a time: most of the time they import."""
    if not PACKAGES.is_dir():
        pytest.skip("the other instrumentations are not installed: make test does that")
    with ThreadPoolExecutor(2, thread_name_prefix="beside") as pool:
        yield {one: pool.submit(run, *one) for one in chosen()}


def run(instrumentation: str, order: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), instrumentation, order, str(PACKAGES)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


CHAT = ["settled", 43_500, {"input": 17, "output": 3}, "reported", "gpt-4o-mini", "finished"]
RESPONSE = ["settled", 30_000, {"input": 8, "output": 3}, "reported", "gpt-4o-mini", "finished"]
EMBEDDING = ["settled", 200, {"input": 1}, "reported", "text-embedding-3-small", "finished"]
RECORDS = [CHAT, CHAT, CHAT, RESPONSE, RESPONSE, EMBEDDING, CHAT, CHAT, CHAT]
"""Of the program's calls, whatever else is installed."""
OUTPUT_TOKENS = 24
STREAMS_WITHOUT_USAGE = 6
"""Output tokens of two streams whose application did not ask for usage."""


@pytest.mark.soak
@pytest.mark.parametrize(("instrumentation", "order"), chosen())
def test_beside_it_no_record_changes_and_nothing_is_counted_twice(
    runs: dict[tuple[str, str], Future[dict[str, Any]]], instrumentation: str, order: str
) -> None:
    found = runs[instrumentation, order].result()
    assert found["records"][::-1] == RECORDS
    assert found["requests"] == found["billing spans"] == found["inference spans"] == found["calls"] == len(RECORDS)
    # logfire's inference span ends when a stream begins, and what it makes for the stream knows no usage then.
    unseen = STREAMS_WITHOUT_USAGE if instrumentation == "logfire" else 0
    assert found["output tokens seen"] == OUTPUT_TOKENS - unseen
