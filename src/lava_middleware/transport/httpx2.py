"""This file knows how to meter clients of httpx2 without a patch: as a transport around theirs."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

try:
    import httpx2
except ImportError as error:
    raise ImportError("the transports for httpx2 need it: pip install httpx2") from error

from .explicit import gate_of
from .library import library_of
from .shell import send_async, send_sync

if TYPE_CHECKING:
    from ..lava import Lava

_LIBRARY = library_of(httpx2)


class LavaTransport(httpx2.BaseTransport):
    """Gates and meters what goes through it to a provider: `httpx2.Client(transport=LavaTransport())`.

    `inner` does the sending (a plain HTTPTransport by default). `lava` is asked; without one, the Lava that acts where
    the request is sent. In an instrumented process too each attempt is metered once, here.
    """

    meters_by_itself = True

    def __init__(self, inner: httpx2.BaseTransport | None = None, *, lava: Lava | None = None) -> None:
        self._inner = httpx2.HTTPTransport() if inner is None else inner
        self._gate = gate_of(lava)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response: httpx2.Response = send_sync(_send, self._inner, request, self._gate, _LIBRARY)
        return response

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> LavaTransport:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)


class AsyncLavaTransport(httpx2.AsyncBaseTransport):
    """As LavaTransport, for `httpx2.AsyncClient`."""

    meters_by_itself = True

    def __init__(self, inner: httpx2.AsyncBaseTransport | None = None, *, lava: Lava | None = None) -> None:
        self._inner = httpx2.AsyncHTTPTransport() if inner is None else inner
        self._gate = gate_of(lava)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response: httpx2.Response = await send_async(_asend, self._inner, request, self._gate, _LIBRARY)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> AsyncLavaTransport:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)


def _send(inner: Any, request: httpx2.Request) -> Any:
    return inner.handle_request(request)


async def _asend(inner: Any, request: httpx2.Request) -> Any:
    return await inner.handle_async_request(request)
