"""What a request in OpenAI's formats can cost: all text, media by their class, what it refers to, its caps."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest

from lava_middleware.dialects.media import Size, image_size
from lava_middleware.providers.spoken import CHAT, CHAT_COMPATIBLE, CHAT_OF_AZURE, EMBEDDINGS, RESPONSES


def chat(**more: Any) -> Any:
    return CHAT.read_request({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], **more}, None)


def responses(**more: Any) -> Any:
    return RESPONSES.read_request({"model": "gpt-4.1", "input": "Hello", **more}, None)


def png(width: int, height: int, weight: int = 0) -> str:
    """A PNG of that size (its pixels may be anything), `weight` bytes heavier."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", b"\0" * weight)).decode()


# Text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 500, "parameters": {}}}]},
        {"functions": [{"name": "f", "description": "x" * 500, "parameters": {}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "x" * 500}}}},
        {"messages": [{"role": "system", "content": "x" * 500}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 500}]}]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x" * 500}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x" * 500}}]}]},
        {"messages": [{"role": "assistant", "something_new": {"deep": ["x" * 500]}}]},
        {"prediction": {"type": "content", "content": "x" * 500}},
    ],
)
def test_all_text_that_the_model_reads_counts(more: dict[str, Any]) -> None:
    """T2."""
    assert chat(**more).text.bytes >= 500


@pytest.mark.parametrize(
    "more",
    [
        {"instructions": "x" * 500},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 500}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x" * 500}]},
        {"tools": [{"type": "function", "name": "f", "description": "x" * 500, "parameters": {}}]},
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"title": "x" * 500}}}},
        {"prompt": {"id": "p", "variables": {"topic": "x" * 500}}},
    ],
)
def test_all_text_of_a_response_request_counts(more: dict[str, Any]) -> None:
    """T2."""
    assert responses(**more).text.bytes >= 500


def test_parts_are_counted() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    assert chat(messages=messages).text.parts == 3


# Media ---------------------------------------------------------------------------------------------------------------


def image(url: str, detail: str | None = None) -> list[Any]:
    part: dict[str, Any] = {"url": url} | ({"detail": detail} if detail else {})
    return [{"role": "user", "content": [{"type": "image_url", "image_url": part}]}]


def test_base64_is_never_text() -> None:
    """T2: a megabyte of image is some hundred tokens, not 700,000."""
    url = f"data:image/png;base64,{png(1024, 1024, 1_000_000)}"
    intent = chat(messages=image(url))
    assert intent.text.bytes < 200
    assert intent.media_tokens == 85 + 170 * 4
    as_response = responses(input=[{"role": "user", "content": [{"type": "input_image", "image_url": url}]}])
    assert as_response.text.bytes < 200
    assert 0 < as_response.media_tokens < 3_000
    nobody_knows = chat(messages=[{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}])
    assert nobody_knows.text.bytes < 200
    assert 0 < nobody_knows.media_tokens < 3_000


@pytest.mark.parametrize(
    ("model", "detail", "most"),
    [
        ("gpt-4o", None, 1_445),
        ("gpt-4o", "low", 85),
        ("gpt-4o-mini", "high", 48_169),
        ("gpt-4.1-nano", None, 3_780),
        ("gpt-5.5", "high", 3_000),
        ("a-model-of-tomorrow", None, 14_400),
    ],
)
def test_an_image_behind_a_url_costs_the_most_of_its_class(model: str, detail: str | None, most: int) -> None:
    """T23: its size is not known, the largest one's price is."""
    intent = chat(model=model, messages=image("https://example.com/a.png", detail))
    assert most - 100 <= intent.media_tokens <= most
    assert not intent.unseen_input


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (4_000, 3_000)])
def test_image_sizes_are_read_from_their_heads(size: tuple[int, int]) -> None:
    width, height = size
    assert image_size(png(width, height)) == Size(width, height)
    gif = b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 20
    assert image_size(base64.b64encode(gif).decode()) == Size(width, height)
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" + b"\0" * 9
    jpeg = b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"\0" * 9 + frame
    assert image_size(base64.b64encode(jpeg).decode()) == Size(width, height)
    extended = b"VP8X\x0a\0\0\0\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    assert image_size(base64.b64encode(b"RIFF\0\0\0\0WEBP" + extended).decode()) == Size(width, height)


