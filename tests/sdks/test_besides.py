"""What SDKs call besides chat, and clients in a process that is not instrumented."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import openai
import pytest

from lava_middleware import Amount, denied
from lava_middleware.testing import Script
from lava_middleware.transport.instrument import uninstrument

from ..transport.rig import CUSTOMER, INPUT, MESSAGES, MODEL, Rig, chat, priced, rigged
from .colours import each, entered, got
from .conftest import SDKS
from .test_surfaces import create, streamed


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rigged() as rig:
        yield rig
    uninstrument()


def _openai(rig: Rig, is_async: bool) -> Any:
    http = (httpx2.AsyncClient if is_async else httpx2.Client)(verify=False)
    make = openai.AsyncOpenAI if is_async else openai.OpenAI
    return make(api_key="sk-secret", base_url=rig.provider.openai_base_url, http_client=http)


def _run(rig: Rig, is_async: bool, act: Any) -> Any:
    async def main() -> Any:
        with rig.lava.charge_to(CUSTOMER):
            async with entered(_openai(rig, is_async)) as client:
                return await act(client)

    return anyio.run(main)


def test_embeddings_are_metered_by_their_input(rig: Rig, is_async: bool) -> None:
    """T4."""

    async def act(client: Any) -> Any:
        return await got(client.embeddings.create(model="text-embedding-3-small", input=["one", "two words"]))

    assert _run(rig, is_async, act).usage.prompt_tokens == 3
    assert dict(rig.record.usage) == {"input": 3}
    assert rig.record.charge == Amount(3 * INPUT * 10**4)
    assert rig.record.facts["operation"] == "embeddings"


def test_responses_are_metered_whole_streamed_and_through_the_helper(rig: Rig, is_async: bool) -> None:
    """T4, T16."""

    async def act(client: Any) -> Any:
        await got(client.responses.create(model=MODEL, input=MESSAGES))
        async for _ in each(await got(client.responses.create(model=MODEL, input=MESSAGES, stream=True))):
            pass
        async with entered(client.responses.stream(model=MODEL, input=MESSAGES)) as stream:
            async for _ in each(stream):
                pass
            return await got(stream.get_final_response())

    assert _run(rig, is_async, act).usage.output_tokens == 40
    records = rig.records()
    assert [record.charge for record in records] == [priced(rig.provider.requests[0].input_tokens, 40)] * 3
    assert {record.basis for record in records} == {"reported"}


def test_a_response_whose_money_ends_is_incomplete(rig: Rig, is_async: bool) -> None:
    """T3."""
    rig.provider.default = Script(ignores_cap=True)
    rig.lava.grant("nearly", "0.0014")

    async def main() -> Any:
        with rig.lava.charge_to("nearly"):
            async with entered(_openai(rig, is_async)) as client:
                stream = await got(client.responses.create(model=MODEL, input=MESSAGES, stream=True))
                return [event async for event in each(stream)]

    last = anyio.run(main)[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_doors_without_a_meter_are_closed(rig: Rig, is_async: bool) -> None:
    """T4: images, audio, batches, background responses."""

    async def act(client: Any) -> None:
        for call in (
            lambda: client.images.generate(model="gpt-image-1", prompt="a ledger"),
            lambda: client.audio.speech.create(model="tts-1", voice="alloy", input="a ledger"),
            lambda: client.batches.create(
                completion_window="24h", endpoint="/v1/chat/completions", input_file_id="file-1"
            ),
            lambda: client.responses.create(model=MODEL, input="hi", background=True),
        ):
            with pytest.raises(openai.PermissionDeniedError) as raised:
                await got(call())
            decision = denied(raised.value)
            assert decision is not None
            assert decision.reason == "endpoint_unmetered"

    _run(rig, is_async, act)
    assert rig.provider.count == 0


def test_what_costs_nothing_is_neither_held_nor_recorded(rig: Rig, is_async: bool) -> None:
    async def act(client: Any) -> None:
        await got(client.models.list())
        await got(client.models.retrieve(MODEL))

    _run(rig, is_async, act)
    assert rig.provider.count == 2
    assert rig.kinds() == []


@pytest.mark.parametrize("name", ["openai", "groq"])
def test_the_explicit_transport_meters_a_process_that_is_not_instrumented(name: str, is_async: bool) -> None:
    """The form for those who do not want a patch: it asks the Lava it was given."""
    sdk = SDKS[name]
    http = importlib.import_module(sdk.library)
    ours = importlib.import_module(f"lava_middleware.transport.{sdk.library}")
    with rigged(speaks=(sdk.speaks,)) as rig:
        uninstrument()
        transport = (ours.AsyncLavaTransport if is_async else ours.LavaTransport)(
            (http.AsyncHTTPTransport if is_async else http.HTTPTransport)(verify=False), lava=rig.lava
        )
        client = (http.AsyncClient if is_async else http.Client)(transport=transport)
        make = sdk.amake if is_async else sdk.make

        async def main() -> None:
            with rig.lava.charge_to(CUSTOMER):
                async with entered(make(api_key="sk-secret", http_client=client, **sdk.base(rig.provider))) as made:
                    await create(made, sdk.model)
                    await streamed(made, sdk.model)

        anyio.run(main)
        assert [record.charge for record in rig.records()] == [priced(rig.provider.requests[0].input_tokens, 40)] * 2


def test_the_same_client_serves_customers_side_by_side(rig: Rig) -> None:
    """T37: a hundred streams of one client, each on its own customer's account."""

    async def main() -> None:
        async with entered(_openai(rig, True)) as client:

            async def one(number: int) -> None:
                with rig.lava.charge_to(f"customer-{number}"):
                    stream = await client.chat.completions.create(**chat(stream=True, max_completion_tokens=5 + number))
                    async for _ in stream:
                        pass

            async with anyio.create_task_group() as group:
                for number in range(30):
                    rig.lava.grant(f"customer-{number}", "1.00")
                    group.start_soon(one, number)

    anyio.run(main)
    for number in range(30):
        (record,) = rig.records(f"customer-{number}")
        assert record.usage["output"] == min(40, 5 + number)
