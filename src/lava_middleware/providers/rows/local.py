"""This file knows the servers that people run themselves. They have no host of their own: `hosts` says where they are.

What a call costs there only the operator knows: `prices` says so, or that a model is free.
"""

from __future__ import annotations

from ..endpoints import compatible, door, free
from ..row import RECORDED, Row
from ..spoken import CHAT_COMPATIBLE, COMPLETIONS

OLLAMA = Row(
    name="ollama",
    hosts=("ollama.com",),
    paths=("/api/**", "/v1/**"),
    endpoints=(
        *door("own format", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
        *free("models", "/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/blobs/*"),
        *compatible("/v1", CHAT_COMPATIBLE),
    ),
    family="open",
    framing=128,
    asks_usage=True,
    evidence=RECORDED,
)
"""Locally and as a service. Its own format is not metered yet."""

VLLM = Row(
    name="vllm",
    hosts=(),
    endpoints=compatible(
        "/v1",
        CHAT_COMPATIBLE,
        completions=COMPLETIONS,
        more=free("token counting", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize"),
    ),
    family="open",
    framing=128,
    asks_usage=True,
    evidence=RECORDED,
)

LM_STUDIO = Row(
    name="lmstudio",
    hosts=(),
    endpoints=(*compatible("/v1", CHAT_COMPATIBLE), *door("own format", "/api/v0/**", "/api/v1/**")),
    family="open",
    framing=128,
    asks_usage=True,
    evidence=RECORDED,
)

LLAMA_CPP = Row(
    name="llamacpp",
    hosts=(),
    endpoints=compatible(
        "/v1", CHAT_COMPATIBLE, more=(*free("token counting", "/tokenize", "/detokenize"), *door("own", "/completion"))
    ),
    family="open",
    framing=128,
    asks_usage=True,
    evidence=RECORDED,
)

LITELLM = Row(
    name="litellm-proxy",
    hosts=(),
    endpoints=(*compatible("/v1", CHAT_COMPATIBLE), *compatible("", CHAT_COMPATIBLE)),
    family="open",
    framing=128,
    soft=True,
    asks_usage=True,
    prices_as=("openai", "anthropic", "gemini"),
    evidence=RECORDED,
)
"""A proxy in front of many providers, whose models it may give names of its own."""

ROWS = (OLLAMA, VLLM, LM_STUDIO, LLAMA_CPP, LITELLM)
