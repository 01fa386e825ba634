"""This file knows what all tests share: how long a long suite runs, recorded traffic, and that nothing is left over.

LAVA_SOAK=1      the long suites whole (make soak); else a tenth of them, the same tenth for the same seed
LAVA_SOAK_HOUR_S the seconds of the hour that the soak lets four processes be killed in (3600)
LAVA_SEED=N      the seed; "random" draws a new one. A failing test prints the seed it ran with.

`make test` and `make soak` run a few tests at a time (pytest-xdist), in processes that run many one after another.
What a test needs for itself (directory, port, ledger, schema) it makes. One that measures time is marked `alone`:
nothing runs beside it.
"""

from __future__ import annotations

import fcntl
import gc
import gzip
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  # asks the collector about a thing of trio's: to be done before _leave_out_of_collections
import pytest

CORPUS = Path(__file__).parents[2] / "shared" / "corpus" / "provider-traffic.jsonl.gz"
SOAK = os.environ.get("LAVA_SOAK", "") not in ("", "0")
THREADS_END_WITHIN_S = 5.0
TURNS = os.path.join(tempfile.gettempdir(), f"lava-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID')}-")
"""Where the workers of one run meet."""


def _seed() -> int:
    wanted = os.environ.get("LAVA_SEED", "1")
    return random.SystemRandom().randrange(2**32) if wanted == "random" else int(wanted)


SEED = _seed()
if "LAVA_SEED" in os.environ:
    os.environ["LAVA_SEED"] = str(SEED)  # so that the workers of this run draw no other one


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts its background jobs so, and every child would inherit it: servers that tests stop as Ctrl-C does.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves_threads: ends with threads of the library running, on purpose")
    config.addinivalue_line("markers", "alone: measures time; no other test of this run is running meanwhile")
    if not _is_worker(config):
        config.pluginmanager.register(Figures(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make soak` runs what is marked: whatever asks how long to run is a long suite.

    What is to run alone comes last there, when nothing is left that would have to wait for it.
    """
    for item in items:
        if "soak_count" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.soak)
    if SOAK:
        items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class Figures:
    """What tests have measured, printed as they end; a worker has no terminal and sends its lines with its report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal: Any = self._config.pluginmanager.getplugin("terminalreporter")
        for name, line in report.user_properties if report.when == "call" else ():
            if name == "figures" and terminal is not None:
                terminal.write_line(f"\n{line}")  # there may be dots on this line


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """figures("1,000 calls in 2 s"): a line that is printed when the test has ended, passed or not."""
    return lambda line: request.node.user_properties.append(("figures", line))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Around everything, the time-out of the test too: waiting for one's turn is not its time."""
    _leave_out_of_collections(item.path)
    with _turn(item.get_closest_marker("alone") is not None):
        return (yield)


_collected_for: set[Path] = set()


def _leave_out_of_collections(module: Path) -> None:
    """What is there when a module's tests begin stays, and the collector need not look at it again: thousands of tests
    and the modules of twenty SDKs are half a second a collection, of which many tests force several."""
    if module not in _collected_for:
        _collected_for.add(module)
        gc.collect()
        gc.freeze()


@contextmanager
def _turn(alone: bool) -> Iterator[None]:
    """Any number of tests have a turn at once, or one that is alone. Whoever waits for that lets nobody pass."""
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        yield
        return
    with open(f"{TURNS}next", "ab") as entrance, open(f"{TURNS}turn", "ab") as turn:
        fcntl.flock(entrance, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(entrance, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)  # said, not left to closing: a forked child has it open too


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _is_worker(session.config):
        for name in ("next", "turn"):
            Path(f"{TURNS}{name}").unlink(missing_ok=True)


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
