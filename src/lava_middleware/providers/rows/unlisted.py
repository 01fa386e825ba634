"""This file knows what the known formats' paths look like on a host that nobody has told us of."""

from __future__ import annotations

from ..endpoints import metered
from ..row import RECORDED, Row
from ..spoken import (
    CHAT_COMPATIBLE,
    COMPLETIONS_COMPATIBLE,
    EMBED_CONTENT,
    EMBEDDINGS,
    GENERATE,
    GENERATE_STREAM,
    MESSAGES,
    RESPONSES,
)

OPENAI_FORMAT = Row(
    name="openai-compatible",
    hosts=(),
    endpoints=(
        metered("/**/chat/completions", CHAT_COMPATIBLE),
        metered("/**/v1/completions", COMPLETIONS_COMPATIBLE),
        metered("/**/v1/responses", RESPONSES),
        metered("/**/v1/embeddings", EMBEDDINGS),
    ),
    family="open",
    framing=128,
    soft=True,
    prices_as=("openai",),
    evidence=RECORDED,
)
"""Usage is not asked for: an unknown host may refuse a request for it."""

ANTHROPIC_FORMAT = Row(
    name="anthropic-compatible",
    hosts=(),
    endpoints=(metered("/**/v1/messages", MESSAGES),),
    family="claude",
    tools_framing=640,
    soft=True,
    prices_as=("anthropic",),
    evidence=RECORDED,
)

GEMINI_FORMAT = Row(
    name="gemini-compatible",
    hosts=(),
    endpoints=(
        metered("/**/models/{model}:generateContent", GENERATE),
        metered("/**/models/{model}:streamGenerateContent", GENERATE_STREAM),
        metered("/**/models/{model}:embedContent", EMBED_CONTENT),
        metered("/**/models/{model}:batchEmbedContents", EMBED_CONTENT),
    ),
    family="open",
    soft=True,
    prices_as=("gemini",),
    evidence=RECORDED,
)

ROWS = (OPENAI_FORMAT, ANTHROPIC_FORMAT, GEMINI_FORMAT)
