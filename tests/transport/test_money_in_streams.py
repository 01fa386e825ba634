"""A stream that runs out of money, and a stream that is left: what is delivered, and what is charged for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import httpx2
import pytest

from lava_middleware import Amount, Lava, StreamCut
from lava_middleware.testing import Script, ToolCall, count_tokens

from .rig import CLAUDE, CUSTOMER, LLAMA, MESSAGES, MODEL, OUTPUT, Rig, priced, rigged

ONLY_OUTPUT = {model: {"input": "0", "output": f"{OUTPUT}.00"} for model in (MODEL, CLAUDE, LLAMA)}
PAYS_FOR_100 = "0.0008"
"""Credits for 100 tokens of output, where input costs nothing."""


@dataclass(frozen=True)
class Wire:
    """One format, spoken without an SDK."""

    name: str
    model: str
    speaks: str
    path: str
    capped: str
    opening: dict[str, Any]

    def body(self, cap: int | None = None, prompt: str | None = None) -> dict[str, Any]:
        messages = MESSAGES if prompt is None else [{"role": "user", "content": prompt}]
        body = {"model": self.model, "stream": True, **self.opening, self.spoken_to: messages}
        return body if cap is None else {**body, self.capped: cap}

    @property
    def spoken_to(self) -> str:
        return "input" if self.name == "responses" else "messages"


CHAT = Wire("chat", MODEL, "openai", "/v1/chat/completions", "max_completion_tokens", {})
RESPONSES = Wire("responses", MODEL, "openai", "/v1/responses", "max_output_tokens", {})
ANTHROPIC = Wire("messages", CLAUDE, "anthropic", "/v1/messages", "max_tokens", {"max_tokens": 400})
GROQ = Wire("groq", LLAMA, "groq", "/openai/v1/chat/completions", "max_completion_tokens", {})
WIRES = [CHAT, RESPONSES, ANTHROPIC, GROQ]
every_wire = pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(verify=False) as client:
        yield client


def data_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def said(event: dict[str, Any]) -> str:
    """The text that one event adds, in any of the formats."""
    if event.get("type") == "response.output_text.delta":
        return str(event["delta"])
    if event.get("type") == "content_block_delta":
        return str(event["delta"].get("text", ""))
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def stream(rig: Rig, client: httpx2.Client, wire: Wire, customer: str = CUSTOMER, **more: Any) -> list[dict[str, Any]]:
    """All events of a stream, read to its end."""
    url = f"{rig.provider.url}{wire.path}"
    with rig.lava.charge_to(customer), client.stream("POST", url, json=wire.body(**more)) as response:
        response.raise_for_status()
        return list(data_of(response.iter_lines()))


def taught(rig: Rig, client: httpx2.Client, wire: Wire, script: Script, **more: Any) -> None:
    """One complete call of somebody else, whose usage is reported."""
    rig.lava.grant("teacher", "50.00")
    rig.provider.queue(script)
    stream(rig, client, wire, "teacher", **more)
    rig.wait_settled("teacher")
    rig.provider.reset()


# The money ends -------------------------------------------------------------------------------------------------------


@every_wire
@pytest.mark.parametrize("learned", [False, True], ids=["untaught", "taught"])
def test_a_stream_is_stopped_when_the_money_ends(wire: Wire, learned: bool, client: httpx2.Client) -> None:
    """T3: the provider ignores its cap. 80 to 100 of 100 tokens come through, and upstream is closed within a chunk:
    the stand-in falls silent one chunk after the last that can be paid for, and the stream ends all the same."""
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT, speaks=(wire.speaks,)) as rig:
        if learned:
            taught(rig, client, wire, Script(output_tokens=300))
        last = _last_paid(rig, client, wire)
        assert 80 <= last <= 100

        rig.lava.grant("another", PAYS_FOR_100)
        rig.provider.reset()
        rig.provider.queue(Script(ignores_cap=True, stall_after=last + 1))
        events = stream(rig, client, wire, "another")
        assert count_tokens("".join(map(said, events)), wire.model) == last
        rig.provider.wait_idle()
        assert rig.served.aborted_after == rig.served.output_tokens == last + 1

        (record,) = rig.records("another")
        assert (record.facts["ending"], record.facts["stopped"], record.basis) == (
            "cut",
            "insufficient_credit",
            "counted",
        )
        assert record.charge == Amount(record.usage["output"] * OUTPUT * 10**4) <= Amount.of(PAYS_FOR_100)
        assert 0.85 * last <= record.usage["output"] <= 1.1 * last
        assert (record.overrun, record.overrun_cause) == (Amount(0), None)
        assert rig.lava.balance("another").available == Amount.of(PAYS_FOR_100) - record.charge
        assert rig.endings("another") == ["settled"]


def _last_paid(rig: Rig, client: httpx2.Client, wire: Wire) -> int:
    """How many tokens of the stand-in's prose come through."""
    return count_tokens("".join(map(said, stream(rig, client, wire))), wire.model)


