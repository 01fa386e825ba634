"""This file knows the providers, their endpoints, and which of them a request is for.

A path that is missing on a host we know is an unknown door: it is refused under a money gate, never passed at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from types import MappingProxyType

from cachetools import LRUCache

from ..dialects.anthropic_messages import AnthropicMessages
from ..dialects.dialect import Dialect
from ..dialects.openai_chat import OpenAIChat
from ..dialects.openai_embeddings import OpenAIEmbeddings
from ..dialects.openai_responses import OpenAIResponses
from .matching import LONGEST_HOST, Hosts, Paths, normal_host, normal_path
from .others import ROWS_WITHOUT_ENDPOINTS
from .row import Endpoint, Match, Row

CHAT = OpenAIChat("max_completion_tokens")
CHAT_OF_AZURE = OpenAIChat("by_model")
CHAT_COMPATIBLE = OpenAIChat("max_tokens")
RESPONSES = OpenAIResponses()
EMBEDDINGS = OpenAIEmbeddings()
MESSAGES = AnthropicMessages()


def _metered(path: str, dialect: Dialect) -> Endpoint:
    return Endpoint(("POST",), path, dialect, door=dialect.name)


def _free(door: str, *paths: str) -> tuple[Endpoint, ...]:
    """POSTs that cost nothing."""
    return tuple(Endpoint(("POST",), path, free=True, door=door) for path in paths)


def _door(door: str, *paths: str) -> tuple[Endpoint, ...]:
    """Known, billable, and not metered yet."""
    return tuple(Endpoint(("POST",), path, door=door) for path in paths)


def _sockets(door: str, *paths: str) -> tuple[Endpoint, ...]:
    """GETs that open a connection on which work is billed."""
    return tuple(Endpoint(("GET",), path, door=door) for path in paths)


_READING = (
    Endpoint(("GET", "HEAD", "OPTIONS"), "/**", free=True, door="reading"),
    Endpoint(("DELETE", "PUT", "PATCH"), "/**", free=True, door="management"),
)
"""Reading, renaming and deleting are not billed; a retrieval shows the usage of an earlier call, which was."""


def _openai_like(prefix: str, chat: Dialect) -> tuple[Endpoint, ...]:
    """The paths of OpenAI's API behind a prefix, as it and those who took over its format serve them."""

    def at(*paths: str) -> tuple[str, ...]:
        return tuple(prefix + path for path in paths)

    return (
        _metered(prefix + "/chat/completions", chat),
        _metered(prefix + "/responses", RESPONSES),
        _metered(prefix + "/embeddings", EMBEDDINGS),
        *_free("moderations", *at("/moderations")),
        *_free("files", *at("/files", "/uploads", "/uploads/*/parts", "/uploads/*/complete", "/uploads/*/cancel")),
        *_free("token counting", *at("/responses/input_tokens")),
        *_free("cancelling", *at("/responses/*/cancel", "/batches/*/cancel", "/evals/*/runs/*/cancel")),
        *_free("stored completions", *at("/chat/completions/*")),
        *_free("conversations", *at("/conversations", "/conversations/*", "/conversations/*/items")),
        *_door("completions", *at("/completions")),
        *_door("responses/compact", *at("/responses/compact")),
        *_door("batches", *at("/batches")),
        *_door("images", *at("/images/**")),
        *_door("audio", *at("/audio/**")),
        *_door("videos", *at("/videos", "/videos/**")),
        *_door("realtime sessions", *at("/realtime/**", "/live/**")),
        *_sockets("realtime", *at("/realtime", "/live", "/live/sessions/*/attach")),
        *_sockets("responses over a socket", *at("/responses")),
        *_door("fine-tuning", *at("/fine_tuning/jobs", "/fine_tuning/jobs/*/resume", "/fine_tuning/alpha/graders/run")),
        *_free("fine-tuning", *at("/fine_tuning/jobs/*/cancel", "/fine_tuning/jobs/*/pause")),
        *_free("fine-tuning", *at("/fine_tuning/checkpoints/*/permissions", "/fine_tuning/alpha/graders/validate")),
        *_door("evals", *at("/evals/*/runs")),
        *_free("evals", *at("/evals", "/evals/*")),
        *_door("assistants runs", *at("/threads/runs", "/threads/*/runs", "/threads/*/runs/*/submit_tool_outputs")),
        *_free("assistants", *at("/assistants", "/assistants/*", "/threads", "/threads/*", "/threads/*/runs/*")),
        *_free("assistants", *at("/threads/*/messages", "/threads/*/messages/*", "/threads/*/runs/*/cancel")),
        *_door("vector search", *at("/vector_stores/*/search")),
        *_free("vector stores", *at("/vector_stores", "/vector_stores/*", "/vector_stores/*/files")),
        *_free("vector stores", *at("/vector_stores/*/files/*", "/vector_stores/*/file_batches")),
        *_free("vector stores", *at("/vector_stores/*/file_batches/*/cancel")),
        *_door("containers", *at("/containers")),
        *_free("containers", *at("/containers/*/files")),
        *_free("skills", *at("/skills", "/skills/**")),
    )


