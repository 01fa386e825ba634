"""The pure parts live through a million operations, with trouble between any two steps, and no guarantee breaks.

Everything is a function of the seed: see tests.simulator.judge for which check stands for which guarantee, and
tests.simulator.operations for what can happen. `LAVA_SEED=random` draws other histories; a failure prints its own seed
and a short history that shows it.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from . import bugs
from .history import Broken, explore, live

OPERATIONS = 1_000_000
TOGETHER = 2
"""Processes that share them."""
FOUND_WITHIN = 50_000
"""Operations within which every planted bug is found."""


@pytest.mark.timeout(1_800)
def test_a_million_operations_break_no_guarantee(seed: int, figures: Callable[[str], None]) -> None:
    """G1 to G8, with every fault between any two steps."""
    share = OPERATIONS // TOGETHER
    started = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(TOGETHER, spawn, initializer=logging.disable) as pool:
        firsts = [seed * 1_000_000 + number * 100_000 for number in range(TOGETHER)]
        done = sum(pool.map(explore, firsts, [share] * TOGETHER))
    assert done >= OPERATIONS
    seconds = time.perf_counter() - started
    figures(f"{done:,} simulated operations in {seconds:.0f} s: {done / seconds:,.0f} a second")


@pytest.mark.parametrize(
    ("guarantee", "plant"),
    [(guarantee, plant) for guarantee, plants in bugs.BUGS.items() for plant in plants],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_bug_is_found(
    guarantee: str, plant: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mistake in one place, and the simulator tells it by a history."""
    plant(monkeypatch)
    with pytest.raises(Broken) as found:
        explore(seed * 1_000_000, FOUND_WITHIN)
    assert found.value.operations <= FOUND_WITHIN
    assert f"seed {found.value.seed}, after {found.value.length} operations" in str(found.value)


def test_every_guarantee_has_a_planted_bug() -> None:
    sold = ("plans", "limits", "runs", "refunds", "top-ups", "snapshots")
    assert tuple(bugs.BUGS) == (*(f"G{number}" for number in range(1, 9)), *sold)
    assert all(bugs.BUGS.values())


def test_a_history_is_a_function_of_its_seed() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        live(7, 120, log=story)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 120
