"""This file knows how to answer Gemini's embedContent and batchEmbedContents."""

from __future__ import annotations

from typing import Any

from ..ask import Ask
from ..generation import Generation, figures
from ..script import Script
from ..served import Figures
from .embeddings import vector
from .wire import Stamp, dumps


def body(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> tuple[dict[str, Any], Figures]:
    told = figures(script, ask, 0, 0)
    several = "requests" in ask.body
    vectors = [{"values": vector(dumps(one.get("content")), 768)} for one in ask.body.get("requests", [ask.body])]
    answer: dict[str, Any] = {"embeddings": vectors} if several else {"embedding": vectors[0]}
    if script.usage:
        counted = [{"modality": "TEXT", "tokenCount": told.input_tokens}]
        answer["usageMetadata"] = {"promptTokenCount": told.input_tokens, "promptTokenDetails": counted}
    return answer, told