@every_wire
def test_the_stand_ins_chunks_may_be_cut_anywhere(wire: Wire, client: httpx2.Client) -> None:
    """T3, T30: all in one write, or in writes of 37 bytes: the same is delivered, and the same is charged."""
    found = set()
    for form in ({}, {"single_chunk": True}, {"split_bytes": 37}):
        script = Script(ignores_cap=True, **form)
        with rigged(script, credits=PAYS_FOR_100, prices=ONLY_OUTPUT, speaks=(wire.speaks,)) as rig:
            found.add((_last_paid(rig, client, wire), rig.record.charge))
    assert len(found) == 1


def _chat_ending(events: list[dict[str, Any]]) -> Any:
    (choice,) = events[-1]["choices"]
    assert choice["finish_reason"] == "length"
    return events[-1]["lava"]


def _responses_ending(events: list[dict[str, Any]]) -> Any:
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    return events[-1].get("lava") or response["lava"]


def _messages_ending(events: list[dict[str, Any]]) -> Any:
    stop, delta, last = events[-3:]
    assert (stop["type"], delta["type"], last["type"]) == ("content_block_stop", "message_delta", "message_stop")
    assert delta["delta"]["stop_reason"] == "max_tokens"
    return delta["lava"]


_ENDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "chat": _chat_ending,
    "responses": _responses_ending,
    "messages": _messages_ending,
    "groq": _chat_ending,
}


@every_wire
def test_a_stream_that_was_stopped_ends_as_the_provider_would_end_it(wire: Wire, client: httpx2.Client) -> None:
    """T3, T13: with finish reason length, and a member that says why and under which record."""
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT, speaks=(wire.speaks,)) as rig:
        why = _ENDS[wire.name](stream(rig, client, wire))
        assert why["code"] == "insufficient_credit"
        assert why["record_id"] == rig.record.id
        assert why["output_tokens"] == rig.record.usage["output"]


def test_the_application_that_asked_for_usage_gets_what_is_billed(client: httpx2.Client) -> None:
    asking = Wire("chat", MODEL, "openai", CHAT.path, CHAT.capped, {"stream_options": {"include_usage": True}})
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT) as rig:
        usage = stream(rig, client, asking)[-1]["usage"]
        assert usage["prompt_tokens"] == rig.record.usage["input"]
        assert usage["completion_tokens"] == rig.record.usage["output"]


def test_a_stream_can_be_stopped_by_an_exception_instead(client: httpx2.Client) -> None:
    """T3: on_exhausted="raise": everything before it has been delivered, and it says what ran out."""
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT, on_exhausted="raise") as rig:
        with pytest.raises(StreamCut) as cut:
            stream(rig, client, CHAT)
        assert cut.value.denied.reason == "insufficient_credit"
        assert rig.record.facts["ending"] == "cut"
        assert 70 <= rig.record.usage["output"] <= 100


def test_inside_a_tool_call_there_is_no_good_end(client: httpx2.Client) -> None:
    """T3: half a JSON document would look whole: it raises."""
    arguments = json.dumps({"text": "word " * 400})
    script = Script(ignores_cap=True, tool_calls=(ToolCall("write", arguments),))
    for wire in (CHAT, ANTHROPIC, RESPONSES):
        with rigged(script, credits="0.0016", prices=ONLY_OUTPUT) as rig:
            with pytest.raises(StreamCut):
                stream(rig, client, wire)
            assert rig.endings() == ["settled"]
            assert rig.record.charge <= Amount.of("0.0016")


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_compressed_stream_raises(library: Any) -> None:
    """T3, T30: it cannot be ended well; what is charged is what was passed on, not what the last chunk held."""
    for form, least in (({}, 70), ({"single_chunk": True}, 0)):
        script = Script(ignores_cap=True, compress="always", **form)
        with (
            rigged(script, credits=PAYS_FOR_100, prices=ONLY_OUTPUT) as rig,
            library.Client(verify=False) as client,
        ):
            with pytest.raises(StreamCut):
                stream(rig, client, CHAT)
            assert rig.endings() == ["settled"]
            if least:
                assert least <= rig.record.usage["output"] <= 100
                assert rig.record.overrun == Amount(0)


