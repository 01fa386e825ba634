"""What a completion can cost: prompts times choices times the cap, which a provider sets where the request does not."""

from __future__ import annotations

from typing import Any

import pytest

from lava_middleware.providers.spoken import CHAT, COMPLETIONS, COMPLETIONS_COMPATIBLE, FIM


def completion(**more: Any) -> Any:
    return COMPLETIONS.read_request({"model": "davinci-002", "prompt": "Hello", **more}, None)


@pytest.mark.parametrize(
    ("more", "choices"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
    ],
)
def test_prompts_and_choices_multiply_the_output(more: Any, choices: int) -> None:
    """T2."""
    assert completion(**more).choices == choices


def test_token_ids_count_as_tokens() -> None:
    assert completion(prompt=[1, 2, 3]).media_tokens == 3
    assert completion(prompt=[[1, 2], [3]]).media_tokens == 3


def test_the_providers_own_cap_counts_where_it_is_known() -> None:
    """T2: sixteen tokens at OpenAI and vLLM; elsewhere the model's maximum."""
    assert completion().output_tokens_max == 16
    assert completion(max_tokens=500).output_tokens_max == 500
    assert COMPLETIONS_COMPATIBLE.read_request({"prompt": "x"}, None).output_tokens_max is None


def test_the_suffix_is_read_too() -> None:
    assert completion(suffix="x" * 100).text.bytes > 100


@pytest.mark.parametrize("body", [None, [], {}, {"prompt": None}, {"messages": []}])
def test_what_is_no_completion_is_unreadable(body: Any) -> None:
    assert COMPLETIONS.read_request(body, None).refuse == "unreadable"


def test_usage_is_asked_for_but_never_of_mistral() -> None:
    """T16: Mistral answers 422 to stream_options."""
    assert COMPLETIONS.asking_usage({"prompt": "x"})["stream_options"] == {"include_usage": True}
    assert FIM.asking_usage({"prompt": "x"}) == {"prompt": "x"}


def test_a_deferred_chat_is_refused() -> None:
    """T20: xAI answers with an id, and bills what is fetched later."""
    assert (
        CHAT.read_request({"model": "grok-4", "messages": [], "deferred": True}, None).refuse == "deferred completions"
    )


@pytest.mark.parametrize(
    ("body", "searches"),
    [
        ({"model": "sonar-pro"}, True),
        ({"model": "sonar", "disable_search": True}, False),
        ({"model": "openai/gpt-4o:online"}, True),
        ({"model": "m", "plugins": [{"id": "web"}]}, True),
        ({"model": "m", "plugins": [{"id": "file-parser"}]}, False),
        ({"model": "m", "search_parameters": {"mode": "auto"}}, True),
        ({"model": "m", "search_parameters": {"mode": "off"}}, False),
        ({"model": "m", "enable_search": False}, False),
        ({"model": "m", "web_search_options": {}}, True),
        ({"model": "m", "venice_parameters": {"enable_web_search": "auto"}}, True),
        ({"model": "m"}, False),
    ],
)
def test_hosts_that_search_by_themselves_are_noticed(body: Any, searches: bool) -> None:
    """T2: what they find is input that the request does not show."""
    assert CHAT.read_request({"messages": [], **body}, None).server_tools is searches


def test_the_first_of_several_models_counts() -> None:
    assert CHAT.read_request({"messages": [], "models": ["a/b", "c/d"]}, None).model == "a/b"


def test_mistrals_sound_is_the_data_itself() -> None:
    """Recorded: 44 kB of base64 were 375 tokens."""
    content = [{"type": "input_audio", "input_audio": "A" * 44_000}]
    intent = CHAT.read_request({"model": "voxtral", "messages": [{"role": "user", "content": content}]}, None)
    assert 300 < intent.media_tokens < 1_000
    assert intent.text.bytes < 100
    content = [{"type": "input_audio", "input_audio": "https://example.com/a.mp3"}]
    assert CHAT.read_request({"messages": [{"role": "user", "content": content}]}, None).unseen_input
