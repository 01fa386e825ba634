"""Keys, prompts and customers stay where they belong: canaries are planted, and all we leave behind is searched."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lava_middleware import Lava, LavaError, LavaMiddleware, charge_to, denied, identify
from lava_middleware.errors import forget_what_was_said
from lava_middleware.testing import FakeProvider, Script

from .kit import CHAT, MESSAGES, aclient_of, chat, client_of, eventually, lava_at, nothing_is_held
from .players import fill, make_room

KEY = "sk-canary-of-the-key"
PROMPT = "canary of the prompt"
ANSWER = "canary of the answer"
CUSTOMER = "canary-customer"
QUERY = "canary-of-the-query"
BODY_CANARIES = (KEY, PROMPT, ANSWER, QUERY)
"""These are nowhere."""
ALL_CANARIES = (*BODY_CANARIES, CUSTOMER)
"""These are not in logs, errors and reprs; the customer is in the ledger and in records, where it belongs."""


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, logger="lava_middleware")
    forget_what_was_said()
    yield caplog
    found = [canary for canary in ALL_CANARIES if canary in caplog.text]
    assert not found, "no log line has a secret in it"


def live(lava: Lava, provider: FakeProvider) -> list[BaseException]:
    """A day of a small application: calls that work, fail, are refused, cut and broken. Every error it saw."""
    errors: list[BaseException] = []

    def call(client: Any, body: dict[str, Any], path: str = CHAT) -> None:
        try:
            with client.stream("POST", path, params={"trace": QUERY}, json=body) as response:
                response.read()
                response.raise_for_status()
        except Exception as error:
            errors.append(error)

    headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
    with client_of(provider, headers=headers) as client:
        call(client, chat(text=PROMPT))  # nobody is bound
        with lava.charge_to(CUSTOMER, user="user-1"):
            for stream in (False, True):
                for path in (CHAT, MESSAGES):
                    call(client, chat(text=PROMPT, stream=stream), path)
                    provider.queue(Script(status=401, error_message=f"no such key {KEY}"))
                    call(client, chat(text=PROMPT, stream=stream), path)
                    provider.queue(Script(truncate_after=3, text=ANSWER * 10))
                    call(client, chat(text=PROMPT, stream=stream), path)
                    provider.queue(Script(body=ANSWER.encode() + b'{"usage"', content_type="application/json"))
                    call(client, chat(text=PROMPT, stream=stream), path)
                    provider.queue(Script(close_before_answer=True))
                    call(client, chat(text=PROMPT, stream=stream), path)
            call(client, chat(10**9, text=PROMPT))
            call(client, chat(text=PROMPT) | {"model": "unknown"})
            call(client, {"messages": PROMPT, "model": [PROMPT]})
            call(client, chat(text=PROMPT), "/v1/images/generations")
            fill(lava)
            call(client, chat(text=PROMPT))
            call(client, chat(text=PROMPT, stream=True))
            make_room(lava)

        async def cancelled() -> None:
            async with aclient_of(provider, headers=headers) as aclient:
                with lava.charge_to(CUSTOMER):
                    task = asyncio.create_task(aclient.post(CHAT, json=chat(text=PROMPT)))
                await asyncio.sleep(0.005)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError as error:
                    errors.append(error)

        asyncio.run(cancelled())
        with lava.charge_to("poor-" + CUSTOMER):
            call(client, chat(text=PROMPT))
    eventually(lambda: nothing_is_held(lava, CUSTOMER))
    return errors


def spelled_out(error: BaseException) -> str:
    """The error as a log would show it, without what the application itself put into its own lines of code."""
    ours = [one for one in _chain(error) if isinstance(one, LavaError)]
    decision = denied(error)
    texts = [repr(decision), str(decision and decision.message)]
    for one in ours:
        texts += [repr(one), str(one), "".join(traceback.format_exception(one))]
    return "\n".join(texts)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_no_secret_is_in_errors_records_spans_files_or_reprs(
    tmp_path: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T32."""
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracing)
    monkeypatch.setattr(trace, "get_tracer", tracing.get_tracer)
    ledger, export = tmp_path / "ledger.db", tmp_path / "usage.jsonl"
    with FakeProvider(Script(text=ANSWER)) as provider:
        with lava_at(provider, ledger, export_jsonl=str(export), on_ledger_outage="open") as lava:
            lava.grant(CUSTOMER, "5")
            errors = live(lava, provider)
            assert len(errors) > 15
            records = list(lava.records(CUSTOMER))
            assert len(records) > 10
            reprs = [repr(one) for one in gc.get_objects() if _is_ours(one)]
            told = [spelled_out(error) for error in errors]
        kept = "\n".join([str(record.to_dict()) for record in records])
        for canary in BODY_CANARIES:
            assert canary not in kept
        for text in (*told, *(repr(record) for record in records)):
            for canary in ALL_CANARIES:
                assert canary not in text
        _check_reprs(reprs)
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        assert {ledger, export} <= set(files)
        for path in files:
            data = path.read_bytes()
            for canary in BODY_CANARIES:
                assert canary.encode() not in data, path.name
        assert spans.get_finished_spans()
        for span in spans.get_finished_spans():
            for canary in BODY_CANARIES:
                assert canary not in span.to_json()


def _is_ours(thing: object) -> bool:
    module = str(type(thing).__module__)
    return module.startswith("lava_middleware") and not module.startswith("lava_middleware.testing")


def _check_reprs(reprs: list[str]) -> None:
    assert len(reprs) > 100
    for text in reprs:
        for canary in BODY_CANARIES:
            assert canary not in text, text.partition("(")[0]


@pytest.mark.parametrize(
    "wrong",
    [CUSTOMER + "\n", CUSTOMER * 100, [CUSTOMER], {CUSTOMER: 1}, CUSTOMER.encode()],
    ids=lambda one: type(one).__name__,
)
def test_no_error_repeats_what_cannot_be_a_customer(wrong: Any, logged: pytest.LogCaptureFixture) -> None:
    """T32: it may be anything, a token for instance."""
    answers: list[dict[str, Any]] = []
    with FakeProvider() as provider, lava_at(provider) as lava:

        async def application(scope: Any, receive: Any, send: Any) -> None:
            async with aclient_of(provider) as client:
                answer = await client.post(CHAT, json=chat())
            assert answer.status_code == 403
            assert CUSTOMER not in answer.text
            for name in (charge_to, identify, lava.charge_to, lava.balance):
                with pytest.raises(LavaError) as raised:
                    name(wrong)
                assert CUSTOMER not in "".join(traceback.format_exception_only(raised.value))
            answer.raise_for_status()

        async def send(message: Any) -> None:
            answers.append(message)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        asyncio.run(LavaMiddleware(application, lava, customer=lambda request: wrong)(scope, receive, send))
        assert answers[0]["status"] == 403
        assert CUSTOMER not in str(answers)
        assert provider.count == 0


def test_settings_do_not_repeat_what_was_given(logged: pytest.LogCaptureFixture) -> None:
    """T32: a key may land in the wrong variable."""
    for name in ("mode", "markup", "prices", "hosts", "stall_s", "upgrade_url", "ledger", "overrun"):
        with pytest.raises(LavaError) as raised:
            Lava(**({"ledger": "memory://"} | {name: KEY}))
        assert KEY not in str(raised.value)
