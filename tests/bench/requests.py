"""This file knows how to measure what the web adapters cost a request that calls no provider."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lava_middleware import Lava, LavaMiddleware, LavaWSGIMiddleware

from .lines import Line, paired, timed

CALLS = 500
PAIRS = 40
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [(b"host", b"shop.example"), (b"accept", b"*/*"), (b"cookie", b"session=0123456789")],
}


def lines(wanted: Callable[[str], bool]) -> Iterator[Line]:
    with Lava("memory://") as lava:
        for name, measure in (("asgi", _asgi), ("wsgi", _wsgi)):
            if wanted(f"request-{name}"):
                what = f"{name.upper()} middleware: added to a request without a provider call"
                yield Line(f"request-{name}", what, measure(lava) * 1e6, "µs", "≤ 30 µs")


def _added(bare: Callable[[], object], ours: Callable[[], object]) -> float:
    """Seconds a request."""
    _, added = paired(lambda: timed(bare), lambda: timed(ours), pairs=PAIRS, warm=3)
    return added / CALLS


def _asgi(lava: Lava) -> float:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None: ...

    loop = asyncio.new_event_loop()

    def calling(served: Any) -> Callable[[], object]:
        async def calls() -> None:
            for _ in range(CALLS):
                await served(dict(SCOPE), receive, send)

        return lambda: loop.run_until_complete(calls())

    wrapped = LavaMiddleware(app, lava=lava, customer=lambda request: "bench")
    try:
        return _added(calling(app), calling(wrapped))
    finally:
        loop.close()


def _wsgi(lava: Lava) -> float:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any: ...

    def calling(served: Any) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(CALLS):
                environ = {
                    "REQUEST_METHOD": "GET",
                    "PATH_INFO": "/",
                    "QUERY_STRING": "",
                    "wsgi.input": io.BytesIO(),
                    "wsgi.errors": io.StringIO(),
                }
                body = served(environ, start_response)
                b"".join(body)
                getattr(body, "close", lambda: None)()

        return calls

    return _added(calling(app), calling(LavaWSGIMiddleware(app, lava=lava, customer=lambda environ: "bench")))
