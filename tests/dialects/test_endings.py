"""A stream that is cut ends as the provider itself would end it, and the vendors' own SDKs read it so."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from groq import Groq

from lava_middleware.core.intent import Intent, Text
from lava_middleware.dialects.dialect import Dialect, Refusal

from .kit import BODIES, DIALECTS, EXPECTED, REFUSAL, STREAMED

CHAT, RESPONSES, MESSAGES = (DIALECTS[name] for name in ("openai.chat", "openai.responses", "anthropic.messages"))
ASKING = Intent("chat", "gpt-4o", stream=True, text=Text(40, 1_000, 1), asks_usage=True)
SILENT = Intent("chat", "gpt-4o", stream=True, text=Text(40, 1_000, 1))


def cut(dialect: Dialect, name: str, upto: int, intent: Intent = SILENT, refusal: Refusal = REFUSAL) -> bytes | None:
    """The first `upto` events of a body and the ending that belongs there; None where there is none."""
    meter = dialect.stream_meter(intent, hide_usage=False)
    events = meter.split((BODIES / name).read_bytes())
    for event in events[:upto]:
        meter.take(event)
    ending = meter.ending(refusal)
    return None if ending is None else b"".join(events[:upto]) + ending


def openai_client(body: bytes) -> openai.OpenAI:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="k", http_client=client, max_retries=0)


def anthropic_client(body: bytes) -> anthropic.Anthropic:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(api_key="k", http_client=client, max_retries=0)


def chat_chunks(body: bytes) -> list[Any]:
    with openai_client(body) as client:
        messages: Any = [{"role": "user", "content": "x"}]
        return list(client.chat.completions.create(model="gpt-4o", messages=messages, stream=True))


# Chat completions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upto", [1, 4, 8])
def test_a_cut_chat_finishes_with_length(upto: int) -> None:
    """T3: finish reason `length`, the reason beside it, no usage block that nobody asked for, then [DONE]."""
    body = cut(CHAT, "chat_stream.sse", upto)
    assert body is not None
    assert body.endswith(b"data: [DONE]\n\n")
    *before, last = chat_chunks(body)
    assert len(before) == upto
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert (last.id, last.model) == (before[0].id, before[0].model)
    assert last.lava == {"code": "insufficient_credit", "message": "no credit left", "record": "r1"}
    assert all(chunk.usage is None for chunk in before)


def test_the_application_that_asked_for_usage_gets_it() -> None:
    body = cut(CHAT, "chat_stream.sse", 6, ASKING)
    assert body is not None
    usage_chunk = chat_chunks(body)[-1]
    assert usage_chunk.choices == []
    assert usage_chunk.usage.prompt_tokens > 0
    assert usage_chunk.usage.completion_tokens > 0
    assert usage_chunk.usage.total_tokens == usage_chunk.usage.prompt_tokens + usage_chunk.usage.completion_tokens


def test_the_callers_figures_go_into_the_usage_block() -> None:
    refusal = Refusal(402, "insufficient_credit", "", None, {"input_tokens": 12, "output_tokens": 7})
    body = cut(CHAT, "chat_stream.sse", 6, ASKING, refusal)
    assert body is not None
    usage = chat_chunks(body)[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (12, 7)


def test_every_open_choice_is_finished_and_no_finished_one_twice() -> None:
    body = cut(CHAT, "chat_stream_two_choices.sse", 5)
    assert body is not None
    assert sorted(choice.index for choice in chat_chunks(body)[-1].choices) == [0, 1]
    body = cut(CHAT, "chat_stream_two_choices.sse", 9)
    assert body is not None
    assert [choice.index for choice in chat_chunks(body)[-1].choices] == [0]


def test_a_chat_cut_before_its_first_chunk_is_still_a_whole_stream() -> None:
    body = cut(CHAT, "chat_stream.sse", 0, Intent("chat", "gpt-4o", stream=True, choices=2))
    assert body is not None
    (chunk,) = chat_chunks(body)
    assert [choice.finish_reason for choice in chunk.choices] == ["length", "length"]


def test_a_chat_whose_choices_are_finished_only_gets_its_terminator() -> None:
    body = cut(CHAT, "chat_stream_without_usage.sse", 12)
    assert body is not None
    assert chat_chunks(body)[-1].choices[0].finish_reason == "length"
    assert body.count(b'"finish_reason":"length"') == 1


def test_groq_reads_the_same_ending() -> None:
    import httpx

    body = cut(CHAT, "groq_chat_stream.sse", 4)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    with Groq(api_key="k", http_client=httpx.Client(transport=httpx.MockTransport(answer)), max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "x"}]
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("dialect", "name", "inside"),
    [
        (CHAT, "chat_stream_tool_call.sse", range(1, 8)),
        (RESPONSES, "responses_stream_failed.sse", range(2, 8)),
        (MESSAGES, "messages_stream_tool_use.sse", range(8, 13)),
    ],
)
def test_a_tool_call_is_never_cut_with_an_ending(dialect: Dialect, name: str, inside: range) -> None:
    """Half a tool call is broken JSON: the stream ends with an exception instead."""
    meter = dialect.stream_meter(SILENT, hide_usage=False)
    for number, event in enumerate(meter.split((BODIES / name).read_bytes()), 1):
        meter.take(event)
        assert meter.in_tool_call is (number in inside), number
        assert (meter.ending(REFUSAL) is None) is (number in inside), number


# Responses -----------------------------------------------------------------------------------------------------------


def response_events(body: bytes) -> list[Any]:
    with openai_client(body) as client:
        return list(client.responses.create(model="gpt-5-mini", input="x", stream=True))


@pytest.mark.parametrize("upto", [0, 1, 2, 3, 4, 5, 6, 8, 13])
def test_a_cut_response_is_incomplete(upto: int) -> None:
    """T3: open parts and items are closed, numbers go on, the object holds the text so far."""
    body = cut(RESPONSES, "responses_stream.sse", upto)
    assert body is not None
    events = response_events(body)
    assert [event.sequence_number for event in events][-1] == len(events) - (0 if upto == 0 else 1)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.lava["code"] == "insufficient_credit"
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.response.output_text == said
    assert last.response.usage.output_tokens >= 0
    opened = [event.type for event in events if event.type.endswith(".added")]
    closed = [event.type for event in events if event.type.endswith((".output_item.done", "_part.done"))]
    assert len(opened) == len(closed)
    if upto:
        assert last.response.id == events[0].response.id


def test_the_stream_helper_of_responses_follows_a_cut() -> None:
    """The helper accumulates by item and part: closing events must fit what was opened."""
    body = cut(RESPONSES, "responses_stream.sse", 9)
    assert body is not None
    with openai_client(body) as client, client.responses.stream(model="gpt-5-mini", input="x") as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "response.incomplete"


def test_a_cut_reasoning_summary_is_closed() -> None:
    opened = {"type": "reasoning", "id": "rs_1", "summary": []}
    place = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    part = {"type": "summary_text", "text": ""}
    events = [
        {"type": "response.output_item.added", "output_index": 0, "item": opened},
        {"type": "response.reasoning_summary_part.added", **place, "part": part},
        {"type": "response.reasoning_summary_text.delta", **place, "delta": "So"},
    ]
    raw = b"".join(
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': n})}\n\n".encode()
        for n, event in enumerate(events, 4)
    )
    meter = RESPONSES.stream_meter(SILENT, hide_usage=False)
    for event in meter.split(raw):
        meter.take(event)
    ending = meter.ending(REFUSAL)
    assert ending is not None
    closing = response_events(raw + ending)[3:]
    assert [event.type for event in closing] == [
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert closing[-1].response.output[0].summary[0].text == "So"
    assert [event.sequence_number for event in closing] == [7, 8, 9, 10]


def test_an_answer_too_long_to_repeat_ends_with_an_exception() -> None:
    """T29: its text is not kept for ever."""
    meter = RESPONSES.stream_meter(SILENT, hide_usage=False)
    event = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"%s"}\n\n'
    for _ in range(1_200):
        meter.take(event % (b"x" * 1_000))
    assert meter.ending(REFUSAL) is None


# Messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upto", [0, 1, 2, 4, 7, 9, 10])
def test_a_cut_message_stops_with_max_tokens(upto: int) -> None:
    """T3: open blocks are closed; the SDK's helper accumulates a whole message from it."""
    body = cut(MESSAGES, "messages_stream.sse", upto)
    assert body is not None
    messages: Any = [{"role": "user", "content": "x"}]
    with (
        anthropic_client(body) as client,
        client.messages.stream(model="claude-sonnet-5", max_tokens=50, messages=messages) as stream,
    ):
        said = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert message.stop_reason == "max_tokens"
    assert "".join(getattr(block, "text", "") for block in message.content) == said
    assert message.usage.output_tokens >= 0
    if upto:
        assert message.usage.input_tokens == 12
        assert message.usage.cache_read_input_tokens == 4096


