"""This file knows how to measure the ledger in PostgreSQL: pairs from many calls at once, in one process and in eight.

The server is a real one on this machine, with its commits on the disk, so it shares the processors with its clients.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from lava_middleware.core.commands import Authorize, Grant, Settle
from lava_middleware.ids import new_id
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.postgres.journal import PostgresJournal
from tests.ledger.replay import check_journal

from .ledger import CREDIT, DRAFT, RECORD
from .lines import Line

CALLS = 64
PROCESSES = 8
CALLS_EACH = 16


async def _call(ledger: Ledger, customers: list[str], until: float, latencies: list[float], number: int) -> int:
    pairs = 0
    while (began := time.perf_counter()) < until:
        hold, customer = new_id(), customers[(number + pairs) % len(customers)]
        authorize = Authorize(hold, ledger.owner, CREDIT // 1000, 900, CREDIT, 400, 400)
        assert (await ledger.apply(customer, authorize, record=DRAFT)).declined is None
        latencies.append(time.perf_counter() - began)
        await ledger.apply(customer, Settle(hold, CREDIT // 2000, 900, 200), record=RECORD)
        pairs += 1
    return pairs


async def _calls(ledger: Ledger, customers: list[str], seconds: float, calls: int) -> tuple[int, list[float]]:
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_call(ledger, customers, until, latencies, n)) for n in range(calls)]
    return sum(task.result() for task in tasks), latencies


def _worker(url: str, customers: list[str], seconds: float, ready: Any, results: Any) -> None:
    with closing(PostgresJournal(url, timeout_s=20)) as journal:
        ledger = Ledger(journal, deadline_s=30)
        asyncio.run(_calls(ledger, customers, 0.2, 2))
        ready.wait()
        before = journal.statements
        pairs, latencies = asyncio.run(_calls(ledger, customers, seconds, CALLS_EACH))
        results.put((pairs, journal.statements - before, latencies, ledger.counters.conflicts))
        ready.wait()
        ledger.close()


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    if not any(wanted(name) for name in ("postgres-one", "postgres-eight-1", "postgres-eight-200")):
        return
    from tests import postgres

    server = postgres.Server(fsync="on", shared_buffers="256MB")
    try:
        if wanted("postgres-one"):
            yield _one(server.url + "?schema=one")
        for customers in (1, 200):
            if wanted(f"postgres-eight-{customers}"):
                yield _eight(server.url + f"?schema=eight_{customers}", [f"c{n}" for n in range(customers)])
    finally:
        server.remove()


def _one(url: str) -> Line:
    with closing(PostgresJournal(url, timeout_s=20)) as journal:
        ledger = Ledger(journal, deadline_s=30)
        ledger.apply("c", Grant("g", 10**6 * CREDIT)).wait()
        asyncio.run(_calls(ledger, ["c"], 1.0, CALLS))
        before, rates, waits, total = journal.statements, [], [], 0
        for _ in range(5):
            pairs, latencies = asyncio.run(_calls(ledger, ["c"], 1.0, CALLS))
            rates.append(float(pairs))
            waits += latencies
            total += pairs
        statements = (journal.statements - before) / total
        ledger.close()
        check_journal(journal)
    return Line(
        "postgres-one",
        "authorize + settle, PostgreSQL, one hot customer, 64 calls at once",
        statistics.median(rates),
        "pairs/s",
        "≥ 4,000",
        {"statements_per_pair": statements, **_percentiles(waits)},
    )


def _eight(url: str, customers: list[str]) -> Line:
    spawn = multiprocessing.get_context("spawn")
    with closing(PostgresJournal(url, timeout_s=20)) as journal:
        ledger = Ledger(journal, deadline_s=30)
        for ticket in [ledger.apply(customer, Grant("g", 10**6 * CREDIT)) for customer in customers]:
            ticket.wait()
        ready, results, seconds = spawn.Barrier(PROCESSES), spawn.Queue(), 5.0
        workers = [
            spawn.Process(target=_worker, args=(url, customers, seconds, ready, results)) for _ in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        figures = [results.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
        ledger.close()
        check_journal(journal)
    total = sum(pairs for pairs, *_ in figures)
    return Line(
        f"postgres-eight-{len(customers)}",
        f"the same, eight processes, {'one hot customer' if len(customers) == 1 else f'{len(customers)} customers'}",
        total / seconds,
        "pairs/s",
        "",
        {
            "statements_per_pair": sum(statements for _, statements, *_ in figures) / total,
            "conflicts_per_thousand": 1000 * sum(conflicts for *_, conflicts in figures) / (2 * total),
            "least_share": min(pairs for pairs, *_ in figures) / total,
            **_percentiles([wait for _, _, latencies, _ in figures for wait in latencies]),
        },
    )


def _percentiles(waits: list[float]) -> dict[str, float]:
    """Of an authorize, from the call to the answer."""
    ordered = sorted(waits)
    return {f"p{part}_ms": ordered[min(len(ordered) * part // 100, len(ordered) - 1)] * 1e3 for part in (50, 99)}
