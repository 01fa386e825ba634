"""Every surface of every SDK is gated and metered: what is recorded is what the provider reported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lava_middleware import Amount, denied

from ..transport.rig import INPUT, MESSAGES, OUTPUT
from .colours import each, entered, got
from .conftest import BUILDS, Bench

Surface = Callable[[Any, str], Awaitable[Any]]


def asked(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 300, **more}


def _of(client: Any) -> Any:
    """Where this SDK generates: chat completions, or messages."""
    return client.chat.completions if hasattr(client, "chat") else client.messages


async def create(client: Any, model: str) -> Any:
    return await got(_of(client).create(**asked(model)))


async def streamed(client: Any, model: str) -> Any:
    stream = await got(_of(client).create(**asked(model, stream=True)))
    events = [event async for event in each(stream)]
    if hasattr(client, "chat") and "azure" not in type(client).__name__.lower():
        assert all(chunk.choices for chunk in events)  # T16: the usage chunk was asked for by us, and is hidden
    return events


async def raw_response(client: Any, model: str) -> Any:
    raw = await got(_of(client).with_raw_response.create(**asked(model)))
    return await got(raw.parse())


async def streaming_response(client: Any, model: str) -> Any:
    async with entered(_of(client).with_streaming_response.create(**asked(model))) as answer:
        return await got(answer.parse())


async def streaming_response_in_lines(client: Any, model: str) -> Any:
    async with entered(_of(client).with_streaming_response.create(**asked(model, stream=True))) as answer:
        return [line async for line in each(answer.iter_lines())]


async def helper(client: Any, model: str) -> Any:
    async with entered(_of(client).stream(**asked(model))) as stream:
        async for _ in each(stream):
            pass
        final = stream.get_final_message if hasattr(client, "messages") else stream.get_final_completion
        return await got(final())


async def with_options(client: Any, model: str) -> Any:
    return await create(client.with_options(timeout=7, max_retries=1), model)


async def copied(client: Any, model: str) -> Any:
    return await streamed(client.copy(timeout=7), model)


async def inner_client(client: Any, model: str) -> Any:
    """The SDK's own HTTP client, used directly; it follows no redirects and retries nothing."""
    if hasattr(client, "messages"):
        path = "v1/messages"
    elif type(client).__module__.startswith("groq"):
        path = "openai/v1/chat/completions"
    elif "azure" in type(client).__name__.lower():
        path = f"deployments/{model}/chat/completions?api-version=2025-04-01-preview"
    else:
        path = "chat/completions"
    answer = await got(client._client.post(f"{str(client.base_url).rstrip('/')}/{path}", json=asked(model)))
    answer.raise_for_status()
    return answer


SURFACES: dict[str, Surface] = {
    "create": create,
    "streamed": streamed,
    "raw response": raw_response,
    "streaming response": streaming_response,
    "streaming response in lines": streaming_response_in_lines,
    "stream helper": helper,
    "with_options": with_options,
    "copy": copied,
    "inner client": inner_client,
}
WITHOUT = {("groq", "stream helper")}
"""What an SDK does not have."""

every_surface = pytest.mark.parametrize("surface", SURFACES)
every_build = pytest.mark.parametrize("build", BUILDS)


def _skip_missing(bench: Bench, surface: str) -> None:
    if (bench.sdk.name, surface) in WITHOUT:
        pytest.skip(f"{bench.sdk.name} has no {surface}")


@pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")
@every_surface
@every_build
def test_what_is_recorded_is_what_the_provider_reported(bench: Bench, build: str, surface: str, is_async: bool) -> None:
    """T4, T16, T18: one call, one exchange, one record."""
    _skip_missing(bench, surface)
    proxied = bench.proxy.passed
    bench.call(lambda: SURFACES[surface](bench.client(build, is_async=is_async), bench.sdk.model))
    reported, record = bench.served.reported, bench.record
    assert reported is not None
    assert (bench.served.status, record.basis) == (200, "reported")
    assert (record.usage.input_tokens, record.usage.output_tokens) == (reported.input_tokens, reported.output_tokens)
    assert record.charge == Amount((INPUT * reported.input_tokens + OUTPUT * reported.output_tokens) * 10**4)
    assert [kind for kind in bench.kinds() if kind != "extended"] == ["held", "settled"]
    assert record.provider == bench.sdk.speaks
    assert (bench.proxy.passed > proxied) == (build == "proxy")


@pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")
@every_surface
def test_a_customer_without_credit_gets_the_sdks_own_402_after_one_attempt(
    bench: Bench, surface: str, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T4, T13: nothing is sent, nothing is repeated, and the decision is behind the error."""
    _skip_missing(bench, surface)
    attempts: list[str] = []
    monkeypatch.setattr(type(bench.rig.lava), "refused", lambda lava, decision, *rest: attempts.append(decision.reason))
    for build in BUILDS:
        attempts.clear()
        client = bench.client(build, is_async=is_async)
        with pytest.raises(Exception, match="402") as raised:
            bench.call(lambda client=client: SURFACES[surface](client, bench.sdk.model), customer="poor")
        assert attempts == ["insufficient_credit"]
        if surface != "inner client":
            assert isinstance(raised.value, bench.sdk.module.APIStatusError)
            assert raised.value.status_code == 402
            assert raised.value.response.json()["lava"]["code"] == "insufficient_credit"
        decision = denied(raised.value)
        assert decision is not None
        assert decision.reason == "insufficient_credit"
        assert decision.available == Amount(0)
    assert bench.rig.provider.count == 0
    assert bench.rig.kinds("poor") == []
