"""This file knows how each SDK and framework is asked, whole and streamed, and what it raises when it is refused.

Not only for pytest: tests/sdks/older.py runs the same with releases that cannot be installed beside the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

from lava_middleware.testing import FakeProvider

from ..transport.rig import CLAUDE, EACH, LLAMA, MESSAGES, MODEL
from .colours import each, entered, got

Said: TypeAlias = tuple[str, str | None]
"""A piece of text, and why the answer ended, where it did."""

CAP = 300
GEMINI, MISTRAL = "gemini-2.0-flash", "mistral-small-latest"
TOGETHER = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
PRICED = {GEMINI: EACH, MISTRAL: EACH, TOGETHER: EACH}
PROMPT: str = MESSAGES[0]["content"]


class Driver:
    """One SDK. A sync client is asked by the same words as an async one."""

    speaks = "openai"
    model = MODEL
    cut_short = "length"
    """What it calls an answer that a cap cut short."""
    refusal = 402
    """What its error says of a 402."""
    trio = False
    """Whether its async side runs on trio."""
    closes = True
    """Whether its async streams can be closed upstream."""
    module = ""

    def __init__(self, provider: FakeProvider) -> None:
        self.provider = provider
        self.sdk: Any = importlib.import_module(self.module)

    @contextlib.asynccontextmanager
    async def client(self, is_async: bool) -> AsyncIterator[Any]:
        async with entered(self.made(is_async)) as client:
            yield client

    def made(self, is_async: bool) -> Any:
        raise NotImplementedError

    async def ask(self, client: Any) -> str:
        raise NotImplementedError

    def stream(self, client: Any) -> AsyncIterator[Said]:
        raise NotImplementedError

    def status(self, error: BaseException) -> int:
        """Of a refusal. The error must be the SDK's own."""
        assert isinstance(error, self.sdk.APIStatusError), repr(error)
        return int(error.status_code)


class _OpenAILike(Driver):
    trio = True
    names = ("OpenAI", "AsyncOpenAI")

    def base(self) -> str:
        return self.provider.openai_base_url

    def made(self, is_async: bool) -> Any:
        return getattr(self.sdk, self.names[is_async])(api_key="sk-secret", base_url=self.base())

    async def ask(self, client: Any) -> str:
        answer = await got(client.chat.completions.create(model=self.model, messages=MESSAGES, max_tokens=CAP))
        return str(answer.choices[0].message.content)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        asked = {"model": self.model, "messages": MESSAGES, "max_tokens": CAP, "stream": True}
        stream = await got(client.chat.completions.create(**asked))
        try:
            async for chunk in each(stream):
                for choice in chunk.choices:
                    yield choice.delta.content or "", choice.finish_reason
        finally:
            await got(stream.close())


class OpenAI(_OpenAILike):
    module = "openai"


class Groq(_OpenAILike):
    module, speaks, model, names = "groq", "groq", LLAMA, ("Groq", "AsyncGroq")

    def base(self) -> str:
        return self.provider.groq_base_url


class Together(_OpenAILike):
    module, speaks, model, names = "together", "together", TOGETHER, ("Together", "AsyncTogether")

    def base(self) -> str:
        return self.provider.together_base_url


class Anthropic(Driver):
    module, speaks, model, cut_short, trio = "anthropic", "anthropic", CLAUDE, "max_tokens", True

    def made(self, is_async: bool) -> Any:
        make = self.sdk.AsyncAnthropic if is_async else self.sdk.Anthropic
        return make(api_key="sk-secret", base_url=self.provider.anthropic_base_url)

    async def ask(self, client: Any) -> str:
        message = await got(client.messages.create(model=self.model, messages=MESSAGES, max_tokens=CAP))
        return str(message.content[0].text)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        asked = {"model": self.model, "messages": MESSAGES, "max_tokens": CAP, "stream": True}
        stream = await got(client.messages.create(**asked))
        try:
            async for event in each(stream):
                if event.type == "content_block_delta":
                    yield event.delta.text, None
                elif event.type == "message_delta":
                    yield "", event.delta.stop_reason
        finally:
            await got(stream.close())


