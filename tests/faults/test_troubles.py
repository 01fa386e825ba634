"""G1 to G8 hold after clocks that jump, a disk that fills, an older ledger under running processes, an hour of kills.

What is looked at then is in crowd.examine(). Length: LAVA_SOAK_HOUR_S, the seconds of the hour under `make soak`.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lava_middleware.ledger.sqlite import SqliteJournal

from ..conftest import SOAK
from .crowd import Crowd, Seen, Told, examine, resident_kb, stand_in

PROCESSES = 4
HOUR_S = float(os.environ.get("LAVA_SOAK_HOUR_S", "3600")) if SOAK else 6.0
LOOK_S = min(60.0, HOUR_S / 3)
"""Between two looks at what the hour has left so far."""
NOTICED_WITHIN_S = 2.0
"""A process that is at work has by then seen that its ledger was replaced; who starts before may meet the old -wal."""
OLDER_BY_S = 3.0
"""How much older a copy is at least: processes say once a second from where on they have holds open."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7_200)]


def test_clocks_that_jump_change_no_amount(
    tmp_path: Path, rng: random.Random, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T9, T11: each process has a clock of its own that is set days on and hours back; who is alive is no question of
    clocks, and in the ledger time runs forward."""
    with stand_in(rng) as provider:
        with Crowd(provider, tmp_path / "ledger.db", tmp_path, rng, size=PROCESSES, jumps=True) as crowd:
            crowd.kill_some(soak_count(100), 0.6)
            crowd.wait_for("told", 1)
            crowd.kill_all()
        seen, line = examine(crowd)
    spread_days = (max(one.at for one in seen.replays.values()) - time.time() * 1e6) / 86_400e6
    assert 29 < spread_days < 31, "somebody's clock was a month ahead"
    figures(f"clocks that jump, {line}")


# A disk that fills and empties ----------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of its own in memory."""

    name = "a small disk"

    def __init__(self, directory: Path) -> None:
        self.at = directory / "disk"
        self.at.mkdir()

    @contextmanager
    def there(self) -> Iterator[None]:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "none", self.at], capture_output=True)
        if mounted.returncode:
            pytest.skip("a file system cannot be mounted here; the test with a limit on file sizes runs everywhere")
        try:
            yield
        finally:  # lazily: lock files of a ledger stay open as long as the process lives (T41)
            subprocess.run(["umount", "--lazy", self.at], check=True)

    def fill(self, crowd: Crowd) -> None:
        with (self.at / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def empty(self, crowd: Crowd) -> None:
        (self.at / "filler").unlink()


class LimitOnFiles:
    """A limit on the size of files, RLIMIT_FSIZE, that the running processes are given and relieved of."""

    name = "a limit on file sizes"

    def __init__(self, directory: Path) -> None:
        self.at = directory

    @contextmanager
    def there(self) -> Iterator[None]:
        if not hasattr(resource, "prlimit"):
            pytest.skip("the limits of another process can be set on Linux only")
        yield

    def fill(self, crowd: Crowd) -> None:
        self._limit(crowd, (self.at / "ledger.db-wal").stat().st_size)

    def empty(self, crowd: Crowd) -> None:
        self._limit(crowd, resource.RLIM_INFINITY)

    def _limit(self, crowd: Crowd, size: int) -> None:
        for pid in crowd.pids():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("disk", [SmallDisk, LimitOnFiles], ids=lambda one: one.name)
def test_a_disk_that_fills_and_empties_loses_nothing(
    disk: type[SmallDisk | LimitOnFiles],
    tmp_path: Path,
    rng: random.Random,
    soak_count: Callable[[int], int],
    figures: Callable[[str], None],
) -> None:
    """T27: nothing is sent that cannot be written; what was written stays; with room again everybody goes on, the
    exporters too. Some processes die while it is full."""
    small = disk(tmp_path)
    rounds = soak_count(20)
    with small.there(), stand_in(rng) as provider:
        with Crowd(provider, small.at / "ledger.db", tmp_path, rng, size=PROCESSES) as crowd:
            for _ in range(rounds):
                crowd.fill_up()
                crowd.wait_for("told", 2_000)
                small.fill(crowd)
                crowd.wait_for_silence("told")
                if rng.random() < 0.5:
                    crowd.kill(rng.randrange(PROCESSES))
                small.empty(crowd)
            crowd.wait_for("told", 2_000)
            crowd.kill_all()
        _, line = examine(crowd)
    figures(f"{small.name}, full {rounds} times, {line}")


# An older copy of the ledger ------------------------------------------------------------------------------------------


def put_file_back(copy: Path, ledger: Path) -> None:
    os.replace(copy, ledger)


def put_pages_back(copy: Path, ledger: Path) -> None:
    """Through SQLite, into the file that everybody has open."""
    with closing(sqlite3.connect(copy)) as source, closing(sqlite3.connect(ledger, timeout=30)) as target:
        source.backup(target)
    copy.unlink()


@pytest.mark.parametrize("put_back", [put_file_back, put_pages_back], ids=["file", "pages"])
def test_an_older_ledger_under_running_processes_loses_what_was_given_up_and_no_more(
    put_back: Callable[[Path, Path], None],
    tmp_path: Path,
    rng: random.Random,
    soak_count: Callable[[int], int],
    figures: Callable[[str], None],
) -> None:
    """T42: what was settled before the copy was made, and what began after it was put back, is there once; nothing of
    the lost future is built upon. Some processes die right after it."""
    ledger, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    lost: list[tuple[int, int]] = []
    rounds = soak_count(20)
    with stand_in(rng) as provider:
        with Crowd(provider, ledger, tmp_path, rng, size=PROCESSES) as crowd:
            for _ in range(rounds):
                crowd.fill_up()
                crowd.wait_for("told", 1_000)
                copied = time.monotonic_ns()
                with closing(sqlite3.connect(ledger, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
                    source.backup(target)
                time.sleep(OLDER_BY_S)
                put_back(copy, ledger)
                noticed = time.monotonic_ns() + int(NOTICED_WITHIN_S * 1e9)
                time.sleep(rng.uniform(0, 0.1))
                if rng.random() < 0.7:
                    crowd.kill(rng.randrange(PROCESSES))
                time.sleep(max(0.0, (noticed - time.monotonic_ns()) / 1e9))
                lost.append((copied, noticed))
                crowd.fill_up()
                crowd.wait_for("told", 1_000)
            crowd.kill_all()

        def may_be_lost(one: Told) -> bool:
            return any(one.knew_ns > copied and one.began_ns < noticed for copied, noticed in lost)

        _, line = examine(crowd, may_be_lost=may_be_lost)
    figures(f"an older ledger put back {rounds} times, by its {put_back.__name__.split('_')[1]}, {line}")


# An hour --------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(7200 + 2 * int(HOUR_S))
def test_an_hour_of_four_processes_on_one_file_with_kills(
    tmp_path: Path, rng: random.Random, figures: Callable[[str], None]
) -> None:
    """T9, T14, T28, T29: one of the four lives through it all, and its memory stays as it is. Each minute what was told
    since is found in the ledger, and every entry since is checked."""
    with stand_in(rng) as provider:
        with Crowd(provider, tmp_path / "ledger.db", tmp_path, rng, size=PROCESSES) as crowd:
            seen, told = Seen(), 0
            until = time.monotonic() + HOUR_S
            memory: list[int] = []
            while time.monotonic() < until:
                look = min(until, time.monotonic() + LOOK_S)
                while time.monotonic() < look:
                    time.sleep(min(rng.uniform(0, 1) ** 2 * 6, max(0.0, look - time.monotonic())))
                    crowd.kill(rng.randrange(1, PROCESSES))
                    crowd.fill_up()
                told_now = crowd.told()
                with closing(SqliteJournal(crowd.ledger)) as journal:
                    seen.read(journal)
                seen.has(told_now[told:])
                assert len(told_now) > told, "they go on"
                told = len(told_now)
                memory.append(resident_kb(crowd.oldest_pid()))
            crowd.kill_all()
        _, line = examine(crowd)
    grew_kb = memory[-1] - memory[len(memory) // 3]
    assert grew_kb < 20_000, f"the memory of the oldest process grew by {grew_kb} kB"
    figures(f"{HOUR_S:,.0f} s of {PROCESSES} processes, {line}; the oldest grew by {grew_kb:,} kB")
