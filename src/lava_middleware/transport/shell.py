"""This file knows how to carry one exchange over httpx or httpx2, sync or async: the only two-coloured HTTP code.

What is decided is decided by the flight. What differs between the colours is waiting: the drivers stand next to each
other, and whatever could be said once is in `_Attempt` (up to the answer) or `_Metered` (the body).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from time import monotonic
from typing import Any
from weakref import ref

from .attempt import Attempt, end_by, here, is_under_way, until, until_async
from .library import Library
from .loops import starter
from .seen import Answer, Departure, Flight, Gate, Seen, Stop

MARKER = "lava_middleware.attempt"
"""In the extensions of a request that is being metered: whoever sees it on the way down lets it pass."""

_STARTED = frozenset(("http11.send_request_headers.started", "http2.send_request_headers.started"))
_COMPLETE = frozenset(("http11.send_request_headers.complete", "http2.send_request_headers.complete"))


def send_sync(original: Callable[[Any, Any], Any], sender: Any, request: Any, gate: Gate, library: Library) -> Any:
    """The response to `request`, gated and metered. `original(sender, request)` sends it; sender is a client or a
    transport. Whatever `original` raises is raised unchanged."""
    attempt = _open(sender, request, gate, library, library.SyncByteStream)
    if attempt is None:
        return original(sender, request)
    try:
        ticket = attempt.flight.authorize()
        if ticket is not None and not ticket.done:
            until(ticket)
        outgoing = attempt.outgoing(attempt.trace)
        if outgoing is None:
            return attempt.refused(sender)
        attempt.begin()
        try:
            response = original(sender, outgoing)
        finally:
            attempt.over()
        if attempt.answered(response):
            response.stream = body = _streams(library).Sync(response.stream, attempt.flight, response.extensions)
        elif attempt.prebuilt is not None:
            body = _streams(library).Sync(library.ByteStream(attempt.prebuilt), attempt.flight, response.extensions)
            response = attempt.rebuilt(response, b"".join(body))
        return response
    except BaseException as error:
        attempt.failed(error)
        raise


async def send_async(
    original: Callable[[Any, Any], Awaitable[Any]], sender: Any, request: Any, gate: Gate, library: Library
) -> Any:
    """As send_sync, for async clients and transports."""
    attempt = _open(sender, request, gate, library, library.AsyncByteStream)
    if attempt is None:
        return await original(sender, request)
    try:
        ticket = attempt.flight.authorize()
        if ticket is not None and not ticket.done:
            await until_async(ticket)
        outgoing = attempt.outgoing(attempt.atrace)
        if outgoing is None:
            return attempt.refused(sender)
        attempt.begin()
        try:
            response = await original(sender, outgoing)
        finally:
            attempt.over()
        if attempt.answered(response):
            response.stream = body = _streams(library).Async(response.stream, attempt.flight, response.extensions)
        elif attempt.prebuilt is not None:
            body = _streams(library).Async(library.ByteStream(attempt.prebuilt), attempt.flight, response.extensions)
            response = attempt.rebuilt(response, b"".join([data async for data in body]))
        return response
    except BaseException as error:
        attempt.failed(error)
        raise


def _open(sender: Any, request: Any, gate: Gate, library: Library, colour: type) -> _Attempt | None:
    """None: this request is not ours to meter; it goes the way it would go without us."""
    if is_under_way():
        return None
    mark = request.extensions.get(MARKER)
    if mark is not None and mark.way.active:  # the transport hands over to another thread, which has no context
        return None
    if not isinstance(request.stream, colour):  # a sync body on an async client: the library has an error for it
        return None
    transport = library.transport_of(sender, request)
    if getattr(transport, "meters_by_itself", False):
        return None
    flight = gate.open(Seen(request, library))
    return None if flight is None else _Attempt(flight, request, library, isinstance(transport, library.tracing))


class _Attempt(Attempt):
    """One exchange up to its answer, without colour, over either library."""

    __slots__ = (
        "_edited",
        "_library",
        "_outgoing",
        "_refusal",
        "_request",
        "_trace",
        "_traces",
        "left",
        "prebuilt",
        "traced",
    )

    def __init__(self, flight: Flight, request: Any, library: Library, traces: bool) -> None:
        super().__init__(flight)
        self.traced = self.left = False
        """What the transport announced: headers about to leave, headers gone."""
        self.prebuilt: bytes | None = None
        self._request = request
        self._library = library
        self._traces = traces
        mark = request.extensions.get(MARKER)  # of an earlier attempt: somebody sends `response.request` again
        self._trace = request.extensions.get("trace") if mark is None else mark._trace
        self._outgoing: Any = None
        self._refusal: Answer | None = None
        self._edited = False

    # ── before the send ────────────────────────────────────────────────────────────────────────────────────────────

    def outgoing(self, trace: Callable[[str, Any], Any]) -> Any:
        """The request to send; None: it is refused."""
        departure = self.flight.departure()
        self.authorized = True
        if departure.refusal is not None:
            self._refusal = departure.refusal
            return None
        self._outgoing = request = self._edit(departure)
        request.extensions = {**self._request.extensions, MARKER: self, "trace": trace}
        if not self._traces:
            self.dispatch()
        return request

    def _edit(self, departure: Departure) -> Any:
        self._edited = departure.content is not None or bool(departure.headers)
        if departure.content is None:
            return _twin(self._request, departure.headers)
        headers = self._request.headers.copy()
        for name in ("content-length", "transfer-encoding"):  # both speak of the old bytes
            headers.pop(name, None)
        _set(headers, departure.headers)
        old = self._request
        return self._library.Request(old.method, old.url, headers=headers, content=departure.content)

    def refused(self, sender: Any) -> Any:
        """The refusal, as a response that looks as if the provider had given it."""
        refusal = self._refusal
        assert refusal is not None
        response = self._library.Response(
            refusal.status,
            headers=[*refusal.headers, ("content-length", str(len(refusal.body)))],
            stream=self._library.ByteStream(refusal.body),  # not read yet, as a provider's: iter_raw() is there
            request=self._request,
            extensions={"http_version": b"HTTP/1.1", **self.flight.extensions, **refusal.extensions},
            default_encoding=getattr(sender, "_default_encoding", "utf-8"),
        )
        response.elapsed = timedelta(0)
        return response

    # ── the send ───────────────────────────────────────────────────────────────────────────────────────────────────

    def trace(self, name: str, info: Any) -> Any:
        """httpcore's `trace` extension: the application's own is asked first, as its error keeps the request here."""
        result = None if self._trace is None else self._trace(name, info)
        self._heard(name, info)
        return result

    async def atrace(self, name: str, info: Any) -> None:
        if self._trace is not None:
            await self._trace(name, info)
        self._heard(name, info)

    def _heard(self, name: str, info: Any) -> None:
        # A CONNECT to a proxy is announced like any request, but it carries nothing of ours.
        if name in _STARTED and self.way.active and info["request"].method != b"CONNECT":
            self.traced = True
            self.dispatch()
            self._listen_no_more()
        elif name in _COMPLETE and self.traced:
            self.left = True

    def _listen_no_more(self) -> None:
        """Eight more events would follow, each at a price; the end of this one is announced all the same."""
        if self._trace is None:
            self._outgoing.extensions.pop("trace", None)
        else:
            self._outgoing.extensions["trace"] = self._trace

    def _cannot_have_left(self, error: BaseException) -> bool:
        if self._library.classify(error) == "lost":
            return False
        # A transport that retries may fail to connect after a first attempt that was sent.
        return not self.traced or (not self.left and isinstance(error, self._library.LocalProtocolError))

    # ── the answer ─────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, response: Any) -> bool:
        """True: its stream is to be wrapped. False: it passes as it is, unless `prebuilt` says that it has its content
        already and never iterates its stream (MockTransport, respx)."""
        self.dispatch()  # a transport that traces nothing after all
        self.replied = True
        if not self._edited and getattr(response, "_request", None) is self._outgoing:
            response.request = self._request
        content = getattr(response, "_content", b"" if response.is_closed else None)
        headers = response.headers.raw
        if content is not None:  # decoded already
            headers = [pair for pair in headers if pair[0].lower() != b"content-encoding"]
        wanted = self.flight.answered(response.status_code, headers)
        response.extensions.update(self.flight.extensions)
        if wanted:
            self.prebuilt = content
        return wanted and content is None

    def rebuilt(self, response: Any, content: bytes) -> Any:
        """The prebuilt response with what may be passed on of it."""
        if content == self.prebuilt:
            return response
        gone = (b"content-encoding", b"content-length", b"transfer-encoding")
        return self._library.Response(
            response.status_code,
            headers=[pair for pair in response.headers.raw if pair[0].lower() not in gone],
            content=content,
            request=getattr(response, "_request", None),
            extensions=response.extensions,
            history=response.history,
            default_encoding=response.default_encoding,
        )


def _twin(request: Any, headers: Mapping[str, str | None]) -> Any:
    """The same request as another object, sharing its body: the application's own is never written to."""
    twin = object.__new__(type(request))
    twin.__dict__.update(request.__dict__)
    if headers:
        twin.headers = request.headers.copy()
        _set(twin.headers, headers)
    return twin


