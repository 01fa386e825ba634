"""This file knows how to read Anthropic's usage blocks.

https://docs.claude.com/en/api/messages#response-usage
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ..core.usage import Reading
from .jsons import count, mapping, sequence, text_or_none

FIGURES = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")

INCLUDED = ({"message", "fallback_message", "advisor_message", "compaction"}, {"message", "fallback_message"})
"""Sets of iteration types that the top-level figures may add up, to be tried in order. Documented is only that
compaction is left out; recorded is that the advisor is too."""


def overlaid(start: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """message_start's usage with the fields that message_delta has news of.

    message_delta's figures are cumulative: they replace, they are never added. Its null says nothing.
    """
    merged = {**start, **{key: value for key, value in delta.items() if value is not None}}
    if "cache_creation" not in delta or delta["cache_creation"] is None:
        merged["cache_creation"] = _lifetimes(start, merged)
    return merged


def _lifetimes(start: Mapping[str, Any], merged: Mapping[str, Any]) -> Mapping[str, Any]:
    """The split of cache writes by lifetime after a delta that carries none: server tools raise the total (291 became
    12,174), and the start's split is then stale. All stays long where all was long, else the iterations may know."""
    split, total = mapping(start.get("cache_creation")), count(merged.get("cache_creation_input_tokens"))
    long, short = count(split.get("ephemeral_1h_input_tokens")) or 0, count(split.get("ephemeral_5m_input_tokens")) or 0
    if total is None or long + short == total:
        return split
    if long and not short:
        return {"ephemeral_1h_input_tokens": total, "ephemeral_5m_input_tokens": 0}
    splits = [mapping(mapping(one).get("cache_creation")) for one in sequence(merged.get("iterations"))]
    long = sum(count(one.get("ephemeral_1h_input_tokens")) or 0 for one in splits)
    short = sum(count(one.get("ephemeral_5m_input_tokens")) or 0 for one in splits)
    if splits and long + short == total:
        return {"ephemeral_1h_input_tokens": long, "ephemeral_5m_input_tokens": short}
    return {}


def messages_usage(usage: Mapping[str, Any], *, output_known: bool = True) -> Reading | None:
    """The reading of a usage block: Anthropic's input_tokens leaves out what was read from or written to the cache.

    `output_known` is false for message_start, whose output_tokens is only a beginning.
    """
    fresh, written, cached, output = (count(usage.get(field)) for field in FIGURES)
    if fresh is None and output is None:
        return None
    split = mapping(usage.get("cache_creation"))
    long, short = count(split.get("ephemeral_1h_input_tokens")), count(split.get("ephemeral_5m_input_tokens"))
    if written is None and (long is not None or short is not None):
        written = (long or 0) + (short or 0)
    agrees = written is not None and (long or 0) + (short or 0) == written
    details = mapping(usage.get("output_tokens_details"))
    return Reading(
        input_tokens=(fresh or 0) + (written or 0) + (cached or 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=long if agrees else None,
        output_tokens=output if output_known else None,
        reasoning_tokens=count(details.get("thinking_tokens")) if output_known else None,
        web_searches=count(mapping(usage.get("server_tool_use")).get("web_search_requests")),
    )


def left_out(usage: Mapping[str, Any]) -> Sequence[tuple[str | None, Reading]]:
    """The passes of `iterations` that the top-level figures leave out, each with its model (None: the answer's own).

    Compaction is left out (8 output tokens at the top, 125 more in the list), and so is an advisor, which is another
    model at another price. Which ones they are is told by arithmetic; where that tells nothing, by their type.
    """
    passes = [mapping(one) for one in sequence(usage.get("iterations"))][:64]
    top = _sums([usage])
    outside: list[Mapping[str, Any]] = [one for one in passes if one.get("type") in ("compaction", "advisor_message")]
    for kinds in INCLUDED:
        if _sums([one for one in passes if one.get("type") in kinds]) == top:
            outside = [one for one in passes if one.get("type") not in kinds]
            break
    else:
        messages = [one for one in passes if one not in outside]
        for several in combinations(messages, 1) if len(messages) > 1 else ():
            if _sums(several) == top:  # only the hop that served the answer, not the ones that declined it
                outside = [one for one in passes if one is not several[0]]
                break
    readings = [(text_or_none(one.get("model")), messages_usage(one)) for one in outside]
    return [(model, reading) for model, reading in readings if reading is not None]


def _sums(blocks: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(input, output) tokens of these blocks together."""
    outputs = sum(count(one.get("output_tokens")) or 0 for one in blocks)
    return sum(count(one.get(field)) or 0 for one in blocks for field in FIGURES[:3]), outputs
