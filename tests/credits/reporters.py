"""This file knows what the processes of a load of reports do, and what each reported event is: its number says it all.

Pages and seconds at one price, gigabytes in graduated tiers, in this month and the one before. A tenth of the events,
chosen by the seed, are reported by both processes, at about the same moment.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from lava_middleware import Lava
from lava_middleware.ids import now_us

CUSTOMERS = 199
"""A prime, so that every thread has every customer in turn."""
PROCESSES, THREADS, TASKS = 2, 3, 8
"""Threads of a process; and the tasks of its further thread, whose loop reports with `areport`."""
LANES = THREADS + 1

METERS: dict[str, Any] = {
    "pages": {"rates": {"pages": "0.01"}},
    "audio": {"rates": {"seconds": {"price": "0.006", "per": 60}}},
    "storage": {"unit": "gigabytes", "tiers": [[0, "0.10"], [200, "0.05"], [20_000, "0.0213"]]},
}
UNITS = (("pages", 30), ("audio", 4_000), ("storage", 90))
"""(meter, most of it in one event)."""

NOW = datetime(2031, 5, 5, 12, tzinfo=UTC)
"""A tiered meter knows a month for a week after it has ended (core.evolve.LATE)."""
MONTHS = (datetime(2031, 4, 30, 23, tzinfo=UTC), datetime(2031, 5, 1, tzinfo=UTC))
"""When events happened: in the last hour of a month, and in the first moment of the next."""


class Event(NamedTuple):
    """One thing that somebody used."""

    id: str
    customer: str
    meter: str
    quantity: int
    month: int
    """Of MONTHS."""
    twice: bool
    """The other process reports it too."""


def event(seed: int, number: int) -> Event:
    drawn = int.from_bytes(blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big")
    drawn, kind = divmod(drawn, len(UNITS))
    meter, most = UNITS[kind]
    drawn, quantity = divmod(drawn, most + 1)
    drawn, month = divmod(drawn, len(MONTHS))
    customer = f"customer-{number // PROCESSES % CUSTOMERS}"
    return Event(f"event-{number}", customer, meter, quantity, month, drawn % 10 == 0)


def numbers_of(customer: int, events: int) -> Iterator[int]:
    """Of all events those of one customer."""
    for first in range(customer * PROCESSES, events, CUSTOMERS * PROCESSES):
        yield from range(first, min(first + PROCESSES, events))


def open_lava(ledger: str) -> Lava:
    """Early in a month, far from every edge."""
    shift_us = int(NOW.timestamp() * 1_000_000) - now_us()
    return Lava(ledger, meters=METERS, clock=lambda: now_us() + shift_us, tracing=False)


def told(one: Event) -> dict[str, Any]:
    """The same event, as `report` takes it."""
    return {
        "request_id": one.id,
        "meter": one.meter,
        "quantity": one.quantity,
        "when": MONTHS[one.month],
        "user": f"user-{one.quantity % 7}",
    }


def load(ledger: str, process: int, seed: int, events: int, out: Any) -> None:
    """Report one process's share: (reports, seconds, problems)."""
    problems: list[str] = []
    counts: list[int] = []
    with open_lava(ledger) as lava:

        def share(lane: int) -> Iterator[Event]:
            for pair in range(lane, -(-events // PROCESSES), LANES):
                for number in range(pair * PROCESSES, min(pair * PROCESSES + PROCESSES, events)):
                    one = event(seed, number)
                    if number % PROCESSES == process or one.twice:
                        yield one

        def in_thread(lane: int) -> None:
            reports = 0
            for one in share(lane):
                record = lava.report(one.customer, **told(one))
                assert record is not None
                assert record.id == one.id
                reports += 1
            counts.append(reports)

        async def in_tasks(lane: int) -> None:
            left, reports = share(lane), 0

            async def task() -> None:
                nonlocal reports
                for one in left:
                    record = await lava.areport(one.customer, **told(one))
                    assert record is not None
                    assert record.id == one.id
                    reports += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(TASKS):
                    group.create_task(task())
            counts.append(reports)

        def guarded(lane: int) -> None:
            try:
                if lane < THREADS:
                    in_thread(lane)
                else:
                    asyncio.run(in_tasks(lane))
            except BaseException as error:
                problems.append(repr(error))

        lava.balance("customer-0")  # the ledger is open
        lanes = [threading.Thread(target=guarded, args=(lane,)) for lane in range(LANES)]
        began = time.perf_counter()
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        seconds = time.perf_counter() - began
    out.put((sum(counts), seconds, problems))
