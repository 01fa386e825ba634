"""Whatever a provider answers: the application gets its bytes, one entry ends the hold, and the record says how."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lava_middleware import Lava, Record
from lava_middleware.testing import FakeProvider, Script
from tests.faults.kit import (
    CHAT,
    MESSAGES,
    MODEL,
    aclient_of,
    chat,
    client_of,
    eventually,
    kinds,
    lava_at,
    nothing_is_held,
)

RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def lava(provider: FakeProvider, tmp_path: Path) -> Iterator[Lava]:
    with lava_at(provider, tmp_path / "ledger.db") as lava:
        lava.grant("acme", "1000")
        yield lava


def request_for(path: str, *, stream: bool = False) -> dict[str, Any]:
    if path == RESPONSES:
        return {"model": MODEL, "input": "hello there", "max_output_tokens": 100, "stream": stream}
    if path == EMBEDDINGS:
        return {"model": MODEL, "input": "hello there"}
    return chat(stream=stream)


def ask(lava: Lava, provider: FakeProvider, path: str, *, stream: bool = False) -> tuple[int, bytes, str]:
    """(status, the raw bytes, how reading them ended)."""
    body = request_for(path, stream=stream)
    with client_of(provider) as client, lava.charge_to("acme"), client.stream("POST", path, json=body) as response:
        got = b""
        try:
            for data in response.iter_raw():
                got += data
        except httpx2.TransportError as error:
            return response.status_code, got, type(error).__name__
        return response.status_code, got, "complete"


def only_record(lava: Lava) -> Record | None:
    eventually(lambda: nothing_is_held(lava, "acme"))
    assert kinds(lava, "acme")[:2] == ["granted", "held"]
    assert len(kinds(lava, "acme")) == 3, "a hold ends once"
    records = list(lava.records("acme"))
    return records[0] if records else None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 418, 422, 429, 500, 501, 503, 529])
def test_an_answer_without_billable_work_owes_nothing(
    status: int, path: str, stream: bool, lava: Lava, provider: FakeProvider
) -> None:
    """T9: the hold is given back."""
    provider.queue(Script(status=status))
    got_status, got, how = ask(lava, provider, path, stream=stream)
    assert (got_status, how) == (status, "complete")
    assert b"error" in got
    assert only_record(lava) is None
    assert kinds(lava, "acme") == ["granted", "held", "voided"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", [408, 502, 504, 524])
def test_a_hop_that_broke_is_an_unknown_outcome(status: int, path: str, lava: Lava, provider: FakeProvider) -> None:
    """T9: the provider may have worked and billed; what it owes is the policy's, and the record says so."""
    provider.queue(Script(status=status))
    assert ask(lava, provider, path)[0] == status
    record = only_record(lava)
    assert record is not None
    assert (record.basis, record.facts["status"]) == ("estimated", status)
    assert record.charge.ticks > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, EMBEDDINGS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff" * 3000,
        b"<html>" + b"not what you think " * 100,
        b'{"id": "x", "choices": [{"mess',
        b"data: {broken\n\ndata: [1]\n\ndata:\n\ndata: null\n\n: comment\n\n\n\nevent\ndata\n\ndata: [DONE]\n\n",
        b"event: message_start\ndata: 5\n\nevent: ping\n\nevent: \xff\ndata: \xff\n\n",
        b"null",
        b"[" * 50_000,
        b'data: {"choices": 5}\n\ndata: {"choices": [null, {"delta": 7, "index": "x"}], "usage": []}\n\n',
        b'{"choices": {"0": 1}, "usage": "much", "model": {}, "output": [7], "content": 3, "data": null}',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_garbage_passes_as_it_is_and_the_prompt_is_billed(
    body: bytes, path: str, stream: bool, lava: Lava, provider: FakeProvider
) -> None:
    """T16, T17: what we fail to understand never breaks the answer; without a usage block it is never zero."""
    provider.queue(Script(body=body, content_type="text/event-stream" if stream else "application/json"))
    status, got, how = ask(lava, provider, path, stream=stream)
    assert (status, how) == (200, "complete")
    assert got == body
    record = only_record(lava)
    assert record is not None
    assert record.charge.ticks > 0
    assert record.basis in ("counted", "estimated")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "text/html; charset=x", "", "x" * 5000])
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_content_type_changes_no_byte(
    content_type: str, path: str, stream: bool, lava: Lava, provider: FakeProvider
) -> None:
    body = b'{"usage": {"prompt_tokens": 9, "completion_tokens": 4}, "choices": []}'
    provider.queue(Script(body=body, content_type=content_type))
    assert ask(lava, provider, path, stream=stream)[1] == body
    assert only_record(lava) is not None


