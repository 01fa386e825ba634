"""This file knows how to use sync and async clients by the same words."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Coroutine
from typing import Any


async def got(value: Any) -> Any:
    """The value, awaited where the client is async."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    """The items of a stream in either colour."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """`with` or `async with`, whichever it knows."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def stepped(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits, without an event loop: sync clients may want to start one of their own."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError("a sync client waited")
