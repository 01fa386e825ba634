"""Spans and metrics are pictures of committed records: right when they arrive, and harmless when they do not (G8)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import http_attributes, server_attributes

from lava_middleware.core.events import Adjusted, Event, Reported, Settled
from lava_middleware.core.record import Facts, Record, record_of
from lava_middleware.export import names
from lava_middleware.export.follower import Follower
from lava_middleware.export.metrics import Metrics
from lava_middleware.export.span import show, spans_wanted
from lava_middleware.export.telemetry import telemetry
from lava_middleware.ledger.memory import MemoryJournal

from .conftest import Host

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STARTED, ENDED, AT = 1_800_000_000_000_000, 1_800_000_002_500_000, 1_800_000_002_600_000


def made(event: Event | None = None, **facts: Any) -> Record:
    known = Facts(
        id="x1",
        provider="xai",
        host="api.x.ai",
        dialect="openai.chat",
        operation="chat",
        model="grok-4",
        response_model="grok-4-0709",
        response_id="resp-1",
        request_id="req-9",
        basis_of_customer="session",
        trace=TRACE,
        started=STARTED,
        ended=ENDED,
        status=200,
        finish_reason="stop",
        ending="finished",
        usage={"input": 10, "cache_read": 90, "output": 7},
        basis="reported",
        cost=12_345,
        cost_basis="computed",
        charge=14_814,
        price={"version": "2026-11-20"},
    )
    for name, value in facts.items():
        setattr(known, name, value)
    event = event or Settled(hold="x1", charge=14_814, draws=((1, 14_814),))
    record = record_of(event, known.to_json(), customer="acme", at=AT, seq=3, balance_after=10**10)
    assert record is not None
    return record


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def shown(record: Record, spans: InMemorySpanExporter) -> ReadableSpan:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    show(record, provider.get_tracer(names.SCOPE))
    (span,) = spans.get_finished_spans()
    return span


def test_the_billing_span_shows_the_record(spans: InMemorySpanExporter) -> None:
    span = shown(made(), spans)
    assert span.name == "lava.exchange"
    assert span.kind is trace.SpanKind.INTERNAL
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "lava_middleware"
    assert (span.start_time, span.end_time) == (STARTED * 1_000, ENDED * 1_000)
    assert dict(span.attributes or {}) == {
        "lava.record.id": "x1",
        "lava.record.version": 1,
        "lava.customer.id": "acme",
        "lava.customer.basis": "session",
        "lava.outcome": "settled",
        "lava.request.id": "req-9",
        "lava.exchange.ending": "finished",
        "lava.gate.decision": "held",
        "lava.credits.charged": 14_814,
        "lava.credits.charged_decimal": "0.0000014814",
        "lava.credits.unit_scale": 10,
        "lava.cost.ticks": 12_345,
        "lava.cost.amount": "0.0000012345",
        "lava.cost.currency": "USD",
        "lava.cost.basis": "computed",
        "lava.price.version": "2026-11-20",
        "lava.usage.basis": "reported",
        "lava.usage.input": 10,
        "lava.usage.cache_read": 90,
        "lava.usage.output": 7,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "x_ai",
        "gen_ai.request.model": "grok-4",
        "gen_ai.response.model": "grok-4-0709",
        "gen_ai.response.id": "resp-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "server.address": "api.x.ai",
        "http.response.status_code": 200,
    }


def test_money_is_never_a_double_and_tokens_never_under_gen_ai(spans: InMemorySpanExporter) -> None:
    """T24; and a dashboard that sums gen_ai.usage.* over all spans would count the call twice."""
    event = Settled(hold="x1", charge=9 * 10**17, overrun=7, cause="late", debt=3)
    attributes = dict(shown(made(event), spans).attributes or {})
    assert not [name for name, value in attributes.items() if isinstance(value, float)]
    assert not [name for name in attributes if name.startswith("gen_ai.usage")]
    assert attributes["lava.credits.charged"] == 9 * 10**17
    assert attributes["lava.credits.overrun"] == 7
    assert attributes["lava.credits.overrun_cause"] == "late"
    assert attributes["lava.credits.debt"] == 3


def test_only_facts_that_are_listed_are_shown(spans: InMemorySpanExporter) -> None:
    """T32: what somebody puts into a record some day does not leave by itself."""
    record = made(tags=(("secret", "sk-canary"),), user="canary@example.com", dialect="sk-canary")
    assert "canary" not in str(dict(shown(record, spans).attributes or {}))


def test_the_span_hangs_below_the_span_that_made_the_call_and_is_not_current(spans: InMemorySpanExporter) -> None:
    span = shown(made(), spans)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert [link.context.span_id for link in span.links] == [span.parent.span_id]
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("text", ["", "00-0-0-01", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_trace_context_the_span_starts_a_trace(spans: InMemorySpanExporter, text: str) -> None:
    span = shown(made(trace=text), spans)
    assert span.parent is None
    assert span.links == ()


def test_a_record_of_nothing_but_its_event_is_shown_too(spans: InMemorySpanExporter) -> None:
    record = record_of(Adjusted(hold="x1", charge=-5), None, customer="acme", at=AT, seq=3, balance_after=0)
    assert record is not None
    attributes = dict(shown(record, spans).attributes or {})
    assert attributes["lava.credits.charged"] == -5
    assert attributes["lava.outcome"] == "adjusted"


def test_an_unheld_exchange_says_what_let_it_go(spans: InMemorySpanExporter) -> None:
    record = made(Reported(key="x1", charge=5, debt=5), unheld="insufficient_credit", host="127.0.0.1:8811")
    attributes = dict(shown(record, spans).attributes or {})
    assert attributes["lava.gate.decision"] == "open"
    assert attributes["lava.gate.reason"] == "insufficient_credit"
    assert attributes["lava.credits.overrun_cause"] == "unheld"
    assert (attributes["server.address"], attributes["server.port"]) == ("127.0.0.1", 8811)


def test_the_names_are_those_that_the_installed_conventions_know() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    ours = names.GENERATION_A
    for name in (ours.operation, ours.provider, ours.request_model, ours.response_model, ours.response_id):
        assert name in known
    assert {ours.finish_reasons, ours.usage_input, ours.usage_output, ours.usage_cache_read} <= known
    values = {one.value for one in gen_ai_attributes.GenAiProviderNameValues}
    assert set(names.PROVIDER_NAMES.values()) <= values | {"moonshot_ai"}
    assert names.SERVER_ADDRESS == server_attributes.SERVER_ADDRESS
    assert names.SERVER_PORT == server_attributes.SERVER_PORT
    assert names.HTTP_STATUS == http_attributes.HTTP_RESPONSE_STATUS_CODE


# Metrics -------------------------------------------------------------------------------------------------------------


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """Metric name → its data points; every metric has a description."""
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                assert metric.description, metric.name
                found[metric.name] = list(metric.data.data_points)
    return found


def test_metrics_count_records_and_decisions_and_never_name_a_customer() -> None:
    reader = InMemoryMetricReader()
    metrics = Metrics(MeterProvider([reader]).get_meter(names.SCOPE))
    metrics.decided("held", seconds=0.0001)
    metrics.decided("denied", "insufficient_credit", 0.0002)
    metrics.passed("unbilled")
    metrics.recorded(made())
    metrics.recorded(made(Settled(hold="x2", charge=100, overrun=40, cause="late", debt=3), basis="estimated"))
    metrics.recorded(made(Adjusted(hold="x1", charge=-5)))
    found = points(reader)
    assert sum(one.value for one in found["lava.gate.decisions"]) == 2
    assert sum(one.count for one in found["lava.gate.duration"]) == 2
    assert sum(one.value for one in found["lava.credits.charged"]) == 14_914
    assert sum(one.value for one in found["lava.cost"]) == 3 * 12_345
    assert sum(one.value for one in found["lava.records"]) == 3
    assert [(one.value, one.attributes["lava.credits.overrun_cause"]) for one in found["lava.credits.overrun"]] == [
        (40, "late")
    ]
    assert sum(one.value for one in found["lava.credits.debt"]) == 3
    assert sum(one.value for one in found["lava.usage.estimated"]) == 1
    assert {one.attributes["lava.usage.unit"]: one.value for one in found["lava.usage"]} == {
        "input": 30,
        "cache_read": 270,
        "output": 21,
    }
    assert found["lava.settlement.lag"][0].sum == pytest.approx(0.1 * 2)
    assert "acme" not in str([one.attributes for listed in found.values() for one in listed])


def test_the_gauges_show_how_far_each_follower_is_behind() -> None:
    reader = InMemoryMetricReader()
    Metrics(MeterProvider([reader]).get_meter(names.SCOPE))
    follower = Follower("shown-in-gauges", lambda records: None)
    found = points(reader)
    for name in ("lava.outbox.pending", "lava.outbox.oldest_age"):
        assert "shown-in-gauges" in [one.attributes["lava.follower"] for one in found[name]]
    assert follower.lag.pending == 0


def test_without_an_sdk_nothing_is_read() -> None:
    assert not spans_wanted()
    host = Host(MemoryJournal())
    follower = telemetry()
    follower.start(host)
    assert follower._look() > 1
    assert host.journal.cursors() == []
    follower.close()


# Hostile settings ----------------------------------------------------------------------------------------------------

PROGRAM = """
import json, os, pathlib, sys
sys.path.insert(0, {root!r})
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, SpanLimits, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.export.conftest import Host, post
from lava_middleware.export.jsonl import json_lines
from lava_middleware.export.telemetry import telemetry
from lava_middleware.ledger.sqlite import SqliteJournal

