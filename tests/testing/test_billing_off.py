"""Under billing_off() an application's own tests run as if the library were not there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from lava_middleware import Lava, LavaTransport
from lava_middleware.testing import FakeProvider, billing_off

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def lava(provider: FakeProvider) -> Iterator[Lava]:
    with Lava("memory://", hosts={provider.host: "openai"}) as lava:
        yield lava.instrument()


def ask(provider: FakeProvider) -> int:
    return httpx.post(f"{provider.openai_base_url}/chat/completions", json=ASKED).status_code


async def aask(provider: FakeProvider) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.post(f"{provider.openai_base_url}/chat/completions", json=ASKED)).status_code


def test_calls_pass_without_a_customer_and_leave_nothing(lava: Lava, provider: FakeProvider) -> None:
    assert ask(provider) == 403
    with billing_off():
        assert ask(provider) == 200
        assert asyncio.run(aask(provider)) == 200
        with lava.charge_to("acme"):
            assert ask(provider) == 200
    assert list(lava.entries("acme")) == []
    assert lava.journal.last_seq() == 0
    assert ask(provider) == 403


def test_explicit_transports_pass_too(lava: Lava, provider: FakeProvider) -> None:
    with billing_off(), httpx.Client(transport=LavaTransport(lava=lava)) as client:
        assert client.post(f"{provider.openai_base_url}/chat/completions", json=ASKED).status_code == 200
    assert lava.journal.last_seq() == 0


def test_it_nests_and_ends_with_an_exception(lava: Lava, provider: FakeProvider) -> None:
    with billing_off():
        with pytest.raises(RuntimeError), billing_off():
            raise RuntimeError
        assert ask(provider) == 200
    assert ask(provider) == 403


def test_it_decorates_tests_of_either_colour(lava: Lava, provider: FakeProvider) -> None:
    assert billing_off()(ask)(provider) == 200
    assert asyncio.run(billing_off()(aask)(provider)) == 200
    assert ask(provider) == 403


def test_other_threads_of_the_process_are_meant_as_well(lava: Lava, provider: FakeProvider) -> None:
    async def elsewhere() -> int:
        return await asyncio.to_thread(ask, provider)

    with billing_off():
        assert asyncio.run(elsewhere()) == 200
