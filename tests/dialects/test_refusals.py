"""A refusal raises the SDKs' own classes, once, and carries the reason where programs look for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from groq import APIStatusError as GroqStatusError
from groq import Groq

from lava_middleware.dialects.dialect import Dialect, Refusal

from .kit import DIALECTS

NO_RETRY = {"x-should-retry": "false", "content-type": "application/json"}
MESSAGES: Any = [{"role": "user", "content": "x"}]


def refused(status: int) -> Refusal:
    return Refusal(status, "a_reason", "what is missing and what to do", 60 if status == 429 else None, {"limit": "m"})


def answering(dialect: Dialect, status: int, seen: list[Any]) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        seen.append(request)
        library = httpx2 if isinstance(request, httpx2.Request) else httpx
        return library.Response(status, headers=NO_RETRY, content=dialect.refusal(refused(status)))

    return answer


OPENAI_CLASSES = {402: openai.APIStatusError, 403: openai.PermissionDeniedError, 429: openai.RateLimitError}
ANTHROPIC_CLASSES = {
    402: anthropic.PaymentRequiredError,
    403: anthropic.PermissionDeniedError,
    429: anthropic.RateLimitError,
}


def openai_call(client: openai.OpenAI, name: str) -> None:
    if name == "openai.chat":
        client.chat.completions.create(model="m", messages=MESSAGES)
    elif name == "openai.responses":
        client.responses.create(model="m", input="x")
    elif name == "openai.completions":
        client.completions.create(model="m", prompt="x")
    else:
        client.embeddings.create(model="m", input="x")


@pytest.mark.parametrize("status", [402, 403, 429])
@pytest.mark.parametrize("name", ["openai.chat", "openai.responses", "openai.embeddings", "openai.completions"])
def test_openai_raises_its_own_class_after_one_attempt(name: str, status: int) -> None:
    """T13."""
    seen: list[Any] = []
    transport = httpx2.MockTransport(answering(DIALECTS[name], status, seen))
    with (
        openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(OPENAI_CLASSES[status]) as caught,
    ):
        openai_call(client, name)
    assert type(caught.value) is OPENAI_CLASSES[status]
    assert len(seen) == 1
    error: Any = caught.value
    assert "what is missing" in error.message
    assert error.response.json()["lava"]["code"] == "a_reason"
    if status == 402:
        assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    if status == 429:
        assert error.response.json()["lava"]["retry_after_s"] == 60


@pytest.mark.parametrize("status", [402, 403, 429])
@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_raises_its_own_class_after_one_attempt(status: int, stream: bool) -> None:
    """T13."""
    seen: list[Any] = []
    transport = httpx2.MockTransport(answering(DIALECTS["anthropic.messages"], status, seen))
    with (
        anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(ANTHROPIC_CLASSES[status]) as caught,
    ):
        client.messages.create(model="m", max_tokens=5, messages=MESSAGES, stream=stream)
    assert len(seen) == 1
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"] == {
        "type": {402: "billing_error", 403: "permission_error", 429: "rate_limit_error"}[status],
        "message": "what is missing and what to do",
    }
    assert body["lava"]["code"] == "a_reason"


def test_groq_raises_its_own_class_after_one_attempt() -> None:
    seen: list[Any] = []
    transport = httpx.MockTransport(answering(DIALECTS["openai.chat"], 402, seen))
    with (
        Groq(api_key="k", http_client=httpx.Client(transport=transport)) as client,
        pytest.raises(GroqStatusError) as caught,
    ):
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert len(seen) == 1
    assert caught.value.status_code == 402


@pytest.mark.parametrize(
    ("status", "name"), [(402, "RESOURCE_EXHAUSTED"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")]
)
@pytest.mark.parametrize("dialect", ["gemini.generate", "gemini.stream", "gemini.embeddings"])
def test_google_raises_its_own_class_after_one_attempt(dialect: str, status: int, name: str) -> None:
    """T13."""
    genai = pytest.importorskip("google.genai", reason="google-genai is not installed")
    seen: list[Any] = []
    transport = httpx2.MockTransport(answering(DIALECTS[dialect], status, seen))
    options = genai.types.HttpOptions(httpx_client=httpx2.Client(transport=transport))
    calls: dict[str, Callable[[Any], Any]] = {
        "gemini.generate": lambda models: models.generate_content(model="m", contents="x"),
        "gemini.stream": lambda models: list(models.generate_content_stream(model="m", contents="x")),
        "gemini.embeddings": lambda models: models.embed_content(model="m", contents="x"),
    }
    with genai.Client(api_key="k", http_options=options) as client, pytest.raises(genai.errors.ClientError) as caught:
        calls[dialect](client.models)
    assert len(seen) == 1
    assert (caught.value.code, caught.value.status) == (status, name)
    assert "what is missing" in caught.value.message


def test_unusual_statuses_have_a_shape_too() -> None:
    assert b'"invalid_request_error"' in DIALECTS["openai.chat"].refusal(refused(400))
    assert b'"invalid_request_error"' in DIALECTS["anthropic.messages"].refusal(refused(413))
    assert b'"FAILED_PRECONDITION"' in DIALECTS["gemini.generate"].refusal(refused(413))