def test_an_async_stream_is_stopped_as_well() -> None:
    """T3."""

    async def main(rig: Rig) -> list[str]:
        async with httpx2.AsyncClient(verify=False) as client:
            with rig.lava.charge_to(CUSTOMER):
                async with client.stream("POST", rig.chat_url, json=CHAT.body()) as response:
                    return [line async for line in response.aiter_lines()]

    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT) as rig:
        lines = anyio.run(main, rig)
        assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
        assert 85 <= count_tokens("".join(map(said, data_of(iter(lines))))) <= 100
        assert rig.endings() == ["settled"]


def test_an_observer_never_stops_a_stream(client: httpx2.Client) -> None:
    """T8: all 400 tokens, no cap written, and the record says what would have happened. It leaves no debt behind that
    would block the customer on the day of enforcing."""
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT, mode="observe") as rig:
        events = stream(rig, client, CHAT)
        assert count_tokens("".join(map(said, events))) == 400
        assert rig.served.cap is None
        record = rig.record
        assert (record.basis, record.usage["output"], record.facts["mode"]) == ("reported", 400, "observe")
        assert (record.overrun > Amount(0), record.overrun_cause) == (True, "unheld")
        assert record.charge == Amount.of(PAYS_FOR_100)
        assert record.facts["absorbed"] == "0.0024000000"
        assert (record.debt, rig.lava.balance(CUSTOMER).debt) == (Amount(0), Amount(0))


def test_a_limit_stops_a_stream_as_money_does(client: httpx2.Client) -> None:
    """T3, T12: used + held never passes the limit, and the reason is the limit's."""
    with rigged(Script(ignores_cap=True)) as rig:
        rig.lava.limit(CUSTOMER, 200)
        why = _chat_ending(stream(rig, client, CHAT))
        assert (why["code"], why["limit"]) == ("limit_reached", "tokens/month")
        assert rig.record.facts["stopped"] == "limit_reached"
        (limit,) = rig.lava.balance(CUSTOMER).limits
        assert 100 <= limit.used <= 200


# Overruns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrun", ["debt", "absorb"])
def test_an_unary_answer_that_ignores_its_cap_is_an_overrun_with_its_cause(overrun: str, client: httpx2.Client) -> None:
    """T3, T8: what no grant covers is debt and blocks the next call; absorbed, nobody pays more than was held."""
    with rigged(Script(ignores_cap=True), credits=PAYS_FOR_100, prices=ONLY_OUTPUT, overrun=overrun) as rig:
        body = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 100}
        with rig.lava.charge_to(CUSTOMER):
            assert client.post(rig.chat_url, json=body).json()["usage"]["completion_tokens"] == 400
            record, balance = rig.record, rig.lava.balance(CUSTOMER)
            assert (record.overrun, record.overrun_cause) == (Amount(300 * OUTPUT * 10**4), "cap_ignored")
            if overrun == "debt":
                assert record.charge == Amount(400 * OUTPUT * 10**4)
                assert balance.debt == record.debt == record.overrun
            else:
                assert record.charge == Amount.of(PAYS_FOR_100)
                assert balance.debt == record.debt == Amount(0)
                assert record.facts["absorbed"] == "0.0024000000"
            assert client.post(rig.chat_url, json=body).status_code == 402


