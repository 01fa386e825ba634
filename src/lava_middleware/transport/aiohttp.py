"""This file knows how to carry one exchange over aiohttp: as the innermost middleware of every request.

A middleware is called once for each attempt on the wire, redirects included, and after aiohttp has made the request
(https://docs.aiohttp.org/en/stable/client_middleware_cookbook.html). aiohttp inflates answers before anybody sees them.

What is not to be had here: aiohttp keeps an answer that nobody has read to its end alive, so dropping one is no ending.
It ends when it is closed, when its session or its loop is, or as a stream that nobody reads (`stall_s`).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from http import HTTPStatus
from time import monotonic
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias
from weakref import ref

try:
    import aiohttp
except ImportError as error:
    raise ImportError("requests through aiohttp are metered where it is installed: pip install aiohttp") from error

from .attempt import Attempt, end_by, here, is_under_way, until_async
from .loops import starter
from .seen import Answer, Departure, Flight, Gate, Headers, Seen, Stop

_multidict = importlib.import_module("multidict")  # it comes with aiohttp

Handler: TypeAlias = Callable[[Any], Awaitable[Any]]

_INFLATES = (b"br", b"deflate", b"gzip", b"zstd")
"""Content codings that aiohttp undoes by itself, where it can."""


def fault(module: ModuleType) -> str | None:
    """Why this aiohttp cannot be metered; None: it can. Some of what is used here has a private name."""
    session, request, reader = (getattr(module, n, None) for n in ("ClientSession", "ClientRequest", "StreamReader"))
    if "middlewares" not in _parameters(getattr(session, "_request", None)):
        return "ClientSession._request takes no middlewares"
    if "_middlewares" not in getattr(session, "ATTRS", ()):
        return "ClientSession._middlewares is missing"
    if not callable(getattr(request, "update_body", None)) or not callable(getattr(request, "send", None)):
        return "ClientRequest lacks update_body or send"
    if not callable(getattr(module.payload.BytesPayload, "as_bytes", None)):
        return "BytesPayload.as_bytes is missing"
    if _parameters(getattr(reader, "_wait", None)) != ["self", "func_name"]:
        return "StreamReader._wait is missing or takes something else"
    return None


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def middlewares(session: Any, given: Any, gate: Gate, *, inflated: bool) -> tuple[Any, ...]:
    """Those that the request would have had, and the meter behind them, next to the wire."""
    others = session._middlewares if given is None else given
    return (*(others or ()), partial(_meter, gate, inflated))


async def _meter(gate: Gate, inflated: bool, request: Any, handler: Handler) -> Any:
    """The response to `request`, gated and metered. `handler(request)` sends it; what that raises is raised unchanged.

    As shell.send_async, whose steps stand here in the same order.
    """
    if is_under_way():
        return await handler(request)
    flight = gate.open(_SeenByAiohttp(request, await _content(request)))
    if flight is None:
        return await handler(request)
    attempt = _Attempt(flight, request)
    try:
        ticket = flight.authorize()
        if ticket is not None and not ticket.done:
            await until_async(ticket)
        refusal = await attempt.outgoing()
        if refusal is not None:
            return await _refused(request, refusal, flight.extensions)
        attempt.begin()
        try:
            response = await handler(request)
        finally:
            attempt.over()
        if attempt.answered(response, inflated=inflated):
            response.content = _MeteredReader(response, flight)
        if 300 <= response.status < 400:
            await attempt.restore()
        return response
    except BaseException as error:
        attempt.failed(error)
        raise


async def _content(request: Any) -> bytes | None:
    """The body, if it is bytes already. None for files, forms with files and generators: these are never buffered."""
    body = request.body
    if isinstance(body, aiohttp.payload.BytesPayload):
        return bytes(await body.as_bytes())
    return bytes(body) if isinstance(body, bytes | bytearray) else None


class _SeenByAiohttp(Seen):
    __slots__ = ("_body",)

    def __init__(self, request: Any, body: bytes | None) -> None:
        self._request = request
        self._body = body

    @property
    def library(self) -> str:
        return "aiohttp"

    @property
    def scheme(self) -> str:
        scheme: str = self._request.url.scheme
        return {"wss": "https", "ws": "http"}.get(scheme, scheme)

    @property
    def host(self) -> str:
        return self._request.url.raw_host or ""

    @property
    def port(self) -> int | None:
        port: int | None = self._request.url.port
        return port

    @property
    def path(self) -> str:
        path: str = self._request.url.raw_path
        return path

    @property
    def query(self) -> bytes:
        return str(self._request.url.raw_query_string).encode("ascii", "replace")

    @property
    def headers(self) -> Headers:
        return _HeadersOfAiohttp(self._request.headers)

    @property
    def extensions(self) -> Mapping[str, Any]:
        return {}

    def content(self) -> bytes | None:
        return self._body


class _HeadersOfAiohttp:
    __slots__ = ("_headers",)

    def __init__(self, headers: Any) -> None:
        self._headers = headers

    def get(self, key: str, default: None = None) -> str | None:
        found: str | None = self._headers.get(key, default)
        return found

    def get_list(self, key: str) -> list[str]:
        return list(self._headers.getall(key, ()))


class _Attempt(Attempt):
    """One exchange up to its answer."""

    __slots__ = ("_before", "_request")

    def __init__(self, flight: Flight, request: Any) -> None:
        super().__init__(flight)
        self._request = request
        self._before: bytes | None = None
        """The body as the application wrote it, where we have written another."""

    async def outgoing(self) -> Answer | None:
        """Make the request as it is to leave; the refusal, if it is not to."""
        departure = self.flight.departure()
        self.authorized = True
        if departure.refusal is not None:
            return departure.refusal
        await self._edit(departure)
        send = self._request.send

        async def announced(connection: Any) -> Any:
            self.dispatch()
            return await send(connection)

        # Called when a connection is there: to be cancelled while waiting for one costs nothing.
        self._request.send = announced
        return None

    async def _edit(self, departure: Departure) -> None:
        for name, value in departure.headers.items():
            if value is None:
                self._request.headers.popall(name, None)
            else:
                self._request.headers[name] = value
        if departure.content is not None:
            self._before = await _content(self._request)
            await self._request.update_body(departure.content)

    async def restore(self) -> None:
        """The next hop of a redirect is made from the body of this one, and is edited by itself."""
        if self._before is not None:
            await self._request.update_body(self._before)

    def answered(self, response: Any, *, inflated: bool) -> bool:
        """True: its content is to be wrapped. False: it passes as it is."""
        self.dispatch()  # a request class with a way to send of its own
        self.replied = True
        wanted = self.flight.answered(response.status, _headers(response, inflated))
        response.extensions = dict(self.flight.extensions)
        return wanted


def _headers(response: Any, inflated: bool) -> list[tuple[bytes, bytes]]:
    """As the meter is to take them: without the coding that has been undone."""
    return [
        (name, value)
        for name, value in response.raw_headers
        if not (inflated and name.lower() == b"content-encoding" and value.strip().lower() in _INFLATES)
    ]


class _Idle:
    """The protocol of a reader that is not fed by a connection: there is nothing to pause."""

    connected = True
    upgraded = False
    _reading_paused = False
    """Older readers look at it themselves."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


