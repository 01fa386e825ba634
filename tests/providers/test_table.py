"""Every request to a provider is metered, free, a known door, or an unknown one; none is overlooked (T4)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from lava_middleware.providers import table
from lava_middleware.providers.row import Match
from lava_middleware.providers.table import KNOWN_OTHER_HOSTS, ROWS, find, known_host

AZURE = "example-resource.openai.azure.com"
MAPPED = {"127.0.0.1:8811": (ROWS["openai"], ROWS["anthropic"]), "gateway.internal": (ROWS["openai"],)}


def kind(match: Match | None) -> str:
    """What a request means, in one word."""
    if match is None:
        return "foreign"
    if match.endpoint is None:
        return "unknown"
    if match.endpoint.dialect is not None:
        return match.endpoint.dialect.name
    return "free" if match.endpoint.free else "door"


@pytest.mark.parametrize(
    ("host", "path", "want"),
    [
        ("api.openai.com", "/v1/chat/completions", "openai.chat"),
        ("api.openai.com", "/v1/responses", "openai.responses"),
        ("api.openai.com", "/v1/embeddings", "openai.embeddings"),
        ("eu.api.openai.com", "/v1/chat/completions", "openai.chat"),
        ("api.anthropic.com", "/v1/messages", "anthropic.messages"),
        ("api.anthropic.com", "/v1/messages?beta=true", "anthropic.messages"),
        ("api.anthropic.com", "/v1/chat/completions", "openai.chat"),
        ("api.groq.com", "/openai/v1/chat/completions", "openai.chat"),
        (AZURE, "/openai/deployments/gpt-4o/chat/completions", "openai.chat"),
        (AZURE, "/openai/deployments/e/embeddings", "openai.embeddings"),
        (AZURE, "/openai/v1/responses", "openai.responses"),
        (AZURE, "/openai/responses?api-version=2025-04-01-preview", "openai.responses"),
        ("x.cognitiveservices.azure.com", "/openai/v1/chat/completions", "openai.chat"),
        ("x.services.ai.azure.com", "/openai/v1/chat/completions", "openai.chat"),
    ],
)
def test_generations_are_metered(host: str, path: str, want: str) -> None:
    assert kind(find("POST", host, path)) == want


@pytest.mark.parametrize(
    ("method", "host", "path"),
    [
        ("GET", "api.openai.com", "/v1/models"),
        ("GET", "api.openai.com", "/v1/responses/resp_1"),
        ("POST", "api.openai.com", "/v1/responses/resp_1/cancel"),
        ("POST", "api.openai.com", "/v1/responses/input_tokens"),
        ("DELETE", "api.openai.com", "/v1/files/file-1"),
        ("POST", "api.openai.com", "/v1/files"),
        ("POST", "api.openai.com", "/v1/moderations"),
        ("POST", "api.openai.com", "/v1/threads/t/runs/r/cancel"),
        ("POST", "api.openai.com", "/v1/traces/ingest"),
        ("POST", "api.anthropic.com", "/v1/messages/count_tokens"),
        ("GET", "api.anthropic.com", "/v1/messages/batches/b/results"),
        ("POST", "api.anthropic.com", "/v1/messages/batches/b/cancel"),
        ("GET", "api.groq.com", "/openai/v1/models"),
        ("GET", "api.mistral.ai", "/v1/models"),
        ("HEAD", "openrouter.ai", "/api/v1/models"),
        ("get", "api.openai.com", "/v1/models"),
    ],
)
def test_reading_counting_and_managing_are_free(method: str, host: str, path: str) -> None:
    """T15: a retrieval shows the usage of a call that was billed when it was made."""
    assert kind(find(method, host, path)) == "free"


@pytest.mark.parametrize(
    ("method", "host", "path", "door"),
    [
        ("POST", "api.openai.com", "/v1/images/generations", "images"),
        ("POST", "api.openai.com", "/v1/audio/speech", "audio"),
        ("POST", "api.openai.com", "/v1/batches", "batches"),
        ("POST", "api.openai.com", "/v1/completions", "completions"),
        ("POST", "api.openai.com", "/v1/responses/compact", "responses/compact"),
        ("POST", "api.openai.com", "/v1/threads/t/runs", "assistants runs"),
        ("POST", "api.openai.com", "/v1/threads/runs", "assistants runs"),
        ("POST", "api.openai.com", "/v1/threads/t/runs/r/submit_tool_outputs", "assistants runs"),
        ("POST", "api.openai.com", "/v1/realtime/sessions", "realtime sessions"),
        ("GET", "api.openai.com", "/v1/realtime", "realtime"),
        ("POST", "api.openai.com", "/v1/videos", "videos"),
        ("POST", "api.openai.com", "/v1/fine_tuning/jobs", "fine-tuning"),
        ("POST", "api.anthropic.com", "/v1/complete", "completions"),
        ("POST", "api.anthropic.com", "/v1/messages/batches", "batches"),
        ("POST", AZURE, "/openai/deployments/d/images/generations", "images"),
        ("POST", AZURE, "/openai/deployments/d/completions", "completions"),
        ("POST", "api.groq.com", "/openai/v1/audio/transcriptions", "audio"),
        ("GET", "api.deepgram.com", "/v1/listen", "realtime"),
    ],
)
def test_doors_that_are_not_metered_yet_are_named(method: str, host: str, path: str, door: str) -> None:
    """T4: refused under a money gate, by name, never passed at zero."""
    match = find(method, host, path)
    assert kind(match) == "door"
    assert match is not None
    assert match.endpoint is not None
    assert match.endpoint.door == door


@pytest.mark.parametrize(
    ("host", "path", "provider"),
    [
        ("api.openai.com", "/v1/something/new", "openai"),
        ("api.openai.com", "/v2/chat/completions", "openai"),
        ("api.openai.com", "/v1/chat%2Fcompletions", "openai"),
        ("api.anthropic.com", "/v1/messages/new", "anthropic"),
        ("api.mistral.ai", "/v1/chat/completions", "mistral"),
        ("us-central1-aiplatform.googleapis.com", "/v1/projects/p:predict", "vertex"),
        ("bedrock-runtime.eu-central-1.amazonaws.com", "/model/m/converse", "bedrock"),
        ("x.services.ai.azure.com", "/anthropic/v1/messages", "azure-anthropic"),
        ("x.services.ai.azure.com", "/models/chat/completions", "azure-foundry"),
        ("api.cloudflare.com", "/client/v4/accounts/a/ai/run/m", "cloudflare"),
    ],
)
def test_unknown_doors_of_known_hosts_are_seen(host: str, path: str, provider: str) -> None:
    """T4."""
    match = find("POST", host, path)
    assert kind(match) == "unknown"
    assert match is not None
    assert match.row.name == provider


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("example.com", "/v1/chat/completions"),
        ("api.openai.com.example.com", "/v1/chat/completions"),
        ("notapi.openai.com.", "/v1/chat/completions"),
        ("openai.azure.com", "/openai/v1/responses"),
        ("api.cloudflare.com", "/client/v4/zones"),
        ("x.cognitiveservices.azure.com", "/vision/v3.2/analyze"),
        ("huggingface.co", "/api/models"),
        ("", "/"),
    ],
)
def test_other_hosts_are_left_alone(host: str, path: str) -> None:
    assert find("POST", host, path) is None


@pytest.mark.parametrize(
    "host",
    ["API.OpenAI.com", "api.openai.com.", "api.openai.com:443", "user:secret@api.openai.com", " api.openai.com:8443 "],
)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1//chat/completions/",
        "/v1/x/../chat/completions",
        "/V1/Chat/Completions",
        "/v1/chat/completions#stream",
    ],
)
def test_hosts_and_paths_are_normalised(host: str, path: str) -> None:
    """T4: another spelling is no way around."""
    assert kind(find("POST", host, path)) == "openai.chat"


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/openai/deployments/gpt-4o/chat/completions", "gpt-4o"),
        ("/openai/deployments/my%20model/chat/completions", "my model"),
        ("/openai/deployments/org%2Fgpt/chat/completions", "org/gpt"),
        ("/openai/v1/chat/completions", None),
    ],
)
def test_the_path_may_name_the_model(path: str, model: str | None) -> None:
    match = find("POST", AZURE, path)
    assert kind(match) == "openai.chat"
    assert match is not None
    assert match.path_model == model


@pytest.mark.parametrize(
    ("host", "port", "path", "want", "provider"),
    [
        ("127.0.0.1:8811", None, "/v1/chat/completions", "openai.chat", "openai"),
        ("127.0.0.1", 8811, "/v1/messages", "anthropic.messages", "anthropic"),
        ("127.0.0.1", 8811, "/chat/completions", "openai.chat", "openai"),
        ("127.0.0.1", 8811, "/mounted/here/v1/chat/completions", "openai.chat", "openai"),
        ("127.0.0.1", 8811, "/mounted/v1/messages", "anthropic.messages", "anthropic"),
        ("127.0.0.1", 8811, "/v1/images/generations", "door", "openai"),
        ("127.0.0.1", 8811, "/v1/unheard/of", "unknown", "openai"),
        ("gateway.internal", 443, "/v1/embeddings", "openai.embeddings", "openai"),
        ("GATEWAY.internal.", None, "/v1/embeddings", "openai.embeddings", "openai"),
    ],
)
def test_operators_hosts_are_told_apart_by_path(
    host: str, port: int | None, path: str, want: str, provider: str
) -> None:
    match = find("POST", host, path, MAPPED, port)
    assert kind(match) == want
    assert match is not None
    assert match.row.name == provider


def test_another_port_is_another_host() -> None:
    assert find("POST", "127.0.0.1", "/v1/messages", MAPPED, 8812) is None
    assert find("POST", "127.0.0.1", "/v1/messages", MAPPED) is None


def test_guards_know_every_provider_by_its_host() -> None:
    """The ones without a dialect too; on shared hosts only if the path is the provider's."""
    assert known_host("api.openai.com") == "openai"
    assert known_host("generativelanguage.googleapis.com:443") == "gemini"
    assert known_host("bedrock-runtime.us-east-1.amazonaws.com") == "bedrock"
    assert known_host("s3.us-east-1.amazonaws.com") is None
    assert known_host("api.cloudflare.com") is None
    assert known_host("api.cloudflare.com", "/client/v4/accounts/a/ai/run/m") == "cloudflare"
    assert known_host("api.cloudflare.com", "/client/v4/zones") is None
    assert len(set(KNOWN_OTHER_HOSTS.values())) >= 45
    for pattern, provider in KNOWN_OTHER_HOSTS.items():
        assert known_host(pattern.replace("*", "x")) == provider