class Gemini(Driver):
    """Its async side as it is where aiohttp can be imported."""

    module, speaks, model, cut_short = "google.genai", "gemini", GEMINI, "MAX_TOKENS"
    aiohttp = True

    @contextlib.asynccontextmanager
    async def client(self, is_async: bool) -> AsyncIterator[Any]:
        with self._as_if_aiohttp_were(self.aiohttp):
            made = self.sdk.Client(api_key="secret", http_options={"base_url": self.provider.gemini_base_url})
            try:
                yield made.aio.models if is_async else made.models
            finally:
                await made.aio.aclose() if is_async else made.close()

    @contextlib.contextmanager
    def _as_if_aiohttp_were(self, there: bool) -> Iterator[None]:
        inside = importlib.import_module("google.genai._api_client")
        before = inside.has_aiohttp
        assert before, "aiohttp is not installed"
        inside.has_aiohttp = there
        try:
            yield
        finally:
            inside.has_aiohttp = before

    def _asked(self) -> dict[str, Any]:
        return {"model": self.model, "contents": PROMPT, "config": {"max_output_tokens": CAP}}

    async def ask(self, client: Any) -> str:
        return str((await got(client.generate_content(**self._asked()))).text)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        stream = await got(client.generate_content_stream(**self._asked()))
        try:
            async for chunk in each(stream):
                reason = chunk.candidates[0].finish_reason
                yield chunk.text or "", reason and reason.name
        finally:
            await got(stream.aclose() if hasattr(stream, "aclose") else stream.close())

    def status(self, error: BaseException) -> int:
        assert isinstance(error, self.sdk.errors.ClientError), repr(error)
        return int(error.code)


class GeminiWithoutAiohttp(Gemini):
    """The same where only httpx2 is there."""

    aiohttp = False


class Mistral(Driver):
    """Its async side asks asyncio for things, so it does not run on trio."""

    module, speaks, model = "mistralai.client", "mistral", MISTRAL

    def made(self, is_async: bool) -> Any:
        made = self.sdk.Mistral(api_key="secret", server_url=self.provider.mistral_base_url)
        return _Async(made) if is_async else contextlib.closing(_Sync(made))

    async def ask(self, client: Any) -> str:
        answer = await got(client.complete(model=self.model, messages=MESSAGES, max_tokens=CAP))
        return str(answer.choices[0].message.content)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        stream = await got(client.stream(model=self.model, messages=MESSAGES, max_tokens=CAP))
        async with entered(stream):
            async for event in each(stream):
                for choice in event.data.choices:
                    yield choice.delta.content or "", choice.finish_reason

    def status(self, error: BaseException) -> int:
        errors = importlib.import_module("mistralai.client.errors")
        assert isinstance(error, errors.SDKError), repr(error)
        return int(error.status_code)


class _Sync:
    """mistralai's one client for both colours, as a sync one."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.complete, self.stream = made.chat.complete, made.chat.stream

    def close(self) -> None:
        self._made.__exit__(None, None, None)


class _Async:
    """The same as an async one."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.complete, self.stream = made.chat.complete_async, made.chat.stream_async

    async def __aenter__(self) -> _Async:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._made.__aexit__(*exc)


class LangChain(Driver):
    """langchain-openai."""

    module = "langchain_openai"

    @contextlib.asynccontextmanager
    async def client(self, is_async: bool) -> AsyncIterator[Any]:
        made = self.sdk.ChatOpenAI(
            model=self.model, base_url=self.provider.openai_base_url, api_key="sk-secret", max_tokens=CAP
        )
        yield (made.ainvoke, made.astream) if is_async else (made.invoke, made.stream)
        if is_async:
            await made.root_async_client.close()
        else:
            made.root_client.close()

    async def ask(self, client: Any) -> str:
        return str((await got(client[0](PROMPT))).content)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        stream = client[1](PROMPT)
        try:
            async for chunk in each(stream):
                yield chunk.content, chunk.response_metadata.get("finish_reason")
        finally:
            await got(stream.aclose() if hasattr(stream, "aclose") else stream.close())

    def status(self, error: BaseException) -> int:
        assert isinstance(error, importlib.import_module("openai").APIStatusError), repr(error)
        return int(error.status_code)


