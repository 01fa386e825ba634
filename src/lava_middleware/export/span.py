"""This file knows how a usage record looks as a billing span.

The span is projected from the committed entry, after the fact: sampling, span limits, a full queue or a disabled SDK
can lose the picture, never the bill. It is never made current, and carries no gen_ai.usage.*: dashboards would count
the call twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, Tracer
from opentelemetry.util.types import AttributeValue

from ..core.carry import carry
from ..core.money import decimal_text
from ..core.record import Record
from . import names
from .names import GenAINames
from .signing import Signer

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
TICK_SCALE = 10
"""lava.credits.* are whole numbers of 10⁻¹⁰ credit."""
CURRENCY = "USD"
"""The price lists are in it."""


def spans_wanted() -> bool:
    """Whether the application has set a tracer provider."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def tracer() -> Tracer:
    """Ours, of the application's own provider."""
    return trace.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)


def show(record: Record, tracer: Tracer, gen_ai: GenAINames = names.GENERATION_A, signer: Signer | None = None) -> None:
    """Make the record's billing span, from the start of its exchange to its end; signed, it carries the record."""
    parent = _parent(record.facts.get("trace", ""))
    started = record.facts.get("started") or record.at
    span = tracer.start_span(
        names.SPAN,
        context=trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context(),
        kind=SpanKind.INTERNAL,
        # Given at the start, where samplers look.
        attributes={**dict(attributes(record, gen_ai)), **(_signed(record, signer) if signer else {})},
        links=[Link(parent)] if parent else None,  # a back end that lost the parent can still follow the link
        start_time=started * 1_000,
    )
    span.end(max(started, record.facts.get("ended") or record.at) * 1_000)


def _signed(record: Record, signer: Signer) -> dict[str, AttributeValue]:
    """The whole record, for a ledger of record. Last of all: an SDK that limits attributes drops the first ones."""
    text = carry(record)
    return {names.RECORD: text, names.SIGNATURE: signer.sign(text)}


def _parent(traceparent: str) -> SpanContext | None:
    """The span context that a W3C traceparent names, if it names one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


def attributes(record: Record, gen_ai: GenAINames = names.GENERATION_A) -> Iterator[tuple[str, AttributeValue]]:
    """Everything the span says. What is not known is left out; a usage of zero is written: it is not unknown."""
    yield names.RECORD_ID, record.id
    yield names.RECORD_VERSION, record.facts.get("v", 1)
    yield names.CUSTOMER_ID, record.customer
    yield names.OUTCOME, record.kind
    yield from _money(record)
    yield from _usage(record)
    yield names.GATE_DECISION, "open" if record.facts.get("unheld") else "held"
    for fact, name in _FACTS.items():
        if value := record.facts.get(fact):
            yield name, value
    if version := record.facts.get("price", {}).get("version"):
        yield names.PRICE_VERSION, version
    yield from _gen_ai(record, gen_ai)
    yield from server(record.facts.get("host", ""))


_FACTS = {
    # name in the record's facts → attribute. Facts that are missing here are not shown.
    "request_id": names.REQUEST_ID,
    "attempt": names.ATTEMPT,
    "stream": names.STREAM,
    "ending": names.ENDING,
    "stopped": names.STOPPED,
    "basis_of_customer": names.CUSTOMER_BASIS,
    "meter": names.METER,
    "unheld": names.GATE_REASON,
    "cost_basis": names.COST_BASIS,
    "status": names.HTTP_STATUS,
}


def _money(record: Record) -> Iterator[tuple[str, AttributeValue]]:
    yield names.CHARGED, record.charge.ticks
    yield names.CHARGED_DECIMAL, decimal_text(record.charge.ticks)
    yield names.UNIT_SCALE, TICK_SCALE
    yield names.COST_TICKS, record.cost.ticks
    yield names.COST_AMOUNT, decimal_text(record.cost.ticks)
    yield names.COST_CURRENCY, CURRENCY
    if record.overrun:
        yield names.OVERRUN, record.overrun.ticks
        yield names.OVERRUN_CAUSE, record.overrun_cause or ""
    if record.debt:
        yield names.DEBT, record.debt.ticks


def _usage(record: Record) -> Iterator[tuple[str, AttributeValue]]:
    if not record.basis:
        return
    yield names.USAGE_BASIS, record.basis
    units = {"input": 0, "output": 0, **record.usage}
    for unit, quantity in units.items():
        yield names.USAGE.get(unit, f"lava.usage.{unit}"), quantity


def _gen_ai(record: Record, gen_ai: GenAINames) -> Iterator[tuple[str, AttributeValue]]:
    facts = record.facts
    for name, value in (
        (gen_ai.operation, facts.get("operation")),
        (gen_ai.provider, names.PROVIDER_NAMES.get(record.provider, record.provider)),
        (gen_ai.request_model, facts.get("model")),
        (gen_ai.response_model, facts.get("response_model")),
        (gen_ai.response_id, facts.get("response_id")),
    ):
        if value:
            yield name, value
    if reason := facts.get("finish_reason"):
        yield gen_ai.finish_reasons, [reason]


def server(host: str) -> Iterator[tuple[str, AttributeValue]]:
    """The attributes of a host, with or without a port."""
    if not host:
        return
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and "]" not in port:
        yield names.SERVER_ADDRESS, name
        yield names.SERVER_PORT, int(port)
    else:
        yield names.SERVER_ADDRESS, host
