"""What a request to Gemini can cost: the path names the model, names have two spellings, media count by size."""

from __future__ import annotations

from typing import Any

import pytest

from lava_middleware.dialects.gemini_request import image_tokens
from lava_middleware.dialects.thinking import gemini_hides_thoughts
from lava_middleware.providers.spoken import EMBED_CONTENT, GENERATE, GENERATE_STREAM

from .test_requests_openai import png

HELLO = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}


def generate(model: str = "gemini-2.5-flash", **more: Any) -> Any:
    return GENERATE.read_request({**HELLO, **more}, model)


def part(**part: Any) -> Any:
    return GENERATE.read_request({"contents": [{"role": "user", "parts": [part]}]}, "gemini-2.5-flash")


def test_the_path_says_which_model_and_whether_it_streams() -> None:
    intent = GENERATE_STREAM.read_request({**HELLO, "model": "models/other"}, "gemini-2.5-pro")
    assert (intent.model, intent.stream, intent.asks_usage) == ("gemini-2.5-pro", True, True)
    assert not generate().stream
    assert GENERATE.read_request({**HELLO, "model": "models/other"}, None).model == "models/other"


@pytest.mark.parametrize("body", [None, [], {}, {"contents": None}, {"contents": 5}, {"messages": []}])
def test_what_is_no_request_is_unreadable(body: Any) -> None:
    intent = GENERATE_STREAM.read_request(body, "m")
    assert (intent.refuse, intent.stream) == ("unreadable", True)


@pytest.mark.parametrize(
    ("config", "cap", "choices"),
    [
        ({}, None, 1),
        ({"generationConfig": {"maxOutputTokens": 50, "candidateCount": 3}}, 50, 3),
        ({"generation_config": {"max_output_tokens": 50, "candidate_count": 3}}, 50, 3),
        ({"generationConfig": None}, None, 1),
        ({"generationConfig": {"maxOutputTokens": None, "candidateCount": 0}}, None, 1),
    ],
)
def test_caps_and_choices_in_either_spelling(config: Any, cap: int | None, choices: int) -> None:
    """T2: Google takes camelCase and snake_case."""
    intent = generate(**config)
    assert (intent.output_tokens_max, intent.choices) == (cap, choices)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 9}}),
        ({"generationConfig": {"topK": 1}}, {"generationConfig": {"topK": 1, "maxOutputTokens": 9}}),
        ({"generation_config": {"max_output_tokens": 99}}, {"generation_config": {"max_output_tokens": 9}}),
        ({"generation_config": {}}, {"generation_config": {"maxOutputTokens": 9}}),
        ({"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 9}}),
    ],
)
def test_a_cap_is_written_as_the_request_spells_it(body: Any, want: Any) -> None:
    """Both spellings of one member in one request are an error."""
    before = repr(body)
    assert GENERATE.with_cap(body, 9) == want
    assert repr(body) == before


def test_everything_the_model_reads_is_weighed() -> None:
    """T2."""
    bare = generate().text.bytes
    more = {
        "systemInstruction": {"parts": {"text": "x" * 1_000}},
        "contents": [
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": "x" * 1_000}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": "x" * 1_000}}}]},
            {"parts": [{"executableCode": {"code": "x" * 1_000}}, {"unheard": "x" * 1_000}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "description": "x" * 1_000}]}],
        "generationConfig": {"responseSchema": {"description": "x" * 1_000}},
    }
    assert generate(**more).text.bytes - bare > 7_000
    assert generate(contents="x" * 1_000).text.bytes == 1_000
    assert generate(contents=["a", {"text": "x" * 1_000}]).text.bytes > 1_000


def test_an_image_costs_its_tiles_not_its_bytes() -> None:
    """T23."""
    small, large = png(300, 300, 5_000), png(4_000, 2_000, 500_000)
    for key, kind in (("inlineData", "mimeType"), ("inline_data", "mime_type")):
        assert part(**{key: {kind: "image/png", "data": small}}).media_tokens == 2_240
        assert part(**{key: {kind: "image/png", "data": large}}).media_tokens == 258 * 6 * 3
    assert image_tokens("no image") == 36 * 258
    assert part(inlineData={"mimeType": "image/png", "data": small}).text.bytes == 0


def test_sound_video_and_papers_are_bounded_by_their_size() -> None:
    """T23."""
    data = "A" * 400_000

    def tokens(kind: str) -> int:
        intent = part(inlineData={"mimeType": kind, "data": data})
        assert intent.text.bytes == 0
        return int(intent.media_tokens)

    assert tokens("audio/mp3") > tokens("audio/wav") > 300
    assert tokens("video/mp4") > 7_000
    assert tokens("application/pdf") >= 8_000
    assert part(inlineData={"mimeType": "audio/wav"}).media_tokens == 0


def test_what_a_request_only_refers_to_makes_its_bound_soft() -> None:
    assert part(fileData={"fileUri": "https://youtu.be/x"}).unseen_input
    assert generate(cachedContent="cachedContents/x").unseen_input
    assert not generate().unseen_input


def test_google_runs_its_own_tools_the_application_the_others() -> None:
    functions = generate(tools=[{"functionDeclarations": [{"name": "f"}]}, {"computer_use": {}}])
    assert (functions.tools, functions.server_tools) == (True, False)
    for tool in ({"googleSearch": {}}, {"code_execution": {}}, {"urlContext": {}}, {"googleMaps": {}}):
        assert generate(tools=[tool]).server_tools
    assert generate(tools={"google_search": {}}).server_tools
    assert not generate(tools=[]).tools


@pytest.mark.parametrize(
    ("model", "config", "hidden"),
    [
        ("gemini-2.5-flash", {}, True),
        ("gemini-2.5-flash", {"thinkingBudget": 0}, False),
        ("gemini-2.5-flash", {"thinking_budget": 0}, False),
        ("gemini-2.5-flash", {"thinkingBudget": -1}, True),
        ("gemini-2.5-pro", {"thinkingBudget": 0}, True),  # it cannot be told not to
        ("gemini-2.5-flash-lite", {}, False),
        ("gemini-2.5-flash-lite", {"thinkingBudget": 512}, True),
        ("gemini-3-flash-preview", {}, True),
        ("gemini-3-pro-preview", {"thinkingLevel": "low"}, True),
        ("gemini-flash-latest", {}, True),
        ("gemini-2.0-flash", {}, False),
        ("gemini-1.5-pro", {}, False),
        ("gemini-2.5-flash-preview-tts", {}, False),
        ("gemma-3-27b-it", {}, False),
        (None, {}, True),
    ],
)
def test_which_models_think_without_showing_it(model: str | None, config: Any, hidden: bool) -> None:
    """Their whole cap is held at once: what passes does not show what is spent."""
    assert gemini_hides_thoughts(model, config) is hidden
    assert generate(model or "", generationConfig={"thinkingConfig": config}).hidden_reasoning is hidden


def test_embeddings_weigh_each_of_their_texts() -> None:
    one = EMBED_CONTENT.read_request({"content": {"parts": [{"text": "abc"}]}}, "gemini-embedding-001")
    assert (one.text.bytes, one.output_tokens_max, one.model) == (3, 0, "gemini-embedding-001")
    body = {"requests": [{"model": "models/e", "content": {"parts": [{"text": "abc"}]}}] * 3}
    assert EMBED_CONTENT.read_request(body, "e").text.bytes == 11  # with a blank between
    for wrong in (None, {}, {"requests": 5}, {"requests": [{}]}):
        assert EMBED_CONTENT.read_request(wrong, "e").refuse == "unreadable"