@pytest.mark.parametrize("junk", ["", "!!!!", "iVBORw0KGgo=", base64.b64encode(b"\xff\xd8\xff").decode()])
def test_broken_images_have_no_size(junk: str) -> None:
    assert image_size(junk) is None


def test_audio_and_documents_are_bounded_by_their_size() -> None:
    sound = base64.b64encode(b"\0" * 480_000).decode()  # ten seconds of 24 kHz, 16 bit: about 100 tokens
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    assert 100 <= chat(messages=[{"role": "user", "content": [part]}]).media_tokens <= 1_000
    pdf = b"%PDF-1.7 /Type /Pages /Type /Page /Type/Page " + b"\0" * 900_000
    data = "data:application/pdf;base64," + base64.b64encode(pdf).decode()
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": data}}
    intent = chat(messages=[{"role": "user", "content": [file]}])
    assert intent.media_tokens == 16_000
    assert intent.text.bytes < 100
    assert not intent.unseen_input


# What it refers to ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://example.com/a.pdf"}]}]},
    ],
)
def test_input_that_is_not_in_the_request_is_said(more: dict[str, Any]) -> None:
    assert responses(**more).unseen_input
    assert not responses().unseen_input


def test_input_that_is_not_in_a_chat_is_said() -> None:
    file = {"type": "file", "file": {"file_id": "file-1"}}
    assert chat(messages=[{"role": "user", "content": [file]}]).unseen_input
    assert chat(messages=[{"role": "assistant", "audio": {"id": "audio_1"}}]).unseen_input
    assert chat(data_sources=[{"type": "azure_search"}]).unseen_input


# Caps and choices ----------------------------------------------------------------------------------------------------


def test_the_cap_is_the_largest_that_is_set() -> None:
    assert chat().output_tokens_max is None
    assert chat(max_tokens=10).output_tokens_max == 10
    assert chat(max_completion_tokens=20).output_tokens_max == 20
    assert chat(max_tokens=30, max_completion_tokens=20).output_tokens_max == 30
    assert responses(max_output_tokens=16).output_tokens_max == 16
    for nothing in (None, -1, "100", True, 1.5):
        assert chat(max_tokens=nothing).output_tokens_max is None


def test_choices_multiply() -> None:
    assert chat().choices == 1
    assert chat(n=4).choices == 4
    assert chat(n=None).choices == 1
    assert responses(n=4).choices == 1


@pytest.mark.parametrize(
    ("dialect", "body", "field"),
    [
        (CHAT, {"model": "gpt-4o"}, "max_completion_tokens"),
        (CHAT, {"model": "gpt-4o", "max_tokens": 9}, "max_tokens"),
        (CHAT_COMPATIBLE, {"model": "m"}, "max_tokens"),
        (CHAT_COMPATIBLE, {"model": "m", "max_completion_tokens": 9}, "max_completion_tokens"),
        (CHAT_OF_AZURE, {"model": "gpt-4o"}, "max_tokens"),
        (CHAT_OF_AZURE, {"model": "o3-mini"}, "max_completion_tokens"),
        (CHAT_OF_AZURE, {}, "max_completion_tokens"),
        (RESPONSES, {"model": "gpt-4o"}, "max_output_tokens"),
    ],
)
def test_the_cap_goes_into_the_endpoints_own_field(dialect: Any, body: dict[str, Any], field: str) -> None:
    before = dict(body)
    capped = dialect.with_cap(body, 77)
    assert body == before
    assert capped == {**body, field: 77}


def test_both_caps_are_set_where_both_are_given() -> None:
    assert CHAT.with_cap({"max_tokens": 5, "max_completion_tokens": 6}, 3) == {
        "max_tokens": 3,
        "max_completion_tokens": 3,
    }