class PydanticAI(Driver):
    module = "pydantic_ai"

    @contextlib.asynccontextmanager
    async def client(self, is_async: bool) -> AsyncIterator[Any]:
        models = importlib.import_module("pydantic_ai.models.openai")
        providers = importlib.import_module("pydantic_ai.providers.openai")
        inner = importlib.import_module("openai").AsyncOpenAI(
            api_key="sk-secret", base_url=self.provider.openai_base_url
        )
        model = models.OpenAIChatModel(self.model, provider=providers.OpenAIProvider(openai_client=inner))
        agent = self.sdk.Agent(model, model_settings={"max_tokens": CAP})
        if is_async:
            yield agent.run, agent.run_stream
            await inner.close()
            return
        loop = asyncio.new_event_loop()  # its sync calls would take one that nobody closes
        asyncio.set_event_loop(loop)
        try:
            yield agent.run_sync, agent.run_stream_sync
            loop.run_until_complete(inner.close())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()

    async def ask(self, client: Any) -> str:
        return str((await got(client[0](PROMPT))).output)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        async with entered(_managed(client[1](PROMPT))) as result:
            async for text in each(result.stream_text(delta=True, debounce_by=None)):
                yield text, None
            yield "", result.response.finish_reason

    def status(self, error: BaseException) -> int:
        assert isinstance(error, self.sdk.ModelHTTPError), repr(error)
        return int(error.status_code)


def _managed(stream: Any) -> Any:
    """A sync stream of pydantic-ai is no context manager in every version."""
    managed = hasattr(stream, "__aenter__") or hasattr(stream, "__enter__")
    return stream if managed else contextlib.nullcontext(stream)


class _LiteLLM(Driver):
    """Its async side goes over an aiohttp transport of its own, whose streams have no way to be closed."""

    module, closes = "litellm", False
    vendor = "openai"

    def base(self) -> str:
        return self.provider.openai_base_url

    @contextlib.asynccontextmanager
    async def client(self, is_async: bool) -> AsyncIterator[Any]:
        yield (self.sdk.acompletion if is_async else self.sdk.completion), is_async

    def _asked(self) -> dict[str, Any]:
        model = f"{self.vendor}/{self.model}"
        where = {"api_key": "sk-secret", "api_base": self.base()}
        return {"model": model, "messages": MESSAGES, "max_tokens": CAP, **where}

    async def ask(self, client: Any) -> str:
        return str((await got(client[0](**self._asked()))).choices[0].message.content)

    async def stream(self, client: Any) -> AsyncIterator[Said]:
        ask, is_async = client
        stream = await got(ask(**self._asked(), stream=True))
        try:
            # Its streams look as if they could be read in either colour.
            async for chunk in each(stream if is_async else (chunk for chunk in stream)):
                for choice in chunk.choices:
                    yield choice.delta.content or "", choice.finish_reason
        finally:
            self.sdk.error_logs.clear()  # it keeps its last stream there until its next call

    def status(self, error: BaseException) -> int:
        assert type(error).__module__.startswith("litellm"), repr(error)
        return int(error.status_code)  # type: ignore[attr-defined]  # all of its errors have one


class LiteLLMOpenAI(_LiteLLM):
    """Through the openai SDK."""


class LiteLLMAnthropic(_LiteLLM):
    """Through an HTTP client of its own. Anthropic's 402 is an APIConnectionError there, and so is ours."""

    vendor, speaks, model, refusal = "anthropic", "anthropic", CLAUDE, 500

    def base(self) -> str:
        return self.provider.anthropic_base_url


NEWEST: dict[str, type[Driver]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "google-genai": Gemini,
    "google-genai without aiohttp": GeminiWithoutAiohttp,
    "mistralai": Mistral,
    "groq": Groq,
    "together": Together,
    "langchain-openai": LangChain,
    "pydantic-ai": PydanticAI,
}
OLDER: dict[str, type[Driver]] = {
    "openai 1.x": OpenAI,
    "anthropic 0.x": Anthropic,
    "litellm to openai": LiteLLMOpenAI,
    "litellm to anthropic": LiteLLMAnthropic,
}
"""For the other environment: litellm pins an openai that the newest frameworks do not take."""
