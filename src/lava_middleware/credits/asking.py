"""This file knows how to ask the ledger on a user's behalf: its answers as values, its errors as those users catch.

And how async code asks it: on a thread, so that no event loop ever waits for a file's lock or a server's answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial, wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..core.decide import Conflict
from ..errors import Denied, LedgerUnavailable
from ..ledger.journal import Busy, JournalUnavailable
from ..ledger.ticket import LedgerUnavailable as Unavailable

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

    from ..ledger.ticket import Ticket

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

THREADS_MOST = 16
"""Of one event loop. A number of our own: an application's sync endpoints, which share anyio's, may wait for us."""
PAGE = 200


@contextmanager
def ledger_errors() -> Iterator[None]:
    """What the ledger or its journal says of itself, as the error that users catch."""
    try:
        yield
    except (Unavailable, JournalUnavailable, Busy) as error:
        raise LedgerUnavailable(Denied("ledger_unavailable", str(error))) from None


def wait_for(seen: Ticket | None) -> None:
    """Until the ledger has heard of a customer. Raises LedgerUnavailable."""
    if seen is not None:
        with ledger_errors(), suppress(Conflict):
            seen.wait()


def in_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The same method for async code, of asyncio and trio: done on a thread, in the context of the task.

    A task that is cancelled meanwhile goes on at once; what it asked for is done all the same.
    """

    @wraps(method)
    async def for_async_code(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _threaded(partial(method, self, *args, **kwargs))

    name = method.__name__
    for_async_code.__name__ = f"a{name}"
    for_async_code.__qualname__ = f"{method.__qualname__.removesuffix(name)}a{name}"
    for_async_code.__doc__ = f"`{name}` for async code: on a thread, so that the event loop never waits for the ledger."
    return for_async_code


async def each_in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """What a reader of pages gives, read on a thread."""
    while page := await _threaded(lambda: list(islice(items, PAGE))):
        for item in page:
            yield item


async def _threaded(work: Callable[[], T]) -> T:
    from anyio import CapacityLimiter, to_thread

    ours = _limiter()
    limiter = ours.get(None)
    if limiter is None:
        ours.set(limiter := CapacityLimiter(THREADS_MOST))
    return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)


@cache
def _limiter() -> RunVar[CapacityLimiter | None]:
    from anyio.lowlevel import RunVar

    return RunVar("lava_middleware")
