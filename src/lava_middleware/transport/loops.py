"""This file knows how to have something done in the event loop that it belongs to, from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from ..ledger.ticket import running_library

Work: TypeAlias = Callable[[], Awaitable[object]]
Start: TypeAlias = Callable[[Work], None]
"""Start this soon, in a task of its own. Any thread may call it. Errors of the work are nobody's; when the loop is
over, nothing is started."""

_started: set[asyncio.Task[None]] = set()
"""asyncio keeps its tasks weakly. https://docs.python.org/3/library/asyncio-task.html#asyncio.create_task"""


def starter() -> Start:
    """Starts things in the loop that runs here; in none, where somebody steps through coroutines by hand."""
    try:
        if running_library() == "trio":
            import trio

            return partial(_start_in_trio, trio.lowlevel.current_trio_token())
        return partial(_start_in_asyncio, asyncio.get_running_loop())
    except RuntimeError:  # sniffio's too
        return _start_nothing


def _start_nothing(work: Work) -> None: ...


def _start_in_asyncio(loop: asyncio.AbstractEventLoop, work: Work) -> None:
    def start() -> None:
        task = loop.create_task(_quietly(work))
        _started.add(task)
        task.add_done_callback(_started.discard)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(start)


def _start_in_trio(token: Any, work: Work) -> None:
    import trio

    with suppress(trio.RunFinishedError):
        token.run_sync_soon(trio.lowlevel.spawn_system_task, _quietly, work)


async def _quietly(work: Work) -> None:
    with suppress(Exception):
        await work()
