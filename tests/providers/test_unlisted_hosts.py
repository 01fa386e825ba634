"""`unlisted="by_path"`: a host that nobody listed is metered where path and body are those of a known format (T4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests

from lava_middleware import Lava, Refused
from lava_middleware.providers.matching import is_own, normal_host
from lava_middleware.testing import FakeProvider, Script

from ..transport.rig import CUSTOMER, MESSAGES, MODEL, chat, claude, priced, rigged
from .here import resolve_here

HOST = "models.somewhere.example"


@pytest.fixture
def somewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeProvider, str]]:
    """A stand-in, and its address under a name that no table has."""
    resolve_here(monkeypatch, HOST)
    with FakeProvider(Script(output_tokens=40)) as provider:
        yield provider, f"http://{HOST}:{provider.host.rpartition(':')[2]}"


def test_by_default_a_host_that_nobody_listed_is_nobodys_business(somewhere: tuple[FakeProvider, str]) -> None:
    provider, url = somewhere
    with rigged(provider=provider) as rig, httpx.Client() as client:
        assert client.post(f"{url}/v1/chat/completions", json=chat()).status_code == 200
        assert rig.kinds() == []


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize(
    ("path", "body", "dialect", "name"),
    [
        ("/v1/chat/completions", chat(), "openai.chat", "openai-compatible"),
        ("/v1/responses", {"model": MODEL, "input": "What is a ledger?"}, "openai.responses", "openai-compatible"),
        ("/v1/messages", claude(), "anthropic.messages", "anthropic-compatible"),
        (
            "/v1/embeddings",
            {"model": "text-embedding-3-small", "input": "a ledger"},
            "openai.embeddings",
            "openai-compatible",
        ),
    ],
)
def test_a_call_is_held_and_billed_by_what_its_path_says(
    somewhere: tuple[FakeProvider, str], library: str, path: str, body: dict[str, Any], dialect: str, name: str
) -> None:
    provider, url = somewhere
    http = pytest.importorskip(library)
    with rigged(provider=provider, unlisted="by_path") as rig, rig.lava.charge_to(CUSTOMER), http.Client() as client:
        assert client.post(url + path, json=body).status_code == 200
        record, served = rig.record, rig.served
    assert (record.provider, record.facts["dialect"], record.facts["host"]) == (name, dialect, HOST)
    assert record.basis == "reported"
    assert record.charge == priced(served.input_tokens, served.output_tokens if "embed" not in path else 0)


def test_a_stream_is_metered_and_not_asked_for_usage(somewhere: tuple[FakeProvider, str]) -> None:
    """T16: an unknown host may answer 400 to the question, so its text is counted."""
    provider, url = somewhere
    with rigged(provider=provider, unlisted="by_path") as rig, rig.lava.charge_to(CUSTOMER), httpx.Client() as client:
        with client.stream("POST", f"{url}/v1/chat/completions", json=chat(stream=True)) as response:
            said = response.read()
        record = rig.record
    assert said.rstrip().endswith(b"data: [DONE]")
    assert b'"usage"' not in said
    assert record.basis in ("counted", "estimated")
    assert record.charge.ticks > 0


def test_a_customer_without_credit_and_a_call_without_a_customer_are_refused(
    somewhere: tuple[FakeProvider, str],
) -> None:
    """T6."""
    provider, url = somewhere
    with rigged(provider=provider, credits=None, unlisted="by_path") as rig, httpx.Client() as client:
        assert client.post(f"{url}/v1/chat/completions", json=chat()).status_code == 403
        with rig.lava.charge_to(CUSTOMER):
            assert client.post(f"{url}/v1/chat/completions", json=chat()).status_code == 402
    assert provider.count == 0


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/chat/completions", b'{"rows": [1, 2]}'),
        ("/v1/chat/completions", b"<xml/>"),
        ("/v1/messages", json.dumps({"to": "somebody", "text": "Hello"}).encode()),
        ("/v1/messages", json.dumps({"messages": MESSAGES}).encode()),
        ("/v1/embeddings", b""),
    ],
)
def test_a_body_that_is_not_of_the_format_is_another_services(
    somewhere: tuple[FakeProvider, str], path: str, content: bytes
) -> None:
    """It passes, and is counted: somebody may want to know."""
    provider, url = somewhere
    with rigged(provider=provider, unlisted="by_path") as rig, httpx.Client() as client:
        client.post(url + path, content=content)
        assert provider.count == 1
        assert rig.kinds() == []
        rig.lava._do_chores()
        assert [(reason, host) for _, reason, host, _ in rig.lava.journal.bumps()] == [("unlisted:unreadable", HOST)]


@pytest.mark.parametrize("path", ["/v1/users", "/v1/models", "/chat", "/v1/chat/completions/export"])
def test_other_paths_pass(somewhere: tuple[FakeProvider, str], path: str) -> None:
    provider, url = somewhere
    with rigged(provider=provider, unlisted="by_path") as rig, httpx.Client() as client:
        client.post(url + path, json=chat())
        assert provider.count == 1
        assert rig.kinds() == []


def test_what_was_listed_is_what_it_was_listed_as(somewhere: tuple[FakeProvider, str]) -> None:
    provider, url = somewhere
    hosts = {HOST: "deepseek"}
    with rigged(provider=provider, hosts=hosts, unlisted="by_path") as rig, rig.lava.charge_to(CUSTOMER):
        with httpx.Client() as client:
            client.post(f"{url}/v1/chat/completions", json=chat())
        assert rig.record.provider == "deepseek"


def test_libraries_without_a_meter_are_refused_such_calls_too(somewhere: tuple[FakeProvider, str]) -> None:
    provider, url = somewhere
    with rigged(provider=provider, unlisted="by_path") as rig, rig.lava.charge_to(CUSTOMER):
        with pytest.raises(Refused, match="httpx"):
            requests.post(f"{url}/v1/chat/completions", json=chat(), timeout=5)
        requests.post(f"{url}/v1/users", json={}, timeout=5)
    assert provider.count == 1


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "api.localhost", "testserver", "test", "shop.test"),
        *("127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "169.254.169.254", "[fe80::1]"),
    ],
)
def test_the_application_itself_is_never_taken_for_a_provider(host: str) -> None:
    """An application that serves a known format is called by its own tests and workers."""
    assert is_own(normal_host(host)[0])
    nowhere = httpx.MockTransport(lambda request: httpx.Response(200, json={}))
    with Lava("memory://", unlisted="by_path") as lava, httpx.Client(transport=nowhere) as client:
        lava.instrument()
        assert client.post(f"http://{host}:8000/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.parametrize("host", ["llm", "vllm.internal", "10.0.0.7", "192.168.1.9", "testserver.example", HOST])
def test_everything_else_may_be_one(host: str) -> None:
    """A name on the own network too: that is where people put their vLLM."""
    assert not is_own(normal_host(host)[0])


def test_a_redirect_to_a_host_that_nobody_listed_is_seen(
    somewhere: tuple[FakeProvider, str], httpx_moves: Callable[[str], httpx.MockTransport]
) -> None:
    """T4: each hop is judged by itself."""
    provider, url = somewhere
    target = f"{url}/v1/chat/completions"
    moving = httpx.Client(mounts={"http://front.example": httpx_moves(target)}, follow_redirects=True)
    rigging = rigged(provider=provider, credits=None, unlisted="by_path")
    with moving as client, rigging as rig, rig.lava.charge_to(CUSTOMER):
        assert client.post("http://front.example/go", json=chat()).status_code == 402
    assert provider.count == 0


@pytest.fixture
def httpx_moves() -> Callable[[str], httpx.MockTransport]:
    def moved(target: str) -> httpx.MockTransport:
        return httpx.MockTransport(lambda request: httpx.Response(307, headers={"location": target}))

    return moved
