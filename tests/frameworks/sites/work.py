"""This file knows what the sites of the tests do for their customers, whatever framework they are made with."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import AsyncOpenAI, OpenAI

from lava_middleware import bind_context, charge_to
from tests.context.fakes import call

TOKENS = {f"token-of-{name}": name for name in ("alice", "bob", "brook")}
"""The site's own authentication. brook has no credit."""


def signed_in(authorization: str | None) -> str | None:
    return TOKENS.get((authorization or "").removeprefix("Bearer "))


# Who pays, here and now -----------------------------------------------------------------------------------------------


def in_a_pool(work: Callable[[], str]) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def in_a_thread(work: Callable[[], str]) -> str:
    found: list[str | BaseException] = []

    def noting() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=noting)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


WHERE: dict[str, Callable[[], str]] = {
    "view": call,
    "bound-pool": lambda: in_a_pool(bind_context(call)),
    "bound-thread": lambda: in_a_thread(bind_context(call)),
    "lost-pool": lambda: in_a_pool(call),
    "lost-thread": lambda: in_a_thread(call),
}


def body() -> Iterator[str]:
    yield call()
    yield " "
    yield call()


async def abody() -> AsyncIterator[str]:
    yield call()
    yield " "
    yield call()


def body_on_two_accounts() -> Iterator[str]:
    """A frame that is open while the body waits to be pulled."""
    yield call()
    with charge_to("carol"):
        yield " " + call()
        yield " " + call()
    yield " " + call()


async def abody_on_two_accounts() -> AsyncIterator[str]:
    yield call()
    with charge_to("carol"):
        yield " " + call()
        yield " " + call()
    yield " " + call()


# Calls to the provider ------------------------------------------------------------------------------------------------

_base_url = os.environ.get("PROVIDER_URL")
openai = OpenAI(api_key="any", base_url=_base_url)
aopenai = AsyncOpenAI(api_key="any", base_url=_base_url)


def asked(model: str | None) -> dict[str, Any]:
    return {"model": model or "gpt-4o-mini", "messages": [{"role": "user", "content": "What is a ledger?"}]}


def ask(model: str | None = None) -> str:
    return openai.chat.completions.create(**asked(model)).choices[0].message.content or ""


def open_stream(model: str | None = None) -> Any:
    return openai.chat.completions.create(stream=True, **asked(model))


async def aopen_stream(model: str | None = None) -> Any:
    return await aopenai.chat.completions.create(stream=True, **asked(model))


def events(answer: Any) -> Iterator[str]:
    with answer:
        for chunk in answer:
            if chunk.choices and chunk.choices[0].delta.content:
                yield _event(chunk)


async def aevents(answer: Any) -> AsyncIterator[str]:
    async with answer:
        async for chunk in answer:
            if chunk.choices and chunk.choices[0].delta.content:
                yield _event(chunk)


def late_events(model: str | None) -> Iterator[str]:
    """Opens the provider's stream in its first step: the view has returned."""
    yield from events(open_stream(model))


async def alate_events(model: str | None) -> AsyncIterator[str]:
    async for event in aevents(await aopen_stream(model)):
        yield event


def _event(chunk: Any) -> str:
    return f"data: {json.dumps({'text': chunk.choices[0].delta.content})}\n\n"