class Raises(SpanExporter):
    def export(self, spans):
        raise RuntimeError("a lying exporter")
    def shutdown(self): pass

class Fails(Raises):
    def export(self, spans):
        return SpanExportResult.FAILURE

memory = InMemorySpanExporter()
provider = {provider}
provider.add_span_processor(SimpleSpanProcessor({exporter}))
trace.set_tracer_provider(provider)
directory = pathlib.Path(sys.argv[1])
journal = SqliteJournal(directory / "lava.db")
host = Host(journal)
post(journal, *(f"r{{n}}" for n in range(200)))
before = [[(e.kind, e.key, e.event, e.record, e.balance_after) for e in journal.read(0, 500)]]
pending = []
for follower in (telemetry(), json_lines(directory / "usage.jsonl")):
    follower.start(host)
    follower.drain()
    pending.append(journal.last_seq() - journal.cursor(follower.name))
    follower.close()
after = [[(e.kind, e.key, e.event, e.record, e.balance_after) for e in journal.read(0, 500)]]
print(json.dumps({{
    "spans": len(memory.get_finished_spans()),
    "pending": pending,
    "unchanged": before == after,
    "lines": len((directory / "usage.jsonl").read_text().splitlines()),
    "dead": len(journal.dead_letters()),
}}))
"""


@pytest.mark.parametrize(
    ("provider", "exporter", "environment", "spans"),
    [
        ("TracerProvider()", "memory", {}, range(200, 201)),
        ("TracerProvider(sampler=sampling.TraceIdRatioBased(0.01))", "memory", {}, range(20)),
        ("TracerProvider(sampler=sampling.ALWAYS_OFF)", "memory", {}, range(1)),
        ("TracerProvider(span_limits=SpanLimits(max_span_attributes=3))", "memory", {}, range(200, 201)),
        ("TracerProvider()", "memory", {"OTEL_SDK_DISABLED": "true"}, range(1)),
        ("TracerProvider()", "Raises()", {}, range(1)),
        ("TracerProvider()", "Fails()", {}, range(1)),
    ],
    ids=["plain", "sampled 1 %", "sampled off", "span limits", "disabled", "raising exporter", "failing exporter"],
)
def test_no_setting_of_the_telemetry_changes_a_record(
    tmp_path: Path, provider: str, exporter: str, environment: dict[str, str], spans: range
) -> None:
    """G8: the journal, and what other followers carry out of it, is the same under each of them."""
    program = PROGRAM.format(root=str(Path(__file__).parents[2]), provider=provider, exporter=exporter)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("spans") in spans
    assert found == {"pending": [0, 0], "unchanged": True, "lines": 200, "dead": 0}