class _MeteredReader(aiohttp.StreamReader):
    """A response body on its way through a flight: bytes are fetched from the library's own reader when they are
    wanted, and go into this one's buffer once they are paid for."""

    __slots__ = (
        "__weakref__",
        "_chunk_ended",
        "_chunked",
        "_error",
        "_fetching",
        "_flight",
        "_left_by",
        "_over",
        "_pid",
        "_response",
        "_start",
        "_upstream",
    )

    def __init__(self, response: Any, flight: Flight) -> None:
        self._upstream = response.content
        idle: Any = _Idle()
        super().__init__(idle, self._upstream.get_read_buffer_limits()[0], loop=response._loop)
        self._flight = flight
        self._pid = here()
        self._response = ref(response)
        self._fetching = self._over = self._chunk_ended = False
        self._error: Exception | None = None
        self._left_by: str | None = None
        """How the last read ended, where it brought nothing."""
        self._start = starter()
        self._chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if self._chunked:
            self.begin_http_chunk_receiving()
        flight.hang_up = partial(_hang_up, ref(self))

    def __del__(self) -> None:  # as shell._Metered
        if self._pid == here() and not sys.is_finalizing():
            self._flight.abandoned(self._left_by or "collected")

    async def wait_eof(self) -> None:
        while not self._eof:
            await self._wait("wait_eof")

    def set_exception(self, exc: Any, *cause: Any) -> None:
        """aiohttp does it when the response is closed or released."""
        if self._pid == here():
            self._flight.abandoned(self._left_by or "closed")
        super().set_exception(exc, *cause)

    async def _wait(self, func_name: str) -> None:
        """What every way to read calls where the buffer is empty: fill it."""
        if self._fetching:
            raise RuntimeError(f"{func_name}() called while another coroutine is already waiting for incoming data")
        self._fetching = True
        self._left_by = None
        try:
            await self._fetch()
        except asyncio.CancelledError:  # the read, not the stream: whoever polls with a time-out reads on
            self._left_by = "cancelled"
            raise
        except BaseException as error:
            if self._pid == here():
                end_by(self._flight, error)
            if isinstance(error, Exception) and self._exception is None:
                super().set_exception(error)
            raise
        finally:
            self._fetching = False

    async def _fetch(self) -> None:
        """More bytes, or the end."""
        before = self.total_bytes
        while self.total_bytes == before and not self._eof:
            if self._error is not None:
                raise self._error
            item = self._flight.pull() if self._pid == here() else None
            if isinstance(item, bytes):
                self.feed_data(item)
            elif isinstance(item, Stop):
                self._stop(item)
            elif item is not None:
                await until_async(item)
            elif self._over:
                self.feed_eof()
            else:
                await self._read_on()
        if self._chunk_ended and self.total_bytes != before:
            self.end_http_chunk_receiving()

    async def _read_on(self) -> None:
        flight = self._flight
        flight.reading = True
        try:
            data, chunk_ended = await self._upstream.readchunk()
        finally:
            flight.reading, flight.last_read = False, monotonic()
        mine = self._pid == here()
        if data:
            ready = flight.push(data) if mine else data
            if ready is not None:
                self.feed_data(ready)
        elif not chunk_ended:
            self._over = True
            if mine:
                flight.end()
        self._chunk_ended = chunk_ended and self._chunked

    def _stop(self, stop: Stop) -> None:
        """It ends here: nothing more is wanted from upstream."""
        response = self._response()
        if response is not None:
            response.extensions.update(self._flight.extensions)  # why it was cut
        self._close_upstream()
        if stop.data:
            self.feed_data(stop.data)
        self._over, self._error = True, stop.error

    def _close_upstream(self) -> None:
        """Close the connection, not the response: what is left to say can still be read from it."""
        response = self._response()
        if response is not None and response.connection is not None:
            response.connection.close()
        if not self._upstream.is_eof():
            self._upstream.feed_eof()

    def hang_up(self) -> None:
        if self._pid == here():
            self._start(self._close_unless_read)

    async def _close_unless_read(self) -> None:
        if not self._flight.reading:
            self._close_upstream()