def _set(headers: Any, changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            headers.pop(name, None)
        else:
            headers[name] = value


class _Metered:
    """A response body on its way through a flight, without colour.

    All iterators of one body share its source: a second one continues where the first stands (openai drains
    `response.stream` after [DONE] while its first iterator is suspended). Once the body has ended, there is no more.
    """

    def __init__(self, stream: Any, flight: Flight, extensions: dict[str, Any]) -> None:
        self._stream = stream
        self._flight = flight
        self._extensions = extensions
        self._pid = here()
        self._source: Any = None
        self._reader: object = None
        self._ended = False
        self._stop: Stop | None = None
        flight.hang_up = partial(_hang_up, ref(self))

    def __del__(self) -> None:
        # Runs in any thread between any two statements (T35). Inert in a forked child and at exit (T36): what is open
        # then is resolved by recovery. (weakref.finalize does the same for three times the price of this object.)
        if self._pid == here() and not sys.is_finalizing():
            self._flight.abandoned("collected")

    def __getattr__(self, name: str) -> Any:  # httpx2 reads response.elapsed from response.stream.elapsed
        if name == "_stream":  # half built: there is nothing to ask
            raise AttributeError(name)
        return getattr(self._stream, name)

    @property
    def _mine(self) -> bool:
        return self._pid == here()

    def _stopped(self, stop: Stop) -> None:
        self._stop = stop
        self._extensions.update(self._flight.extensions)  # why it was cut

    def hang_up(self) -> None:
        """Close upstream, if nobody is reading: the provider stops, and the connection's place in its pool is free."""
        raise NotImplementedError

    def _leave(self, reader: object, error: BaseException, *, collector: bool) -> bool:
        """A reader is gone. True: nobody reads on, and the source is to be closed, as the library's own iterators do.
        `collector`: what closed the generator may have been the garbage collector."""
        if not self._mine:
            return False
        if not isinstance(error, GeneratorExit):
            end_by(self._flight, error)
        elif self._reader is not reader:  # an older one: another reads on
            return False
        else:
            self._flight.abandoned("collected" if collector else "closed")
        return True


class _SyncMetered(_Metered):
    def __iter__(self) -> Iterator[bytes]:
        if not self._mine:  # the parent's exchange, read in a forked child: the parent meters it
            yield from self._stream
            return
        if self._stop is not None:
            if self._stop.error is not None:
                raise self._stop.error
            return
        if self._source is None:
            self._source = iter(self._stream)
        self._reader = reader = object()
        source, flight = self._source, self._flight
        push, pull = flight.push, flight.pull
        try:
            while True:
                while (item := pull()) is not None:
                    if isinstance(item, bytes):
                        yield item
                    elif not isinstance(item, Stop):
                        until(item)
                    else:
                        self._stopped(item)
                        for close in (getattr(source, "close", _nothing), self._stream.close):
                            with suppress(Exception):
                                close()
                        if item.data:
                            yield item.data
                        if item.error is not None:
                            raise item.error
                        return
                if self._ended:
                    return
                flight.reading = True
                for data in source:
                    flight.reading, flight.last_read = False, monotonic()
                    if (ready := push(data)) is None:
                        break
                    yield ready
                    if flight.ended:  # by a watcher, meanwhile: pull() may have an error for this reader
                        break
                    flight.reading = True
                else:
                    flight.reading, self._ended = False, True
                    flight.end()
        except BaseException as error:
            if self._leave(reader, error, collector=True):
                with suppress(Exception):
                    getattr(source, "close", _nothing)()
            raise

    def close(self) -> None:
        if self._mine:
            self._flight.abandoned("closed")
        self._stream.close()

    def hang_up(self) -> None:
        # Another thread's business only where the connection is httpcore's: its pools are made for many threads.
        # Another transport's stream waits for its reader, who closes it at the next pull.
        if self._mine and not self._flight.reading and "network_stream" in self._extensions:
            with suppress(Exception):
                self._stream.close()


class _AsyncMetered(_Metered):
    def __init__(self, stream: Any, flight: Flight, extensions: dict[str, Any]) -> None:
        super().__init__(stream, flight, extensions)
        self._start = starter()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._mine:
            async for data in self._stream:
                yield data
            return
        if self._stop is not None:
            if self._stop.error is not None:
                raise self._stop.error
            return
        if self._source is None:
            self._source = self._stream.__aiter__()
        self._reader = reader = object()
        source, flight = self._source, self._flight
        push, pull = flight.push, flight.pull
        # With an event loop's hook the collector closes nothing itself: it has a task do it.
        collector = sys.get_asyncgen_hooks().finalizer is None
        try:
            while True:
                while (item := pull()) is not None:
                    if isinstance(item, bytes):
                        yield item
                    elif not isinstance(item, Stop):
                        await until_async(item)
                    else:
                        self._stopped(item)
                        for close in (getattr(source, "aclose", _anothing), self._stream.aclose):
                            with suppress(Exception):
                                await close()
                        if item.data:
                            yield item.data
                        if item.error is not None:
                            raise item.error
                        return
                if self._ended:
                    return
                flight.reading = True
                async for data in source:
                    flight.reading, flight.last_read = False, monotonic()
                    if (ready := push(data)) is None:
                        break
                    yield ready
                    if flight.ended:  # by a watcher, meanwhile: pull() may have an error for this reader
                        break
                    flight.reading = True
                else:
                    flight.reading, self._ended = False, True
                    flight.end()
        except BaseException as error:
            if self._leave(reader, error, collector=collector):
                with suppress(Exception):
                    await getattr(source, "aclose", _anothing)()
            raise

    async def aclose(self) -> None:
        if self._mine:
            self._flight.abandoned("closed")
        await self._stream.aclose()

    def hang_up(self) -> None:
        if self._mine:
            self._start(self._close_unless_read)

    async def _close_unless_read(self) -> None:
        if not self._flight.reading:
            await self._stream.aclose()


@dataclass(frozen=True, slots=True)
class _Streams:
    """The two wrappers as subclasses of one library's streams, which it insists on."""

    Sync: Callable[[Any, Flight, dict[str, Any]], Any]
    Async: Callable[[Any, Flight, dict[str, Any]], Any]


@cache
def _streams(library: Library) -> _Streams:
    return _Streams(
        type("MeteredStream", (_SyncMetered, library.SyncByteStream), {}),
        type("AsyncMeteredStream", (_AsyncMetered, library.AsyncByteStream), {}),
    )


def _hang_up(body: ref[_Metered]) -> None:
    if (still_there := body()) is not None:
        still_there.hang_up()


def _nothing() -> None: ...


async def _anothing() -> None: ...
