"""No meter and no request reader ever raises, whatever it is given (G7)."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lava_middleware.core.intent import Intent
from lava_middleware.core.usage import usage_of
from lava_middleware.dialects.dialect import Dialect

from .kit import BODIES, DIALECTS, EXPECTED, REFUSAL, figures

dialects = st.sampled_from(sorted(DIALECTS.values(), key=lambda one: one.name))
scalars = st.none() | st.booleans() | st.integers() | st.floats(width=32) | st.text(max_size=5)
KEYS = [
    *("usage", "error", "choices", "delta", "content", "text", "type", "index", "message", "id", "model", "output"),
    *("finish_reason", "tool_calls", "function", "arguments", "prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "cached_tokens", "cost", "x_groq", "response", "item", "part", "output_index", "n"),
    *("content_block", "iterations", "cache_creation", "input_tokens", "output_tokens", "stop_reason", "input"),
    *("messages", "tools", "image_url", "url", "source", "data", "thinking", "cache_control", "stream", "audio"),
    *("stream_options", "file", "name", "role", "output_tokens_details", "thinking_tokens", "sequence_number"),
    *(
        "candidates",
        "parts",
        "usageMetadata",
        "promptTokenCount",
        "candidatesTokenCount",
        "finishReason",
        "promptFeedback",
    ),
    *("inlineData", "functionCall", "args", "contents", "generationConfig", "requests", "systemInstruction", "prompt"),
    *("groundingMetadata", "webSearchQueries", "promptTokensDetails", "modality", "blockReason", "promptFeedback"),
    *("status", "summary", "incomplete_details", "reasoning", "tool_usage"),
]
VALUES = [
    *("response.created", "response.output_item.added", "response.output_item.done", "response.content_part.added"),
    *("response.content_part.done", "response.output_text.delta", "response.completed", "response.failed", "error"),
    *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
    *("message_stop", "tool_use", "function_call", "image_url", "input_image", "input_audio", "file", "document"),
    *("image", "base64", "text", "compaction", "message", "data:image/png;base64,AAAA"),
]
jsons = st.recursive(
    scalars | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)


def swallow(dialect: Dialect, pieces: list[bytes]) -> None:
    """Everything a shell does with an answer."""
    meter = dialect.stream_meter(Intent("chat", None, stream=True, asks_usage=True), hide_usage=True)
    for piece in pieces:
        for event in meter.split(piece):
            meter.take(event)
            meter.content_bound()
    meter.ending(REFUSAL)
    if rest := meter.rest():
        meter.take(rest)
        meter.untake()
    told = figures(meter)
    assert meter.misread == 0  # type: ignore[attr-defined]
    assert told["content"][0] >= 0
    assert isinstance(meter.in_tool_call, bool)
    if meter.reading is not None:
        usage_of(meter.reading)
    whole = dialect.body_meter()
    for piece in pieces:
        whole.feed(piece)
    whole.end()
    whole.end()
    figures(whole)
    assert whole.misread == 0  # type: ignore[attr-defined]
    if whole.reading is not None:
        usage_of(whole.reading)


@given(dialects, st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes(dialect: Dialect, pieces: list[bytes]) -> None:
    swallow(dialect, pieces)


@settings(max_examples=400)
@given(dialects, st.lists(jsons, max_size=5), st.sampled_from([b"", b"event: error\n", b"event: x\r\n"]))
def test_any_json_in_events_and_bodies(dialect: Dialect, values: list[Any], head: bytes) -> None:
    raw = [json.dumps(value).encode() for value in values]
    swallow(dialect, [head + b"data: " + one + b"\n\n" for one in raw])
    swallow(dialect, raw)
    swallow(dialect, [b"[", b",".join(raw), b"]"])


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_any_damage_to_a_real_body(name: str, data: st.DataObject) -> None:
    raw = bytearray((BODIES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not raw:
            break
    swallow(DIALECTS[EXPECTED[name]["dialect"]], [bytes(raw)])


@settings(max_examples=400)
@given(dialects, jsons)
def test_any_request(dialect: Dialect, body: Any) -> None:
    intent = dialect.read_request(body, None)
    assert intent.text.bytes >= 0
    assert intent.choices >= 1
    if isinstance(body, dict):
        dialect.read_request({"messages": [body], "input": [body], "contents": [body], "prompt": [body], **body}, "m")
        dialect.with_cap(body, 5)
        dialect.asking_usage(body)


def test_depth_and_length_are_no_weapon() -> None:
    """A hundred thousand brackets, a number of a million digits."""
    for dialect in DIALECTS.values():
        for weapon in (b"[" * 100_000, b'{"usage":' * 50_000, b'{"usage":{"prompt_tokens":' + b"9" * 1_000_000 + b"}}"):
            swallow(dialect, [b"data: " + weapon + b"\n\n"])
            swallow(dialect, [weapon])
    deep: Any = "x"
    for _ in range(900):
        deep = {"content": [deep]}
    for dialect in DIALECTS.values():
        body = {"messages": [deep], "input": [deep], "contents": [deep], "content": deep, "prompt": [deep]}
        intent = dialect.read_request(body, None)
        assert intent.text.bytes > 0 or intent.refuse == "unreadable"
