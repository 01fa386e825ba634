"""This file knows how to answer without a socket: a mock transport for unit tests."""

from __future__ import annotations

import importlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal

from .answer import answer
from .ask import Call, read
from .formats.wire import Stamp, dumps
from .script import Script


def canned_transport(
    reply: Script | bytes | str | Mapping[str, Any] | None = None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    prebuilt: bool = True,
    library: Literal["httpx", "httpx2"] = "httpx",
) -> Any:
    """A `MockTransport` of that library, for sync and async clients alike, that always answers the same.

    A script is answered as `FakeProvider` would, but for its timing and broken connections; bytes, text or a mapping
    (as JSON) are sent as they are. `prebuilt=False`: the content comes as a stream, event by event.
    """
    http = importlib.import_module(library)  # One of two libraries, so the result has no common type.

    def handle(request: Any) -> Any:
        if isinstance(reply, Script) or reply is None:
            code, named, parts = _scripted(request, reply or Script())
        else:
            code, named, parts = status, {"content-type": _kind(reply)}, [_bytes(reply)]
        named = {**named, **{name.lower(): value for name, value in (headers or {}).items()}}
        if prebuilt:
            return http.Response(code, headers=named, content=b"".join(parts))
        return http.Response(code, headers=named, stream=_stream_class(http)(parts))

    return http.MockTransport(handle)


def _scripted(request: Any, script: Script) -> tuple[int, dict[str, str], list[bytes]]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    call = Call(request.method, request.url.raw_path.decode(), headers, request.content)
    made = answer(call, read(call), script, Stamp(1, int(time.time())))
    parts = [made.body] if made.events is None else [event.data for event in made.events]
    return made.status, made.headers, parts


def _kind(reply: bytes | str | Mapping[str, Any]) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    streamed = isinstance(text, str) and text.lstrip().startswith(("data:", "event:", ":"))
    return "text/event-stream; charset=utf-8" if streamed else "application/json"


def _bytes(reply: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(reply, bytes):
        return reply
    return reply.encode() if isinstance(reply, str) else dumps(reply).encode()


def _stream_class(http: Any) -> Any:
    class Parts(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc]  # its bases are known at run time
        def __init__(self, parts: list[bytes]) -> None:
            self._parts = parts

        def __iter__(self) -> Iterator[bytes]:
            yield from self._parts

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self._parts:
                yield part

    return Parts
