"""The stand-in's answers have the members and types of recorded ones, in the same sequence of events."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lava_middleware.testing import FakeProvider, Script, ToolCall

from .asking import chat, claude, data_lines, event_names

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "provider-traffic.jsonl.gz"
pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason="the recorded traffic (../shared/corpus) is not there")

PATHS = {
    ("openai", "chat.completions"): "/v1/chat/completions",
    ("azure-openai", "chat.completions"): "/openai/deployments/gpt-4o/chat/completions",
    ("groq", "chat.completions"): "/openai/v1/chat/completions",
    ("openai", "responses"): "/v1/responses",
    ("openai", "embeddings"): "/v1/embeddings",
    ("anthropic", "messages"): "/v1/messages",
    ("mistral", "chat.completions"): "/v1/chat/completions",
    ("together", "chat.completions"): "/v1/chat/completions",
    ("gemini", "generateContent"): "/v1beta/models/gemini-2.5-flash:generateContent",
    ("gemini", "streamGenerateContent"): "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    ("gemini", "embedContent"): "/v1beta/models/gemini-embedding-001:embedContent",
    ("gemini", "batchEmbedContents"): "/v1beta/models/gemini-embedding-001:batchEmbedContents",
}
AGENTS = {"mistral": "mistral-client-python/3.7.0", "together": "Together/Python 3.1.1"}
"""By which the stand-in tells providers apart whose paths are the same. A missing entry: by path alone."""
STREAMED = {"embeddings": ("none",), "generateContent": ("none",), "streamGenerateContent": ("sse",)}
STREAMED |= {"embedContent": ("none",), "batchEmbedContents": ("none",)}
"""How an endpoint answers. A missing entry: whole and streamed."""
ANSWERS = [(one, how) for one in PATHS for how in STREAMED.get(one[1], ("none", "sse"))]
# Members that the providers document and the recordings happen not to have.
BEYOND = {
    "usage.prompt_tokens_details.cache_write_tokens:int",
    "choices[].message.reasoning_content:str",
    "choices[].delta.reasoning_content:str",
    "output[].summary[].text:str",
    "output[].summary[].type:str",
    "candidates[].content.parts[].thought:bool",
    "usageMetadata.promptTokenCount:int",  # of embeddings: in some versions of the API
    "usageMetadata.promptTokenDetails[].modality:str",
    "usageMetadata.promptTokenDetails[].tokenCount:int",
}
SCRIPTS = {
    "text": Script(),
    "reasoning": Script(reasoning_tokens=9),
    "thinking": Script(thinking="Let me think about it."),
    "tools": Script(tool_calls=(ToolCall("weather", '{"city": "Oslo"}'),)),
    "text and tools": Script(text="Well.", tool_calls=(ToolCall("weather", '{"city": "Oslo"}'),)),
    "cached": Script(input_tokens=5000, cached_tokens=2000, cache_write_tokens=1000),
}


def _recorded() -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with gzip.open(CORPUS, "rt") as lines:
        for exchange in map(json.loads, lines):
            if (exchange["provider"], exchange["endpoint"]) in PATHS and exchange["response_status"] == 200:
                key = (exchange["provider"], exchange["endpoint"], exchange["stream"])
                found.setdefault(key, []).append(exchange)
    return found


@pytest.fixture(scope="module")
def recorded() -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    return _recorded()


def _shape(value: Any, at: str = "") -> Iterator[str]:
    """Every place in a JSON value with the type of what is there."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _shape(member, f"{at}.{name}" if at else name)
    elif isinstance(value, list):
        for item in value:
            yield from _shape(item, at + "[]")
    else:
        yield f"{at}:{type(value).__name__}"


def _shapes(body: str, stream: str) -> set[str]:
    if stream == "none":
        return set(_shape(json.loads(body)))
    return {
        f"{line.get('type', '')} {place}".strip()
        for line in data_lines(body.encode())
        if line != "[DONE]" and "error" not in line
        for place in _shape(line)
    }


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("endpoint", "stream"), ANSWERS)
def test_every_member_is_one_that_the_provider_sends(
    provider: FakeProvider, recorded: Any, endpoint: tuple[str, str], stream: str, script: str
) -> None:
    if endpoint[0] == "together" and stream == "sse" and "tools" in script:
        pytest.skip("no stream of Together's with tool calls is recorded")
    provider.default = SCRIPTS[script]
    known = set().union(*(_shapes(one["response_body"], stream) for one in recorded[(*endpoint, stream)]))
    got = _shapes(_answer(provider, endpoint, stream).decode(), stream)
    beyond = {place for place in got if place not in known and place not in BEYOND}
    assert not {place for place in beyond if not _echoed(place)}


_ECHOED = ("tools[]", "instructions", "max_output_tokens", "metadata", "content[].input.", ".functionCall.args.")


def _echoed(place: str) -> bool:
    """What is repeated of the request, and a tool's arguments, are as various as requests are."""
    return any(part in place for part in _ECHOED)


def _answer(provider: FakeProvider, endpoint: tuple[str, str], stream: str) -> bytes:
    body = {**claude(), **chat(), "input": "Hi", "max_tokens": 1000}
    if endpoint[0] == "gemini":
        content = {"parts": [{"text": "Hi"}]}
        body = (
            {"contents": [content]} if "Generate" in endpoint[1] or "generate" in endpoint[1] else {"content": content}
        )
        body = {"requests": [body]} if endpoint[1].startswith("batch") else body
    elif stream == "sse":
        body |= {"stream": True} | ({} if endpoint[0] == "mistral" else {"stream_options": {"include_usage": True}})
    headers = {"user-agent": AGENTS.get(endpoint[0], "a test")}
    return httpx2.post(provider.url + PATHS[endpoint], json=body, headers=headers).raise_for_status().content


def _sequence(body: bytes) -> list[str]:
    """The names of the events, repeated ones once."""
    return [name for name, _ in groupby(event_names(body))]


@pytest.mark.parametrize(
    ("endpoint", "script"),
    [
        (("openai", "responses"), "text"),
        (("openai", "responses"), "tools"),
        (("anthropic", "messages"), "text"),
        (("anthropic", "messages"), "tools"),
    ],
)
def test_the_events_come_in_a_recorded_sequence(
    provider: FakeProvider, recorded: Any, endpoint: tuple[str, str], script: str
) -> None:
    provider.default = SCRIPTS[script]
    known = {tuple(_sequence(one["response_body"].encode())) for one in recorded[(*endpoint, "sse")]}
    assert tuple(_sequence(_answer(provider, endpoint, "sse"))) in known


def test_responses_number_their_events(provider: FakeProvider) -> None:
    lines = data_lines(_answer(provider, ("openai", "responses"), "sse"))
    assert [line["sequence_number"] for line in lines] == list(range(len(lines)))


def test_the_members_of_a_chunk_come_in_openais_order(provider: FakeProvider, recorded: Any) -> None:
    known = {
        tuple(line)
        for one in recorded["openai", "chat.completions", "sse"]
        for line in data_lines(one["response_body"].encode())
        if line != "[DONE]"
    }
    for line in data_lines(_answer(provider, ("openai", "chat.completions"), "sse"))[:-1]:
        assert tuple(line) in known