def test_an_encoding_that_lies_changes_no_byte(lava: Lava, provider: FakeProvider) -> None:
    """T30."""
    for encoding in ("gzip", "br", "zstd", "deflate", "nonsense", "gzip, gzip"):
        provider.queue(Script(body=b"this is not compressed" * 50, headers={"content-encoding": encoding}))
        assert ask(lava, provider, CHAT)[1] == b"this is not compressed" * 50
        eventually(lambda: nothing_is_held(lava, "acme"))


def test_a_bomb_is_not_inflated_without_end(lava: Lava, provider: FakeProvider) -> None:
    """T30: an output bound. Two hundred megabytes of zeros in 200 kB pass, and are not kept."""
    import tracemalloc
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    provider.queue(Script(body=bomb, headers={"content-encoding": "gzip"}))
    tracemalloc.start()
    try:
        assert ask(lava, provider, CHAT)[1] == bomb
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 150_000_000
    eventually(lambda: nothing_is_held(lava, "acme"))


@pytest.mark.parametrize("by", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_truncated_answer_is_billed_for_what_came(
    path: str, stream: bool, by: Any, lava: Lava, provider: FakeProvider
) -> None:
    """T17: the application sees the break as it would without us; what passed and the prompt are billed."""
    provider.queue(Script(output_tokens=60, truncate_after=20, truncate_by=by))
    how = ask(lava, provider, path, stream=stream)[2]
    assert how != "complete"
    record = only_record(lava)
    assert record is not None
    assert record.charge.ticks > 0
    assert record.facts["ending"] not in ("finished", "closed")
    if stream:
        assert record.basis == "counted" or path == MESSAGES
        assert 10 <= record.usage.output_tokens <= 40


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_connection_closed_before_any_answer_is_an_unknown_outcome(
    path: str, lava: Lava, provider: FakeProvider
) -> None:
    provider.queue(Script(close_before_answer=True))
    with pytest.raises(httpx2.TransportError):
        ask(lava, provider, path)
    record = only_record(lava)
    assert record is not None
    assert (record.kind, record.basis) == ("settled", "estimated")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_stream_without_end_is_billed_until_its_client_stops(path: str, lava: Lava, provider: FakeProvider) -> None:
    """T3, T17, T29: extended slice by slice; closing ends it upstream within a chunk."""
    provider.default = Script(endless=True, tokens_per_chunk=10)
    body = request_for(path, stream=True) | {"max_tokens": 4000}
    with client_of(provider) as client, lava.charge_to("acme"), client.stream("POST", path, json=body) as response:
        got = 0
        for data in response.iter_raw():
            got += data.count(b"data: ")
            if got > 40:
                break
    provider.wait_idle()
    assert provider.requests[0].state == "aborted"
    eventually(lambda: nothing_is_held(lava, "acme"))
    (record,) = lava.records("acme")
    assert record.facts["ending"] in ("closed", "collected")
    assert 300 < record.usage.output_tokens < 1_000
    if path == CHAT:  # a model that may think unseen is held for whole
        assert "extended" in kinds(lava, "acme")


def test_a_stream_without_end_is_cut_when_credit_ends(lava: Lava, provider: FakeProvider) -> None:
    """T3: a provider that ignores its cap cannot spend what is not there."""
    provider.default = Script(endless=True, tokens_per_chunk=10)
    lava.grant("small", "0.02")
    request = chat(4000, stream=True)
    with client_of(provider) as client, lava.charge_to("small"), client.stream("POST", CHAT, json=request) as response:
        body = b"".join(response.iter_raw())
    assert b'"finish_reason":"length"' in body
    provider.wait_idle()
    assert provider.requests[0].state == "aborted"
    eventually(lambda: nothing_is_held(lava, "small"))
    balance = lava.balance("small")
    assert (balance.held.ticks, balance.debt.ticks) == (0, 0)


def test_a_stream_without_end_stops_with_its_task(lava: Lava, provider: FakeProvider) -> None:
    provider.default = Script(endless=True, chunk_delay_s=0.001)

    async def main() -> None:
        async with aclient_of(provider) as client:

            async def read() -> None:
                async with client.stream("POST", CHAT, json=chat(4000, stream=True)) as response:
                    async for _ in response.aiter_raw():
                        pass

            with lava.charge_to("acme"):
                reading = asyncio.create_task(read())
            await asyncio.to_thread(provider.wait_until, lambda one: one.count and one.requests[0].chunks > 20)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(main())
    eventually(lambda: nothing_is_held(lava, "acme"))
    (record,) = lava.records("acme")
    assert record.facts["ending"] == "cancelled"
    provider.wait_idle()


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("after", [0, 5])
def test_an_error_inside_a_200_stream_is_billed_for_what_came_before(
    path: str, after: int, lava: Lava, provider: FakeProvider
) -> None:
    """Where nothing came before, nothing is owed, unless the provider said what the prompt cost."""
    provider.queue(Script(error_after=after, output_tokens=50))
    status, got, how = ask(lava, provider, path, stream=True)
    assert (status, how) == (200, "complete")
    assert b"error" in got
    record = only_record(lava)
    if after:
        assert record is not None
        assert 3 <= record.usage.output_tokens <= 20
    elif path == CHAT:
        assert record is None


def test_an_error_inside_a_200_body_owes_nothing(lava: Lava, provider: FakeProvider) -> None:
    provider.queue(
        Script(body=b'{"error": {"message": "no", "type": "server_error"}}', content_type="application/json")
    )
    assert ask(lava, provider, CHAT)[0] == 200
    assert only_record(lava) is None


ABSURD = [10**30, 2**63, 2**53, 10**15, -1, -(10**30), "12", "much", 12.5, 1e300, 12.0, True, None, [], {}]


def usage_of(path: str, value: Any, missing: str = "") -> dict[str, Any]:
    names = ("prompt_tokens", "completion_tokens") if path in (CHAT, EMBEDDINGS) else ("input_tokens", "output_tokens")
    return {name: value for name in (*names, "total_tokens") if name != missing}


def body_of(path: str, usage: Any) -> dict[str, Any]:
    common = {"id": "x", "model": MODEL, "usage": usage}
    if path == MESSAGES:
        return common | {"type": "message", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}
    if path == RESPONSES:
        text = {"type": "output_text", "text": "hello"}
        return common | {
            "object": "response",
            "status": "completed",
            "output": [{"type": "message", "content": [text]}],
        }
    if path == EMBEDDINGS:
        return common | {"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}
    return common | {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, EMBEDDINGS])
def test_absurd_usage_neither_raises_nor_leaks(path: str, lava: Lava, provider: FakeProvider) -> None:
    """T24: what is no count is not reported, a count beyond all reason is not believed; the record has both."""
    for value in ABSURD:
        body = json.dumps(body_of(path, usage_of(path, value))).encode()
        provider.queue(Script(body=body, content_type="application/json"))
        assert ask(lava, provider, path)[1] == body
        eventually(lambda: nothing_is_held(lava, "acme"))
        record = next(lava.records("acme"))
        assert record.charge.ticks >= 0
        believable = isinstance(value, int | float) and value == 12
        assert record.basis == "reported" or not believable
        assert record.charge.ticks < 10**12, "no customer owes for what nobody can have used"
    assert kinds(lava, "acme").count("settled") == len(ABSURD)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_absurd_usage_in_a_stream_neither_raises_nor_leaks(path: str, lava: Lava, provider: FakeProvider) -> None:
    for value in ABSURD:
        usage = usage_of(path, value)
        if path == CHAT:
            chunk = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}
            made = [chunk, {"choices": [], "usage": usage}]
            body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in made) + b"data: [DONE]\n\n"
        else:
            made = [
                {"type": "message_start", "message": body_of(path, usage)},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
                {"type": "message_stop"},
            ]
            body = b"".join(
                b"event: " + str(one["type"]).encode() + b"\ndata: " + json.dumps(one).encode() + b"\n\n"
                for one in made
            )
        provider.queue(Script(body=body, content_type="text/event-stream"))
        got = ask(lava, provider, path, stream=True)[1]
        assert got.replace(b" ", b"")[:20] == body.replace(b" ", b"")[:20]
        eventually(lambda: nothing_is_held(lava, "acme"))
    assert kinds(lava, "acme").count("settled") == len(ABSURD)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_usage_with_fields_missing_is_read_as_far_as_it_goes(path: str, lava: Lava, provider: FakeProvider) -> None:
    for missing in ("", *usage_of(path, 1)):
        for usage in (usage_of(path, 12, missing), usage_of(path, 12, missing) | {"prompt_tokens_details": 7}):
            body = json.dumps(body_of(path, usage)).encode()
            provider.queue(Script(body=body, content_type="application/json"))
            assert ask(lava, provider, path)[1] == body
            record = next(lava.records("acme"))
            assert record.charge.ticks > 0
            eventually(lambda: nothing_is_held(lava, "acme"))


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, EMBEDDINGS])
def test_random_answers_never_raise_into_the_application(
    path: str, lava: Lava, provider: FakeProvider, rng: random.Random
) -> None:
    """A few hundred answers with random JSON in random places, whole and streamed."""
    for number in range(120):
        stream = bool(number % 2) and path != EMBEDDINGS
        body = _random_answer(rng, path, stream)
        provider.queue(Script(body=body, content_type="text/event-stream" if stream else "application/json"))
        status, got, how = ask(lava, provider, path, stream=stream)
        assert (status, how) == (200, "complete")
        assert stream or got == body
        eventually(lambda: nothing_is_held(lava, "acme"))
        assert len(list(lava.entries("acme"))) == 3 or number


