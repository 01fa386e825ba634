"""This file knows how to measure memory and imports."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import httpx2

from lava_middleware import Lava
from lava_middleware.core.commands import Authorize, Grant, Settle
from lava_middleware.ids import new_id
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.memory import MemoryJournal

from .lines import Line

IMPORT = """
import sys, time
import starlette.requests, starlette.websockets, pydantic, httpx, cachetools, opentelemetry.trace, opentelemetry.metrics
began = time.perf_counter()
import lava_middleware
print((time.perf_counter() - began) * 1e3)
"""


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    if wanted("import"):
        runs = [
            float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
            for _ in range(7)
        ]
        yield Line(
            "import",
            "import, beyond starlette, pydantic, httpx and the other dependencies",
            statistics.median(runs),
            "ms",
            "≤ 80 ms",
        )
    if wanted("open-stream"):
        yield _open_streams()
    if wanted("account"):
        yield _accounts()
    if wanted("flat"):
        yield _flat()


class _Endless(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        chunk = (
            b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o-mini",'
            b'"choices":[{"index":0,"delta":{"content":"sea "}}]}\n\n'
        )
        while True:
            yield chunk


def _open_streams(count: int = 1_000) -> Line:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Endless())

    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True}

    def opened(client: httpx2.Client) -> list[object]:
        kept: list[object] = []
        for _ in range(count):
            response = client.send(
                client.build_request("POST", "https://api.openai.com/v1/chat/completions", json=body), stream=True
            )
            chunks = response.iter_raw()
            for _ in range(3):
                next(chunks)
            kept.append((response, chunks))
        return kept

    def size(client: httpx2.Client) -> float:
        gc.collect()
        tracemalloc.start()
        kept = opened(client)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for response, chunks in kept:  # type: ignore[misc]
            chunks.close()
            response.close()
        return used / count / 1000

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    bare = size(client)
    with Lava("sqlite:///:memory:") as lava:
        lava.instrument()
        lava.grant("c", "1000")
        with lava.charge_to("c"):
            opened(client)
            ours = size(client)
    return Line(
        "open-stream",
        "memory of one open stream, beyond the library's own",
        ours - bare,
        "kB",
        "≤ 10 kB",
        {"bare_kb": bare},
    )


def _accounts(count: int = 2_000) -> Line:
    journal = MemoryJournal()
    ledger = Ledger(journal)
    for number in range(count):
        ledger.apply(f"c{number}", Grant("g", 10**12)).wait()
        hold = new_id()
        ledger.apply(f"c{number}", Authorize(hold, ledger.owner, 10, 10, 10, 10, 10)).wait()
        ledger.apply(f"c{number}", Settle(hold, 5, 5, 5)).wait()
    ledger.close()
    ledger = Ledger(journal)  # nothing cached yet
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        ledger.ask(f"c{number}", lambda account: account.version)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ledger.close()
    return Line("account", "memory of one cached account", used / count / 1000, "kB", "≤ 5 kB")


def _flat(calls: int = 200_000) -> Line:
    """Growth of the process, journal on disk, over many calls of one customer."""
    import pathlib
    import resource
    import tempfile

    from lava_middleware.ledger.sqlite import SqliteJournal

    def resident() -> float:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
        return pages * resource.getpagesize() / 1e6

    with tempfile.TemporaryDirectory() as name:
        journal = SqliteJournal(pathlib.Path(name) / "flat.db")
        ledger = Ledger(journal)
        ledger.apply("c", Grant("g", 10**16)).wait()
        before = 0.0
        for number in range(calls):
            hold = new_id()
            ledger.apply("c", Authorize(hold, ledger.owner, 10, 10, 10, 10, 10), record="{}").wait()
            ledger.apply("c", Settle(hold, 5, 5, 5), record="{}").wait()
            if number == calls // 10:
                gc.collect()
                before = resident()
        gc.collect()
        grown = resident() - before
        ledger.close()
        journal.close()
    return Line("flat", f"growth of the process over {calls * 9 // 10:,} calls", grown, "MB", "flat")