OPENAI = Row(
    name="openai",
    hosts=("api.openai.com", "*.api.openai.com"),
    endpoints=(
        *_openai_like("/v1", CHAT),
        *_free("administration", "/v1/organization/**", "/v1/projects/**", "/v1/traces/ingest"),
        *_door("agents", "/v1/agents/**", "/v1/chatkit/**", "/v1/decisions", "/v1/decisions/**"),
        *_READING,
    ),
    asks_usage=True,
)

AZURE_OPENAI = Row(
    name="azure-openai",
    hosts=("*.openai.azure.com", "*.openai.azure.us", "*.openai.azure.cn"),
    endpoints=(
        _metered("/openai/deployments/{model}/chat/completions", CHAT_OF_AZURE),
        _metered("/openai/deployments/{model}/responses", RESPONSES),
        _metered("/openai/deployments/{model}/embeddings", EMBEDDINGS),
        *_door("completions", "/openai/deployments/*/completions"),
        *_door("on your data", "/openai/deployments/*/extensions/chat/completions"),
        *_door("images", "/openai/deployments/*/images/**"),
        *_door("audio", "/openai/deployments/*/audio/**"),
        *_openai_like("/openai/v1", CHAT_OF_AZURE),
        *_openai_like("/openai", CHAT_OF_AZURE),
        *_READING,
    ),
    system="azure.ai.openai",
    asks_usage=True,
    # https://learn.microsoft.com/azure/ai-foundry/openai/reference: older versions answer 400 to stream_options
    asks_usage_if_query=(("api-version", "2024-09-01-preview"),),
    prices_as=("azure-foundry", "openai"),
)

AZURE_OPENAI_SHARED = replace(
    AZURE_OPENAI,
    hosts=("*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
    paths=("/openai/**",),
)
"""The same on hosts where Azure serves other vendors' models, and vision and speech."""

ANTHROPIC = Row(
    name="anthropic",
    hosts=("api.anthropic.com",),
    endpoints=(
        _metered("/v1/messages", MESSAGES),
        *_free("token counting", "/v1/messages/count_tokens"),
        *_door("batches", "/v1/messages/batches"),
        *_free("cancelling", "/v1/messages/batches/*/cancel"),
        _metered("/v1/chat/completions", CHAT_COMPATIBLE),
        *_door("completions", "/v1/complete"),
        *_free("files", "/v1/files"),
        *_free("skills", "/v1/skills", "/v1/skills/**"),
        *_free("administration", "/v1/organizations/**", "/v1/user_profiles", "/v1/user_profiles/**"),
        *_door("agents", "/v1/agents/**", "/v1/sessions/**", "/v1/deployments/**", "/v1/dreams/**"),
        *_door("agents", "/v1/environments/**", "/v1/memory_stores/**", "/v1/vaults/**"),
        *_READING,
    ),
    family="claude",
    tools_framing=640,
)

GROQ = Row(
    name="groq",
    hosts=("api.groq.com",),
    endpoints=(
        *_openai_like("/openai/v1", CHAT),
        *_READING,
    ),
    family="open",
    framing=128,
)
"""Its streams carry `x_groq.usage` without being asked. The framing is that of gpt-oss, which adds a preamble."""

ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in (OPENAI, AZURE_OPENAI, ANTHROPIC, GROQ)})
"""Metered providers by name, as operators write them in `hosts`."""

