"""This file knows how to read the usage that Gemini reports.

https://ai.google.dev/api/generate-content#UsageMetadata
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.usage import Reading
from .jsons import count, mapping, sequence, text_or_none, value_at

FIGURES = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")

_MODALITIES = {2: "IMAGE", 4: "AUDIO"}
"""Google's numbers for them, as clients that ask for integer enums get them. A missing entry is of no concern here.
https://ai.google.dev/api/generate-content#Modality"""

_PER_PROMPT = re.compile(r"gemini-(?:1|2)\b|gemini-(?:1|2)\.")
"""Models whose searches are billed once a prompt; newer ones are billed by query.
https://ai.google.dev/gemini-api/docs/google-search#pricing"""


_USAGE = re.compile(rb'"usageMetadata"\s*:\s*(?=\{)')
_MODEL = re.compile(rb'"modelVersion"\s*:\s*(?=")')


def gemini_outline(raw: bytes) -> dict[str, Any]:
    """The last `usageMetadata` and the model in these bytes, without parsing the pictures or vectors around them."""
    found: dict[str, Any] = {}
    for name, pattern in (("usageMetadata", _USAGE), ("modelVersion", _MODEL)):
        ends = [one.end() for one in pattern.finditer(raw)]
        if ends:
            found[name] = value_at(raw, ends[-1])
    return found


def overlaid(known: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """The figures known so far, replaced by the ones a later chunk has news of.

    They are cumulative and may go down. A last chunk may lack what earlier ones had (recorded: 21 tokens of text).
    """
    return {**known, **{key: value for key, value in usage.items() if value is not None}}


def gemini_usage(usage: Mapping[str, Any], last: Mapping[str, Any], searches: int | None = None) -> Reading | None:
    """The reading of a `usageMetadata`; None: it has no figures. `last` is its last block alone, whose total belongs
    to its own figures."""
    prompt, candidates, thoughts, tools = (count(usage.get(field)) for field in FIGURES)
    if prompt is None and candidates is None and thoughts is None:
        return None
    incoming = sequence(usage.get("promptTokensDetails")) or sequence(usage.get("promptTokenDetails"))
    outgoing = sequence(usage.get("candidatesTokensDetails"))
    said = (candidates or 0) + (thoughts or 0)
    return Reading(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        cached_input_tokens=count(usage.get("cachedContentTokenCount")),
        input_audio_tokens=_of(incoming, "AUDIO"),
        cached_audio_tokens=_of(sequence(usage.get("cacheTokensDetails")), "AUDIO"),
        input_image_tokens=_of(incoming, "IMAGE"),
        output_tokens=max(said, _left_of_total(last)),
        reasoning_tokens=thoughts,
        output_audio_tokens=_of(outgoing, "AUDIO"),
        output_image_tokens=_of(outgoing, "IMAGE"),
        web_searches=searches,
    )


def embedding_usage(usage: Mapping[str, Any]) -> Reading | None:
    """The reading of an embedding's `usageMetadata`, which is usually not there."""
    prompt = count(usage.get("promptTokenCount"))
    if prompt is None:
        prompt = count(usage.get("totalTokenCount"))
    details = sequence(usage.get("promptTokensDetails")) or sequence(usage.get("promptTokenDetails"))
    return None if prompt is None else Reading(input_tokens=prompt, input_audio_tokens=_of(details, "AUDIO"))


def _left_of_total(block: Mapping[str, Any]) -> int:
    """Output by the total of this block: it knows of thoughts that some models name nowhere else."""
    total, prompt = count(block.get("totalTokenCount")), count(block.get("promptTokenCount"))
    if total is None or prompt is None:
        return 0
    return total - prompt - (count(block.get("toolUsePromptTokenCount")) or 0)


def _of(details: Sequence[Any], modality: str) -> int | None:
    """The tokens of one modality."""
    found = None
    for one in map(mapping, details):
        named = one.get("modality")
        if (_MODALITIES.get(named) if isinstance(named, int) else named) == modality:
            found = (found or 0) + (count(one.get("tokenCount")) or 0)
    return found


def searches_of(candidate: Mapping[str, Any], model: str | None) -> int:
    """Searches a candidate was grounded on, as they are billed."""
    queries = sequence(mapping(candidate.get("groundingMetadata")).get("webSearchQueries"))
    if not queries:
        return 0
    made = sum(1 for query in queries if query)
    return min(made, 1) if _PER_PROMPT.search(model or "") else made


def tier_of(usage: Mapping[str, Any]) -> str | None:
    """The service tier that served the call: AI Studio names it, Vertex hides it in the kind of traffic."""
    named = text_or_none(usage.get("serviceTier"))
    traffic = text_or_none(usage.get("trafficType")) or ""
    for tier in ("flex", "priority"):
        if traffic.lower().endswith(tier):
            return tier
    return named.lower() if named else None
