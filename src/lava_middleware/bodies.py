"""This file knows how to run what comes after a view, the body that it streams, in the Context of its request."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextvars import copy_context
from functools import partial
from types import coroutine
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Kept:
    """The Context of a request, as it is here and now, to run things in later, in any thread.

    It is one Context for all steps: what a body sets in one is there in the next, a `with charge_to()` around a yield
    too, and what it resets was set in the same one (Flask's stream_with_context does that). Entered already, by a step
    that this one interrupts or that another thread is at, it is copied: a Context cannot be entered twice.
    """

    __slots__ = ("_context", "_free")

    def __init__(self) -> None:
        self._context = copy_context()
        self._free = threading.Lock()

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._free.acquire(blocking=False):
            return self._context.copy().run(function, *args, **kwargs)
        try:
            return self._context.run(function, *args, **kwargs)
        finally:
            self._free.release()

    @coroutine
    def arun(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await it here, each of its steps run in the Context: the task stays the one it is, and can be cancelled."""
        resume: Callable[[], Any] = partial(work.send, None)
        while True:
            try:
                awaited = self.run(resume)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                resume = partial(work.send, (yield awaited))
            except BaseException as error:
                resume = partial(work.throw, error)


class Body(Generic[T]):
    """A body whose every step, and close(), runs in the Context of its request. Made once, iterated once."""

    def __init__(self, body: Iterable[T], kept: Kept) -> None:
        self._body = body
        self._kept = kept
        self._step: Callable[[], T] | None = None

    def __iter__(self) -> Body[T]:
        return self

    def __next__(self) -> T:
        if self._step is None:
            self._step = self._kept.run(iter, self._body).__next__
        return self._kept.run(self._step)

    def close(self) -> None:
        """Close the body, if it can be closed."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._kept.run(close)


async def abody(body: AsyncIterable[T], kept: Kept) -> AsyncGenerator[T, None]:
    """`Body` for async iterables."""
    steps = kept.run(aiter, body)
    try:
        while True:
            try:
                item = await kept.arun(_next(steps))
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(steps, "aclose", None)
        if close is not None:
            await kept.arun(_await(close))


async def _next(steps: AsyncIterator[T]) -> T:
    return await anext(steps)


async def _await(close: Callable[[], Any]) -> None:
    await close()