_ALL = (*ROWS.values(), AZURE_OPENAI_SHARED, *ROWS_WITHOUT_ENDPOINTS)

KNOWN_OTHER_HOSTS: Mapping[str, str] = MappingProxyType(
    {host: row.name for row in ROWS_WITHOUT_ENDPOINTS if not row.paths for host in row.hosts}
)
"""Host patterns of providers without a dialect yet → the provider's name."""

_hosts = Hosts(_ALL)
_paths: dict[int, Paths] = {}
_of_host: LRUCache[str, tuple[Row, ...]] = LRUCache(maxsize=1_024)
_lock = Lock()


def find(
    method: str, host: str, path: str, hosts: Mapping[str, tuple[Row, ...]] | None = None, port: int | None = None
) -> Match | None:
    """What a request is for; None: it is not for a provider.

    `hosts` are the operator's own: "127.0.0.1:8811" or a bare name → rows, told apart by path. There the API may be
    mounted below a prefix, with or without its `/v1`.
    """
    if hosts:
        name, port = normal_host(host, port)
        mine = (hosts.get(f"{name}:{port}") if port is not None else None) or hosts.get(name)
        if mine:
            return _at_operators_host(method.upper(), normal_path(path), mine)
    rows = _rows_of(host)
    if not rows:
        return None
    method, plain = method.upper(), normal_path(path)
    for row in rows:
        paths = _paths_of(row)
        if paths.owns(plain):
            endpoint, model = paths.match(method, plain) or (None, None)
            return Match(row, endpoint, model)
    return None


def known_host(host: str, path: str | None = None) -> str | None:
    """The name of the provider that a host belongs to; of a host with other services too, only if the path is given
    and is the provider's."""
    plain = None if path is None else normal_path(path)
    for row in _rows_of(host):
        if not row.paths or (plain is not None and _paths_of(row).owns(plain)):
            return row.name
    return None


def _rows_of(host: str) -> tuple[Row, ...]:
    """The rows of a host, however it is written. Answers are kept for hosts of a sane length."""
    with _lock:
        rows = _of_host.get(host)
    if rows is None:
        rows = _hosts.rows(normal_host(host)[0])
        if len(host) <= LONGEST_HOST:
            with _lock:
                _of_host[host] = rows
    return rows


def _paths_of(row: Row) -> Paths:
    """The row's patterns, made when they are first needed. They keep the row alive, so that its id stays its own."""
    paths = _paths.get(id(row))
    if paths is None:
        paths = _paths[id(row)] = Paths(row)
    return paths


def _at_operators_host(method: str, path: str, rows: tuple[Row, ...]) -> Match:
    """The first row with an endpoint for the path as it is, else with a metered or a read one for the path without
    its first segments."""
    for row in rows:
        if (found := _paths_of(row).match(method, path)) is not None:
            return Match(row, *found)
    segments = path.strip("/").split("/")
    for start in range(min(len(segments), 5)):
        rest = "/" + "/".join(segments[start:])
        for candidate in (rest, "/v1" + rest):
            for row in rows:
                found = _paths_of(row).match(method, candidate)
                if found is not None and found[0].dialect is not None:
                    return Match(row, *found)
    return Match(rows[0], None)