def _hang_up(body: ref[_MeteredReader]) -> None:
    if (still_there := body()) is not None:
        still_there.hang_up()


async def _refused(request: Any, answer: Answer, extensions: Mapping[str, Any]) -> Any:
    """The refusal, as a response that looks as if the provider had given it: read from a connection that is none."""
    idle: Any = _Idle()
    content = aiohttp.StreamReader(idle, 2**16, loop=request.loop)
    content.feed_data(answer.body)
    content.feed_eof()
    pairs = [*answer.headers, ("content-length", str(len(answer.body)))]
    known = _parameters(aiohttp.ClientResponse.__init__)
    more = {"stream_writer": SimpleNamespace(output_size=0)} if "stream_writer" in known else {}
    response = _refusing(request.response_class)(
        request.method,
        request.original_url,
        writer=None,
        continue100=None,
        timer=None,
        request_info=request.request_info,
        traces=[],
        loop=request.loop,
        session=request._session,
        **more,
    )
    response.extensions = {**extensions, **answer.extensions}
    await response.start(_Connection(answer.status, pairs, content))
    return response


@cache
def _refusing(response_class: type[Any]) -> type[Any]:
    """This class of responses, whose error leads to the decision behind it."""

    def raise_for_status(self: Any) -> None:
        try:
            response_class.raise_for_status(self)
        except aiohttp.ClientResponseError as error:
            error.response = self  # type: ignore[attr-defined]  # where errors.denied() looks for it
            raise

    return type(response_class.__name__, (response_class,), {"raise_for_status": raise_for_status})


class _Connection:
    """As much of a connection as a response needs that has arrived whole."""

    def __init__(self, status: int, headers: list[tuple[str, str]], content: Any) -> None:
        self.protocol = self
        self.upgraded = False
        self._message = SimpleNamespace(
            version=aiohttp.HttpVersion11,
            code=status,
            reason=HTTPStatus(status).phrase,
            headers=_multidict.CIMultiDictProxy(_multidict.CIMultiDict(headers)),
            raw_headers=tuple((name.encode(), value.encode()) for name, value in headers),
        )
        self._content = content

    async def read(self) -> tuple[Any, Any]:
        return self._message, self._content

    def add_callback(self, callback: Callable[[], None]) -> None: ...

    def close(self) -> None: ...

    def release(self) -> None: ...
