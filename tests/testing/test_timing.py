"""Barriers, confirmations and peers that leave: who has got how far, to the token."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import httpx2
import openai
import pytest

from lava_middleware.testing import Barrier, FakeProvider, Script

from .asking import chat


async def _ask_all(provider: FakeProvider, number: int) -> list[int]:
    limits = httpx2.Limits(max_connections=number)
    async with httpx2.AsyncClient(base_url=provider.url, limits=limits, timeout=30) as client:
        asked = (client.post("/v1/chat/completions", json=chat()) for _ in range(number))
        return [answer.status_code for answer in await asyncio.gather(*asked)]


def test_a_hundred_calls_are_answered_when_the_hundredth_has_come(provider: FakeProvider) -> None:
    barrier = Barrier(requests=100)
    provider.default = Script(barrier=barrier)
    assert asyncio.run(_ask_all(provider, 100)) == [200] * 100
    assert (barrier.reached, provider.count, provider.served.output_tokens) == (100, 100, 4000)


def test_a_barrier_keeps_all_until_it_is_released(provider: FakeProvider) -> None:
    barrier = Barrier()
    provider.default = Script(barrier=barrier)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asyncio.run, _ask_all(provider, 20))
        barrier.wait_reached(20)
        assert provider.count == 20
        assert all(served.state == "arrived" for served in provider.requests)
        provider.release()
        assert asked.result() == [200] * 20
    assert asyncio.run(_ask_all(provider, 1)) == [200], "once open it stays open"


def test_a_barrier_opens_by_a_condition_from_outside(provider: FakeProvider) -> None:
    decided = threading.Event()
    provider.default = Script(barrier=Barrier(until=decided.is_set))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asyncio.run, _ask_all(provider, 10))
        provider.wait_until(lambda seen: seen.count == 10)
        assert not asked.done()
        decided.set()
        assert asked.result() == [200] * 10


def test_who_waits_at_a_barrier_may_leave(provider: FakeProvider) -> None:
    provider.default = Script(barrier=Barrier())
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{provider.openai_base_url}/chat/completions", json=chat(), timeout=0.1)
    provider.wait_idle()
    assert provider.requests[0].aborted_after == 0


def test_waiting_for_too_many_says_so() -> None:
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        Barrier().wait_reached(1, timeout_s=0.01)


def test_a_wait_that_never_comes_true_says_so(provider: FakeProvider) -> None:
    with pytest.raises(TimeoutError, match="0 requests"):
        provider.wait_until(lambda seen: False, timeout_s=0.05)


@pytest.mark.parametrize("http", [httpx, httpx2])
def test_the_second_word_waits_until_the_first_is_confirmed(provider: FakeProvider, http: Any) -> None:
    confirm = Barrier()
    provider.default = Script(text="one two three", confirm=confirm)
    with http.stream("POST", f"{provider.openai_base_url}/chat/completions", json=chat(stream=True)) as answer:
        lines = (line for line in answer.iter_lines() if '"content":"' in line)
        next(lines)
        assert '"one"' in next(lines)
        confirm.wait_reached(1)
        assert provider.requests[0].chunks == 1
        confirm.release()
        assert len(list(lines)) == 2
    assert provider.served.output_tokens == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("http", [httpx, httpx2])
def test_a_peer_that_leaves_is_noticed_within_a_chunk(provider: FakeProvider, http: Any, path: str) -> None:
    provider.default = Script(output_tokens=400, chunk_delay_s=0.01)
    body = chat(stream=True, max_tokens=1000, input="Hi")
    with http.stream("POST", f"{provider.url}{path}", json=body) as answer:
        read = 0
        for line in answer.iter_lines():
            read += "delta" in line and line.startswith("data:")
            if read == 20:
                break
    provider.wait_idle()
    (served,) = provider.requests
    assert served.state == "aborted"
    assert served.aborted_after is not None
    assert 19 <= served.aborted_after <= 100
    assert served.output_tokens == served.aborted_after
    assert provider.served.aborted == 1


def test_a_cancelled_task_leaves(provider: FakeProvider) -> None:
    provider.default = Script(stall_after=7)

    async def cancelled() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_base_url, api_key="any") as client:
            stream = await client.chat.completions.create(**chat(stream=True))
            try:
                async with asyncio.timeout(0.3):
                    async for _ in stream:
                        pass
            except TimeoutError:
                await stream.close()

    asyncio.run(cancelled())
    provider.wait_idle()
    assert (provider.requests[0].aborted_after, provider.served.output_tokens) == (7, 7)


def test_delays_are_kept(provider: FakeProvider) -> None:
    provider.default = Script(output_tokens=5, first_byte_delay_s=0.1, chunk_delay_s=0.02)
    began = time.monotonic()
    httpx2.post(f"{provider.openai_base_url}/chat/completions", json=chat(stream=True))
    assert time.monotonic() - began >= 0.2


def test_scripts_come_from_the_queue_then_from_the_default_which_may_choose() -> None:
    with FakeProvider(lambda served: Script(text=f"I am {served.model}")) as provider:
        provider.queue(Script(text="first"))
        said = [_said(provider, model) for model in ("a", "b", "c")]
    assert said == ["first", "I am b", "I am c"]


def _said(provider: FakeProvider, model: str) -> str:
    answer = httpx2.post(f"{provider.openai_base_url}/chat/completions", json=chat(model=model))
    return str(answer.json()["choices"][0]["message"]["content"])


def test_processes_meet_at_one_barrier(provider: FakeProvider) -> None:
    """What four workers on one ledger need: none is answered before all have asked."""
    provider.default = Script(barrier=Barrier(requests=4))
    command = [sys.executable, "-c", _ASK, f"{provider.openai_base_url}/chat/completions", json.dumps(chat())]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait(30) for worker in workers] == [0, 0, 0, 0]
    assert provider.served.answered == 4


_ASK = "import sys, httpx2; httpx2.post(sys.argv[1], content=sys.argv[2], timeout=20).raise_for_status()"