def test_the_reason_rides_on_the_message_delta() -> None:
    body = cut(MESSAGES, "messages_stream.sse", 4)
    assert body is not None
    messages: Any = [{"role": "user", "content": "x"}]
    with anthropic_client(body) as client:
        events = list(client.messages.create(model="claude", max_tokens=50, messages=messages, stream=True))
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert delta.lava["code"] == "insufficient_credit"
    assert [event.type for event in events][-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_message_that_has_its_delta_only_gets_its_stop() -> None:
    events = (BODIES / "messages_stream.sse").read_bytes().count(b"\n\n")
    body = cut(MESSAGES, "messages_stream.sse", events - 1)
    assert body is not None
    assert body.count(b"event: message_delta") == 1
    assert body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


# Completions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upto", [0, 1, 4])
def test_a_cut_completion_finishes_with_length(upto: int) -> None:
    """T3."""
    body = cut(DIALECTS["openai.completions"], "completions_stream.sse", upto, ASKING)
    assert body is not None
    with openai_client(body) as client:
        *before, last, usage = list(client.completions.create(model="m", prompt="x", stream=True))
    assert len(before) == upto
    assert (last.choices[0].finish_reason, last.choices[0].text) == ("length", "")
    assert last.object == "text_completion"
    assert usage.usage is not None
    assert usage.usage.prompt_tokens > 0


# Gemini --------------------------------------------------------------------------------------------------------------

GENERATE_STREAM = DIALECTS["gemini.stream"]
TOLD = Refusal(402, "insufficient_credit", "", None, {"input_tokens": 12, "output_tokens": 7})


@pytest.mark.parametrize("upto", [1, 2, 3])
def test_a_cut_gemini_stream_ends_at_its_cap(upto: int) -> None:
    """T3: a candidate that reached MAX_TOKENS, with the usage that every chunk carries; the vendor's SDK reads it."""
    genai = pytest.importorskip("google.genai", reason="google-genai is not installed")
    body = cut(GENERATE_STREAM, "gemini_stream.sse", upto, refusal=TOLD)
    assert body is not None

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    transport = httpx2.MockTransport(answer)
    options = genai.types.HttpOptions(httpx_client=httpx2.Client(transport=transport))
    with genai.Client(api_key="k", http_options=options) as client:
        *before, last = client.models.generate_content_stream(model="gemini-2.5-flash", contents="x")
    assert len(before) == upto
    assert last.candidates[0].finish_reason.name == "MAX_TOKENS"
    assert not last.text
    assert (last.usage_metadata.prompt_token_count, last.usage_metadata.candidates_token_count) == (12, 7)


@pytest.mark.parametrize("name", ["gemini_stream.array", "gemini_stream_compact.array"])
@pytest.mark.parametrize("upto", [1, 2, 3])
def test_a_cut_array_is_still_an_array(name: str, upto: int) -> None:
    """T3: `]` closes it."""
    body = cut(GENERATE_STREAM, name, upto, refusal=TOLD)
    assert body is not None
    *before, last = json.loads(body)
    assert before == json.loads((BODIES / name).read_bytes())[:upto]
    assert last["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert last["usageMetadata"]["totalTokenCount"] == 19
    assert last["lava"]["code"] == "insufficient_credit"


def test_an_array_cut_at_its_first_element_begins_with_a_bracket() -> None:
    """What was taken but not passed on does not count as there."""
    meter = GENERATE_STREAM.stream_meter(SILENT, hide_usage=False)
    meter.take(meter.split((BODIES / "gemini_stream.array").read_bytes())[0])
    meter.untake()
    ending = meter.ending(TOLD)
    assert ending is not None
    (only,) = json.loads(ending)
    assert only["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_an_element_that_is_half_through_is_not_cut() -> None:
    meter = GENERATE_STREAM.stream_meter(SILENT, hide_usage=False)
    meter.split((BODIES / "gemini_stream.array").read_bytes()[:50])
    meter.take(meter.rest())
    assert meter.ending(TOLD) is None


def test_a_function_call_in_pieces_is_not_cut() -> None:
    meter = GENERATE_STREAM.stream_meter(SILENT, hide_usage=False)
    for call, inside in (({"name": "f", "willContinue": True}, True), ({"partialArgs": [{}]}, False)):
        chunk = {"candidates": [{"content": {"parts": [{"functionCall": call}]}}]}
        meter.take(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n")
        assert meter.in_tool_call is inside


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if name.endswith(STREAMED)))
def test_no_cut_ever_raises(name: str) -> None:
    dialect = DIALECTS[EXPECTED[name]["dialect"]]
    raw = (BODIES / name).read_bytes()
    events = len(dialect.stream_meter(SILENT, hide_usage=False).split(raw)) + 1
    for upto in range(events):
        cut(dialect, name, upto, ASKING)
