"""This file knows the hosts that serve many vendors' models, or their own, in OpenAI's chat format.

What differs: the field that caps the output, whether usage in a stream must be asked for (and may be: elsewhere asking
is refused or needless), what they add to a prompt, whose price list applies, and whether they name the cost.
"""

from __future__ import annotations

from ...dialects.openai_chat import OpenAIChat
from ..endpoints import compatible, door, free, metered
from ..row import RECORDED, Endpoint, Row
from ..spoken import CHAT, CHAT_COMPATIBLE, CHAT_OF_AZURE, FIM
from .openai import openai_like

GPT_OSS = 128
"""Framing of hosts that serve gpt-oss, whose template adds a preamble of some 70 tokens."""

ALIBABA = ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com")
NEBIUS = ("api.studio.nebius.ai", "api.studio.nebius.com", "api.tokenfactory.nebius.com")

GROQ = Row(
    name="groq",
    hosts=("api.groq.com",),
    endpoints=(*openai_like("/openai/v1", CHAT), *compatible("/openai/v1", CHAT)),
    family="open",
    framing=GPT_OSS,
    evidence=RECORDED,
)
"""Its streams carry `x_groq.usage` without being asked."""

MISTRAL = Row(
    name="mistral",
    hosts=("api.mistral.ai", "codestral.mistral.ai"),
    endpoints=compatible(
        "/v1",
        CHAT_COMPATIBLE,
        more=(
            metered("/v1/fim/completions", FIM),
            metered("/v1/agents/completions", CHAT_COMPATIBLE),
            *door("moderations", "/v1/moderations", "/v1/chat/moderations"),
            *door("classifications", "/v1/classifications", "/v1/chat/classifications"),
            *door("ocr", "/v1/ocr"),
            *door("conversations", "/v1/conversations", "/v1/conversations/**"),
            *door("batches", "/v1/batch/jobs"),
            *door("fine-tuning", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/*/start"),
            *door("libraries", "/v1/libraries/**"),
            *free("agents", "/v1/agents", "/v1/libraries"),
            *free("cancelling", "/v1/batch/jobs/*/cancel", "/v1/fine_tuning/jobs/*/cancel"),
        ),
    ),
    family="open",
    system="mistral_ai",
    evidence=RECORDED,
)
"""It answers 422 to `stream_options`; its streams carry the usage anyway."""

XAI = Row(
    name="xai",
    hosts=("api.x.ai", "*.api.x.ai"),
    endpoints=compatible(
        "/v1",
        CHAT,
        more=(
            *free("token counting", "/v1/tokenize-text"),
            *door("completions", "/v1/complete", "/v1/completions"),
            *door("audio", "/v1/stt", "/v1/tts"),
            *door("search", "/v1/documents/search"),
            *door("realtime", "/v1/realtime/**"),
            *door("batches", "/v1/batches/**"),
        ),
    ),
    family="open",
    system="x_ai",
    framing=640,
    soft=True,
    asks_usage=True,
    reports_cost=True,
    evidence=RECORDED,
)
"""Reasoning is outside `completion_tokens` in chat and inside in responses; the total tells. Its models see a preamble
of several hundred tokens."""

PERPLEXITY = Row(
    name="perplexity",
    hosts=("api.perplexity.ai",),
    endpoints=(
        metered("/chat/completions", CHAT_COMPATIBLE),
        *door("async", "/async/**", "/v1/async/**"),
        *door("search", "/search", "/v1/search"),
        *compatible("/v1", CHAT_COMPATIBLE, more=door("agent", "/v1/agent", "/v1/responses")),
    ),
    family="open",
    framing=128,
    soft=True,
    reports_cost=True,
    evidence=RECORDED,
)
"""Usage is in every chunk, running up; `cost.total_cost` is whole only in the last one."""

OPENROUTER = Row(
    name="openrouter",
    hosts=("openrouter.ai",),
    endpoints=compatible("/api/v1", CHAT_COMPATIBLE),
    family="open",
    framing=768,  # what Grok adds behind it
    soft=True,
    reports_cost=True,
    evidence=RECORDED,
)
"""Usage and cost come always, `include_usage` has no effect. https://openrouter.ai/docs/use-cases/usage-accounting"""


def _host(
    name: str,
    *hosts: str,
    prefixes: tuple[str, ...] = ("/v1",),
    paths: tuple[str, ...] = (),
    more: tuple[Endpoint, ...] = (),
    cap: OpenAIChat = CHAT_COMPATIBLE,
    asks_usage: bool = False,
    framing: int = GPT_OSS,
    soft: bool = False,
    prices_as: tuple[str, ...] = (),
    evidence: str = RECORDED,
) -> Row:
    """A host whose only quirks are these."""
    return Row(
        name=name,
        hosts=hosts,
        endpoints=(*more, *(one for prefix in prefixes for one in compatible(prefix, cap))),
        paths=paths,
        family="open",
        framing=framing,
        soft=soft,
        asks_usage=asks_usage,
        prices_as=prices_as,
        evidence=evidence,
    )


HOSTS = (
    _host("deepseek", "api.deepseek.com", prefixes=("", "/v1", "/beta"), asks_usage=True),
    # Usage stands in the chunk with the finish reason, unasked.
    _host("together", "api.together.xyz", "api.together.ai"),
    _host("cerebras", "api.cerebras.ai", cap=CHAT, asks_usage=True),
    _host("alibaba", *ALIBABA, prefixes=("/compatible-mode/v1",), more=door("own format", "/api/v1/**")),
    _host("zai", "api.z.ai", "open.bigmodel.cn", prefixes=("/api/paas/v4", "/api/coding/paas/v4"), asks_usage=True),
    # It has a system prompt of its own, of up to 1,555 recorded tokens.
    _host("venice", "api.venice.ai", prefixes=("/api/v1",), asks_usage=True, framing=2_048, soft=True),
    # Usage is in every chunk, running up.
    _host(
        "databricks",
        *("*.cloud.databricks.com", "*.azuredatabricks.net", "*.gcp.databricks.com"),
        prefixes=("/serving-endpoints",),
        paths=("/serving-endpoints/**", "/ai-gateway/**"),
        more=door("invocations", "/serving-endpoints/*/invocations"),
        framing=256,
    ),
    _host("avian", "api.avian.io", asks_usage=True),
    _host(
        "cloudflare",
        "api.cloudflare.com",
        prefixes=("/client/v4/accounts/*/ai/v1",),
        paths=("/client/v4/accounts/*/ai/**",),
        more=door("own format", "/client/v4/accounts/*/ai/run/**"),
        asks_usage=True,
    ),
    _host("crusoe", "api.inference.crusoecloud.com", asks_usage=True),
    _host("doubleword", "api.doubleword.ai", asks_usage=True),
    _host("github-copilot", "api.githubcopilot.com", "*.githubcopilot.com", prefixes=("",), asks_usage=True),
    _host("heroku", "*.inference.heroku.com"),
    _host(
        "snowflake",
        "*.snowflakecomputing.com",
        prefixes=("/api/v2/cortex/v1",),
        paths=("/api/v2/cortex/**",),
        asks_usage=True,
    ),
    _host("vercel-gateway", "ai-gateway.vercel.sh", asks_usage=True),
    _host("bedrock-mantle", "bedrock-mantle.*.api.aws", prefixes=("/v1", "/openai/v1")),
    _host("voyage", "api.voyageai.com", more=door("multimodal embeddings", "/v1/multimodalembeddings")),
    # Known by what their vendors publish.
    _host(
        "fireworks",
        "api.fireworks.ai",
        prefixes=("/inference/v1",),
        asks_usage=True,
        evidence="fireworks-ai 1.2.30 of PyPI, 2026: fireworks/types/shared/usage_info.py",
    ),
    _host(
        "sambanova",
        *("api.sambanova.ai", "fast-api.snova.ai"),
        asks_usage=True,
        evidence="sambanova 1.4.0 of npm, 2026-05-15: resources/chat/completions.ts",
    ),
    # Usage stands in the choice of the last chunk, unasked.
    _host(
        "moonshot",
        *("api.moonshot.ai", "api.moonshot.cn"),
        evidence="https://platform.kimi.ai/docs/api/quickstart, 2026 (it names kimi-k2.5)",
    ),
    _host(
        "novita",
        "api.novita.ai",
        prefixes=("/v3/openai", "/openai/v1", "/openai"),
        asks_usage=True,
        evidence="https://github.com/novitalabs/novita-skills, quick-start.md, verified by its vendor on 2026-02-09",
    ),
    # Not verified: no recorded exchange, and no page of the vendor whose date could be told.
    _host("deepinfra", "api.deepinfra.com", prefixes=("/v1/openai",), evidence=""),
    _host("nebius", *NEBIUS, asks_usage=True, evidence=""),
    _host("hyperbolic", "api.hyperbolic.xyz", evidence=""),
    _host(
        "github-models",
        *("models.github.ai", "models.inference.ai.azure.com"),
        prefixes=("/inference", "/orgs/*/inference", ""),
        cap=CHAT_OF_AZURE,
        prices_as=("azure-foundry", "openai"),
        evidence="",
    ),
)

_ROUTED = (
    *("cerebras", "fireworks-ai", "groq", "hyperbolic", "nebius", "novita", "nscale", "ovhcloud", "publicai"),
    *("sambanova", "together"),
)
"""Providers behind Hugging Face's router that a path can name and a price list knows."""


def _routes(provider: str) -> tuple[str, ...]:
    """Where the router mounts a provider's own API: below its name, as that provider mounts it."""
    return tuple(f"/{provider}{prefix}" for prefix in ("/v1", "/v3/openai", "/openai/v1", "/inference/v1"))


HUGGINGFACE = (
    _host("huggingface", "router.huggingface.co", prefixes=("/v1", *_routes("*")), asks_usage=True),
    *(
        _host(
            "huggingface",
            "router.huggingface.co",
            prefixes=_routes(one),
            paths=(f"/{one}/**",),
            asks_usage=True,
            prices_as=(f"huggingface-{one}",),
        )
        for one in _ROUTED
    ),
)
"""On `/v1` the router chooses the provider, and with it the price: there the operator's own prices count."""

ROWS = (GROQ, MISTRAL, XAI, PERPLEXITY, OPENROUTER, *HOSTS, *HUGGINGFACE)
