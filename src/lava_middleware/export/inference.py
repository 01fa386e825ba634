"""This file knows how a call of a model is seen in the application's own trace: as one inference span, never two.

Where another instrumentation has opened one, that one is enriched; else one is opened here. Unlike the billing span it
lives while the call does, carries gen_ai.usage.*, and shows calls that fail and bill nothing. It is a picture like
all of them: whatever happens to it changes no record (G8).
"""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from ..core.record import Facts
from ..core.usage import Usage
from . import names
from .names import GenAINames
from .span import server, spans_wanted, tracer

_MODEL_NAMES = ("gen_ai.request.model", "gen_ai.system")
"""What a span of an older generation has that does not name its operation."""

_MADE_AFTERWARDS = {
    # instrumentation → dialects whose span it makes only when the call is over: at the time of the call nothing shows
    # that there will be one. https://github.com/traceloop/openllmetry (v1/responses_wrappers.py)
    "opentelemetry.instrumentation.openai": ("openai.responses",),
}


class Inference:
    """The inference span of one exchange, whoever opened it. Its methods never raise."""

    __slots__ = ("_gen_ai", "_is_ours", "_span")

    def __init__(self, span: Span, gen_ai: GenAINames, *, is_ours: bool) -> None:
        self._span = span
        self._gen_ai = gen_ai
        self._is_ours = is_ours

    def ended(self, facts: Facts, error: str = "") -> None:
        """Say how it ended. Not for finalisers: a span has a lock. `error`: the reason where the call failed."""
        try:
            if not self._span.is_recording():  # also: whoever opened it has ended it
                return
            there = getattr(self._span, "attributes", None) or {}
            for name, value in _outcome(facts, self._gen_ai).items():
                if name not in there:
                    self._span.set_attribute(name, value)
            if self._is_ours:
                if error:
                    self._span.set_attribute(names.ERROR_TYPE, error)
                    self._span.set_status(Status(StatusCode.ERROR, error))
                self._span.end(facts.ended * 1_000 if facts.ended else None)
        except Exception:  # a span processor of the application's own
            return


def inference(facts: Facts, gen_ai: GenAINames = names.GENERATION_A) -> Inference | None:
    """The inference span of an exchange that begins here and now; None where nobody wants spans.

    Ours becomes the parent of the billing span (`facts.trace`), and is not current: it changes nobody's sampling.
    """
    try:
        current = trace.get_current_span()
        if _is_inference(current):
            current.set_attribute(names.RECORD_ID, facts.id)  # of a call that is retried: its last attempt
            return Inference(current, gen_ai, is_ours=False)
        if not spans_wanted() or _comes_afterwards(facts.dialect):
            return None
        span = _opened(facts, gen_ai, get_current())
        facts.trace = traceparent(span) or facts.trace
        return Inference(span, gen_ai, is_ours=True)
    except Exception:  # a sampler or processor of the application's own
        return None


def traceparent(span: Span) -> str:
    """As W3C writes the span's context; empty where it has none."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _opened(facts: Facts, gen_ai: GenAINames, context: Context) -> Span:
    started = {
        gen_ai.operation: facts.operation,
        gen_ai.provider: names.PROVIDER_NAMES.get(facts.provider, facts.provider),
        gen_ai.request_model: facts.model,
        names.RECORD_ID: facts.id,
        **dict(server(facts.host)),
    }
    if facts.stream:
        started[gen_ai.request_stream] = True
    return tracer().start_span(
        f"{facts.operation} {facts.model}".strip(),
        context=context,
        kind=SpanKind.CLIENT,
        attributes={name: value for name, value in started.items() if value},
        start_time=facts.started * 1_000,
    )


def _is_inference(span: Span) -> bool:
    """Whether this span is a call of a model: of the agent around it, or the tool beside it, there is more to say."""
    attributes = getattr(span, "attributes", None)
    if not attributes or not span.is_recording():
        return False
    operation = attributes.get(names.GENERATION_A.operation)
    if operation is None:
        return any(name in attributes for name in _MODEL_NAMES)
    return operation not in names.NO_INFERENCE


def _comes_afterwards(dialect: str) -> bool:
    return any(dialect in dialects and _instruments(module) for module, dialects in _MADE_AFTERWARDS.items())


def _instruments(module: str) -> bool:
    """Whether this instrumentation is at work in the process. It is asked, never imported."""
    loaded = sys.modules.get(module)
    instance = getattr(getattr(loaded, "OpenAIInstrumentor", None), "_instance", None)
    return bool(getattr(instance, "is_instrumented_by_opentelemetry", False))


def _outcome(facts: Facts, gen_ai: GenAINames) -> dict[str, Any]:
    """What is known at the end. Whoever opened the span knows better: what it has set stays."""
    found: dict[str, Any] = {
        gen_ai.response_model: facts.response_model,
        gen_ai.response_id: facts.response_id,
        gen_ai.finish_reasons: [facts.finish_reason] if facts.finish_reason else None,
        names.HTTP_STATUS: facts.status,
    }
    if facts.basis in ("reported", "counted"):
        usage = Usage(facts.usage)
        found[gen_ai.usage_input] = usage.input_tokens
        found[gen_ai.usage_output] = usage.output_tokens
        found[gen_ai.usage_cache_read] = usage.get("cache_read", 0) + usage.get("cache_read_audio", 0)
        found[gen_ai.usage_cache_write] = usage.get("cache_write", 0) + usage.get("cache_write_1h", 0)
        found[gen_ai.usage_reasoning] = usage.get("reasoning", 0)
    return {name: value for name, value in found.items() if value}
