"""A stream that nobody reads is closed after a while: its credit does not stay on hold for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from lava_middleware import Lava, StreamStalled
from lava_middleware.testing import Barrier, FakeProvider, Script

from .kit import CHAT, MESSAGES, aclient_of, chat, client_of, eventually, kinds, lava_at, nothing_is_held


class Patience:
    """A monotonic clock that a test moves."""

    def __init__(self, lava: Lava) -> None:
        self._real = lava.monotonic
        self.passed_s = 0.0
        lava.monotonic = self

    def __call__(self) -> float:
        return self._real() + self.passed_s


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(Script(output_tokens=400, tokens_per_chunk=2)) as provider:
        yield provider


@pytest.fixture
def lava(provider: FakeProvider) -> Iterator[Lava]:
    with lava_at(provider, stall_s=600) as lava:
        lava.grant("acme", "5")
        yield lava


def look(lava: Lava) -> None:
    """What the watcher does once a second."""
    lava._do_chores()
    eventually(lambda: nothing_is_held(lava, "acme"))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_stream_nobody_reads_is_settled_and_pulling_again_raises(
    path: str, lava: Lava, provider: FakeProvider
) -> None:
    """T10, T17: the hold ends with what was delivered; whoever comes back is told."""
    patience = Patience(lava)
    body = chat(500, stream=True)
    with client_of(provider) as client, lava.charge_to("acme"), client.stream("POST", path, json=body) as response:
        chunks = response.iter_raw()
        got = b"".join(next(chunks) for _ in range(10))
        patience.passed_s = 599
        lava._do_chores()
        assert lava.ledger.look("acme").holds, "it is not yet too long"
        patience.passed_s = 602
        look(lava)
        with pytest.raises(StreamStalled, match="600 seconds"):
            b"".join(chunks)
    assert got
    (record,) = lava.records("acme")
    assert record.facts["ending"] == "stalled"
    assert 0 < record.usage.output_tokens < 400
    assert kinds(lava, "acme").count("settled") == 1


def test_an_async_stream_nobody_reads_is_settled_and_pulling_again_raises(lava: Lava, provider: FakeProvider) -> None:
    patience = Patience(lava)

    async def main() -> None:
        async with aclient_of(provider) as client:
            with lava.charge_to("acme"):
                async with client.stream("POST", CHAT, json=chat(500, stream=True)) as response:
                    chunks = response.aiter_raw()
                    await anext(chunks)
                    patience.passed_s = 602
                    await asyncio.to_thread(look, lava)
                    with pytest.raises(StreamStalled):
                        async for _ in chunks:
                            pass

    asyncio.run(main())
    (record,) = lava.records("acme")
    assert record.facts["ending"] == "stalled"


def test_the_sdk_is_told_too(lava: Lava, provider: FakeProvider) -> None:
    import openai

    patience = Patience(lava)
    client = openai.OpenAI(base_url=provider.openai_base_url, api_key="sk-test")
    with client, lava.charge_to("acme"):
        messages: Any = [{"role": "user", "content": "hello there"}]
        stream = client.chat.completions.create(model="plain-model", messages=messages, max_tokens=500, stream=True)
        next(iter(stream))
        patience.passed_s = 602
        look(lava)
        with pytest.raises(StreamStalled):
            for _ in stream:
                pass


def test_a_stream_that_waits_for_the_provider_has_all_the_patience_there_is(lava: Lava, provider: FakeProvider) -> None:
    """T3: hidden reasoning is minutes of silence; while a read is pending no time-out of ours runs."""
    patience = Patience(lava)
    barrier = Barrier()
    provider.default = Script(output_tokens=400, confirm=barrier, confirm_after=5)

    async def main() -> bytes:
        async with aclient_of(provider) as client:
            with lava.charge_to("acme"):
                reading = asyncio.create_task(client.post(CHAT, json=chat(500, stream=True)))
            await asyncio.to_thread(barrier.wait_reached, 1)
            await asyncio.sleep(0.05)
            patience.passed_s = 100_000
            await asyncio.to_thread(lava._do_chores)
            barrier.release()
            return (await reading).content

    assert b"[DONE]" in asyncio.run(main())
    (record,) = lava.records("acme")
    assert (record.facts["ending"], record.usage.output_tokens) == ("finished", 400)


def test_a_stream_that_was_kept_and_never_read_is_settled_for_its_prompt(lava: Lava, provider: FakeProvider) -> None:
    """T10: responses kept in a list somewhere."""
    patience = Patience(lava)
    with client_of(provider) as client, lava.charge_to("acme"):
        request = client.build_request("POST", CHAT, json=chat(500, stream=True))
        kept = [client.send(request, stream=True) for _ in range(5)]
        assert len(lava.ledger.look("acme").holds) == 5
        patience.passed_s = 602
        look(lava)
        for response in kept:
            with pytest.raises((StreamStalled, httpx2.StreamError)):
                response.read()
            response.close()
    records = list(lava.records("acme"))
    assert len(records) == 5
    assert {record.facts["ending"] for record in records} == {"stalled"}
    assert all(record.usage.input_tokens > 0 for record in records)
