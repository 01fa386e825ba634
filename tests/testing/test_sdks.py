"""The real SDKs cannot tell the stand-in from the provider: every surface, sync and async, unary and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import groq
import httpx2
import mistralai.client
import openai
import pytest
import together
from google import genai

from lava_middleware.testing import FakeProvider, Figures, Script, ToolCall, count_tokens

from .asking import CLAUDE, MESSAGES, MODEL, chat, claude

QUESTION = count_tokens(MESSAGES[0]["content"]) + 3 + 4
GEMINI = "gemini-2.5-flash"
ASKED_CLAUDE = count_tokens(MESSAGES[0]["content"], CLAUDE) + 3 + 4


class Clients:
    """A sync client of each SDK."""

    def __init__(self, provider: FakeProvider) -> None:
        at, urls = {"api_key": "any", "max_retries": 0}, provider
        self.openai = openai.OpenAI(base_url=urls.openai_base_url, **at)
        self.anthropic = anthropic.Anthropic(base_url=urls.anthropic_base_url, **at)
        self.groq = groq.Groq(base_url=urls.groq_base_url, **at)
        self.azure = openai.AzureOpenAI(azure_endpoint=urls.azure_endpoint, api_version="2025-04-01-preview", **at)

    def close(self) -> None:
        for client in (self.openai, self.anthropic, self.groq, self.azure):
            client.close()


@pytest.fixture
def sdk(provider: FakeProvider) -> Iterator[Clients]:
    clients = Clients(provider)
    yield clients
    clients.close()


def _openai_usage(usage: Any) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def _create(client: openai.OpenAI) -> tuple[int, int]:
    return _openai_usage(client.chat.completions.create(**chat()).usage)


def _raw(client: openai.OpenAI) -> tuple[int, int]:
    return _openai_usage(client.chat.completions.with_raw_response.create(**chat()).parse().usage)


def _streaming_response(client: openai.OpenAI) -> tuple[int, int]:
    with client.chat.completions.with_streaming_response.create(**chat()) as answer:
        return _openai_usage(answer.parse().usage)


def _streamed(client: openai.OpenAI) -> tuple[int, int]:
    chunks = list(client.chat.completions.create(**chat(stream=True, stream_options={"include_usage": True})))
    return _openai_usage(chunks[-1].usage)


def _helper(client: openai.OpenAI) -> tuple[int, int]:
    with client.chat.completions.stream(**chat(stream_options={"include_usage": True})) as stream:
        return _openai_usage(stream.get_final_completion().usage)


def _with_options(client: openai.OpenAI) -> tuple[int, int]:
    return _create(client.with_options(timeout=5))


def _copy(client: openai.OpenAI) -> tuple[int, int]:
    return _create(client.copy(max_retries=1))


def _inner(client: openai.OpenAI) -> tuple[int, int]:
    usage = client._client.post("chat/completions", json=chat()).json()["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def _responses(client: openai.OpenAI) -> tuple[int, int]:
    usage = client.responses.create(model=MODEL, input=MESSAGES).usage
    assert usage
    return usage.input_tokens, usage.output_tokens


def _responses_helper(client: openai.OpenAI) -> tuple[int, int]:
    with client.responses.stream(model=MODEL, input=MESSAGES) as stream:
        usage = stream.get_final_response().usage
    assert usage
    return usage.input_tokens, usage.output_tokens


SURFACES = [
    _create,
    _raw,
    _streaming_response,
    _streamed,
    _helper,
    _with_options,
    _copy,
    _inner,
    _responses,
    _responses_helper,
]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__.strip("_"))
def test_every_surface_of_openai_reads_the_usage_that_was_served(
    sdk: Clients, provider: FakeProvider, surface: Callable[[openai.OpenAI], tuple[int, int]]
) -> None:
    assert surface(sdk.openai) == (QUESTION, 40)
    (served,) = provider.requests
    assert (served.input_tokens, served.output_tokens) == (QUESTION, 40)
    assert served.reported == Figures(QUESTION, 40)
    assert served.state == "complete"


def test_a_stream_carries_usage_only_where_asked(sdk: Clients) -> None:
    chunks = list(sdk.openai.chat.completions.create(**chat(stream=True)))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert count_tokens(text) == 40
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_azure_begins_with_a_chunk_that_names_no_model(sdk: Clients, provider: FakeProvider) -> None:
    options = {"include_usage": True}
    first, *rest = sdk.azure.chat.completions.create(**chat(stream=True, stream_options=options))
    assert (first.choices, first.model) == ([], "")
    assert _openai_usage(rest[-1].usage) == (QUESTION, 40)
    assert provider.requests[0].path == f"/openai/deployments/{MODEL}/chat/completions"
    assert _openai_usage(sdk.azure.chat.completions.create(**chat()).usage) == (QUESTION, 40)


def test_azure_embeds_and_responds(sdk: Clients) -> None:
    assert sdk.azure.embeddings.create(model="ada", input="two words").usage.total_tokens == 2
    answered = sdk.azure.responses.create(model=MODEL, input="Hi")
    assert answered.usage
    assert answered.usage.output_tokens == 40


def test_groq_reports_its_usage_without_being_asked(sdk: Clients) -> None:
    stream = sdk.groq.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = list(stream)
    assert chunks[-1].x_groq
    assert chunks[-1].x_groq.usage
    assert _openai_usage(chunks[-1].x_groq.usage) == (QUESTION, 40)
    assert _openai_usage(sdk.groq.chat.completions.create(model=MODEL, messages=MESSAGES).usage) == (QUESTION, 40)


def test_anthropic_unary_raw_and_streamed(sdk: Clients) -> None:
    messages = sdk.anthropic.messages
    assert messages.create(**claude()).usage.output_tokens == 40
    assert messages.with_raw_response.create(**claude()).parse().usage.input_tokens == ASKED_CLAUDE
    with messages.with_streaming_response.create(**claude()) as answer:
        assert answer.parse().usage.output_tokens == 40
    events = list(messages.create(**claude(stream=True)))
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    with messages.stream(**claude()) as stream:
        assert stream.get_final_message().usage.output_tokens == 40
    assert sdk.anthropic.with_options(timeout=5).messages.create(**claude()).stop_reason == "end_turn"
    assert sdk.anthropic.copy().messages.create(**claude()).usage.output_tokens == 40


def test_embeddings_count_their_input_only(sdk: Clients, provider: FakeProvider) -> None:
    answer = sdk.openai.embeddings.create(model="text-embedding-3-small", input=["one", "two words"], dimensions=8)
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert answer.usage.prompt_tokens == 3
    assert (provider.served.input_tokens, provider.served.output_tokens) == (3, 0)
    floats = sdk.openai.embeddings.create(model="e", input="one", encoding_format="float").data[0].embedding
    assert len(floats) == 1536
    assert abs(sum(value * value for value in floats) - 1) < 1e-4


def test_models_and_token_counts_are_answered_plainly(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(status=500)
    assert "gpt-4o" in [model.id for model in sdk.openai.models.list()]
    assert sdk.openai.models.retrieve("gpt-9").id == "gpt-9"
    assert CLAUDE in [model.id for model in sdk.anthropic.models.list()]
    assert sdk.anthropic.messages.count_tokens(model=CLAUDE, messages=MESSAGES).input_tokens == ASKED_CLAUDE
    assert "gpt-4o" in [model.id for model in sdk.groq.models.list().data]
    assert provider.served.output_tokens == 0


TOOLS = Script(tool_calls=(ToolCall("weather", '{"city": "Oslo", "days": 3}'), ToolCall("clock")))


def test_tool_calls_arrive_in_pieces_and_add_up(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = TOOLS
    with sdk.openai.chat.completions.stream(**chat()) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    calls = [call.function for call in final.message.tool_calls or []]
    assert [(call.name, call.arguments) for call in calls] == [(c.name, c.arguments) for c in TOOLS.tool_calls]
    whole = sdk.openai.chat.completions.create(**chat()).choices[0].message
    assert whole.content is None
    assert whole.tool_calls
    assert len(whole.tool_calls) == 2
    first, second = provider.requests
    assert first.output_tokens == second.output_tokens == _called(MODEL)
    assert first.chunks > 4


def _called(model: str) -> int:
    return sum(count_tokens(call.name, model) + count_tokens(call.arguments, model) for call in TOOLS.tool_calls)


def test_tool_calls_in_responses_and_messages(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = TOOLS
    with sdk.openai.responses.stream(model=MODEL, input="Hi") as stream:
        output: Any = stream.get_final_response().output
    assert [(item.name, item.arguments) for item in output] == [(c.name, c.arguments) for c in TOOLS.tool_calls]
    with sdk.anthropic.messages.stream(**claude()) as messages:
        message: Any = messages.get_final_message()
    assert message.stop_reason == "tool_use"
    assert [(block.name, block.input) for block in message.content] == [
        ("weather", {"city": "Oslo", "days": 3}),
        ("clock", {}),
    ]
    whole: Any = sdk.anthropic.messages.create(**claude())
    assert [block.input for block in whole.content] == [block.input for block in message.content]
    assert [served.output_tokens for served in provider.requests] == [_called(MODEL), _called(CLAUDE), _called(CLAUDE)]


def test_shown_thinking_is_output(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(thinking="Let me think.", text="Yes.")
    with sdk.anthropic.messages.stream(**claude()) as stream:
        message: Any = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.usage.output_tokens == count_tokens("Let me think.", CLAUDE) + count_tokens("Yes.", CLAUDE)
    with sdk.openai.responses.stream(model=MODEL, input="Hi") as responses:
        output: Any = responses.get_final_response().output
    assert output[0].summary[0].text == "Let me think."
    answer: Any = sdk.openai.chat.completions.create(**chat()).choices[0].message
    assert answer.reasoning_content == "Let me think."


def test_hidden_reasoning_shows_in_the_usage_only(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(text="Yes.", reasoning_tokens=100)
    usage = sdk.openai.chat.completions.create(**chat()).usage
    assert usage
    assert usage.completion_tokens == 102
    assert usage.completion_tokens_details
    assert usage.completion_tokens_details.reasoning_tokens == 100
    with sdk.openai.responses.stream(model=MODEL, input="Hi") as stream:
        answered = stream.get_final_response()
    assert answered.usage
    assert answered.usage.output_tokens_details.reasoning_tokens == 100
    assert answered.output[0].type == "reasoning"
    assert sdk.anthropic.messages.create(**claude()).usage.output_tokens == 102
    assert [served.reasoning_tokens for served in provider.requests] == [100, 100, 100]
    assert provider.served.output_tokens == 3 * 102


def test_the_cap_is_obeyed_and_says_so(sdk: Clients, provider: FakeProvider) -> None:
    assert sdk.openai.chat.completions.create(**chat(max_tokens=7)).choices[0].finish_reason == "length"
    assert sdk.openai.chat.completions.create(**chat(max_completion_tokens=7)).choices[0].finish_reason == "length"
    assert sdk.anthropic.messages.create(**claude(max_tokens=7)).stop_reason == "max_tokens"
    assert [served.output_tokens for served in provider.requests] == [7, 7, 7]
    answered = sdk.openai.responses.create(model=MODEL, input="Hi", max_output_tokens=20)
    assert answered.status == "incomplete"
    assert answered.incomplete_details
    assert answered.incomplete_details.reason == "max_output_tokens"
    provider.default = Script(reasoning_tokens=500)
    usage = sdk.openai.chat.completions.create(**chat(max_completion_tokens=100)).usage
    assert usage
    assert usage.completion_tokens == 100


def test_a_cap_can_be_ignored(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(ignores_cap=True)
    chunks = list(sdk.openai.chat.completions.create(**chat(max_tokens=100, stream=True)))
    assert count_tokens("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == 400
    assert provider.requests[0].cap == 100
    assert provider.served.output_tokens == 400


def test_several_choices_multiply_the_output(sdk: Clients, provider: FakeProvider) -> None:
    answer = sdk.openai.chat.completions.create(**chat(n=3))
    assert len(answer.choices) == 3
    assert answer.usage
    assert answer.usage.completion_tokens == 120
    list(sdk.openai.chat.completions.create(**chat(n=3, stream=True)))
    assert [served.output_tokens for served in provider.requests] == [120, 120]


def test_figures_are_reported_as_the_script_says(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(
        input_tokens=1000, cached_tokens=600, cache_write_tokens=300, cache_write_1h_tokens=100, output_tokens=5
    )
    usage: Any = sdk.openai.chat.completions.create(**chat()).usage
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (1000, 600)
    claimed = sdk.anthropic.messages.create(**claude()).usage
    assert claimed.input_tokens == 100  # Anthropic leaves the cached and the written out.
    assert (claimed.cache_read_input_tokens, claimed.cache_creation_input_tokens) == (600, 300)
    assert claimed.cache_creation
    assert claimed.cache_creation.ephemeral_5m_input_tokens == 200
    assert claimed.cache_creation.ephemeral_1h_input_tokens == 100


def test_a_lie_about_the_output_changes_the_report_and_not_the_truth(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(output_tokens=5, reported_output_tokens=50, model="other", service_tier="priority")
    answer = sdk.openai.chat.completions.create(**chat())
    assert (answer.model, answer.service_tier) == ("other", "priority")
    assert answer.usage
    assert answer.usage.completion_tokens == 50
    assert (provider.served.output_tokens, provider.served.reported_output_tokens) == (5, 50)


def test_usage_can_be_left_out_everywhere(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(usage=False)
    assert sdk.openai.chat.completions.create(**chat()).usage is None
    options = {"include_usage": True}
    assert all(not c.usage for c in sdk.openai.chat.completions.create(**chat(stream=True, stream_options=options)))
    assert sdk.openai.responses.create(model=MODEL, input="Hi").usage is None
    assert all("usage" not in e.to_dict() for e in sdk.anthropic.messages.create(**claude(stream=True)))
    assert [served.reported for served in provider.requests] == [None] * 4


def test_async_clients_read_the_same(provider: FakeProvider) -> None:
    async def ask() -> list[int]:
        at = {"api_key": "any", "max_retries": 0}
        async with (
            openai.AsyncOpenAI(base_url=provider.openai_base_url, **at) as chatty,
            anthropic.AsyncAnthropic(base_url=provider.anthropic_base_url, **at) as claudes,
            groq.AsyncGroq(base_url=provider.groq_base_url, **at) as fast,
        ):
            outputs: list[Any] = [(await chatty.chat.completions.create(**chat())).usage.completion_tokens]
            raw = await chatty.chat.completions.with_raw_response.create(**chat())
            outputs.append(raw.parse().usage.completion_tokens)
            async with chatty.chat.completions.with_streaming_response.create(**chat()) as answer:
                outputs.append((await answer.parse()).usage.completion_tokens)
            async with chatty.chat.completions.stream(**chat(stream_options={"include_usage": True})) as stream:
                outputs.append((await stream.get_final_completion()).usage.completion_tokens)
            async with chatty.responses.stream(model=MODEL, input="Hi") as responses:
                outputs.append((await responses.get_final_response()).usage.output_tokens)
            outputs.append((await chatty.copy().responses.create(model=MODEL, input="Hi")).usage.output_tokens)
            inner = await chatty._client.post("chat/completions", json=chat())
            outputs.append(inner.json()["usage"]["completion_tokens"])
            async with claudes.messages.stream(**claude()) as messages:
                outputs.append((await messages.get_final_message()).usage.output_tokens)
            outputs.append((await claudes.with_options(timeout=5).messages.create(**claude())).usage.output_tokens)
            last = None
            async for chunk in await fast.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
                last = chunk
            assert last
            assert last.x_groq
            outputs.append(last.x_groq.usage.completion_tokens)
            return outputs

    assert asyncio.run(ask()) == [40] * 10
    assert provider.served.output_tokens == provider.served.reported_output_tokens == 400


def test_errors_are_the_sdks_own(sdk: Clients, provider: FakeProvider) -> None:
    provider.queue(Script(status=429, headers={"retry-after": "7"}), Script(status=429), Script(status=429))
    with pytest.raises(openai.RateLimitError) as limited:
        sdk.openai.chat.completions.create(**chat())
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(anthropic.RateLimitError) as refused:
        sdk.anthropic.messages.create(**claude())
    assert refused.value.type == "rate_limit_error"
    with pytest.raises(groq.RateLimitError):
        sdk.groq.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert provider.served.input_tokens == 0
    assert provider.served.answered == 0


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 422, 500, 502, 503, 504, 529])
def test_every_status_has_a_body_in_the_providers_shape(sdk: Clients, provider: FakeProvider, status: int) -> None:
    provider.default = Script(status=status, error_message="So it goes.")
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match="So it goes") as first:
            sdk.openai.chat.completions.create(**chat(stream=stream))
        with pytest.raises(anthropic.APIStatusError, match="So it goes") as second:
            sdk.anthropic.messages.create(**claude(stream=stream))
        assert first.value.status_code == second.value.status_code == status
        assert first.value.type
        assert second.value.type


def test_attempts_are_seen_as_such(provider: FakeProvider) -> None:
    provider.queue(Script(status=500, headers={"retry-after-ms": "1"}))
    with openai.OpenAI(base_url=provider.openai_base_url, api_key="any", max_retries=1) as client:
        client.chat.completions.create(**chat())
    assert [(served.attempt, served.status) for served in provider.requests] == [(0, 500), (1, 200)]


def test_a_redirect_leads_back_and_costs_the_second_script(sdk: Clients, provider: FakeProvider) -> None:
    provider.queue(Script(status=307))
    assert _create(sdk.openai) == (QUESTION, 40)
    assert [served.status for served in provider.requests] == [307, 200]


def test_an_error_inside_a_good_stream(sdk: Clients, provider: FakeProvider) -> None:
    provider.default = Script(error_after=3, error_message="So it goes.")
    with pytest.raises(openai.APIError, match="So it goes"):
        list(sdk.openai.chat.completions.create(**chat(stream=True)))
    with pytest.raises(anthropic.APIStatusError, match="So it goes"):
        list(sdk.anthropic.messages.create(**claude(stream=True)))
    with pytest.raises(groq.APIError, match="So it goes"):
        list(sdk.groq.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    *_, last = sdk.openai.responses.create(model=MODEL, input="Hi", stream=True)
    assert last.type == "error"
    assert [served.output_tokens for served in provider.requests] == [3, 3, 3, 3]
    assert [served.status for served in provider.requests] == [200] * 4


BAD = [
    ({"stream_options": {"include_usage": True}}, "only allowed when 'stream' is enabled"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "at the same time"),
    ({"model": "gpt-5-mini", "max_tokens": 5}, "max_completion_tokens"),
    ({"messages": "Hello"}, "messages"),
]


@pytest.mark.parametrize(("more", "words"), BAD)
def test_requests_that_the_real_provider_refuses_are_refused(sdk: Clients, more: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        sdk.openai.chat.completions.create(**chat(**more))


def test_a_cap_below_the_least_is_refused_by_responses(sdk: Clients) -> None:
    with pytest.raises(openai.BadRequestError, match=">= 16"):
        sdk.openai.responses.create(model=MODEL, input="Hi", max_output_tokens=15)


def _gemini(provider: FakeProvider, **options: Any) -> Any:
    return genai.Client(api_key="any", http_options={"base_url": provider.gemini_base_url, **options})


def test_gemini_whole_streamed_and_embedded(provider: FakeProvider) -> None:
    """The SDK streams with `alt=sse`."""
    with _gemini(provider) as client:
        asked = {"model": GEMINI, "contents": "Tell me about ledgers."}
        whole = client.models.generate_content(**asked)
        chunks = list(client.models.generate_content_stream(**asked))
        assert "".join(chunk.text or "" for chunk in chunks) == whole.text
        assert chunks[-1].usage_metadata == whole.usage_metadata
        assert whole.usage_metadata.prompt_token_count == QUESTION
        assert whole.usage_metadata.candidates_token_count == 40
        assert chunks[-1].candidates[0].finish_reason.name == "STOP"
        short = client.models.generate_content(**asked, config={"max_output_tokens": 5, "candidate_count": 2})
        assert [one.finish_reason.name for one in short.candidates] == ["MAX_TOKENS"] * 2
        assert short.usage_metadata.candidates_token_count == 10
        vectors = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"]).embeddings
        assert [len(vector.values) for vector in vectors] == [768, 768]
        assert client.models.count_tokens(**asked).total_tokens == QUESTION
        assert next(model.name for model in client.models.list()) == f"models/{GEMINI}"
    assert {served.operation for served in provider.requests} == {
        *("generateContent", "embedContent", "count_tokens", "models")
    }


def test_gemini_thinks_calls_and_fails_in_its_own_way(provider: FakeProvider) -> None:
    provider.queue(Script(thinking="Let me think.", reasoning_tokens=7, text="Yes."), TOOLS, Script(status=429))
    with _gemini(provider) as client:
        asked = {"model": GEMINI, "contents": "Tell me about ledgers."}
        thought = list(client.models.generate_content_stream(**asked))
        assert thought[0].candidates[0].content.parts[0].thought
        used = thought[-1].usage_metadata
        assert used.thoughts_token_count == 7
        assert used.total_token_count == QUESTION + 7 + count_tokens("Let me think.") + count_tokens("Yes.")
        called = list(client.models.generate_content_stream(**asked))
        names = [call.name for chunk in called for call in chunk.function_calls or ()]
        assert names == [call.name for call in TOOLS.tool_calls]
        with pytest.raises(genai.errors.ClientError) as raised:
            client.models.generate_content(**asked)
        assert (raised.value.code, raised.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert [served.output_tokens for served in provider.requests[:2]] == [
        7 + count_tokens("Let me think.") + count_tokens("Yes."),
        _called(MODEL),
    ]


def test_gemini_without_alt_sse_is_one_array_that_grows(provider: FakeProvider) -> None:
    path = f"/v1beta/models/{GEMINI}:streamGenerateContent"
    body = {"contents": [{"parts": [{"text": "Hi"}]}]}
    provider.queue(Script(), Script(error_after=3))
    answer = httpx2.post(provider.url + path, json=body)
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    assert len(answer.json()) == 41
    assert answer.json()[-1]["candidates"][0]["finishReason"] == "STOP"
    assert httpx2.post(provider.url + path, json=body).json()[-1]["error"]["code"] == 500


def test_mistral_reports_its_usage_without_being_asked_and_refuses_to_be_asked(provider: FakeProvider) -> None:
    with mistralai.client.Mistral(api_key="any", server_url=provider.mistral_base_url) as client:
        whole = client.chat.complete(model="mistral-small-latest", messages=MESSAGES)
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (QUESTION, 40)
        events = [event.data for event in client.chat.stream(model="mistral-small-latest", messages=MESSAGES)]
        assert events[-1].usage.completion_tokens == 40
        assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
    headers = {"user-agent": "mistral-client-python/3"}
    asking = chat(stream=True, stream_options={"include_usage": True})
    assert httpx2.post(f"{provider.url}/v1/chat/completions", json=asking, headers=headers).status_code == 422


def test_together_reports_its_usage_without_being_asked(provider: FakeProvider) -> None:
    with together.Together(api_key="any", base_url=provider.together_base_url, max_retries=0) as client:
        assert client.chat.completions.create(**chat()).usage.completion_tokens == 40
        chunks = list(client.chat.completions.create(**chat(stream=True)))
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (QUESTION, 40)
