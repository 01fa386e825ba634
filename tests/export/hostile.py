"""This program makes a few metered calls in a process whose telemetry is hostile, and prints what was billed and seen.

python tests/export/hostile.py DIRECTORY SETTING [DIRECTORY-OF-PACKAGES]
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
if __name__ == "__main__" and len(sys.argv) > 3:
    sys.path.append(sys.argv[3])

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from lava_middleware import Lava
from lava_middleware.testing import FakeProvider, Script

KEY = "6f1c" * 16
CALLS = 8
DIRECTORY = Path(sys.argv[1] if __name__ == "__main__" else "")
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


class Raises(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("an exporter that raises")


class Fails(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


class Lies(SpanExporter):
    """SUCCESS, and nothing was kept."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Slow(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        time.sleep(0.2)
        return SpanExportResult.SUCCESS


def ledger_of_record() -> SpanExporter:
    from lava_middleware.otel import LavaSpanExporter

    return LavaSpanExporter(f"sqlite:///{DIRECTORY / 'spans.db'}", key=KEY)


def traced(exporter: SpanExporter, processor: Callable[..., Any] = BatchSpanProcessor, **settings: Any) -> None:
    provider = TracerProvider(**settings)
    provider.add_span_processor(processor(exporter))
    trace.set_tracer_provider(provider)


SETTINGS: dict[str, Callable[[], None]] = {
    # name → what it does to this process's telemetry; "environment ..." is done by the test, to the environment
    "plain": lambda: traced(ledger_of_record()),
    "sampled 1 %": lambda: traced(ledger_of_record(), sampler=sampling.TraceIdRatioBased(0.01)),
    "attribute length": lambda: traced(ledger_of_record(), span_limits=SpanLimits(max_span_attribute_length=8)),
    "attribute count": lambda: traced(ledger_of_record(), span_limits=SpanLimits(max_span_attributes=3)),
    "environment limits": lambda: traced(ledger_of_record()),
    "environment disabled": lambda: traced(ledger_of_record()),
    "raising": lambda: traced(Raises(), SimpleSpanProcessor),
    "failing": lambda: traced(Fails()),
    "lying": lambda: traced(Lies()),
    "slow": lambda: traced(Slow(), SimpleSpanProcessor),
    "fork": lambda: traced(ledger_of_record()),
    "terminated": lambda: traced(ledger_of_record()),
}


def calls(lava: Lava, url: str, count: int) -> None:
    with lava.charge_to("acme"), httpx.Client() as client:
        for number in range(count):
            client.post(url, json={**BODY, "stream": bool(number % 2)})


def in_a_child(work: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads run: that is what is tried here
        child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    name = sys.argv[2]
    SETTINGS[name]()
    with FakeProvider(Script(text="one two three")) as provider:
        lava = Lava(
            f"sqlite:///{DIRECTORY / 'lava.db'}", hosts={provider.host: ("openai",)}, span_key=KEY,
            post_to=f"sqlite:///{DIRECTORY / 'record.db'}", export_jsonl=str(DIRECTORY / "usage.jsonl"),
        ).instrument()  # fmt: skip
        lava.grant("acme", "5.00", key="first")
        url = f"{provider.openai_base_url}/chat/completions"
        calls(lava, url, CALLS // 2)
        if name == "fork":
            in_a_child(lambda: calls(lava, url, CALLS // 2))
        else:
            calls(lava, url, CALLS // 2)
        if name == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        lava.close()
    if isinstance(provider := trace.get_tracer_provider(), TracerProvider):
        provider.shutdown()


if __name__ == "__main__":
    main()
