"""Refusals, retries, redirects and cuts as the SDKs take them."""

from __future__ import annotations

from typing import Any

import pytest

from lava_middleware import Amount, denied
from lava_middleware.testing import Script, count_tokens

from .colours import each, got
from .conftest import BUILDS, Bench
from .test_surfaces import asked, create, streamed

pytestmark = pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")

SOON = {"retry-after-ms": "1"}
"""Stainless SDKs wait so long before they try again."""


@pytest.fixture
def attempts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reason of each refusal, one an attempt."""
    found: list[str] = []
    monkeypatch.setattr(type(bench.rig.lava), "refused", lambda lava, decision, *rest: found.append(decision.reason))
    return found


def test_a_limit_is_the_sdks_rate_limit_error_after_one_attempt(
    bench: Bench, is_async: bool, attempts: list[str]
) -> None:
    """T11, T13: 429 with a truthful Retry-After, which no SDK waits for by itself."""
    bench.rig.lava.limit(bench.customer, 10)
    with pytest.raises(bench.sdk.module.RateLimitError) as raised:
        bench.call(lambda: create(bench.client(is_async=is_async), bench.sdk.model))
    decision = denied(raised.value)
    assert decision is not None
    assert (decision.reason, decision.quantity, decision.used) == ("limit_reached", 10, 0)
    assert int(raised.value.response.headers["retry-after"]) > 60
    assert attempts == ["limit_reached"]
    assert bench.rig.provider.count == 0


def test_a_call_for_which_nobody_pays_is_forbidden_after_one_attempt(
    bench: Bench, is_async: bool, attempts: list[str]
) -> None:
    """T6, T13."""
    with pytest.raises(bench.sdk.module.PermissionDeniedError, match="bind_context") as raised:
        bench.runner.run(create(bench.client(is_async=is_async), bench.sdk.model))
    decision = denied(raised.value)
    assert decision is not None
    assert (decision.reason, decision.absent) == ("customer_unknown", True)
    assert attempts == ["customer_unknown"]
    assert bench.rig.provider.count == 0


def test_a_model_without_a_price_is_forbidden(bench: Bench, is_async: bool, attempts: list[str]) -> None:
    """T5: unknown is not free."""
    with pytest.raises(bench.sdk.module.PermissionDeniedError) as raised:
        bench.call(lambda: create(bench.client(is_async=is_async), "a-model-of-tomorrow"))
    decision = denied(raised.value)
    assert decision is not None
    assert (decision.reason, decision.model) == ("price_unknown", "a-model-of-tomorrow")
    assert bench.rig.provider.count == 0


@pytest.mark.parametrize("build", BUILDS)
def test_each_attempt_is_an_exchange_of_its_own(bench: Bench, build: str, is_async: bool) -> None:
    """T7: 500 gives its hold back, the retry holds and settles by itself."""
    bench.rig.provider.queue(Script(status=500, headers=SOON), Script(status=429, headers=SOON), Script())
    bench.call(lambda: create(bench.client(build, is_async=is_async), bench.sdk.model))
    assert [served.status for served in bench.rig.provider.requests] == [500, 429, 200]
    assert bench.kinds() == ["held", "voided", "held", "voided", "held", "settled"]
    assert bench.record.facts["attempt"] == 2


def test_an_attempt_whose_outcome_is_unknown_is_charged_besides_its_retry(bench: Bench, is_async: bool) -> None:
    """T7, T9: sent and never answered: the provider may have worked."""
    bench.rig.provider.queue(Script(close_before_answer=True), Script())
    bench.call(lambda: create(bench.client(is_async=is_async), bench.sdk.model))
    assert bench.kinds() == ["held", "settled", "held", "settled"]
    lost, answered = bench.rig.records(bench.customer)
    assert (lost.basis, answered.basis) == ("estimated", "reported")
    assert Amount(0) < lost.charge
    assert lost.id != answered.id


def test_a_stream_that_was_refused_by_the_provider_is_tried_again(bench: Bench, is_async: bool) -> None:
    """T7. Nobody reads an error's body to its end: its hold is given back by the ledger's thread, a little later."""
    bench.rig.provider.queue(Script(status=503, headers=SOON), Script())
    bench.call(lambda: streamed(bench.client(is_async=is_async), bench.sdk.model))
    assert sorted(kind for kind in bench.kinds() if kind != "extended") == ["held", "held", "settled", "voided"]


@pytest.mark.parametrize("build", BUILDS)
def test_each_hop_of_a_redirect_authorizes_itself(bench: Bench, build: str, is_async: bool) -> None:
    """T7: a hop that only points elsewhere costs nothing."""
    bench.rig.provider.queue(Script(status=307), Script(status=307), Script())
    bench.call(lambda: create(bench.client(build, is_async=is_async), bench.sdk.model))
    assert [served.status for served in bench.rig.provider.requests] == [307, 307, 200]
    assert bench.kinds() == ["held", "voided", "held", "voided", "held", "settled"]


def test_the_application_gets_the_usage_chunk_only_where_it_asked(bench: Bench, is_async: bool) -> None:
    """T16: asked for by us and hidden; asked for by the application, passed on."""
    if bench.sdk.name in ("anthropic", "groq"):
        pytest.skip(f"{bench.sdk.name} reports usage in events that always come")

    async def chunks(**more: Any) -> list[Any]:
        client = bench.client(is_async=is_async)
        stream = await got(client.chat.completions.create(**asked(bench.sdk.model, stream=True, **more)))
        return [chunk async for chunk in each(stream)]

    hidden = bench.call(chunks)
    assert bench.served.asks_usage
    assert all(chunk.usage is None for chunk in hidden)
    empty = [chunk for chunk in hidden if not chunk.choices]
    assert len(empty) == (bench.sdk.name == "azure")  # its first chunk names the filters, and nobody hides it
    bench.rig.provider.reset()
    shown = bench.call(lambda: chunks(extra_body={"stream_options": {"include_usage": True}}))
    assert shown[-1].usage.completion_tokens == 40
    assert len(shown) == len(hidden) + 1


def test_a_stream_that_is_left_through_the_sdk_is_charged_for_what_came(bench: Bench, is_async: bool) -> None:
    """T17, T18: break and close."""
    bench.rig.provider.default = Script(stall_after=20)

    async def leave() -> None:
        stream = await got(_of(bench.client(is_async=is_async)).create(**asked(bench.sdk.model, stream=True)))
        spoken = 0
        async for event in each(stream):
            spoken += bool(_said(event))
            if spoken == 20:
                break
        await got(stream.close())

    try:
        bench.call(leave)
    finally:
        bench.rig.provider.default = Script()
    assert [kind for kind in bench.kinds() if kind != "extended"] == ["held", "settled"]
    assert bench.record.basis == "counted"
    assert 15 <= bench.record.usage["output"] <= 25
    bench.rig.provider.wait_idle()
    assert bench.served.aborted_after == 20


def _of(client: Any) -> Any:
    return client.chat.completions if hasattr(client, "chat") else client.messages


def _said(event: Any) -> str:
    if hasattr(event, "choices"):
        return (event.choices[0].delta.content or "") if event.choices else ""
    return getattr(getattr(event, "delta", None), "text", None) or ""


def test_a_stream_whose_money_ends_is_what_the_sdk_calls_cut_short(bench: Bench, is_async: bool) -> None:
    """T3: the terminal event is one that every SDK takes for the provider's own."""
    bench.rig.provider.default = Script(ignores_cap=True)
    nearly = f"nearly-{bench.customer}"
    bench.rig.lava.grant(nearly, "0.0014")

    async def read() -> tuple[str, Any]:
        events = []
        stream = await got(_of(bench.client(is_async=is_async)).create(**asked(bench.sdk.model, stream=True)))
        events = [event async for event in each(stream)]
        if bench.sdk.name == "anthropic":
            return "".join(map(_said, events)), next(e.delta.stop_reason for e in events if e.type == "message_delta")
        return "".join(map(_said, events)), events[-1].choices[0].finish_reason

    try:
        said, reason = bench.call(read, customer=nearly)
    finally:
        bench.rig.provider.default = Script()
    bench.rig.wait_settled(nearly)
    (record,) = bench.rig.lava.records(nearly)
    assert reason == ("max_tokens" if bench.sdk.name == "anthropic" else "length")
    assert 0 < count_tokens(said) < 200
    assert (record.facts["ending"], record.overrun) == ("cut", Amount(0))
    assert record.charge <= Amount.of("0.0014")
