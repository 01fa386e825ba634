"""This file knows how to give the dashboard something to show: `python example.py`, and Prometheus reads :9464/metrics.

The application of integrations/fastapi, served on :8000, with a stand-in for the providers and a day's worth of what
happens to a reseller: customers who pay, one who has run out, one who meets a limit, answers that end early or report
nothing or overrun, a job beside the requests, a trial in mode "observe", and an archive that refuses some records.
"""

import argparse
import logging
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import uvicorn
from anthropic import AsyncAnthropic
from openai import APIStatusError, AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from prometheus_client import start_http_server

from lava_middleware import Lava, Record
from lava_middleware.demo.application import create
from lava_middleware.export.follower import Follower, PermanentRefusal
from lava_middleware.testing import FakeProvider, Script, Served

KEYS = {"key-of-acme": "acme", "key-of-brook": "brook", "key-of-cedar": "cedar", "key-of-dune": "dune"}
MODELS = ("gpt-4o", "gpt-4.1-mini", "o4-mini")
OVERRUNS = "gpt-4o-mini"
"""The stand-in's answers under this name never obey a cap."""
QUESTIONS = ("What is a ledger?", "Who may write in it?", "What happens when two write at once?")


def meter_provider() -> MeterProvider:
    """Metrics at /metrics. The buckets are for histograms whose unit is seconds: the SDK's own begin at five."""
    seconds = ExplicitBucketHistogramAggregation([0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60])
    views = [View(instrument_name=f"lava.{name}", aggregation=seconds) for name in ("gate.duration", "settlement.lag")]
    return MeterProvider(metric_readers=[PrometheusMetricReader()], views=views)


def answers(served: Served) -> Script:
    """What the stand-in says: mostly a plain answer, sometimes what providers do to those who bill."""
    chance = random.random()
    tokens = random.randint(40, 300)
    if served.model == "o4-mini":
        return Script(output_tokens=tokens, reasoning_tokens=random.randint(50, 400))
    if served.model == OVERRUNS:
        return Script(ignores_cap=True)
    if chance < 0.1:
        return Script(output_tokens=tokens, usage=False)
    if chance < 0.2:
        return Script(ignores_cap=True)
    return Script(output_tokens=tokens, cached_tokens=0 if chance < 0.6 else 8)


def archive(records: Sequence[Record]) -> None:
    """A target that takes most records."""
    if any(record.usage.get("reasoning", 1) % 10 == 0 for record in records):
        raise PermanentRefusal("records of this kind are not archived here")


class Customers:
    """Those who call the application, each with a key; most of them pay."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def call(self) -> None:
        key, *_ = random.choices(tuple(KEYS), weights=(6, 1, 2, 1))
        question = {"text": random.choice(QUESTIONS), "tokens_max": random.choice((20, 300, 600))}
        headers = {"authorization": f"Bearer {key}"}
        match random.randrange(4):
            case 0:
                self._client.post("/answer", json=question, headers=headers)
            case 1:
                self._client.post("/summary", json={"text": question["text"]}, headers=headers)
            case 2:
                self._client.post("/chat", json=question, headers=headers)
            case _:  # somebody who closes the window
                with self._client.stream("POST", "/chat", json=question, headers=headers) as response:
                    next(response.iter_lines(), None)

    def close(self) -> None:
        self._client.close()


def _asking() -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": random.choice(QUESTIONS)}]


class Job:
    """What runs beside the requests: work for one customer, a trial for another, and now and then what goes wrong."""

    def __init__(self, lava: Lava, trial: Lava, provider: FakeProvider) -> None:
        self._lava, self._trial, self._guests = lava, trial, 0
        self._openai = OpenAI(api_key="any", base_url=provider.openai_base_url, max_retries=0)

    def step(self) -> None:
        with self._lava.charge_to("acme", meter="search"):
            self._openai.embeddings.create(model="text-embedding-3-small", input=list(QUESTIONS))
        with self._lava.charge_to("acme", meter="chat"):
            self._openai.chat.completions.create(model=random.choice(MODELS), messages=_asking())
        if random.random() < 0.3:
            with self._trial.charge_to("elm"):
                self._openai.chat.completions.create(model="gpt-4.1-mini", messages=_asking())
        if random.random() < 0.2:
            for mishap in (self._overdrawn, self._unmetered, self._without_a_price, self._for_nobody):
                with suppress(APIStatusError):
                    mishap()

    def _overdrawn(self) -> None:
        """A guest whose last credit is overrun."""
        self._guests += 1
        self._lava.grant(f"guest-{self._guests}", "0.0001")
        with self._lava.charge_to(f"guest-{self._guests}"):
            self._openai.chat.completions.create(model=OVERRUNS, max_tokens=20, messages=_asking())

    def _unmetered(self) -> None:
        """The stand-in paints none, either."""
        with self._lava.charge_to("acme"):
            self._openai.images.generate(model="gpt-image-1", prompt="a ledger")

    def _without_a_price(self) -> None:
        with self._lava.charge_to("acme"):
            self._openai.embeddings.create(model="model-of-tomorrow", input="a ledger")

    def _for_nobody(self) -> None:
        self._openai.embeddings.create(model="text-embedding-3-small", input="a ledger")

    def close(self) -> None:
        self._openai.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The example application, with customers and metrics.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=9464)
    parser.add_argument("--calls-a-second", type=float, default=10)
    parser.add_argument("--ledger", help="default: one that goes when this stops")
    given = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # the stand-in writes to those who left
    metrics.set_meter_provider(meter_provider())
    start_http_server(given.metrics_port, addr="127.0.0.1")
    with ExitStack() as running:
        directory = running.enter_context(tempfile.TemporaryDirectory())
        ledger = given.ledger or f"sqlite:///{Path(directory) / 'lava.db'}"
        provider = running.enter_context(FakeProvider(answers))
        hosts = {provider.host: ("openai", "anthropic")}
        lava = running.enter_context(
            Lava(
                ledger,
                hosts=hosts,
                markup="1.50",
                unmetered="pass",
                hold_wait_s=0.1,
                exporters=(Follower("archive", archive),),
            )
        )
        trial = running.enter_context(Lava("memory://", hosts=hosts, mode="observe"))
        lava.grant("acme", "100.00", key="welcome")
        lava.grant("cedar", "100.00", key="welcome")
        lava.limit("cedar", 20_000, "tokens")
        lava.grant("dune", "0.002", key="welcome")
        openai = AsyncOpenAI(api_key="any", base_url=provider.openai_base_url, max_retries=0)
        anthropic = AsyncAnthropic(api_key="any", base_url=provider.anthropic_base_url, max_retries=0)
        app = create(lava, openai, anthropic, KEYS)
        server = uvicorn.Server(uvicorn.Config(app, port=given.port, log_level="error", timeout_graceful_shutdown=2))
        stop = threading.Event()
        customers = Customers(f"http://127.0.0.1:{given.port}")
        job = Job(lava, trial, provider)
        drivers = [
            threading.Thread(target=_repeat, args=(step, stop, 2 / given.calls_a_second))
            for step in (customers.call, job.step)
        ]
        for driver in drivers:
            driver.start()
        try:
            with suppress(KeyboardInterrupt):
                server.run()
        finally:
            stop.set()
            for driver in drivers:
                driver.join()
            customers.close()
            job.close()


def _repeat(step: Callable[[], None], stop: threading.Event, pause_s: float) -> None:
    while not stop.wait(random.expovariate(1 / pause_s)):
        with suppress(httpx.HTTPError, APIStatusError):  # 402 and 429, and the server starts a moment later
            step()


if __name__ == "__main__":
    main()
