"""A provider that an operator adds in configuration is metered like a shipped one; what is wrong is named (T4, T32)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from lava_middleware import Lava
from lava_middleware.errors import ConfigurationError
from lava_middleware.providers.operator import DIALECTS, EXAMPLE, Given, ProvidersError, read
from lava_middleware.providers.row import Row
from lava_middleware.providers.table import find
from lava_middleware.testing import FakeProvider, Script

from ..transport.rig import CUSTOMER, MODEL, chat, claude, priced, rigged
from .here import resolve_here
from .test_table import kind

HOST = "llm.acme.example"
GATEWAY = {"hosts": [HOST], "dialects": ["openai.chat", "openai.embeddings"]}


def rows_of(name: str = "acme", /, **row: Any) -> dict[str, tuple[Row, ...]]:
    """As find() wants them."""
    made = read({name: {"hosts": HOST, "dialects": "openai.chat", **row}})
    return {host: (one,) for one in made.values() for host in one.hosts}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_can_be_named_and_is_met_at_its_usual_path(dialect: str) -> None:
    spoken, prefix, paths = DIALECTS[dialect]
    for path in paths:
        at = prefix + path.replace("{model}", "m")
        assert kind(find("POST", HOST, at, rows_of(dialects=dialect))) == dialect == spoken.name
    assert kind(find("GET", HOST, prefix + "/models", rows_of(dialects=dialect))) == "free"
    assert kind(find("POST", HOST, "/v1/unheard/of", rows_of(dialects=dialect))) == "unknown"


@pytest.mark.parametrize(
    ("row", "method", "path", "want"),
    [
        ({"prefixes": "/team/llm"}, "POST", "/team/llm/chat/completions", "openai.chat"),
        ({"prefixes": ["/a/v1/", "/*/b"]}, "POST", "/x/b/chat/completions", "openai.chat"),
        ({"prefixes": ""}, "POST", "/chat/completions", "openai.chat"),
        ({}, "POST", "/v1/embeddings", "unknown"),
        ({}, "POST", "/v1/images/generations", "door"),
        ({}, "POST", "/v1/files", "free"),
        ({}, "GET", "/v1/realtime", "door"),
        ({"dialects": ["openai.chat", "anthropic.messages"]}, "POST", "/v1/messages", "anthropic.messages"),
        ({"dialects": ["anthropic.messages"]}, "POST", "/v1/messages/count_tokens", "free"),
        ({"dialects": ["gemini.generate"]}, "POST", "/v1beta/models/m:countTokens", "free"),
        ({"endpoints": {"/talk/{model}": "openai.chat"}}, "POST", "/talk/m", "openai.chat"),
        ({"free": ["/v1/warm-up"]}, "POST", "/v1/warm-up", "free"),
        ({"paths": ["/llm/**"], "prefixes": "/llm"}, "POST", "/llm/chat/completions", "openai.chat"),
        ({"paths": ["/llm/**"], "prefixes": "/llm"}, "POST", "/llm/images/edits", "door"),
        ({"paths": ["/llm/**"], "prefixes": "/llm"}, "POST", "/orders", "foreign"),
    ],
)
def test_paths_are_met_where_the_row_puts_them(row: dict[str, Any], method: str, path: str, want: str) -> None:
    """T4: what the row does not name is an unknown door, except on a host that it shares with other services."""
    assert kind(find(method, HOST, path, rows_of(**row))) == want


@pytest.mark.parametrize(
    ("listed", "called", "met"),
    [
        ("*.acme.example", "eu.llm.acme.example", True),
        ("*.acme.example", "acme.example", False),
        ("*.acme.example:8443", "eu.acme.example:8443", True),
        ("*.acme.example:8443", "eu.acme.example:8444", False),
        ("llm-*.acme.example", "LLM-7.acme.example.", True),
        ("llm-*.acme.example", "llm-7.eu.acme.example", False),  # a star inside a label stays in that label
        ("10.0.0.5:8000", "10.0.0.5:8000", True),
        ("[::1]:8000", "[0:0::1]:8000", True),
        ("LLM.Acme.example", "llm.acme.example:443", True),
    ],
)
def test_hosts_are_met_however_they_are_spelled(listed: str, called: str, met: bool) -> None:
    assert (find("POST", called, "/v1/chat/completions", rows_of(hosts=listed)) is not None) is met


def test_a_row_may_take_paths_of_a_host_that_is_shipped_and_leaves_the_others() -> None:
    mine = rows_of(hosts="api.openai.com", paths=["/acme/**"], prefixes="/acme")
    assert kind(find("POST", "api.openai.com", "/acme/chat/completions", mine)) == "openai.chat"
    other = find("POST", "api.openai.com", "/v1/responses", mine)
    assert kind(other) == "openai.responses"
    assert other is not None
    assert other.row.name == "openai"


def test_a_row_can_have_every_quirk_that_a_shipped_one_has() -> None:
    """Beside these a Row has its name, its endpoints (made of dialects, prefixes, ...) and the evidence."""
    assert {one.name for one in fields(Row)} - {"name", "evidence"} <= set(Given.model_fields)
    quirks: dict[str, Any] = {
        "family": "claude",
        "system": "acme",
        "framing": 1,
        "tools_framing": 2,
        "soft": True,
        "asks_usage": True,
        "reports_cost": True,
    }
    row = read({"acme": {**GATEWAY, **quirks, "prices_as": "openai"}}, price_lists=["openai"])["acme"]
    assert {name: getattr(row, name) for name in quirks} == quirks
    assert row.prices_as == ("openai",)
    asked = read({"acme": {**GATEWAY, "asks_usage_if_query": {"api-version": "2026-01"}}})["acme"]
    assert asked.asks_usage_if_query == (("api-version", "2026-01"),)


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
def test_a_cap_is_written_where_the_row_says(cap: str) -> None:
    match = find("POST", HOST, "/v1/chat/completions", rows_of(cap=cap))
    assert match is not None
    assert match.endpoint is not None
    assert match.endpoint.dialect is not None
    assert match.endpoint.dialect.with_cap({"model": "m"}, 7) == {"model": "m", cap: 7}


SECRET = "hunter2"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    # what is given → the place that is named, what is said of it
    ({"acme": {"hosts": [HOST]}}, "acme", 'needs "dialects"'),
    ({"acme": {"dialects": ["openai.chat"]}}, "acme.hosts", "no host in hosts= speaks as acme"),
    ({"acme": {**GATEWAY, "prefix": SECRET}}, "acme", "did you mean prefixes?"),
    ({"acme": {**GATEWAY, SECRET: 1}}, "acme", "the fields are hosts, dialects"),
    ({"acme": {**GATEWAY, "dialects": ["openai.chat", SECRET]}}, "acme.dialects.1", "'openai.chat'"),
    ({"acme": {**GATEWAY, "dialects": []}}, "acme", 'needs "dialects"'),
    ({"acme": {**GATEWAY, "hosts": [f"https://{SECRET}"]}}, "acme.hosts.0", "not URLs"),
    ({"acme": {**GATEWAY, "hosts": [f"{SECRET}:99999"]}}, "acme.hosts.0", "host:port"),
    ({"acme": {**GATEWAY, "hosts": ["*"]}}, "acme.hosts.0", "star"),
    ({"acme": {**GATEWAY, "hosts": ["*.com"]}}, "acme.hosts.0", "star"),
    ({"acme": {**GATEWAY, "hosts": ["*.*.acme.example"]}}, "acme.hosts.0", "star"),
    ({"acme": {**GATEWAY, "hosts": 7}}, "acme.hosts", "valid tuple"),
    ({"acme": {**GATEWAY, "prefixes": [SECRET]}}, "acme.prefixes.0", "must be a path"),
    ({"acme": {**GATEWAY, "prefixes": ["/a/**"]}}, "acme.prefixes.0", "before the paths"),
    ({"acme": {**GATEWAY, "paths": [f"/{SECRET}?x"]}}, "acme.paths.0", "must be a path"),
    ({"acme": {**GATEWAY, "paths": ["/**/a/**"]}}, "acme.paths.0", "must be a path"),
    ({"acme": {**GATEWAY, "endpoints": {"/a": SECRET}}}, "acme.endpoints./a", "'openai.chat'"),
    ({"acme": {**GATEWAY, "endpoints": {SECRET: "openai.chat"}}}, "acme.endpoints", "must be a path"),
    ({"acme": {**GATEWAY, "cap": SECRET}}, "acme.cap", "'max_tokens'"),
    ({"acme": {**GATEWAY, "family": SECRET}}, "acme.family", "'openai', 'claude' or 'open'"),
    ({"acme": {**GATEWAY, "framing": -1}}, "acme.framing", "greater than or equal to 0"),
    ({"acme": {**GATEWAY, "framing": "64"}}, "acme.framing", "valid integer"),
    ({"acme": {**GATEWAY, "framing": True}}, "acme.framing", "valid integer"),
    ({"acme": {**GATEWAY, "asks_usage": "yes"}}, "acme.asks_usage", "valid boolean"),
    ({"acme": {**GATEWAY, "prices_as": ["opnai"]}}, "acme.prices_as.0", "did you mean openai?"),
    ({"acme": {**GATEWAY, "prices_as": ["no-such-list"]}}, "acme.prices_as.0", "there are acme, openai"),
    ({"Acme!": GATEWAY}, "Acme!", "a-z, 0-9 and dash"),
    ({"acme": 7}, "acme", "must be a table"),
]


@pytest.mark.parametrize(("given", "place", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_field_and_never_repeated(given: dict[str, Any], place: str, said: str) -> None:
    """T32: secrets land in the wrong place."""
    with pytest.raises(ProvidersError) as error:
        read(given, price_lists=["openai"])
    message = str(error.value)
    assert message.startswith(f"providers: {place}")
    assert said in message
    if not message.startswith(f"providers: acme: '{SECRET}'"):  # a field's name is shown: it is no value
        assert SECRET not in message


def test_the_example_is_right() -> None:
    import json

    assert read(json.loads(EXAMPLE))["acme-gateway"].hosts == ("llm.acme.example",)


TOML = f"""
[acme-gateway]
hosts = ["{HOST}"]
dialects = ["openai.chat", "anthropic.messages"]
prefixes = "/v1"
prices_as = ["openai", "anthropic"]
asks_usage = true
"""


def test_a_file_is_a_table_a_provider(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(TOML)
    with Lava("memory://", providers=str(file)) as lava:
        (row,) = lava.hosts[HOST]
        assert (row.name, row.asks_usage, row.prices_as) == ("acme-gateway", True, ("openai", "anthropic"))


def test_a_file_reaches_a_lava_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "providers.toml").write_text(TOML)
    monkeypatch.setenv("LAVA_PROVIDERS", str(tmp_path / "providers.toml"))
    monkeypatch.setenv("LAVA_UNLISTED", "by_path")
    monkeypatch.setenv("LAVA_LEDGER", "memory://")
    with Lava.from_env() as lava:
        assert list(lava.hosts) == [HOST]
        assert lava.by_path


@pytest.mark.parametrize(
    ("text", "said"), [("[acme", "is not TOML"), ("\xff", "is not TOML"), ("[acme]\nhosts = 7\n", "acme.hosts: ")]
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "providers.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError) as error:
        Lava("memory://", providers=file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_hosts_may_say_where_a_row_is_and_shares_its_host_with_others() -> None:
    elsewhere = {"dialects": ["openai.chat"]}
    hosts = {"127.0.0.1:9": "acme", HOST: "anthropic"}
    with Lava("memory://", providers={"acme": elsewhere, "beta": GATEWAY}, hosts=hosts) as lava:
        assert [row.name for row in lava.hosts["127.0.0.1:9"]] == ["acme"]
        assert [row.name for row in lava.hosts[HOST]] == ["beta", "anthropic"]
    with pytest.raises(ConfigurationError, match="which is not one of acme, alibaba"):
        Lava("memory://", providers={"acme": GATEWAY}, hosts={"127.0.0.1:9": "acne"})


# Whole calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_calls_to_a_row_are_held_billed_and_named_after_it(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    http = pytest.importorskip(library)
    resolve_here(monkeypatch, "acme.example")
    prices = {"acme/house-model": {"input": "2.00", "output": "8.00"}}
    row = {"hosts": "*.acme.example", "dialects": ["openai.chat", "anthropic.messages"], "asks_usage": True}
    with FakeProvider(Script(output_tokens=30)) as provider:
        url = f"http://llm.acme.example:{provider.host.rpartition(':')[2]}"
        settings: dict[str, Any] = {"providers": {"acme": row}, "prices": prices, "hosts": {}}
        with rigged(provider=provider, **settings) as rig, rig.lava.charge_to(CUSTOMER), http.Client() as client:
            body = {**chat(stream=True), "model": "house-model"}
            with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                said = response.read()
            client.post(f"{url}/v1/messages", json={**claude(), "model": "house-model"})
            streamed, plain = rig.records()
            served, other = provider.requests
            assert client.post(f"{url}/v1/embeddings", json={}).status_code == 403  # it was not named
            assert client.get(f"{url}/v1/models").status_code == 200
    assert b"prompt_tokens" not in said  # asked for, and hidden from an application that did not ask
    assert served.asks_usage
    assert (streamed.provider, streamed.model, streamed.basis) == ("acme", "house-model", "reported")
    assert streamed.charge == priced(served.input_tokens, served.output_tokens)
    assert plain.charge == priced(other.input_tokens, other.output_tokens)
    assert provider.count == 3


def test_a_row_without_a_price_is_refused_and_with_prices_as_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5: unknown is not free."""
    resolve_here(monkeypatch, HOST)
    with FakeProvider() as provider:
        url = f"http://{HOST}:{provider.host.rpartition(':')[2]}/v1/chat/completions"
        for given, status in (({}, 403), ({"prices_as": ["openai"]}, 200)):
            settings: dict[str, Any] = {"providers": {"acme": {**GATEWAY, **given}}, "prices": {}, "hosts": {}}
            with rigged(provider=provider, **settings) as rig, rig.lava.charge_to(CUSTOMER), httpx.Client() as client:
                assert client.post(url, json=chat(max_tokens=9)).status_code == status
                assert [one.model for one in rig.records()] == ([MODEL] if status == 200 else [])
