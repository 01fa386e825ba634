"""What a request for a message can cost."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from lava_middleware.providers.table import MESSAGES

from .test_requests_openai import png


def ask(**more: Any) -> Any:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
    return MESSAGES.read_request({**body, **more}, None)


def saying(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    "more",
    [
        {"system": "x" * 500},
        {"system": [{"type": "text", "text": "x" * 500}]},
        {"tools": [{"name": "f", "description": "x" * 500, "input_schema": {}}]},
        {"output_config": {"format": {"type": "json_schema", "schema": {"title": "x" * 500}}}},
        saying({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x" * 500}]}),
        saying({"type": "tool_use", "id": "t", "name": "f", "input": {"deep": {"er": "x" * 500}}}),
        saying({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 500}}),
        saying({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x" * 500}]}}),
        saying({"type": "thinking", "thinking": "x" * 500, "signature": ""}),
        saying({"type": "something_new", "wherever": "x" * 500}),
    ],
)
def test_all_text_that_the_model_reads_counts(more: dict[str, Any]) -> None:
    """T2."""
    assert ask(**more).text.bytes >= 500


@pytest.mark.parametrize(
    ("model", "size", "most"),
    [
        ("claude-sonnet-4-5", None, 1_640),
        ("claude-3-haiku-20240307", None, 1_640),
        ("claude-sonnet-4-20250514", None, 1_640),
        ("claude-opus-4-8", None, 4_800),
        ("claude-sonnet-5", (4_032, 3_024), 4_800),
        ("claude-sonnet-5", (512, 512), 413),
    ],
)
def test_images_cost_by_size_up_to_the_most_of_their_class(model: str, size: Any, most: int) -> None:
    """T23."""
    source = {"type": "url", "url": "https://example.com/a.png"}
    if size is not None:
        source = {"type": "base64", "media_type": "image/png", "data": png(*size, weight=500_000)}
    intent = ask(model=model, **saying({"type": "image", "source": source}))
    assert intent.media_tokens == most
    assert intent.text.bytes < 100
    assert not intent.unseen_input


def test_images_inside_tool_results_are_media_too() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": png(512, 512, weight=500_000)}
    inner = {"type": "image", "source": source}
    intent = ask(**saying({"type": "tool_result", "tool_use_id": "t", "content": [inner]}))
    assert intent.text.bytes < 100
    assert intent.media_tokens == 413


def test_documents_are_bounded_and_what_is_elsewhere_is_said() -> None:
    pdf = base64.b64encode(b"%PDF-1.4 /Type /Page " * 3).decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": pdf}
    assert ask(**saying({"type": "document", "source": source, "title": "t"})).media_tokens == 24_000
    for elsewhere in ({"type": "file", "file_id": "f"}, {"type": "url", "url": "https://example.com/a.pdf"}):
        assert ask(**saying({"type": "document", "source": elsewhere})).unseen_input
    assert ask(container="container_1").unseen_input
    assert not ask().unseen_input


@pytest.mark.parametrize(
    ("tool", "server"),
    [
        ({"name": "f", "input_schema": {}}, False),
        ({"type": "custom", "name": "f", "input_schema": {}}, False),
        ({"type": "bash_20250124", "name": "bash"}, False),
        ({"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}, False),
        ({"type": "web_search_20250305", "name": "web_search"}, True),
        ({"type": "code_execution_20250825", "name": "code_execution"}, True),
    ],
)
def test_tools_of_the_provider_are_told_from_the_applications(tool: dict[str, Any], server: bool) -> None:
    intent = ask(tools=[tool])
    assert intent.tools
    assert intent.server_tools is server


def test_remote_tool_servers_are_tools_of_the_provider() -> None:
    assert ask(mcp_servers=[{"type": "url", "url": "https://example.com"}]).server_tools


@pytest.mark.parametrize(
    ("marker", "lifetime"),
    [
        ({"type": "ephemeral"}, "5m"),
        ({"type": "ephemeral", "ttl": "5m"}, "5m"),
        ({"type": "ephemeral", "ttl": "1h"}, "1h"),
    ],
)
def test_cache_markers_anywhere_say_the_dearest_rate(marker: dict[str, str], lifetime: str) -> None:
    """T21."""
    text = {"type": "text", "text": "x", "cache_control": marker}
    assert ask().cache_writes is None
    assert ask(system=[text]).cache_writes == lifetime
    assert ask(**saying(text)).cache_writes == lifetime
    assert ask(tools=[{"name": "f", "input_schema": {}, "cache_control": marker}]).cache_writes == lifetime
    assert ask(cache_control=marker).cache_writes == lifetime
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [text]}
    assert ask(**saying(nested)).cache_writes == lifetime
    image = {"type": "image", "source": {"type": "url", "url": "u"}, "cache_control": marker}
    assert ask(**saying(image)).cache_writes == lifetime


@pytest.mark.parametrize(
    ("model", "thinking", "hidden"),
    [
        ("claude-sonnet-4-5", None, False),
        ("claude-opus-4-8", None, False),
        ("claude-sonnet-4-5", {"type": "enabled", "budget_tokens": 1_024}, True),
        ("claude-sonnet-4-6", {"type": "adaptive", "display": "omitted"}, True),
        ("claude-3-7-sonnet-20250219", {"type": "enabled", "budget_tokens": 1_024}, False),
        ("claude-3-7-sonnet-20250219", {"type": "enabled", "budget_tokens": 1_024, "display": "omitted"}, True),
        ("claude-sonnet-5", None, True),
        ("claude-sonnet-5", {"type": "disabled"}, False),
    ],
)
def test_thinking_that_the_stream_does_not_show(model: str, thinking: Any, hidden: bool) -> None:
    """T2: since Claude 4 a summary streams while all thinking is billed; Claude 5 thinks unless told not to."""
    more = {} if thinking is None else {"thinking": thinking}
    assert ask(model=model, **more).hidden_reasoning is hidden


def test_a_cap_below_the_thinking_budget_lowers_it_too() -> None:
    """budget_tokens must stay below max_tokens, and is at least 1,024."""
    body = {"max_tokens": 9_000, "thinking": {"type": "enabled", "budget_tokens": 4_000}}
    assert MESSAGES.with_cap(body, 5_000) == {**body, "max_tokens": 5_000}
    assert MESSAGES.with_cap(body, 2_000)["thinking"] == {"type": "enabled", "budget_tokens": 1_999}
    assert MESSAGES.with_cap(body, 500)["thinking"] == {"type": "disabled"}
    assert body["max_tokens"] == 9_000


def test_speed_and_tier_are_read() -> None:
    """T25."""
    assert ask(speed="fast", service_tier="auto").service_tier == "fast"
    assert ask(service_tier="standard_only").service_tier == "standard_only"
    assert ask(max_tokens=7).output_tokens_max == 7
    assert ask().asks_usage


@pytest.mark.parametrize("junk", [None, 1, "x", [], {}, {"messages": {}}, {"prompt": "\n\nHuman: x"}])
def test_what_is_not_a_request_is_unreadable(junk: Any) -> None:
    assert MESSAGES.read_request(junk, None).refuse == "unreadable"
