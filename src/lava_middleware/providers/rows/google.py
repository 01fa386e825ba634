"""This file knows Google's two doors to Gemini, AI Studio and Vertex AI, and the Claude models on the latter."""

from __future__ import annotations

from ...dialects.dialect import Dialect
from ..endpoints import READING, SOCKETS, compatible, door, free, metered
from ..row import RECORDED, Endpoint, Row
from ..spoken import CHAT_COMPATIBLE, EMBED_CONTENT, GENERATE, GENERATE_STREAM, MESSAGES

_VERBS: tuple[tuple[str, Dialect], ...] = (
    ("generateContent", GENERATE),
    ("streamGenerateContent", GENERATE_STREAM),
    ("embedContent", EMBED_CONTENT),
    ("batchEmbedContents", EMBED_CONTENT),
)


def _models(*prefixes: str) -> tuple[Endpoint, ...]:
    """What a model can be asked to do, wherever its name stands."""
    return (
        *(metered(f"{prefix}/{{model}}:{verb}", dialect) for prefix in prefixes for verb, dialect in _VERBS),
        *(one for prefix in prefixes for one in free("token counting", f"{prefix}/*:countTokens")),
        *(one for prefix in prefixes for one in free("token counting", f"{prefix}/*:computeTokens")),
        *(one for prefix in prefixes for one in door("images and videos", f"{prefix}/*:predict")),
        *(one for prefix in prefixes for one in door("images and videos", f"{prefix}/*:predictLongRunning")),
        *(one for prefix in prefixes for one in door("batches", f"{prefix}/*:batchGenerateContent")),
        *(one for prefix in prefixes for one in door("batches", f"{prefix}/*:asyncBatchEmbedContent")),
    )


def _caches(path: str) -> tuple[Endpoint, ...]:
    """A cache is billed by the hour it is kept; a PATCH keeps it longer.

    https://ai.google.dev/gemini-api/docs/caching#pricing
    """
    return (*door("context caching", path), Endpoint(("PATCH",), path + "/*", door="context caching"))


GEMINI = Row(
    name="gemini",
    hosts=("generativelanguage.googleapis.com", "*.generativelanguage.googleapis.com"),
    endpoints=(
        *_models("/*/models", "/*/tunedModels", "/*/dynamic"),
        *_caches("/*/cachedContents"),
        *door("interactions", "/*/interactions", "/*/interactions/**"),
        *door("file search", "/*/fileSearchStores/**", "/upload/*/fileSearchStores/**"),
        *door("tuning", "/*/tunedModels"),
        *door("realtime", "/*/auth_tokens"),
        *free("files", "/*/files", "/upload/*/files"),
        *free("cancelling", "/*/batches/*:cancel"),
        *compatible("/*/openai", CHAT_COMPATIBLE),
    ),
    family="open",
    system="gcp.gemini",
    asks_usage=True,
    evidence=RECORDED,
)
"""The model is in the path; the stream's usage needs no asking but on the OpenAI-compatible path."""

_PROJECT = "/*/projects/*/locations/*"

VERTEX = Row(
    name="vertex",
    hosts=("aiplatform.googleapis.com", "*-aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com"),
    endpoints=(
        *_models(f"{_PROJECT}/publishers/google/models", "/*/publishers/google/models", f"{_PROJECT}/endpoints"),
        *free("token counting", f"{_PROJECT}/publishers/anthropic/models/count-tokens:rawPredict"),
        metered(f"{_PROJECT}/publishers/anthropic/models/{{model}}:rawPredict", MESSAGES),
        metered(f"{_PROJECT}/publishers/anthropic/models/{{model}}:streamRawPredict", MESSAGES),
        metered(f"{_PROJECT}/endpoints/openapi/chat/completions", CHAT_COMPATIBLE),
        *_caches(f"{_PROJECT}/cachedContents"),
        *SOCKETS,
        *READING,
    ),
    family="open",
    system="gcp.vertex_ai",
    tools_framing=640,
    prices_as=("gemini", "anthropic"),
    evidence=RECORDED,
)

ROWS = (GEMINI, VERTEX)
