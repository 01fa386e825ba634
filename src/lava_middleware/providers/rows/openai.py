"""This file knows OpenAI, and Azure's three hosts, which serve OpenAI's models, Anthropic's and others."""

from __future__ import annotations

from dataclasses import replace

from ...dialects.dialect import Dialect
from ..endpoints import READING, door, free, metered, sockets
from ..row import RECORDED, Endpoint, Row
from ..spoken import CHAT, CHAT_OF_AZURE, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES


def openai_like(prefix: str, chat: Dialect) -> tuple[Endpoint, ...]:
    """The paths of OpenAI's API behind a prefix, as it and those who took over its format serve them."""

    def at(*paths: str) -> tuple[str, ...]:
        return tuple(prefix + path for path in paths)

    return (
        metered(prefix + "/chat/completions", chat),
        metered(prefix + "/responses", RESPONSES),
        metered(prefix + "/embeddings", EMBEDDINGS),
        metered(prefix + "/completions", COMPLETIONS),
        *free("moderations", *at("/moderations")),
        *free("files", *at("/files", "/uploads", "/uploads/*/parts", "/uploads/*/complete", "/uploads/*/cancel")),
        *free("token counting", *at("/responses/input_tokens")),
        *free("cancelling", *at("/responses/*/cancel", "/batches/*/cancel", "/evals/*/runs/*/cancel")),
        *free("stored completions", *at("/chat/completions/*")),
        *free("conversations", *at("/conversations", "/conversations/*", "/conversations/*/items")),
        *door("responses/compact", *at("/responses/compact")),
        *door("batches", *at("/batches")),
        *door("images", *at("/images/**")),
        *door("audio", *at("/audio/**")),
        *door("videos", *at("/videos", "/videos/**")),
        *door("realtime sessions", *at("/realtime/**", "/live/**")),
        *sockets("realtime", *at("/realtime", "/live", "/live/sessions/*/attach")),
        *sockets("responses over a socket", *at("/responses")),
        *door("fine-tuning", *at("/fine_tuning/jobs", "/fine_tuning/jobs/*/resume", "/fine_tuning/alpha/graders/run")),
        *free("fine-tuning", *at("/fine_tuning/jobs/*/cancel", "/fine_tuning/jobs/*/pause")),
        *free("fine-tuning", *at("/fine_tuning/checkpoints/*/permissions", "/fine_tuning/alpha/graders/validate")),
        *door("evals", *at("/evals/*/runs")),
        *free("evals", *at("/evals", "/evals/*")),
        *door("assistants runs", *at("/threads/runs", "/threads/*/runs", "/threads/*/runs/*/submit_tool_outputs")),
        *free("assistants", *at("/assistants", "/assistants/*", "/threads", "/threads/*", "/threads/*/runs/*")),
        *free("assistants", *at("/threads/*/messages", "/threads/*/messages/*", "/threads/*/runs/*/cancel")),
        *door("vector search", *at("/vector_stores/*/search")),
        *free("vector stores", *at("/vector_stores", "/vector_stores/*", "/vector_stores/*/files")),
        *free("vector stores", *at("/vector_stores/*/files/*", "/vector_stores/*/file_batches")),
        *free("vector stores", *at("/vector_stores/*/file_batches/*/cancel")),
        *door("containers", *at("/containers")),
        *free("containers", *at("/containers/*/files")),
        *free("skills", *at("/skills", "/skills/**")),
    )


OPENAI = Row(
    name="openai",
    hosts=("api.openai.com", "*.api.openai.com"),
    endpoints=(
        *openai_like("/v1", CHAT),
        *free("administration", "/v1/organization/**", "/v1/projects/**", "/v1/traces/ingest"),
        *door("agents", "/v1/agents/**", "/v1/chatkit/**", "/v1/decisions", "/v1/decisions/**"),
        *READING,
    ),
    asks_usage=True,
    evidence=RECORDED,
)

AZURE_OPENAI = Row(
    name="azure-openai",
    hosts=("*.openai.azure.com", "*.openai.azure.us", "*.openai.azure.cn"),
    endpoints=(
        metered("/openai/deployments/{model}/chat/completions", CHAT_OF_AZURE),
        metered("/openai/deployments/{model}/responses", RESPONSES),
        metered("/openai/deployments/{model}/embeddings", EMBEDDINGS),
        metered("/openai/deployments/{model}/completions", COMPLETIONS),
        *door("on your data", "/openai/deployments/*/extensions/chat/completions"),
        *door("images", "/openai/deployments/*/images/**"),
        *door("audio", "/openai/deployments/*/audio/**"),
        *openai_like("/openai/v1", CHAT_OF_AZURE),
        *openai_like("/openai", CHAT_OF_AZURE),
        *READING,
    ),
    system="azure.ai.openai",
    asks_usage=True,
    # https://learn.microsoft.com/azure/ai-foundry/openai/reference: older versions answer 400 to stream_options
    asks_usage_if_query=(("api-version", "2024-09-01-preview"),),
    prices_as=("azure-foundry", "openai"),
    evidence=RECORDED,
)

AZURE_OPENAI_SHARED = replace(
    AZURE_OPENAI,
    hosts=("*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
    paths=("/openai/**",),
)
"""The same on hosts where Azure serves other vendors' models, and vision and speech."""

AZURE_ANTHROPIC = Row(
    name="azure-anthropic",
    hosts=("*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
    paths=("/anthropic/**",),
    endpoints=(
        metered("/anthropic/v1/messages", MESSAGES),
        *free("token counting", "/anthropic/v1/messages/count_tokens"),
        *door("batches", "/anthropic/v1/messages/batches"),
        *READING,
    ),
    family="claude",
    system="azure.ai.inference",
    tools_framing=640,
    prices_as=("azure-foundry", "anthropic"),
    evidence=RECORDED,
)

AZURE_FOUNDRY = Row(
    name="azure-foundry",
    hosts=("*.services.ai.azure.com",),
    endpoints=(
        metered("/models/chat/completions", CHAT_OF_AZURE),
        metered("/models/embeddings", EMBEDDINGS),
        *door("images", "/models/images/embeddings", "/providers/**"),
        *READING,
    ),
    family="open",
    system="azure.ai.inference",
    framing=128,
    asks_usage=True,
    prices_as=("azure-openai", "openai"),
    evidence=RECORDED,
)
"""Models of many vendors behind one path; the body, or a header, names the model."""

AZURE_FOUNDRY_SHARED = replace(
    AZURE_FOUNDRY, hosts=("*.cognitiveservices.azure.com",), paths=("/models/**", "/providers/**")
)

ROWS = (OPENAI, AZURE_OPENAI, AZURE_OPENAI_SHARED, AZURE_ANTHROPIC, AZURE_FOUNDRY, AZURE_FOUNDRY_SHARED)
