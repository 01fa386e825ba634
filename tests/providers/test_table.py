"""Every request to a provider is metered, free, a known door, or an unknown one; none is overlooked (T4)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from lava_middleware.providers import rows, table
from lava_middleware.providers.row import RECORDED, Match
from lava_middleware.providers.table import KNOWN_OTHER_HOSTS, ROWS, UNVERIFIED, find, find_by_path, known_host

AZURE = "example-resource.openai.azure.com"
GOOGLE = "generativelanguage.googleapis.com"
VERTEX = "us-central1-aiplatform.googleapis.com"
PROJECT = "projects/p/locations/us-central1"
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
        ("x.services.ai.azure.com", "/models/chat/completions?api-version=2024-05-01-preview", "openai.chat"),
        ("x.services.ai.azure.com", "/anthropic/v1/messages", "anthropic.messages"),
        (AZURE, "/openai/deployments/d/completions", "openai.completions"),
        ("api.openai.com", "/v1/completions", "openai.completions"),
        (GOOGLE, "/v1beta/models/gemini-2.5-flash:generateContent", "gemini.generate"),
        (GOOGLE, "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", "gemini.stream"),
        (GOOGLE, "/v1beta/models/gemini-2.5-flash%3AstreamGenerateContent", "gemini.stream"),
        (GOOGLE, "/v1beta/tunedModels/mine:generateContent", "gemini.generate"),
        (GOOGLE, "/v1/models/gemini-embedding-001:batchEmbedContents", "gemini.embeddings"),
        (GOOGLE, "/v1beta/openai/chat/completions", "openai.chat"),
        (VERTEX, f"/v1/{PROJECT}/publishers/google/models/gemini-2.5-pro:streamGenerateContent", "gemini.stream"),
        (
            VERTEX,
            f"/v1/{PROJECT}/publishers/anthropic/models/claude-haiku-4-5@20251001:rawPredict",
            "anthropic.messages",
        ),
        ("api.mistral.ai", "/v1/fim/completions", "mistral.fim"),
        ("api.mistral.ai", "/v1/agents/completions", "openai.chat"),
        ("api.deepseek.com", "/chat/completions", "openai.chat"),
        ("api.deepseek.com", "/beta/completions", "openai.completions"),
        ("api.x.ai", "/v1/responses", "openai.responses"),
        ("openrouter.ai", "/api/v1/chat/completions", "openai.chat"),
        ("api.perplexity.ai", "/chat/completions", "openai.chat"),
        ("api.cerebras.ai", "/v1/chat/completions", "openai.chat"),
        ("api.together.xyz", "/v1/completions", "openai.completions"),
        ("api.fireworks.ai", "/inference/v1/chat/completions", "openai.chat"),
        ("api.novita.ai", "/v3/openai/chat/completions", "openai.chat"),
        ("api.moonshot.ai", "/v1/chat/completions", "openai.chat"),
        ("api.sambanova.ai", "/v1/chat/completions", "openai.chat"),
        ("api.z.ai", "/api/coding/paas/v4/chat/completions", "openai.chat"),
        ("dashscope-intl.aliyuncs.com", "/compatible-mode/v1/chat/completions", "openai.chat"),
        ("router.huggingface.co", "/v1/chat/completions", "openai.chat"),
        ("router.huggingface.co", "/novita/v3/openai/chat/completions", "openai.chat"),
        ("adb-1.7.azuredatabricks.net", "/serving-endpoints/chat/completions", "openai.chat"),
        ("api.venice.ai", "/api/v1/embeddings", "openai.embeddings"),
        ("ollama.com", "/v1/chat/completions", "openai.chat"),
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
        ("POST", GOOGLE, "/v1beta/models/gemini-2.5-flash:countTokens"),
        ("POST", GOOGLE, "/upload/v1beta/files"),
        ("GET", GOOGLE, "/v1beta/cachedContents/c"),
        ("POST", VERTEX, f"/v1/{PROJECT}/publishers/anthropic/models/count-tokens:rawPredict"),
        ("POST", "x.services.ai.azure.com", "/anthropic/v1/messages/count_tokens"),
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
        ("POST", GOOGLE, "/v1beta/cachedContents", "context caching"),
        ("PATCH", GOOGLE, "/v1beta/cachedContents/c", "context caching"),
        ("POST", GOOGLE, "/v1beta/interactions", "interactions"),
        ("POST", GOOGLE, "/v1beta/models/m:batchGenerateContent", "batches"),
        ("POST", GOOGLE, "/v1beta/models/veo:predictLongRunning", "images and videos"),
        ("POST", GOOGLE, "/v1beta/fileSearchStores/s:importFile", "file search"),
        ("POST", "api.mistral.ai", "/v1/ocr", "ocr"),
        ("POST", "api.mistral.ai", "/v1/moderations", "moderations"),
        ("POST", "api.mistral.ai", "/v1/conversations", "conversations"),
        ("POST", "api.x.ai", "/v1/images/generations", "images"),
        ("POST", "api.x.ai", "/v1/tts", "audio"),
        ("GET", "api.x.ai", "/v1/realtime", "realtime"),
        ("POST", "api.together.xyz", "/v1/rerank", "rerank"),
        ("POST", "ollama.com", "/api/chat", "own format"),
        ("POST", "api.hyperbolic.xyz", "/v1/chat/completions", "hyperbolic, not verified"),
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
        ("api.mistral.ai", "/v1/something/new", "mistral"),
        (GOOGLE, "/v1beta/models/m:thinkHard", "gemini"),
        (GOOGLE, "/v1beta/models/:generateContent", "gemini"),
        ("api.hyperbolic.xyz", "/v1/something/new", "hyperbolic"),
        ("us-central1-aiplatform.googleapis.com", "/v1/projects/p:predict", "vertex"),
        ("bedrock-runtime.eu-central-1.amazonaws.com", "/model/m/converse", "bedrock"),
        ("x.services.ai.azure.com", "/anthropic/v1/unheard/of", "azure-anthropic"),
        ("x.services.ai.azure.com", "/models/unheard/of", "azure-foundry"),
        ("api.cloudflare.com", "/client/v4/accounts/a/ai/unheard/of", "cloudflare"),
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
    ("host", "path", "model"),
    [
        (GOOGLE, "/v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash"),
        (GOOGLE, "/v1beta/models/gemini-2.5-flash%3AgenerateContent", "gemini-2.5-flash"),
        (GOOGLE, "/V1BETA/models/Gemini-X:GENERATECONTENT", "Gemini-X"),
        (GOOGLE, "/v1beta/models/org%2Fm:streamGenerateContent", "org/m"),
        (VERTEX, f"/v1/{PROJECT}/publishers/anthropic/models/claude-x@20251001:streamRawPredict", "claude-x@20251001"),
    ],
)
def test_the_path_may_name_the_model_before_a_verb(host: str, path: str, model: str) -> None:
    """Percent-encoded or not, in any case."""
    match = find("POST", host, path)
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
    assert len({*KNOWN_OTHER_HOSTS.values(), *ROWS}) >= 70
    for pattern, provider in KNOWN_OTHER_HOSTS.items():
        assert known_host(pattern.replace("*", "x")) == provider


DIALECT_OF = {
    # endpoint, as the recordings name it → our dialect. One that is missing has none yet.
    "chat.completions": "openai.chat",
    "agents.completions": "openai.chat",
    "completions": "openai.completions",
    "fim.completions": "mistral.fim",
    "responses": "openai.responses",
    "embeddings": "openai.embeddings",
    "messages": "anthropic.messages",
    "rawPredict": "anthropic.messages",
    "streamRawPredict": "anthropic.messages",
    "generateContent": "gemini.generate",
    "streamGenerateContent": "gemini.stream",
    "embedContent": "gemini.embeddings",
    "batchEmbedContents": "gemini.embeddings",
}


def test_every_metered_row_says_how_its_format_is_known(corpus: Callable[[], list[dict[str, Any]]]) -> None:
    """Recorded, or a dated page or release of the vendor; else it is refused by default, and listed."""
    metered = [row for row in rows.ROWS if row.evidence]
    recorded = {one["provider"] for one in corpus()} | {"vertex", "vllm"}  # recorded under the names of what they serve
    assert all(row.name in recorded for row in metered if row.evidence == RECORDED)
    assert all("2026" in row.evidence for row in metered if row.evidence != RECORDED)
    assert UNVERIFIED == ("deepinfra", "github-models", "hyperbolic", "nebius")


def test_a_row_that_is_not_verified_is_refused_until_an_operator_names_it() -> None:
    """T4: he has tried it; we have not."""
    path = "/v1/chat/completions"
    for name in UNVERIFIED:
        assert not any(one.dialect for row in table._ALL if row.name == name for one in row.endpoints)
    named = {"api.hyperbolic.xyz": (ROWS["hyperbolic"],)}
    assert kind(find("POST", "api.hyperbolic.xyz", path, named)) == "openai.chat"
    assert kind(find("GET", "api.hyperbolic.xyz", "/v1/models")) == "free"


@pytest.mark.parametrize(
    ("server", "path", "want"),
    [
        ("ollama", "/v1/chat/completions", "openai.chat"),
        ("ollama", "/api/chat", "door"),
        ("ollama", "/api/show", "free"),
        ("vllm", "/v1/completions", "openai.completions"),
        ("vllm", "/tokenize", "free"),
        ("lmstudio", "/v1/responses", "openai.responses"),
        ("llamacpp", "/v1/embeddings", "openai.embeddings"),
        ("litellm-proxy", "/chat/completions", "openai.chat"),
        ("gemini", "/models/gemini-2.5-flash:generateContent", "gemini.generate"),
    ],
)
def test_local_servers_are_where_the_operator_says(server: str, path: str, want: str) -> None:
    match = find("POST", "localhost:11434", path, {"localhost:11434": (ROWS[server],)})
    assert kind(match) == want


@pytest.mark.parametrize(
    ("path", "want", "provider", "model"),
    [
        ("/v1/chat/completions", "openai.chat", "openai-compatible", None),
        ("/api/paas/v9/chat/completions", "openai.chat", "openai-compatible", None),
        ("/any/v1/completions", "openai.completions", "openai-compatible", None),
        ("/v1/responses", "openai.responses", "openai-compatible", None),
        ("/openai/v1/embeddings", "openai.embeddings", "openai-compatible", None),
        ("/anthropic/v1/messages", "anthropic.messages", "anthropic-compatible", None),
        ("/g/v1beta/models/gemini-3%3AgenerateContent", "gemini.generate", "gemini-compatible", "gemini-3"),
        ("/models/m:streamGenerateContent?alt=sse", "gemini.stream", "gemini-compatible", "m"),
    ],
)
def test_a_known_format_is_recognised_by_its_path(path: str, want: str, provider: str, model: str | None) -> None:
    match = find_by_path("post", path)
    assert kind(match) == want
    assert match is not None
    assert (match.row.name, match.path_model) == (provider, model)
    assert match.row.soft or provider == "gemini-compatible"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/completions"),
        ("POST", "/messages"),
        ("POST", "/v1/users"),
        ("POST", "/"),
    ],
)
def test_other_paths_of_unknown_hosts_are_nobodys_business(method: str, path: str) -> None:
    assert find_by_path(method, path) is None


def test_recorded_urls_mean_what_the_recordings_say(corpus: Callable[[], list[dict[str, Any]]]) -> None:
    """Generations are never free, retrievals and management never metered, foreign traffic never matched."""
    ours = {*ROWS, "vertex-gemini", "vertex-anthropic"}
    free_of_charge = {("openai", "moderations"), ("azure-openai", "moderations")}
    for one in corpus():
        url = urlsplit(one["url"])
        means = kind(find(one["method"], url.netloc, url.path))
        if one["provider"] is None:
            assert means == "foreign", one["id"]
        elif one["provider"] in ours and not url.netloc.startswith(("localhost", "127.", "0.")):
            assert means != "foreign", one["id"]
            if one["kind"] == "generation":
                assert means != "free" or (one["provider"], one["endpoint"]) in free_of_charge, one["id"]
                if one["endpoint"] in DIALECT_OF:
                    assert means == DIALECT_OF[one["endpoint"]], one["id"]
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
    for name in ("groq", "mistral", "openrouter", "perplexity", "together", "databricks", "moonshot", "alibaba"):
        assert not ROWS[name].asks_usage
    for name in ("xai", "deepseek", "fireworks", "sambanova", "novita", "huggingface", "vllm", "gemini"):
        assert ROWS[name].asks_usage
    assert {name for name, row in ROWS.items() if row.reports_cost} == {"openrouter", "xai", "perplexity"}
    assert {name for name, row in ROWS.items() if row.soft} >= {"venice", "xai", "perplexity"}
    assert ROWS["azure-openai"].asks_usage_if_query == (("api-version", "2024-09-01-preview"),)
    assert ROWS["azure-openai"].prices_as == ("azure-foundry", "openai")
