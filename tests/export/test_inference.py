"""A call of a model is one inference span in the application's trace: another's enriched, or ours; never two."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lava_middleware.testing import Script

from ..transport.rig import CUSTOMER, MODEL, Rig, chat, rigged
from .conftest import eventually


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """The application's provider, for this test alone."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return provider


@pytest.fixture
def spans(tracing: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rigged(Script(text="one two three")) as made, made.lava.charge_to(CUSTOMER):
        yield made


def post(rig: Rig, **more: Any) -> httpx.Response:
    with httpx.Client() as client:
        return client.post(rig.chat_url, json=chat(**more))


def named(spans: InMemorySpanExporter, *, kind: SpanKind = SpanKind.CLIENT) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.kind is kind]


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    eventually(lambda: named(spans))
    (span,) = named(spans)
    return span


def test_without_another_instrumentation_it_is_ours(rig: Rig, spans: InMemorySpanExporter) -> None:
    post(rig)
    record = rig.record
    span = only(spans)
    assert span.name == f"chat {MODEL}"
    attributes = dict(span.attributes or {})
    assert attributes.pop("gen_ai.response.id").startswith("chatcmpl")
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": record.usage.input_tokens,
        "gen_ai.usage.output_tokens": record.usage.output_tokens,
        "server.address": rig.provider.host.rpartition(":")[0],
        "http.response.status_code": 200,
        "lava.record.id": record.id,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert (span.start_time, span.end_time) == (record.facts["started"] * 1_000, record.facts["ended"] * 1_000)


def test_the_billing_span_hangs_below_it_in_the_applications_trace(
    rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider
) -> None:
    with tracing.get_tracer("app").start_as_current_span("work") as work:
        post(rig)
    rig.wait_settled()
    inference = only(spans)
    assert inference.parent is not None
    assert inference.parent.span_id == work.get_span_context().span_id
    eventually(lambda: any(span.name == "lava.exchange" for span in spans.get_finished_spans()))
    (billing,) = [span for span in spans.get_finished_spans() if span.name == "lava.exchange"]
    assert billing.parent is not None
    assert inference.context is not None
    assert billing.parent.span_id == inference.context.span_id
    assert not [name for name in billing.attributes or {} if name.startswith("gen_ai.usage")]


@pytest.mark.parametrize(
    "opened",
    [
        {"gen_ai.operation.name": "chat"},
        {"gen_ai.operation.name": "chat", "gen_ai.request.model": MODEL},
        {"gen_ai.system": "openai"},
    ],
    ids=["operation", "operation and model", "older names"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "streamed"])
def test_another_instrumentations_span_is_enriched_and_no_second_one_opened(
    rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider, opened: dict[str, Any], stream: bool
) -> None:
    tracer = tracing.get_tracer("another")
    with tracer.start_as_current_span("theirs", kind=SpanKind.CLIENT, attributes=opened) as theirs:
        post(rig, stream=stream)
        theirs.set_attribute("gen_ai.response.model", "as they say")
    record = rig.record
    span = only(spans)
    attributes = dict(span.attributes or {})
    assert span.name == "theirs"
    assert attributes["lava.record.id"] == record.id
    assert attributes["gen_ai.usage.output_tokens"] == record.usage.output_tokens
    assert attributes["gen_ai.response.model"] == "as they say"
    assert record.facts["trace"].split("-")[2] == f"{theirs.get_span_context().span_id:016x}"


