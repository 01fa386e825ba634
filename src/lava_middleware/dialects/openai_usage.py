"""This file knows how to read the usage blocks of OpenAI's formats, in all the spellings that providers use.

Field semantics were checked against recorded traffic of some forty providers; where spellings compete, the order is
the one that agrees with what they bill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.usage import Reading
from .jsons import count, dollars_in_ticks, first_count, mapping


def chat_usage(usage: Mapping[str, Any], web_searches: int | None = None) -> Reading | None:
    """The reading of a `usage` block of chat completions, completions or embeddings; None: it has no figures."""
    incoming = mapping(usage.get("prompt_tokens_details")) or mapping(usage.get("input_tokens_details"))
    outgoing = mapping(usage.get("completion_tokens_details")) or mapping(usage.get("output_tokens_details"))
    prompt = first_count(usage.get("prompt_tokens"), usage.get("input_tokens"))
    completion = first_count(usage.get("completion_tokens"), usage.get("output_tokens"))
    total = count(usage.get("total_tokens"))
    if prompt is None and completion is None and total is None:
        return None
    audio = count(incoming.get("audio_tokens"))
    reasoning = first_count(outgoing.get("reasoning_tokens"), usage.get("reasoning_tokens"))
    input_tokens, output_tokens = _totals(prompt, completion, total, audio)
    return Reading(
        input_tokens=input_tokens,
        cached_input_tokens=first_count(
            incoming.get("cached_tokens"),
            usage.get("prompt_cache_hit_tokens"),
            usage.get("num_cached_tokens"),
            usage.get("cached_tokens"),
            usage.get("cache_read_input_tokens"),
            mapping(usage.get("prompt_token_details")).get("cached_tokens"),
        ),
        cache_write_tokens=first_count(incoming.get("cache_write_tokens"), usage.get("cache_creation_input_tokens")),
        cache_write_1h_tokens=_long_lived(incoming, usage),
        input_audio_tokens=audio,
        cached_audio_tokens=count(mapping(incoming.get("cached_tokens_details")).get("audio_tokens")),
        input_image_tokens=count(incoming.get("image_tokens")),
        output_tokens=output_tokens,
        reasoning_tokens=reasoning,
        output_audio_tokens=count(outgoing.get("audio_tokens")),
        output_image_tokens=count(outgoing.get("image_tokens")),
        web_searches=first_count(
            web_searches,
            mapping(usage.get("server_tool_use_details")).get("web_search_requests"),
            usage.get("num_search_queries"),
        ),
        cost_ticks=_cost(usage),
    )


def asking_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the body that asks for a usage block at the end of the stream."""
    return {**body, "stream_options": {**mapping(body.get("stream_options")), "include_usage": True}}


def responses_usage(usage: Mapping[str, Any], web_searches: int | None = None) -> Reading | None:
    """The reading of a `usage` block of the responses API: the same figures under their other names."""
    return chat_usage(usage, web_searches)


def _totals(
    prompt: int | None, completion: int | None, total: int | None, audio: int | None
) -> tuple[int | None, int | None]:
    """(input, output) when the total knows of tokens that prompt and completion leave out.

    xAI and Gemini leave the reasoning out of completion, Mistral leaves the audio out of the prompt; everywhere else
    the two add up to the total and nothing changes.
    """
    if prompt is None or total is None:
        if completion is None and prompt is None and total is not None:
            return total, None  # embeddings of some providers have nothing but the total
        if prompt is None and completion is not None and total is not None:
            return max(total - completion, 0), completion
        return prompt, completion
    if completion is None or (missing := total - prompt - completion) <= 0:
        return prompt, completion
    if audio and missing == audio:
        return prompt + audio, completion
    return prompt, total - prompt


def _long_lived(incoming: Mapping[str, Any], usage: Mapping[str, Any]) -> int | None:
    """Cache writes with the long lifetime: twelve hours at OpenAI, an hour in Anthropic's spelling."""
    return first_count(
        mapping(incoming.get("cache_write_tokens_details")).get("ttl_12h_tokens"),
        mapping(usage.get("cache_creation")).get("ephemeral_1h_input_tokens"),
    )


def _cost(usage: Mapping[str, Any]) -> int | None:
    """The provider's own price in ticks. Not when the customer's own upstream key was used: then it is only the fee.

    xAI's ticks are the same tenth of a billionth that we use.
    """
    if usage.get("is_byok") is True:
        return None
    ticks = count(usage.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks
    cost = usage.get("cost")
    return dollars_in_ticks(cost.get("total_cost") if isinstance(cost, dict) else cost)
