"""This file knows what the tests of money under trouble share: one model at round prices, plain clients, a look back.

Everything goes the whole way: an httpx2 client, the instrumented transport, the ledger, a stand-in on a real socket.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from lava_middleware import Lava
from lava_middleware.core.events import Held, decode
from lava_middleware.ledger.journal import Entry
from lava_middleware.testing import FakeProvider

MODEL = "plain-model"
PRICES = {MODEL: {"input": "1.00", "output": "10.00", "output_tokens_max": 4000, "context_tokens": 100_000}}
"""A tenth of a thousandth of a credit buys 100 tokens of input or 10 of output."""
TICKS_PER_OUTPUT_TOKEN = 100_000
MESSAGES = "/v1/messages"
CHAT = "/v1/chat/completions"

FORKSERVER = multiprocessing.get_context("forkserver")
"""Children are forked from a parent without threads that has imported everything."""
FORKSERVER.set_forkserver_preload(["tests.faults.players", "tests.faults.kit"])


def chat(cap: int | None = 100, *, stream: bool = False, text: str = "hello there", **more: Any) -> dict[str, Any]:
    """A chat completion request."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream, **more}
    return body if cap is None else {**body, "max_tokens": cap}


@contextmanager
def lava_at(provider: FakeProvider | str, ledger: str | Path = "memory://", **settings: Any) -> Iterator[Lava]:
    """A Lava whose prices are PRICES and that meters the stand-in, as the process's default."""
    host = provider if isinstance(provider, str) else provider.host
    where = ledger if isinstance(ledger, str) and "://" in ledger else f"sqlite:///{ledger}"
    settings = {"hosts": {host: ("openai", "anthropic")}, "prices": PRICES, "hold_wait_s": 0, **settings}
    with Lava(where, **settings) as lava:
        lava.instrument()
        yield lava


@contextmanager
def client_of(provider: FakeProvider | str, **settings: Any) -> Iterator[httpx2.Client]:
    url = provider if isinstance(provider, str) else provider.url
    settings = {"headers": {"authorization": "Bearer sk-test"}, "timeout": 60, "verify": False, **settings}
    with httpx2.Client(base_url=url, limits=httpx2.Limits(max_connections=None), **settings) as client:
        yield client


def aclient_of(provider: FakeProvider | str, **settings: Any) -> httpx2.AsyncClient:
    url = provider if isinstance(provider, str) else provider.url
    settings = {"headers": {"authorization": "Bearer sk-test"}, "timeout": 60, "verify": False, **settings}
    return httpx2.AsyncClient(base_url=url, limits=httpx2.Limits(max_connections=None), **settings)


def hold_for(body: dict[str, Any], path: str = CHAT) -> int:
    """Ticks that this request holds, learned from one that was made."""
    with FakeProvider() as provider, lava_at(provider) as lava, client_of(provider) as client:
        lava.grant("probe", "1000")
        with lava.charge_to("probe"):
            assert client.post(path, json=body).status_code == 200
        return next(event.amount for event in events(lava, "probe") if isinstance(event, Held))


def credits(ticks: int) -> str:
    """Ticks as an amount that `grant` takes."""
    return f"{ticks // 10**10}.{ticks % 10**10:010d}"


def entries(lava: Lava, customer: str) -> list[Entry]:
    """The customer's entries, oldest first."""
    return list(lava.entries(customer))[::-1]


def events(lava: Lava, customer: str) -> list[Any]:
    return [decode(entry.kind, entry.event) for entry in entries(lava, customer)]


def kinds(lava: Lava, customer: str) -> list[str]:
    """What happened to the customer: "granted", "held", "settled", ..."""
    return [entry.kind.partition(".")[0] for entry in entries(lava, customer)]


def eventually(happened: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until it is so; fail if it does not come about."""
    until = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.005)


def nothing_is_held(lava: Lava, *customers: str) -> bool:
    return all(not lava.ledger.look(customer).holds for customer in customers)


def run_processes(target: Any, arguments: list[tuple[Any, ...]], within_s: float = 100.0) -> list[Any]:
    """One process for each argument tuple; what each put into its queue. A process that died fails the test, and one
    that hangs says where."""
    out = FORKSERVER.Queue()
    processes = [FORKSERVER.Process(target=_watched, args=(target, within_s, (*one, out))) for one in arguments]
    for process in processes:
        process.start()
    results: list[Any] = []
    until = time.monotonic() + within_s
    try:
        while len(results) < len(processes):
            assert not [one.exitcode for one in processes if one.exitcode], "a process died"
            assert time.monotonic() < until, "it takes too long: where each process hangs is in the captured stderr"
            with contextlib.suppress(queue.Empty):
                results.append(out.get(timeout=0.5))
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return results


def _watched(target: Any, within_s: float, arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(max(within_s - 2, 1), file=sys.__stderr__)
    target(*arguments)
    faulthandler.cancel_dump_traceback_later()


def error_of(response: Any) -> dict[str, Any]:
    """The error object of a refusal in OpenAI's or Anthropic's shape."""
    found: dict[str, Any] = json.loads(response.content)["error"]
    return found
