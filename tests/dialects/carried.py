"""This file knows how to carry a recorded exchange through the real transports, its answer cut as a test wants it."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2

from lava_middleware import Lava
from lava_middleware.transport.httpx import AsyncLavaTransport, LavaTransport
from lava_middleware.transport.httpx2 import AsyncLavaTransport as AsyncLavaTransport2
from lava_middleware.transport.httpx2 import LavaTransport as LavaTransport2

LIBRARIES = (httpx, httpx2)
CUSTOMER = "recorded"

_OF_THE_MOMENT = ("id", "started", "answered", "ended")
"""What stands on a record and differs between two that say the same."""


def _stream_of(library: ModuleType) -> type:
    class Pieces(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc,name-defined]
        def __init__(self, pieces: list[bytes]) -> None:
            self._pieces = pieces

        def __iter__(self) -> Iterator[bytes]:
            return iter(self._pieces)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self._pieces:
                yield piece

    return Pieces


class Recorded:
    """One recorded exchange on one library, to be sent again and again, sync or async."""

    def __init__(self, library: ModuleType, lava: Lava, exchange: dict[str, Any]) -> None:
        self._lava = lava
        self._library = library
        self._stream = _stream_of(library)
        self._pieces: list[bytes] = []
        self._status = exchange["response_status"]
        self._headers = list((exchange["response_headers"] or {}).items())
        self._request = (
            exchange["method"] or "POST",
            exchange["url"],
            list((exchange["request_headers"] or {}).items()),
            bytes_of(exchange, "request_body"),
        )
        answer = self._answer

        class Inner(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc,name-defined]
            def handle_request(self, request: Any) -> Any:
                return answer()

            async def handle_async_request(self, request: Any) -> Any:
                return answer()

        ours, ours_async = (
            (LavaTransport, AsyncLavaTransport) if library is httpx else (LavaTransport2, AsyncLavaTransport2)
        )
        self._sync: Any = ours(Inner(), lava=lava)
        self._async: Any = ours_async(Inner(), lava=lava)

    def _answer(self) -> Any:
        return self._library.Response(self._status, headers=self._headers, stream=self._stream(self._pieces))

    def _asked(self) -> Any:
        method, url, headers, content = self._request
        return self._library.Request(method, url, headers=headers, content=content)

    def send(self, pieces: list[bytes]) -> tuple[dict[str, Any] | None, bytes]:
        """(what was metered, the bytes that reached the application)."""
        self._pieces = pieces
        with self._lava.charge_to(CUSTOMER):
            response = self._sync.handle_request(self._asked())
        try:
            received = b"".join(response.stream)
        finally:
            response.close()
        return self._metered(response), received

    async def asend(self, pieces: list[bytes]) -> tuple[dict[str, Any] | None, bytes]:
        """The same on the library's async side."""
        self._pieces = pieces
        with self._lava.charge_to(CUSTOMER):
            response = await self._async.handle_async_request(self._asked())
        try:
            received = b"".join([piece async for piece in response.stream])
        finally:
            await response.aclose()
        return self._metered(response), received

    def _metered(self, response: Any) -> dict[str, Any] | None:
        """What the journal's last entry says of this very exchange; None: it ended without a record."""
        entry = self._lava.journal.entries(CUSTOMER, limit=1)[0]
        if entry.key is None or not entry.key.endswith(response.extensions["lava_record_id"]) or entry.record is None:
            return None
        said: dict[str, Any] = json.loads(entry.record)
        for name in _OF_THE_MOMENT:
            said.pop(name, None)
        return said


def bytes_of(exchange: dict[str, Any], name: str) -> bytes:
    """A body of the recording."""
    text = exchange[name]
    if text is None:
        return b""
    return base64.b64decode(text) if exchange[f"{name}_encoding"] == "base64" else text.encode("utf-8", "surrogatepass")