def test_input_above_its_bound_is_an_overrun_that_says_so(client: httpx2.Client) -> None:
    with rigged(Script(input_tokens=5_000, output_tokens=5), credits="0.005") as rig:
        with rig.lava.charge_to(CUSTOMER):
            client.post(rig.chat_url, json={"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 100})
        assert rig.record.charge == priced(5_000, 5)
        assert rig.record.overrun_cause == "input_above_bound"
        assert rig.record.debt == priced(5_000, 5) - Amount.of("0.005")


def test_reasoning_that_nobody_saw_is_charged_as_reported(client: httpx2.Client) -> None:
    """T16: a stream of 20 words behind 900 hidden tokens."""
    with rigged(Script(output_tokens=20, reasoning_tokens=900)) as rig:
        stream(rig, client, CHAT)
        assert rig.record.usage.output_tokens == 920
        assert rig.record.overrun_cause == "hidden_output"
        assert rig.record.charge == priced(rig.served.input_tokens, 920)


# Left in the middle ---------------------------------------------------------------------------------------------------

LEFT_AFTER = 20
LONG_PROMPT = "Each line says what was decided, and the lines together say what is left of it. " * 55


async def _close(response: Any, lines: Any) -> None:
    await response.aclose()


async def _drop(response: Any, lines: Any) -> None:
    await lines.aclose()


async def _cancel(response: Any, lines: Any) -> None:
    with anyio.move_on_after(0.01) as scope:
        async for _ in lines:
            pass
    assert scope.cancelled_caught


async def _broken(response: Any, lines: Any) -> None:
    with pytest.raises(httpx2.TransportError):
        async for _ in lines:
            pass


LEAVING = {"close": _close, "drop": _drop, "cancel": _cancel, "reset": _broken}


async def _leave(rig: Rig, wire: Wire, how: str, **more: Any) -> int:
    """Read 20 tokens of a stream whose stand-in sends no more, and leave. The status."""
    rig.provider.queue(
        Script(truncate_after=LEFT_AFTER, truncate_by="reset") if how == "reset" else Script(stall_after=LEFT_AFTER)
    )
    async with httpx2.AsyncClient(verify=False) as client:
        with rig.lava.charge_to(CUSTOMER):
            request = client.build_request("POST", f"{rig.provider.url}{wire.path}", json=wire.body(**more))
            response = await client.send(request, stream=True)
            if response.status_code != 200:
                await response.aread()
                return response.status_code
            lines = response.aiter_lines()
            read = 0
            while how != "reset" and read < LEFT_AFTER:
                read += sum(bool(said(event)) for event in data_of(iter([await anext(lines)])))
            await LEAVING[how](response, lines)
            del response, lines
    return 200


@every_wire
@pytest.mark.parametrize("how", LEAVING)
def test_a_stream_that_is_left_is_charged_its_part_of_the_reported_price(
    wire: Wire, how: str, client: httpx2.Client
) -> None:
    """T16, T17, T18: after one complete call of the same model and prompt, 0.9 to 1.1 of it."""
    with rigged(speaks=(wire.speaks,)) as rig:
        taught(rig, client, wire, Script(output_tokens=60))
        assert anyio.run(_leave, rig, wire, how) == 200
        rig.wait_settled()
        record, served = rig.record, rig.served
        assert (record.basis, served.output_tokens) == ("counted", LEFT_AFTER)
        part = priced(served.input_tokens, LEFT_AFTER)
        assert 0.9 * part.ticks <= record.charge.ticks <= 1.1 * part.ticks


@every_wire
def test_a_credit_worth_28_streams_that_are_left_gives_26_to_28(wire: Wire, client: httpx2.Client) -> None:
    """T2, T9, T17: a prompt of more than 1,000 tokens, the request capped at 400, one after another."""
    with rigged(credits=None, speaks=(wire.speaks,)) as rig:
        more = {"cap": 400, "prompt": LONG_PROMPT}
        taught(rig, client, wire, Script(output_tokens=60), **more)
        inputs = count_tokens(LONG_PROMPT, wire.model) + 7
        assert inputs >= 1_000
        rig.lava.grant(CUSTOMER, str(Amount(28 * priced(inputs, LEFT_AFTER).ticks)))

        def until_declined() -> int:
            for number in range(40):
                if anyio.run(lambda: _leave(rig, wire, "close", **more)) != 200:
                    return number
                rig.wait_settled()
                rig.provider.wait_idle()
            raise AssertionError("never declined")

        assert 26 <= until_declined() <= 28
        assert {served.input_tokens for served in rig.provider.requests} == {inputs}
        assert rig.lava.balance(CUSTOMER).debt == Amount(0)


OFF_BY = {"chat": (0.75, 1.1), "responses": (0.75, 1.1), "messages": (0.9, 1.3), "groq": (0.8, 1.2)}
"""Untaught, by the family's factor alone; the table in the README has more of it."""


@every_wire
def test_an_untaught_estimate_is_near_enough_to_be_charged(wire: Wire) -> None:
    """T16, T17: never zero, never above the hold."""
    with rigged(speaks=(wire.speaks,)) as rig:
        anyio.run(_leave, rig, wire, "close")
        rig.wait_settled()
        part = priced(rig.served.input_tokens, LEFT_AFTER).ticks
        least, most = OFF_BY[wire.name]
        assert least * part <= rig.record.charge.ticks <= most * part


@every_wire
def test_a_stream_without_a_usage_block_is_never_zero(wire: Wire, client: httpx2.Client) -> None:
    """T16: what passed is counted, and the record says so."""
    with rigged(Script(usage=False, output_tokens=60), speaks=(wire.speaks,)) as rig:
        stream(rig, client, wire)
        record = rig.record
        assert record.basis == "counted"
        assert 45 <= record.usage["output"] <= 80
        assert record.charge == priced(record.usage["input"], record.usage["output"])


def test_lessons_outlive_the_process_that_learned_them(client: httpx2.Client, tmp_path: Any) -> None:
    with rigged(ledger=f"sqlite:///{tmp_path}/lava.db") as rig:
        taught(rig, client, CHAT, Script(output_tokens=60))
        learned = rig.lava.learned.to_text()
    with Lava(f"sqlite:///{tmp_path}/lava.db") as lava:
        assert lava.learned.to_text() == learned
        assert lava.learned.mean_output(f"openai/{MODEL}") == 60
