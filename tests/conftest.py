"""This file knows what all tests share: how long a long suite runs, recorded traffic, and that nothing is left over.

LAVA_SOAK=1      the long suites whole (make soak); else a tenth of them, the same tenth for the same seed
LAVA_SEED=N      the seed; "random" draws a new one. A failing test prints the seed it ran with.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parents[2] / "shared" / "corpus" / "provider-traffic.jsonl.gz"
SOAK = os.environ.get("LAVA_SOAK", "") not in ("", "0")
THREADS_END_WITHIN_S = 5.0


def _seed() -> int:
    wanted = os.environ.get("LAVA_SEED", "1")
    return random.SystemRandom().randrange(2**32) if wanted == "random" else int(wanted)


SEED = _seed()


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts its background jobs so, and every child would inherit it: servers that tests stop as Ctrl-C does.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves_threads: ends with threads of the library running, on purpose")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make soak` runs what is marked: whatever asks how long to run is a long suite."""
    for item in items:
        if "soak_count" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.soak)


def pytest_report_header() -> str:
    return f"lava: seed {SEED}, long suites {'whole' if SOAK else 'a tenth'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and {"seed", "rng", "soak_count"} & set(getattr(item, "fixturenames", ())):
        report.sections.append(("seed", f"LAVA_SEED={SEED}" + (" LAVA_SOAK=1" if SOAK else "")))
    return report


@pytest.fixture
def seed() -> int:
    """The seed of this run, for whatever a test draws at random."""
    return SEED


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this run and this very test: they do not depend on which tests ran before."""
    return random.Random(f"{SEED}:{request.node.nodeid}")


@pytest.fixture
def soak_count() -> Callable[[int], int]:
    """soak_count(full): `full` under LAVA_SOAK=1, else a tenth of it, at least 1."""
    return lambda full: full if SOAK else max(1, full // 10)


@pytest.fixture(scope="session")
def corpus() -> Callable[[], list[dict[str, Any]]]:
    """corpus(): all recorded exchanges; skips, saying so, where the recordings are not beside the repository."""
    exchanges: list[dict[str, Any]] = []

    def read() -> list[dict[str, Any]]:
        if not CORPUS.exists():
            pytest.skip("the recorded provider traffic (../shared/corpus) is not here")
        if not exchanges:
            with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
                exchanges.extend(json.loads(line) for line in lines)
        return exchanges

    return read


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _nothing_is_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that opened a ledger or a follower closes it: threads of the library end with the test."""
    before = set(threading.enumerate())
    yield
    if request.node.get_closest_marker("leaves_threads"):
        return
    deadline = time.monotonic() + THREADS_END_WITHIN_S
    while (left := _lava_threads() - before) and time.monotonic() < deadline:
        for thread in left:
            thread.join(0.05)
    assert not left, f"threads left running: {sorted(thread.name for thread in left)}"


def _lava_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lava")}
