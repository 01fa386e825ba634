"""This file knows everything that can happen next: a table of operations, each with its weight.

A new command is one more entry: a function of the world that does it once, drawing what it needs from `world.rng`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from lava_middleware import context
from lava_middleware.core.commands import Grant, Settle, Void
from lava_middleware.core.exchange import ImpossibleEvent
from lava_middleware.core.state import STATE_FORMAT, to_state
from lava_middleware.ledger.journal import Snapshot
from lava_middleware.transport.seen import Stop

from . import selling
from .calendars import DAY
from .world import CUSTOMERS, FAULTS, Exchange, Process, World

Operation: TypeAlias = Callable[[World], None]

STEPS = (1, 1_000, 10_000_000, 3_600_000_000, 3 * 86_400_000_000, 20 * 86_400_000_000)
"""Microseconds."""
CHUNKS = (1, 30, 80, 150, 300, 1_000)
"""Bytes that arrive at once."""


def grant(world: World) -> None:
    rng = world.rng
    process = rng.choice(world.processes)
    now = process.clock()
    amount = selling.HUGE if world.chance(0.01) else rng.choice((1, 40_000, 3_000_000, 30_000_000, 400_000_000))
    starts = now + rng.choice(STEPS) if world.chance(0.1) else None
    expires = now + rng.choice(STEPS) * 2 if world.chance(0.4) else None
    category = rng.choice(("promo", "plan", "bundle", "top_up"))
    made = Grant(world.name("g"), amount, category, rng.choice((0, 0, 1)), starts, expires)
    account = rng.choice(CUSTOMERS)
    world.note(f"{account}: {made}")
    process.apply(account, made)
    if world.chance(0.2):  # the same request again, wherever it ends up
        rng.choice(world.processes).apply(account, made)


def enter(world: World, number: int | None = None) -> None:
    """A task goes into a frame of who pays."""
    number = world.rng.randrange(len(world.tasks)) if number is None else number
    running, frames = world.tasks[number]
    if len(frames) < 3:
        customer = world.rng.choice(CUSTOMERS)
        frame = context.charge_to(customer)
        running.run(frame.__enter__)
        frames.append((customer, frame))
        world.note(f"task {number} charges to {customer}")


def leave(world: World) -> None:
    running, frames = world.rng.choice(world.tasks)
    if frames:
        _, frame = frames.pop()
        running.run(frame.__exit__, None, None, None)


def call(world: World) -> None:
    number = world.rng.randrange(len(world.tasks))
    if not world.tasks[number][1]:
        enter(world, number)
    elif len(world.exchanges) > 12:
        go(world)
    else:
        exchange = world.open(world.rng.choice(world.processes), number)
        world.note(f"task {number} calls: {exchange}")


def go(world: World) -> None:
    """One exchange makes its next step; where there is none, a call opens one."""
    if world.exchanges:
        exchange = world.rng.choice(world.exchanges)
        step(world, exchange)
        world.note(f"step: {exchange}")
    else:
        call(world)


def step(world: World, exchange: Exchange) -> None:
    _STEPS[exchange.state](world, exchange)
    if exchange.state == "done":
        world.exchanges.remove(exchange)


def _asking(world: World, exchange: Exchange) -> None:
    ticket = exchange.ticket
    if ticket is not None and not ticket.done:
        exchange.process.work()
        if not ticket.done:
            return
    departure = exchange.flight.departure()
    exchange.state = "done" if departure.refusal is not None else "leaving"


def _leaving(world: World, exchange: Exchange) -> None:
    if world.chance(0.05):
        exchange.flight.unsent(ConnectionError("simulated"))
        exchange.state = "done"
        return
    _dispatch(world, exchange)
    exchange.state = "sent"


def _dispatch(world: World, exchange: Exchange) -> None:
    exchange.flight.dispatched()
    world.judge.on_the_wire(exchange)


def _sent(world: World, exchange: Exchange) -> None:
    if world.chance(0.03):
        exchange.flight.lost(ConnectionError("simulated"))
        exchange.state = "done"
        return
    read = exchange.flight.answered(exchange.answer.status, exchange.answer.headers)
    exchange.state = "reading" if read else "done"


def _reading(world: World, exchange: Exchange) -> None:
    flight, answer = exchange.flight, exchange.answer
    if exchange.ticket is not None:  # an extension is on its way
        if not exchange.ticket.done:
            exchange.process.work()
        if not exchange.ticket.done:
            return
        exchange.ticket = None
    elif exchange.at < len(answer.body):
        end = min(exchange.at + world.rng.choice(CHUNKS), len(answer.body))
        ready = flight.push(answer.body[exchange.at : end])
        exchange.at = end
        if ready is not None:
            world.judge.passed(exchange, ready)
    else:
        flight.end()
        exchange.at = len(answer.body) + 1
    _pull(world, exchange)


def _pull(world: World, exchange: Exchange) -> None:
    while (item := exchange.flight.pull()) is not None:
        if isinstance(item, bytes):
            world.judge.passed(exchange, item)
        elif isinstance(item, Stop):
            exchange.state, exchange.cut = "done", True
            return
        else:
            exchange.ticket = item
            if not item.done:
                return
    if exchange.at > len(exchange.answer.body):
        world.judge.ended_well(exchange)
        exchange.state = "done"


_STEPS: dict[str, Callable[[World, Exchange], None]] = {
    "asking": _asking,
    "leaving": _leaving,
    "sent": _sent,
    "reading": _reading,
}


def interrupt(world: World) -> None:
    """Somebody stops it: a cancel, a close, a broken line, a reader that never comes back."""
    if not world.exchanges:
        return
    exchange = world.rng.choice(world.exchanges)
    world.exchanges.remove(exchange)
    world.note(f"interrupt: {exchange}")
    stop(world, exchange)


def stop(world: World, exchange: Exchange) -> None:
    flight = exchange.flight
    if exchange.state == "asking":
        flight.withdrawn()
        return
    how = world.rng.randrange(3)
    if how == 0:
        flight.abandoned("closed")
    elif how == 1:
        flight.lost(ConnectionError("simulated"))
    else:
        flight.stalled()
    if exchange.state == "leaving":  # the pool has a connection for it at last
        with suppress(ImpossibleEvent):
            _dispatch(world, exchange)
    elif world.chance(0.3):  # and then it is stopped once more, by the collector
        flight.abandoned("collected")


def repeat(world: World) -> None:
    """An ending arrives again, as a caller that missed the answer would send it."""
    judge = world.judge
    if not judge.last:
        return
    name = world.rng.choice(list(judge.last))
    command = judge.last[name]
    account = judge.bound[name]
    if isinstance(command, Settle | Void) and (account, f"end:{name}") in world.store.keys:
        world.note(f"again: {command}")
        world.rng.choice(world.processes).apply(account, command)


def work(world: World) -> None:
    everybody = [*world.processes, *world.late]
    world.rng.choice(everybody).work()


def crash(world: World) -> None:
    everybody = [*world.processes, *world.late]
    process = world.rng.choice(everybody)
    world.note(f"{process.owner} dies")
    world.kill(process)


def lose_sight(world: World) -> None:
    if len(world.late) < 2:
        process = world.rng.choice(world.processes)
        world.note(f"{process.owner} is taken for dead")
        world.lose_sight(process)


def recover(world: World) -> None:
    world.rng.choice(world.processes).recover()


def advance(world: World) -> None:
    """A process tells from where on it may have holds."""
    world.rng.choice(world.processes).presence.advance()


def tick(world: World) -> None:
    world.now += world.rng.choice(STEPS)


def edge(world: World) -> None:
    """The clock comes to where a cycle ends: just before it, at it, or just after it; or long after, by thousands."""
    rng = world.rng
    cycles = [book.cycle for book in world.judge.books.values() if book.cycle is not None]
    if world.chance(0.05):
        world.now += rng.choice((400, 4_000)) * DAY
    elif cycles:
        world.now = max(world.now, rng.choice(cycles).ends + rng.choice((-1, 0, 1)))


def jump(world: World) -> None:
    """The clock of one process goes wrong, either way, or right again."""
    process = world.rng.choice(world.processes)
    process.skew = world.rng.choice((0, -1, 1)) * world.rng.choice(STEPS)


def follow(world: World) -> None:
    world.sink = world.rng.choice(("", "", "away", "half", "answer lost"))
    with suppress(Exception):
        world.follower.drain()


def forget(world: World) -> None:
    """An account leaves a process's memory, or goes into a snapshot first."""
    process, account = world.rng.choice(world.processes), world.rng.choice(CUSTOMERS)
    slot = process.accounts.slot(account)
    if slot.account is not None and world.chance(0.5):
        state = to_state(slot.account)
        made = Snapshot(account, slot.account.version, slot.account.at, STATE_FORMAT, state)
        world.store.snapshots[account] = made
    slot.account = None


def trouble(world: World) -> None:
    """Something is in store for a process's next append."""
    everybody: list[Process] = [*world.processes, *world.late]
    process = world.rng.choice(everybody)
    process.fault = world.rng.choice(FAULTS)
    world.note(f"in store for {process.owner}: {process.fault}")


OPERATIONS: dict[Operation, int] = {
    # operation → its weight
    go: 840,
    call: 70,
    interrupt: 25,
    grant: 35,
    enter: 20,
    leave: 8,
    repeat: 15,
    work: 30,
    crash: 4,
    lose_sight: 9,
    recover: 12,
    advance: 5,
    tick: 12,
    jump: 6,
    follow: 10,
    forget: 7,
    trouble: 40,
    edge: 5,
    selling.limit: 10,
    selling.plan: 8,
    selling.suspend: 4,
    selling.offer_topups: 3,
    selling.top_up: 7,
    selling.keep: 5,
    selling.run: 8,
    selling.end_run: 3,
    selling.reserve: 12,
    selling.go_on: 22,
    selling.report: 9,
    selling.adjust: 26,
    selling.post: 1,
    selling.deliver: 5,
}