def test_what_they_have_set_stays(rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider) -> None:
    with tracing.get_tracer("another").start_as_current_span(
        "theirs", attributes={"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 77}
    ):
        post(rig)
    (span,) = [span for span in spans.get_finished_spans() if span.name == "theirs"]
    assert (span.attributes or {})["gen_ai.usage.input_tokens"] == 77


@pytest.mark.parametrize("operation", ["invoke_agent", "execute_tool"])
def test_an_agents_or_a_tools_span_is_not_the_calls(
    rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider, operation: str
) -> None:
    with tracing.get_tracer("another").start_as_current_span("theirs", attributes={"gen_ai.operation.name": operation}):
        post(rig)
    assert only(spans).name == f"chat {MODEL}"


def test_several_attempts_under_one_span_of_theirs_name_the_last(
    rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider
) -> None:
    """T7: each attempt is its own record; the span covers the call as the caller saw it."""
    with tracing.get_tracer("another").start_as_current_span(
        "theirs", kind=SpanKind.CLIENT, attributes={"gen_ai.operation.name": "chat"}
    ):
        post(rig)
        post(rig)
    assert (only(spans).attributes or {})["lava.record.id"] == rig.records()[-1].id


def test_a_span_of_theirs_that_has_ended_is_left_alone(
    rig: Rig, spans: InMemorySpanExporter, tracing: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """logfire's ends when the stream begins, and another one carries its usage."""
    with httpx.Client() as client:
        tracer = tracing.get_tracer("another")
        with (
            tracer.start_as_current_span("theirs", kind=SpanKind.CLIENT, attributes={"gen_ai.operation.name": "chat"}),
            client.stream("POST", rig.chat_url, json=chat(stream=True)) as response,
        ):
            trace.get_current_span().end()
            response.read()
    rig.wait_settled()
    assert "gen_ai.usage.output_tokens" not in (only(spans).attributes or {})


FAILURES = {
    "refused by us": (Script(), {"max_tokens": 10**9}, "request_exceeds_credit"),
    "refused by the provider": (Script(status=429), {}, "429"),
    "lost": (Script(close_before_answer=True), {}, "RemoteProtocolError"),
}


@pytest.mark.parametrize(("script", "more", "error"), FAILURES.values(), ids=FAILURES.keys())
def test_calls_that_fail_are_seen_too(
    rig: Rig, spans: InMemorySpanExporter, script: Script, more: dict[str, Any], error: str
) -> None:
    rig.provider.queue(script)
    with contextlib.suppress(httpx.TransportError):
        post(rig, **more)
    span = only(spans)
    assert (span.attributes or {})["error.type"] == error
    assert span.status.status_code is StatusCode.ERROR


def test_a_stream_that_nobody_reads_to_its_end_is_seen(rig: Rig, spans: InMemorySpanExporter) -> None:
    """T35: its end may be the collector's, which must not meet a span's lock."""
    with httpx.Client() as client, client.stream("POST", rig.chat_url, json=chat(stream=True)) as response:
        next(response.iter_raw())
    assert rig.record.facts["ending"] in ("closed", "collected")
    assert (only(spans).attributes or {})["gen_ai.request.stream"] is True


def test_a_call_cancelled_on_its_way_is_seen(rig: Rig, spans: InMemorySpanExporter) -> None:
    async def go() -> None:
        rig.provider.queue(Script(first_byte_delay_s=30))
        async with httpx.AsyncClient() as client:
            task = asyncio.create_task(client.post(rig.chat_url, json=chat()))
            while rig.provider.count == 0:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    gc.collect()
    only(spans)


def test_without_tracing_no_span_is_made(tracing: TracerProvider, spans: InMemorySpanExporter) -> None:
    with rigged(tracing=False) as rig, rig.lava.charge_to(CUSTOMER):
        post(rig)
        rig.wait_settled()
    assert not spans.get_finished_spans()


class Hostile(SpanProcessor):
    """Of the application's own making."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on end")


@pytest.mark.parametrize("methods", [("on_start",), ("on_end",)], ids=str)
def test_a_processor_that_raises_changes_no_call_and_no_record(
    rig: Rig, tracing: TracerProvider, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...]
) -> None:
    """G8."""
    for name in {"on_start", "on_end"} - set(methods):
        monkeypatch.setattr(Hostile, name, lambda self, *_, **__: None)
    tracing.add_span_processor(Hostile())
    assert post(rig).status_code == 200
    assert list(post(rig, stream=True).iter_lines())
    assert [record.kind for record in rig.records()] == ["settled", "settled"]


def test_without_an_sdk_nothing_is_asked_of_a_span() -> None:
    with rigged() as rig, rig.lava.charge_to(CUSTOMER):
        post(rig)
        assert "trace" not in rig.record.facts
