"""This program makes one call of each kind beside another instrumentation, and prints what was billed and seen.

python tests/export/beside.py INSTRUMENTATION[+INSTRUMENTATION] ours-first|theirs-first DIRECTORY-OF-ITS-PACKAGES

Each runs in a process of its own: instrumentations patch the process and cannot all be taken off again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
if __name__ == "__main__" and len(sys.argv) > 3:
    sys.path.append(sys.argv[3])  # last: what the tests themselves have installed is not to be replaced

import openai
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lava_middleware import Lava
from lava_middleware.testing import FakeProvider, Script

MESSAGES: Any = [{"role": "user", "content": "Tell me in one word what a ledger is."}]
MODEL = "gpt-4o-mini"
SEEN = InMemorySpanExporter()


def _otel() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SEEN))
    trace.set_tracer_provider(provider)


def _nothing() -> None: ...


def _httpx() -> None:
    from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor

    HTTPXClientInstrumentor().instrument()
    HTTPX2ClientInstrumentor().instrument()


def _genai() -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def _openai_v2() -> None:
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def _openllmetry() -> None:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def _logfire() -> None:
    import logfire

    logfire.configure(
        send_to_logfire=False, console=False, inspect_arguments=False,
        additional_span_processors=[SimpleSpanProcessor(SEEN)],
    )  # fmt: skip
    logfire.instrument_openai()


def _sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.httpx import HttpxIntegration
    from sentry_sdk.integrations.httpx2 import Httpx2Integration
    from sentry_sdk.integrations.openai import OpenAIIntegration

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        transport=lambda _: None,
        auto_enabling_integrations=False,  # they import every framework that is installed
        integrations=[HttpxIntegration(), Httpx2Integration(), OpenAIIntegration()],
    )


INSTRUMENTATIONS: dict[str, Callable[[], None]] = {
    "nothing": _nothing,
    "httpx": _httpx,
    "genai": _genai,
    "openai-v2": _openai_v2,
    "openllmetry": _openllmetry,
    "logfire": _logfire,
    "sentry": _sentry,
}


def live(provider: FakeProvider) -> int:
    """One call of each kind; how many."""
    base_url = provider.openai_base_url
    with openai.OpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        list(client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ))  # fmt: skip
        client.responses.create(model=MODEL, input="hi")
        list(client.responses.create(model=MODEL, input="hi", stream=True))
        client.embeddings.create(model="text-embedding-3-small", input="hi")
        client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    asyncio.run(_live_async(base_url))
    return 9


async def _live_async(base_url: str) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        async for _ in await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            pass


def _is_inference(span: ReadableSpan) -> bool:
    return span.kind is trace.SpanKind.CLIENT and bool((span.attributes or {}).get("gen_ai.request.model"))


def _total(name: str) -> int:
    return sum(int((span.attributes or {}).get(name) or 0) for span in SEEN.get_finished_spans())  # type: ignore[call-overload]


def main() -> None:
    theirs, order = sys.argv[1].split("+"), sys.argv[2]
    if "logfire" not in theirs:  # it brings its own provider
        _otel()
    with FakeProvider(Script(text="one two three")) as provider:
        lava = Lava("sqlite:///:memory:", hosts={provider.host: ("openai",)})
        if order == "ours-first":
            lava.instrument()
        for name in theirs:
            INSTRUMENTATIONS[name]()
        lava.instrument()  # harmless where it is repeated
        lava.grant("acme", "5.00")
        with lava.charge_to("acme"):
            calls = live(provider)
        records = [
            [one.kind, one.charge.ticks, dict(one.usage), one.basis, one.model, one.facts["ending"]]
            for one in lava.records("acme")
        ]
        lava.close()
    spans = SEEN.get_finished_spans()
    print(json.dumps({
        "calls": calls,
        "requests": provider.count,
        "records": records,
        "billing spans": sum(span.name == "lava.exchange" for span in spans),
        "inference spans": sum(map(_is_inference, spans)),
        "output tokens seen": _total("gen_ai.usage.output_tokens"),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