def test_recorded_urls_mean_what_the_recordings_say(corpus: Callable[[], list[dict[str, Any]]]) -> None:
    """Generations are never free, retrievals and management never metered, foreign traffic never matched."""
    ours = {"openai", "azure-openai", "anthropic", "groq"}
    free_of_charge = {"moderations"}
    for one in corpus():
        url = urlsplit(one["url"])
        means = kind(find(one["method"], url.netloc, url.path))
        if one["provider"] is None:
            assert means == "foreign", one["id"]
        elif one["provider"] in ours:
            assert means != "foreign", one["id"]
            if one["kind"] == "generation":
                assert means not in ("free", "unknown") or one["endpoint"] in free_of_charge, one["id"]
            else:
                assert means in ("free", "door"), one["id"]


def test_what_is_remembered_is_bounded() -> None:
    """T29: hosts come from requests; a thousand are remembered, absurd ones are not."""
    for number in range(3_000):
        find("POST", f"host-{number}.example.com", "/")
    find("POST", "x" * 10_000 + ".openai.azure.com", "/openai/v1/responses")
    assert len(table._of_host) <= 1_024
    assert all(len(host) <= 253 for host in table._of_host)


def test_many_threads_may_ask_at_once() -> None:
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(300):
            if kind(find("POST", "api.openai.com", "/v1/responses")) != "openai.responses":
                wrong.append("openai")
            if find("POST", f"{number}-{turn}.example.org", "/") is not None:
                wrong.append("example")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_rows_say_what_bounds_need() -> None:
    assert ROWS["anthropic"].tools_framing >= 640
    assert ROWS["anthropic"].family == "claude"
    assert ROWS["openai"].asks_usage
    assert not ROWS["groq"].asks_usage
    assert ROWS["azure-openai"].asks_usage_if_query == (("api-version", "2024-09-01-preview"),)
    assert ROWS["azure-openai"].prices_as == ("azure-foundry", "openai")
