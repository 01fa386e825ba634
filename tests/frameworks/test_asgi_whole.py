"""`app.add_middleware(LavaMiddleware)` with only the environment, and the real SDKs: refused before any socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lava_middleware import LavaMiddleware, context, identify
from lava_middleware.errors import forget_what_was_said

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("LAVA_LEDGER", "memory://")
    monkeypatch.setenv("LAVA_UPGRADE_URL", "https://example.com/billing")
    forget_what_was_said()
    app = FastAPI()
    app.add_middleware(LavaMiddleware)
    sdk, asdk = openai.OpenAI(api_key="sk-secret"), openai.AsyncOpenAI(api_key="sk-secret")
    claude = anthropic.AsyncAnthropic(api_key="sk-secret")

    @app.get("/sync")
    def _sync() -> None:
        identify("customer-without-credit")
        sdk.chat.completions.create(model="gpt-4o", messages=HELLO)

    @app.get("/async")
    async def _async() -> None:
        identify("customer-without-credit")
        await asdk.responses.create(model="gpt-4o", input="hello")

    @app.get("/stream")
    async def _stream() -> None:
        identify("customer-without-credit")
        async with claude.messages.stream(model="claude-sonnet-5", max_tokens=100, messages=HELLO) as stream:
            async for _ in stream:
                pass

    @app.get("/lost")
    async def _lost() -> None:
        identify("customer-without-credit")
        await asyncio.get_running_loop().run_in_executor(None, _sync_call)

    def _sync_call() -> None:
        sdk.chat.completions.create(model="gpt-4o", messages=HELLO)

    with TestClient(app) as client:
        yield client
    lava = context.default()
    assert lava is not None
    lava.close()


@pytest.mark.parametrize("how", ["sync", "async", "stream"])
def test_a_customer_without_credit_gets_a_402(client: TestClient, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """T13, T32: one attempt, the SDK's own error inside, problem details outside, no secret anywhere."""
    answer = client.get(f"/{how}")
    assert answer.status_code == 402
    assert answer.json()["code"] == "insufficient_credit"
    assert answer.json()["upgrade_url"] == "https://example.com/billing"
    assert "lava grant CUSTOMER" in caplog.text
    assert "customer-without-credit" not in caplog.text + answer.text
    assert "sk-secret" not in caplog.text + answer.text


def test_a_thread_pool_that_lost_the_customer_is_refused_and_the_operator_is_told_why(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """T6."""
    answer = client.get("/lost")
    assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown")
    assert "bind_context" in caplog.text