def test_asking_for_usage_keeps_the_other_options() -> None:
    """T16."""
    body = {"stream": True, "stream_options": {"include_obfuscation": False}}
    asked = CHAT.asking_usage(body)
    assert asked["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert "include_usage" not in body["stream_options"]  # type: ignore[operator]
    assert CHAT.asking_usage({"data_sources": [{}]}) == {"data_sources": [{}]}
    assert RESPONSES.asking_usage(body) == body


# Kinds of requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more", "hidden"),
    [
        ("gpt-4o", {}, False),
        ("gpt-4.1-mini", {}, False),
        ("gpt-5-chat-latest", {}, False),
        ("openai/gpt-oss-120b", {"reasoning_effort": "high"}, False),
        ("openai/gpt-oss-120b", {"reasoning_format": "hidden"}, True),
        ("qwen/qwen3-32b", {"reasoning_effort": "default"}, False),
        ("qwen/qwen3-32b", {"include_reasoning": False}, True),
        ("o3-mini", {}, True),
        ("o4-mini-2025-04-16", {}, True),
        ("gpt-5-nano", {}, True),
        ("gpt-5.1", {"reasoning_effort": "none"}, False),
        ("openai/gpt-6", {}, True),
        ("my-deployment", {"reasoning_effort": "low"}, True),
    ],
)
def test_models_that_think_unseen(model: str, more: dict[str, Any], hidden: bool) -> None:
    """T2: what passes does not show what is spent, so the whole cap is held."""
    assert chat(model=model, **more).hidden_reasoning is hidden


def test_reasoning_of_a_response_is_hidden_too() -> None:
    assert responses(model="gpt-4o", reasoning={"effort": "low"}).hidden_reasoning
    assert not responses().hidden_reasoning


def test_tools_of_the_provider_are_told_from_functions() -> None:
    function = {"type": "function", "name": "f", "parameters": {}}
    assert (responses(tools=[function]).tools, responses(tools=[function]).server_tools) == (True, False)
    assert responses(tools=[{"type": "web_search"}]).server_tools
    assert responses(tools=[{"type": "mcp", "server_url": "https://example.com"}]).server_tools
    assert chat(web_search_options={}).server_tools
    assert chat(model="groq/compound").server_tools
    assert not chat().tools


def test_streams_and_tiers_are_read() -> None:
    intent = chat(stream=True, stream_options={"include_usage": True}, service_tier="flex")
    assert (intent.stream, intent.asks_usage, intent.service_tier) == (True, True, "flex")
    assert not chat(stream="yes").stream
    assert chat(prompt_cache_options={"ttl": "12h"}).cache_writes == "1h"


def test_background_responses_are_refused() -> None:
    """T15: their usage comes with a later retrieval."""
    assert responses(background=True).refuse == "background"
    assert responses(background=False).refuse is None


@pytest.mark.parametrize("junk", [None, 1, "x", [], [1], {}, {"messages": "x"}, {"messages": None}, {"input": 5}])
def test_what_is_not_a_request_is_unreadable(junk: Any) -> None:
    assert CHAT.read_request(junk, None).refuse == "unreadable"
    assert RESPONSES.read_request(junk, None).refuse == "unreadable"


def test_the_path_names_the_model_where_the_body_does_not() -> None:
    body: dict[str, Any] = {"messages": []}
    assert CHAT.read_request(body, "my-deployment").model == "my-deployment"
    assert CHAT.read_request({**body, "model": "gpt-4o"}, "my-deployment").model == "gpt-4o"


# Embeddings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts", "text", "tokens"),
    [
        ("Hello", 1, 5, 0),
        (["Hello", "you"], 2, 9, 0),
        ([1, 2, 3], 1, 0, 3),
        ([[1, 2, 3], [4]], 2, 0, 4),
        ([], 0, 0, 0),
    ],
)
def test_embedding_input_is_text_or_token_ids(given: Any, parts: int, text: int, tokens: int) -> None:
    intent = EMBEDDINGS.read_request({"model": "text-embedding-3-small", "input": given}, None)
    assert (intent.text.parts, intent.text.bytes, intent.media_tokens) == (parts, text, tokens)
    assert intent.output_tokens_max == 0
    assert intent.operation == "embeddings"


def test_embeddings_have_nothing_to_cap() -> None:
    body = {"model": "m", "input": "x"}
    assert EMBEDDINGS.with_cap(body, 5) == body
    assert EMBEDDINGS.read_request({"model": "m"}, None).refuse == "unreadable"


def test_usage_of_large_embeddings_is_read_without_their_numbers() -> None:
    """Parsing 20 MB of floats would stop the event loop for a fifth of a second."""
    vectors = ",".join('{"object":"embedding","embedding":[%s]}' % ("0.0123," * 3_000 + "0") for _ in range(100))
    head = b'{"object":"list","data":[' + vectors.encode() + b"]"
    meter = EMBEDDINGS.body_meter()
    meter.feed(head)
    meter.feed(b',"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}')
    meter.end()
    assert meter.reading is not None
    assert (meter.reading.input_tokens, meter.model, meter.finished) == (8, "m", True)