def _random_answer(rng: random.Random, path: str, stream: bool) -> bytes:
    if not stream:
        return json.dumps(_spoilt(rng, body_of(path, usage_of(path, 12)))).encode()
    types = ("message_start", "content_block_start", "content_block_delta", "message_delta", "response.completed")
    types += ("response.output_text.delta", "response.created", "error", "ping", "message_stop")
    events = []
    for _ in range(rng.randrange(1, 8)):
        event: Any = {
            "type": rng.choice(types),
            "choices": [{"index": 0, "delta": {"content": "hi", "tool_calls": [{"function": {"arguments": "{"}}]}}],
            "delta": {"type": "text_delta", "text": "hi", "stop_reason": None},
            "message": body_of(MESSAGES, usage_of(MESSAGES, 12)),
            "response": body_of(RESPONSES, usage_of(RESPONSES, 12)),
            "usage": usage_of(path, 12),
        }
        events.append(f"event: {event['type']}\ndata: {json.dumps(_spoilt(rng, event))}\n\n")
    return "".join(events).encode()


def _spoilt(rng: random.Random, value: Any) -> Any:
    """The same JSON with things in it that should not be there."""
    if rng.random() < 0.12:
        strange: list[Any] = [
            None,
            True,
            -1,
            10**30,
            0.5,
            "",
            "x",
            "\ud800",
            [],
            {},
            [None],
            {"usage": 5},
            [[1]],
            2**53,
        ]
        return rng.choice(strange)
    if isinstance(value, dict):
        return {key: _spoilt(rng, one) for key, one in value.items() if rng.random() > 0.05}
    if isinstance(value, list):
        return [_spoilt(rng, one) for one in value] * rng.choice((1, 1, 1, 2, 0))
    return value
