"""This file knows how to measure the ledger alone: pairs of authorize and settle, and reports, records included."""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from lava_middleware import Lava
from lava_middleware.core.commands import Authorize, Grant, Settle
from lava_middleware.core.pricing import Price
from lava_middleware.core.rating import Markup, rate
from lava_middleware.core.usage import Usage
from lava_middleware.ids import new_id
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.sqlite import SqliteJournal
from lava_middleware.prices.book import Book

from .lines import Line

CREDIT = 10**10
DRAFT = json.dumps(
    {"provider": "openai", "model": "gpt-4o-mini", "operation": "chat", "estimate": [900, 0], "note": "x" * 120}
)
RECORD = json.dumps(
    {"provider": "openai", "model": "gpt-4o-mini", "usage": {"input": 900, "output": 200}, "note": "x" * 420}
)


def pair(ledger: Ledger, customer: str) -> None:
    hold = new_id()
    ledger.apply(customer, Authorize(hold, ledger.owner, CREDIT // 1000, 900, CREDIT, 400, 400), record=DRAFT).wait()
    ledger.apply(customer, Settle(hold, CREDIT // 2000, 900, 200), record=RECORD).wait()


def rate_of_pairs(ledger: Ledger, customers: list[str], seconds: float) -> tuple[int, float]:
    """(pairs, slowest in seconds) in so many seconds."""
    done, slowest, until = 0, 0.0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        pair(ledger, customers[done % len(customers)])
        slowest = max(slowest, time.perf_counter() - began)
        done += 1
    return done, slowest


def _worker(path: str, customers: list[str], seconds: float, ready: object, results: object) -> None:
    journal = SqliteJournal(path)
    ledger = Ledger(journal)
    pair(ledger, customers[0])
    ready.wait()  # type: ignore[attr-defined]
    results.put((*rate_of_pairs(ledger, customers, seconds), ledger.counters.conflicts))  # type: ignore[attr-defined]
    ledger.close()
    journal.close()


def _raw_rate(directory: pathlib.Path, seconds: float) -> float:
    """The same rows a second by plain autocommit INSERTs: what SQLite itself can do here and now."""
    raw = sqlite3.connect(directory / "raw.db", isolation_level=None)
    raw.execute("PRAGMA page_size=2048")
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=NORMAL")
    raw.execute(
        "CREATE TABLE j (seq INTEGER PRIMARY KEY, a TEXT, v INT, k TEXT, b INT, e TEXT, r TEXT, "
        "UNIQUE(a, v), UNIQUE(a, k))"
    )
    done, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        raw.execute("INSERT INTO j (a, v, k, b, e, r) VALUES ('c', ?, ?, 1, ?, ?)", (done, new_id(), DRAFT, RECORD))
        done += 1
    raw.close()
    return done / seconds


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        if wanted("pairs-one"):
            raw = _raw_rate(directory, 1.0)
            journal = SqliteJournal(directory / "one.db")
            ledger = Ledger(journal)
            ledger.apply("c", Grant("g", 10**6 * CREDIT)).wait()
            rate_of_pairs(ledger, ["c"], 0.5)
            rates = [rate_of_pairs(ledger, ["c"], 1.0)[0] for _ in range(5)]
            more = {"raw_inserts_per_s": raw, "share_of_raw": 2 * statistics.median(rates) / raw}
            yield Line(
                "pairs-one",
                "authorize + settle, one process, SQLite",
                statistics.median(rates),
                "pairs/s",
                "≥ 8,000",
                more,
            )
            ledger.close()
            journal.close()
        if wanted("pairs-four"):
            yield from _four(directory)
        if wanted("reports"):
            yield _reports(directory)
        if wanted("computing"):
            yield _beside_computing(directory)
        if wanted("history"):
            yield _history(directory)
        if wanted("rating"):
            yield _rating()


def _four(directory: pathlib.Path) -> Iterator[Line]:
    spawn = multiprocessing.get_context("spawn")
    for label, customers in (("one shared customer", ["c"]), ("200 shared customers", [f"c{n}" for n in range(200)])):
        path = str(directory / f"four-{len(customers)}.db")
        journal = SqliteJournal(path)
        ledger = Ledger(journal)
        for customer in customers:
            ledger.apply(customer, Grant("g", 10**6 * CREDIT)).wait()
        ready, results = spawn.Barrier(4), spawn.Queue()
        seconds = 4.0
        workers = [spawn.Process(target=_worker, args=(path, customers, seconds, ready, results)) for _ in range(4)]
        for worker in workers:
            worker.start()
        figures = [results.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
        total = sum(done for done, _, _ in figures)
        more = {
            "slowest_ms": max(slowest for _, slowest, _ in figures) * 1e3,
            "conflicts_per_thousand": 1000 * sum(lost for *_, lost in figures) / (2 * total),
            "least_share": min(done for done, _, _ in figures) / total,
        }
        yield Line(
            f"pairs-four-{len(customers)}",
            f"the same, four processes, {label}",
            total / seconds,
            "pairs/s",
            "≥ 6,000",
            more,
        )
        ledger.close()
        journal.close()


def _reports(directory: pathlib.Path) -> Line:
    """One after another, each waited for: priced, committed, and read back as its record."""
    done, seconds = 0, 4.0
    with Lava(f"sqlite:///{directory}/reports.db", meters={"pages": {"rates": {"pages": "0.01"}}}) as lava:
        for number in range(200):
            lava.grant(f"c{number}", "1000000", key="first")
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            lava.report(f"c{done % 200}", meter="pages", quantity=7, request_id=f"event-{done}")
            done += 1
    return Line("reports", "lava.report(), one process, 200 customers", done / seconds, "reports/s", "≥ 3,000")


def _beside_computing(directory: pathlib.Path) -> Line:
    journal = SqliteJournal(directory / "computing.db")
    ledger = Ledger(journal)
    ledger.apply("c", Grant("g", 10**6 * CREDIT)).wait()
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    seconds = []
    for _ in range(200):
        began = time.perf_counter()
        pair(ledger, "c")
        seconds.append(time.perf_counter() - began)
        time.sleep(0.001)
    stop.set()
    thread.join()
    ledger.close()
    journal.close()
    return Line("computing", "one pair beside a computing thread", statistics.median(seconds) * 1e3, "ms", "≤ 15 ms")


def _history(directory: pathlib.Path) -> Line:
    journal = SqliteJournal(directory / "history.db")
    ledger = Ledger(journal)
    figures = {}
    for customer, earlier in (("short", 10), ("long", 100_000)):
        ledger.apply(customer, Grant("g", 10**6 * CREDIT)).wait()
        for _ in range(earlier):
            pair(ledger, customer)
    for customer in ("short", "long") * 3:
        done, _ = rate_of_pairs(ledger, [customer], 1.0)
        figures.setdefault(customer, []).append(1 / done)
    short, long = (statistics.median(figures[name]) for name in ("short", "long"))
    ledger.close()
    journal.close()
    return Line(
        "history",
        "a pair after 100,000 earlier calls, times one after 10",
        long / short,
        "×",
        "about 1",
        {"short_us": short * 1e6, "long_us": long * 1e6},
    )


def _rating() -> Line:
    book, markup = Book(), Markup("1.20")
    usage = Usage(input=900, cache_read=100, output=200, reasoning=50)

    def once() -> None:
        price = book.find(("openai",), "gpt-4o-mini")
        assert isinstance(price, Price)
        markup.charge(rate(price, usage))

    once()
    began = time.perf_counter()
    for _ in range(20_000):
        once()
    return Line(
        "rating",
        "price look-up and rating of one exchange",
        (time.perf_counter() - began) / 20_000 * 1e6,
        "µs",
        "≤ 10 µs",
    )
