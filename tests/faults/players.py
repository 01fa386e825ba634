"""This file knows what the processes of these tests do. Each function is the life of one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lava_middleware import Lava, bind_context
from lava_middleware.context import Binding, close_request, open_request
from lava_middleware.errors import EXTENSION, LedgerUnavailable
from lava_middleware.ids import new_id, now_us
from lava_middleware.ledger.ticket import LedgerUnavailable as Unavailable

from .kit import CHAT, aclient_of, chat, client_of, credits, lava_at


def tell(path: str | Path, text: str) -> None:
    """Append to a file that processes share, in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def call_at_once(url: str, ledger: str, customer: str, calls: int, told: str, gate: Any, out: Any) -> None:
    """So many calls at once, half in threads and half in tasks; refusals are told to the others as they come."""
    with lava_at(url.removeprefix("http://"), ledger) as lava:
        lava.balance(customer)
        statuses: list[int] = []

        def note(status: int) -> None:
            statuses.append(status)
            if status != 200:
                tell(told, "-")

        async def tasks() -> None:
            async def one(client: Any) -> None:
                note((await client.post(CHAT, json=chat())).status_code)

            with lava.charge_to(customer):
                async with aclient_of(url) as client, asyncio.TaskGroup() as group:
                    for _ in range(calls // 2):
                        group.create_task(one(client))

        gate.wait()
        with client_of(url) as client, ThreadPoolExecutor(calls) as pool:
            with lava.charge_to(customer):
                call = bind_context(lambda: note(client.post(CHAT, json=chat()).status_code))
            made = [pool.submit(call) for _ in range(calls - calls // 2)]
            asyncio.run(tasks())
            for one in made:
                one.result()
        out.put(statuses)
        gate.wait()  # nobody dies, so nobody's holds are ended, before all have counted


def spend_until_declined(
    url: str, ledger: str, number: int, seed: int, declines: int, customers: int, out: Any
) -> None:
    """Three threads that call, stream, leave streams half-way or keep them, until each was declined so many times."""
    problems: list[str] = []
    with lava_at(url.removeprefix("http://"), ledger) as lava, client_of(url) as client:

        def one(thread: int) -> None:
            rng = random.Random(f"{seed}:{number}:{thread}")
            declined = 0
            kept: list[Any] = []
            while declined < declines:
                customer = f"customer-{rng.randrange(customers)}"
                with lava.charge_to(customer):
                    declined += _one_call(rng, client, kept)
                while len(kept) > 2:
                    kept.pop(0).close()
            for stream in kept[:-1]:  # the last one is never closed
                stream.close()

        def guarded(thread: int) -> None:
            try:
                one(thread)
            except BaseException as error:
                problems.append(repr(error))

        players = [threading.Thread(target=guarded, args=(thread,)) for thread in range(3)]
        for player in players:
            player.start()
        for player in players:
            player.join()
        conflicts = lava.ledger.counters.conflicts
    out.put((problems, conflicts))


def _one_call(rng: random.Random, client: Any, kept: list[Any]) -> bool:
    """True: it was declined."""
    cap = rng.choice((None, 7, 60, 300))
    if rng.random() < 0.4:
        return _declined(client.post(CHAT, json=chat(cap)))
    response = client.send(client.build_request("POST", CHAT, json=chat(cap, stream=True)), stream=True)
    if response.status_code != 200:
        response.read()
        return _declined(response)
    chunks = response.iter_raw()
    what = rng.random()
    if what < 0.5:
        for _ in chunks:
            pass
    else:
        for _ in range(rng.randrange(6)):
            next(chunks, None)
        if what < 0.7:
            response.close()
        elif what < 0.9:
            kept.append(response)
        # else it is dropped for the collector to find
    return False


def _declined(response: Any) -> bool:
    decision = response.extensions.get(EXTENSION)
    assert decision is None or decision.outbound_status == 402, response.text
    return decision is not None


def stream_all(
    url: str,
    ledger: str,
    customer: str,
    calls: int,
    clock_shift_us: int,
    out: Any,
    *,
    more: dict[str, Any] | None = None,
) -> None:
    """So many streamed calls at once, half in threads and half in tasks; (status, headers, tokens) of each.

    `more`: what else is in each request.
    """
    answers: list[tuple[int, dict[str, str], int]] = []
    body = chat(1000, stream=True, **(more or {}))
    host = url.removeprefix("http://")
    with lava_at(host, ledger, clock=lambda: now_us() + clock_shift_us, hold_wait_s=0.1) as lava:

        async def tasks() -> None:
            async def one(client: Any) -> None:
                async with client.stream("POST", CHAT, json=body) as response:
                    received = b"".join([data async for data in response.aiter_raw()])
                    answers.append((response.status_code, dict(response.headers), len(received)))

            with lava.charge_to(customer):
                async with aclient_of(url) as client, asyncio.TaskGroup() as group:
                    for _ in range(calls // 2):
                        group.create_task(one(client))

        def call(client: Any) -> None:
            with client.stream("POST", CHAT, json=body) as response:
                received = b"".join(response.iter_raw())
                answers.append((response.status_code, dict(response.headers), len(received)))

        with client_of(url) as client, ThreadPoolExecutor(calls) as pool:
            with lava.charge_to(customer):
                bound = bind_context(call)
            made = [pool.submit(bound, client) for _ in range(calls - calls // 2)]
            asyncio.run(tasks())
            for one in made:
                one.result()
    out.put(answers)


def grant_once(ledger: str, customer: str, ticks: int, out: Any) -> None:
    with Lava(f"sqlite:///{ledger}") as lava:
        lava.grant(customer, credits(ticks), key="invoice-1")
    out.put(os.getpid())


TELLS = ("ready", "told", "refused")
"""Files in which processes tell: I am at work; this settlement is written; I was refused, or the ledger was away."""

JUMPS_S = (30 * 86_400, 3 * 86_400, 3_600, 1, 0, -1, -3_600, -7 * 3_600)
"""Where a clock that is set anew may stand."""


def live_until_killed(url: str, ledger: str, export: str, place: str, seed: int, jumps: bool) -> None:
    """Calls and streams, one after another, of three customers (see crowd.CUSTOMERS), until it is killed; `jumps`: by a
    clock of its own, which is set anew again and again.

    Told: each settlement that this process knows to be in the ledger, with the times on the machine's clock at which
    its call began and at which it was known.
    """
    rng = random.Random(seed)
    recent: deque[tuple[int, Binding]] = deque(maxlen=5)
    told: set[str] = set()
    shift_us = 0

    def clock() -> int:
        return now_us() + shift_us

    with _opened_in_time(url, ledger, export, clock) as lava, client_of(url) as client:
        owner = ""
        while not owner:  # the ledger knows of this process before the first call
            with contextlib.suppress(Unavailable):
                owner = lava.ledger.owner
        tell(f"{place}/ready", "+")
        while True:
            if jumps and rng.random() < 0.1:
                shift_us = rng.choice(JUMPS_S) * 1_000_000 + rng.randrange(1_000_000)
            customer, began = rng.choice(("plenty", "little", "limited")), time.monotonic_ns()
            binding = Binding(lava, None, request_id=new_id())
            opened = open_request(binding)
            with lava.charge_to(customer):
                status = _one_way_or_another(rng, client)
            close_request(opened)
            recent.append((began, binding))
            # What is in there has been committed: the receipt of its append came back, at once or a little later.
            for began, binding in recent:
                for record in [one for one in binding._records if one.id not in told]:
                    tell(f"{place}/told", f"{began} {time.monotonic_ns()} {record.customer} {record.id}\n")
                    told.add(record.id)
            if status != 200:
                tell(f"{place}/refused", "-")
                _after_refusal(rng, lava, customer, status)


@contextlib.contextmanager
def _opened_in_time(url: str, ledger: str, export: str, clock: Any) -> Iterator[Lava]:
    """As a supervisor would: a process that cannot open its ledger is started again."""
    with contextlib.ExitStack() as opened:
        lava = None
        while lava is None:
            try:
                lava = opened.enter_context(
                    lava_at(url.removeprefix("http://"), ledger, export_jsonl=export, clock=clock)
                )
            except LedgerUnavailable:
                time.sleep(0.05)
        yield lava


def _one_way_or_another(rng: random.Random, client: Any) -> int:
    """One call: unary, a stream to its end, a stream that is left. Its answer is whole (G7)."""
    if rng.random() < 0.4:
        response = client.post(CHAT, json=chat())
        if response.status_code == 200:
            assert response.json()["choices"][0]["message"]["content"]
        return int(response.status_code)
    with client.stream("POST", CHAT, json=chat(400, stream=True)) as response:
        last = b""
        for count, chunk in enumerate(response.iter_raw()):
            last = (last + chunk)[-100:]
            if count > 30 and rng.random() < 0.02:
                break
        else:
            assert response.status_code != 200 or last.endswith(b"data: [DONE]\n\n")
    return int(response.status_code)


def _after_refusal(rng: random.Random, lava: Lava, customer: str, status: int) -> None:
    """Somebody pays in a little, which soon expires; or it is no use to ask again at once."""
    assert status in (402, 429), status
    if status == 429 or customer != "little":
        time.sleep(0.01)
        return
    expires = datetime.fromtimestamp(lava.clock() / 1_000_000 + rng.choice((1, 10, 86_400)), UTC)
    with contextlib.suppress(LedgerUnavailable):
        lava.grant("little", rng.choice(("0.003", "0.01")), expires=rng.choice((None, expires)))


def keep_locked(ledger: str, gate: Any, seconds: float | None) -> None:
    """Another program has the ledger's write lock for so long; None: until its starter comes to the gate again."""
    writer = sqlite3.connect(ledger, isolation_level=None, timeout=10)
    writer.execute("BEGIN IMMEDIATE")
    gate.wait()
    if seconds is None:
        gate.wait()
    else:
        time.sleep(seconds)
    writer.execute("ROLLBACK")
    writer.close()


def leave_during_outage(url: str, ledger: str, gate: Any) -> None:
    """Sends a call with the ledger full and policy open; whoever waits at the gate kills it before the answer."""
    host = url.removeprefix("http://")
    with lava_at(host, ledger, on_ledger_outage="open") as lava, client_of(url) as client, lava.charge_to("acme"):
        client.post(CHAT, json=chat())
        fill(lava)
        gate.wait()
        client.post(CHAT, json=chat())


def fill(lava: Lava) -> None:
    """The disk is full, for this process."""
    writer = lava.ledger._journal._file.writer  # type: ignore[attr-defined]
    pages = writer.fetch("PRAGMA page_count")[0][0]
    writer.fetch(f"PRAGMA max_page_count={pages}")
    with contextlib.suppress(LedgerUnavailable):
        while True:  # what is left of the last page
            lava.grant("filler", "0.01")


def make_room(lava: Lava) -> None:
    """The disk has room again."""
    lava.ledger._journal._file.writer.fetch("PRAGMA max_page_count=1000000")  # type: ignore[attr-defined]


def hammer(ledger: str, number: int, seconds: float, customers: int, gate: Any, out: Any) -> None:
    """Two threads of calls over a mock transport for so long: (calls, conflicts, longest call in s, problems)."""
    import httpx2

    answer = {
        "id": "c",
        "object": "chat.completion",
        "model": "plain-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }
    problems: list[str] = []
    longest: list[float] = []
    calls: list[int] = []
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=answer))
    with (
        lava_at("mock.test", ledger) as lava,
        httpx2.Client(base_url="http://mock.test", transport=transport) as client,
    ):
        lava.balance("customer-0")
        gate.wait()
        until = time.monotonic() + seconds

        def one(thread: int) -> None:
            rng = random.Random(f"{number}:{thread}")
            worst, made = 0.0, 0
            try:
                while (now := time.monotonic()) < until:
                    with lava.charge_to(f"customer-{rng.randrange(customers)}"):
                        response = client.post(CHAT, json=chat(10))
                    if response.status_code != 200:
                        problems.append(response.text)
                    worst, made = max(worst, time.monotonic() - now), made + 1
            except BaseException as error:
                problems.append(repr(error))
            longest.append(worst)
            calls.append(made)

        threads = [threading.Thread(target=one, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        conflicts = lava.ledger.counters.conflicts
    out.put((sum(calls), conflicts, max(longest), problems))
