"""The real SDKs against the stand-in, metered: one Lava, one event loop and one set of clients for a whole module."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import groq
import openai
import pytest

from lava_middleware.core.record import Record
from lava_middleware.testing import FakeProvider, Served
from lava_middleware.transport.instrument import uninstrument

from ..transport.rig import CLAUDE, LLAMA, MESSAGES, MODEL, Rig, rigged
from .proxy import ForwardProxy

pytest.register_assert_rewrite("tests.sdks.matrix")

BUILDS = ("before", "after", "proxy", "mounts", "explicit")
"""How a client came to be: before and after instrumenting, behind a proxy, with mounts, with the explicit transport."""

CHAT = "/v1/chat/completions"
_customers = itertools.count(1)


@dataclass(frozen=True)
class Sdk:
    """One SDK: its clients, and where they find the stand-in."""

    name: str
    make: Callable[..., Any]
    amake: Callable[..., Any]
    base: Callable[[FakeProvider], dict[str, Any]]
    speaks: str
    model: str
    library: str = "httpx2"

    @property
    def module(self) -> Any:
        return importlib.import_module("openai" if self.name == "azure" else self.name)


SDKS = {
    "openai": Sdk(
        "openai", openai.OpenAI, openai.AsyncOpenAI, lambda p: {"base_url": p.openai_base_url}, "openai", MODEL
    ),
    "anthropic": Sdk(
        "anthropic",
        anthropic.Anthropic,
        anthropic.AsyncAnthropic,
        lambda p: {"base_url": p.anthropic_base_url},
        "anthropic",
        CLAUDE,
    ),
    "groq": Sdk(
        "groq", groq.Groq, groq.AsyncGroq, lambda p: {"base_url": p.groq_base_url}, "groq", LLAMA, library="httpx"
    ),
    "azure": Sdk(
        "azure",
        openai.AzureOpenAI,
        openai.AsyncAzureOpenAI,
        lambda p: {"azure_endpoint": p.azure_endpoint, "api_version": "2025-04-01-preview"},
        "azure-openai",
        MODEL,
    ),
}


@dataclass
class Bench:
    """An SDK at work: its clients by how they were built, the rig they talk to, and a loop for the async ones."""

    sdk: Sdk
    rig: Rig
    clients: dict[tuple[str, bool], Any]
    proxy: ForwardProxy
    runner: asyncio.Runner
    customer: str = "nobody"

    def client(self, build: str = "after", *, is_async: bool = False) -> Any:
        return self.clients[build, is_async]

    def call(self, function: Callable[[], Coroutine[Any, Any, Any]], *, customer: str | None = None) -> Any:
        """Run it on the module's loop, on the customer's account."""

        async def paid() -> Any:
            with self.rig.lava.charge_to(customer or self.customer):
                return await function()

        return self.runner.run(paid())

    @property
    def served(self) -> Served:
        return self.rig.served

    @property
    def record(self) -> Record:
        (record,) = self.rig.records(self.customer)
        return record

    def kinds(self) -> list[str]:
        self.rig.wait_settled(self.customer)
        return self.rig.kinds(self.customer)


def _http(sdk: Sdk, is_async: bool, **options: Any) -> Any:
    module = importlib.import_module(sdk.library)
    return (module.AsyncClient if is_async else module.Client)(follow_redirects=True, **options)


def _built(sdk: Sdk, provider: FakeProvider, is_async: bool, http: Any = None) -> Any:
    more = {} if http is None else {"http_client": http}
    return (sdk.amake if is_async else sdk.make)(api_key="sk-secret", **sdk.base(provider), **more)


def _special(sdk: Sdk, build: str, proxy: ForwardProxy, is_async: bool) -> Any:
    if build == "proxy":
        return _http(sdk, is_async, proxy=proxy.url, verify=False)
    http = importlib.import_module(sdk.library)
    if build == "mounts":
        transport = (http.AsyncHTTPTransport if is_async else http.HTTPTransport)(verify=False)
        return _http(sdk, is_async, mounts={"http://": transport}, verify=False)
    ours = importlib.import_module(f"lava_middleware.transport.{sdk.library}")
    inner = (http.AsyncHTTPTransport if is_async else http.HTTPTransport)(verify=False)
    return _http(sdk, is_async, transport=(ours.AsyncLavaTransport if is_async else ours.LavaTransport)(inner))


@contextlib.contextmanager
def benched(name: str, **settings: Any) -> Iterator[Bench]:
    sdk = SDKS[name]
    colours = (False, True)
    uninstrument()
    with (
        FakeProvider() as early,
        ForwardProxy() as proxy,
        asyncio.Runner() as runner,
    ):
        # The clients that exist before instrumenting must know where the stand-in will be: it is there already.
        clients = {("before", colour): _built(sdk, early, colour) for colour in colours}
        with rigged(speaks=(sdk.speaks,), provider=early, **settings) as rig:
            clients |= {("after", colour): _built(sdk, early, colour) for colour in colours}
            for build in BUILDS[2:]:
                for colour in colours:
                    clients[build, colour] = _built(sdk, early, colour, _special(sdk, build, proxy, colour))
            bench = Bench(sdk, rig, clients, proxy, runner)
            _warm_up(_fresh(bench))
            yield bench
            rig.provider.release()
            for (_, is_async), client in clients.items():
                if is_async:
                    runner.run(client.close())
                else:
                    client.close()
    uninstrument()


def _warm_up(bench: Bench) -> None:
    """One call, so that the threads of the library are there before the first test looks who is."""
    http = importlib.import_module(bench.sdk.library)
    path = {"anthropic": "/v1/messages", "groq": "/openai/v1/chat/completions"}.get(
        bench.sdk.name, f"/openai/deployments/{MODEL}/chat/completions" if bench.sdk.name == "azure" else CHAT
    )
    with bench.rig.lava.charge_to(bench.customer), http.Client(verify=False) as client:
        asked = {"model": bench.sdk.model, "max_tokens": 10, "messages": MESSAGES}
        client.post(f"{bench.rig.provider.url}{path}", json=asked).raise_for_status()


def _fresh(bench: Bench) -> Bench:
    """The same bench with a customer of its own and an empty log."""
    bench.customer = f"customer-{next(_customers)}"
    bench.rig.provider.reset()
    bench.rig.lava.grant(bench.customer, "5.00")
    return bench


@pytest.fixture(scope="module", params=SDKS)
def _bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with benched(request.param) as bench:
        yield bench


@pytest.fixture
def bench(_bench: Bench) -> Bench:
    """Each SDK's, with a customer of this test's own."""
    return _fresh(_bench)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found
