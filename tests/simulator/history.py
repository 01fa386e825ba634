"""This file knows how to live through one history, bring it to rest, and tell briefly how it went wrong."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from .operations import OPERATIONS, Operation, stop
from .selling import settle_up
from .world import Crash, World

LENGTH = 250
"""Operations of one history. Many short ones find more than a long one, and are told sooner."""
ROUNDS = 30


class Broken(AssertionError):
    """An invariant does not hold. `operations`: how many it took, over all histories."""

    def __init__(self, seed: int, length: int, why: BaseException, story: list[str], operations: int = 0) -> None:
        self.seed, self.length, self.why, self.story, self.operations = seed, length, why, story, operations
        told = "\n".join(f"{number:4} {line}" for number, line in enumerate(story, 1))
        super().__init__(
            f"{type(why).__name__}: {why}\n"
            f"seed {seed}, after {length} operations (tests.simulator.history.live({seed}, {length})):\n{told}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Broken, (self.seed, self.length, AssertionError(str(self.why)), self.story, self.operations)


def live(
    seed: int, length: int = LENGTH, operations: Mapping[Operation, int] = OPERATIONS, log: list[str] | None = None
) -> int:
    """One history of so many operations, then to rest. How many were done; raises what the judge finds."""
    world = World(seed)
    world.log = log
    choose = _chooser(world.rng, operations)
    done = 0
    try:
        for _ in range(length):
            operation = choose()
            if log is not None:
                log.append(operation.__name__)
            with _deaths(world):
                operation(world)
            done += 1
            if world.judge.wrong is not None:
                raise world.judge.wrong
        come_to_rest(world)
    except AssertionError as wrong:
        wrong.done = done  # type: ignore[attr-defined]
        raise
    return length


class _deaths:
    """What happens to a process that dies in the middle of a line."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Crash):
            return False
        self._world.note(f"{error.process.owner} dies in the middle of a line")
        self._world.kill(error.process)
        return True


def _chooser(rng: random.Random, operations: Mapping[Operation, int]) -> Callable[[], Operation]:
    names = list(operations)
    borders = list(accumulate(operations.values()))
    total, draw = borders[-1], rng.random
    return lambda: names[bisect(borders, draw() * total)]


def come_to_rest(world: World) -> None:
    """Nothing more goes wrong: what is open ends, who lives is heard, who died is cleared away, the target has all."""
    for process in (*world.processes, *world.late):
        process.fault = ""
    world.note("the trouble is over")
    for exchange in list(world.exchanges):
        stop(world, exchange)
    world.exchanges.clear()
    for process in (*world.processes, *world.late):
        process.work()
    settle_up(world)
    for process in (*world.processes, *world.late):
        for _ in range(ROUNDS):
            if not (process.jobs or process.backlog):
                break
            process.work()
        assert not process.backlog, "G2: what was said cannot be written"
    world.processes[0].recover()
    world.sink = ""
    world.follower.drain()
    if world.judge.wrong is not None:
        raise world.judge.wrong
    world.judge.at_rest(world)


def explore(
    first_seed: int, operations: int, *, length: int = LENGTH, table: Mapping[Operation, int] = OPERATIONS
) -> int:
    """Histories one after another until so many operations were done. How many it were; raises Broken."""
    done, seed = 0, first_seed
    while done < operations:
        try:
            done += live(seed, length, table)
        except Exception as wrong:
            raise short(seed, length, table, done + getattr(wrong, "done", length)) from wrong
        seed += 1
    return done


def short(seed: int, length: int, table: Mapping[Operation, int], operations: int) -> Broken:
    """A short beginning of this history that ends badly, though it ends well one operation before, and its story."""
    well, badly = 0, length
    while badly - well > 1:
        middle = (well + badly) // 2
        try:
            live(seed, middle, table)
        except Exception:
            badly = middle
        else:
            well = middle
    story: list[str] = []
    try:
        live(seed, badly, table, story)
    except Exception as wrong:
        return Broken(seed, badly, wrong, story, operations)
    raise AssertionError(f"the history of seed {seed} goes wrong only sometimes: something in it is not simulated")
