"""What the tests of the shell share.

A provider on a loopback socket, a flight that writes down what it is told, and one way to drive both libraries in three
colours."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

import anyio
import pytest

from lava_middleware.transport import instrument
from lava_middleware.transport.seen import Answer, Departure, Item, Seen, Stop

EVENTS = [b'data: {"n": %d, "text": "gr\xc3\xbc\xc3\x9fe"}\r\n\r\n' % n for n in range(8)]
BODY = b"".join(EVENTS)


@contextlib.asynccontextmanager
async def cancelled_once(condition: Callable[[], object]) -> AsyncIterator[None]:
    """The block is cancelled as soon as the condition holds, however fast or slow the machine is."""

    async def watch() -> None:
        while not condition():
            await anyio.sleep(0.001)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield
        group.cancel_scope.cancel()


class Ticket:
    """An answer that comes a little after somebody waits for it, or never."""

    def __init__(self, *, comes: bool = True) -> None:
        self._comes = comes
        self.done = False
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1
        time.sleep(0.002)
        assert self._comes
        self.done = True

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        self.waits += 1
        await anyio.sleep(0.002 if self._comes else 1000)
        self.done = True


class FakeFlight:
    """Passes everything on and writes down what it is told. `ending` is how it ended, first come."""

    def __init__(self, script: Script, seen: Seen) -> None:
        self.script = script
        self.seen = seen
        self.told: list[str] = []
        self.endings: list[str] = []
        self.raw = b""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.reading = False
        self.last_read = time.monotonic()
        self.hang_up: Callable[[], None] | None = None
        self.extensions: dict[str, Any] = {"lava_record_id": "r1"}
        self._queue: deque[Item] = deque()
        self.stalled = False

    @property
    def ended(self) -> bool:
        return bool(self.endings)

    @property
    def ending(self) -> str | None:
        return self.endings[0] if self.endings else None

    def _ends(self, how: str) -> None:
        self.told.append(how)
        if not self.endings:
            self.endings.append(how)

    def authorize(self) -> Ticket | None:
        self.told.append("authorize")
        return self.script.ticket

    def withdrawn(self) -> None:
        self._ends("withdrawn")

    def departure(self) -> Departure:
        self.told.append("departure")
        if self.script.departure.refusal is not None:
            self._ends("denied")
        return self.script.departure

    def dispatched(self) -> None:
        assert not self.ended
        self.told.append("dispatched")

    def unsent(self, error: BaseException) -> None:
        self._ends(f"unsent {type(error).__name__}")

    def lost(self, error: BaseException) -> None:
        self._ends(f"lost {type(error).__name__}")

    def abandoned(self, how: str) -> None:
        self._ends(f"abandoned {how}")

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        self.told.append("answered")
        self.status, self.headers = status, headers
        return self.script.wants

    def push(self, data: bytes) -> None:
        assert not self.reading
        self.raw += data
        if not self.ended:
            self._queue.extend(self.script.on_push(self, data))
        else:
            self._queue.append(data)

    def pull(self) -> Item | None:
        if self.stalled:
            return Stop(None, TimeoutError("nobody read this stream"))
        if self._queue:
            item = self._queue.popleft()
            if isinstance(item, Stop):
                self._ends("cut")
            return item
        return None

    def end(self) -> None:
        self._queue.extend(self.script.on_end(self))
        self._ends("finished")


def _pass(flight: FakeFlight, data: bytes) -> list[Item]:
    return [data]


class Script:
    """A gate, and what its flights do."""

    def __init__(self) -> None:
        self.flights: list[FakeFlight] = []
        self.ticket: Ticket | None = None
        self.departure = Departure()
        self.wants = True
        self.on_push: Callable[[FakeFlight, bytes], list[Item]] = _pass
        self.on_end: Callable[[FakeFlight], list[Item]] = lambda flight: []
        self.knows: Callable[[Seen], bool] = lambda seen: True
        self.opened = 0

    def open(self, request: Seen) -> FakeFlight | None:
        self.opened += 1
        if not self.knows(request):
            return None
        flight = FakeFlight(self, request)
        self.flights.append(flight)
        return flight

    @property
    def flight(self) -> FakeFlight:
        (flight,) = self.flights
        return flight

    def refuse(self, status: int = 402, body: bytes = b'{"error": {"code": "insufficient_credit"}}') -> None:
        answer = Answer(status, [("content-type", "application/json")], body, {"lava": "why"})
        self.departure = Departure(refusal=answer)


class Provider:
    """A threaded HTTP/1.1 server on loopback whose paths misbehave in known ways."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.gone = threading.Event()
        """A client closed its connection while it was being answered."""
        self.release = threading.Event()
        """Lets paths that wait go on."""
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._socket.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            while line := file.readline():
                method, path, _ = line.decode().split(" ")
                headers = {}
                while (line := file.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                if "chunked" in headers.get("transfer-encoding", ""):
                    body = b""
                    while size := int(file.readline(), 16):
                        body += file.read(size)
                        file.readline()
                    file.readline()
                else:
                    body = file.read(int(headers.get("content-length", 0)))
                self.requests.append((method, path, headers, body))
                if not self._answer(connection, path.partition("?")[0], body):
                    return

    def _answer(self, connection: socket.socket, path: str, body: bytes) -> bool:
        kind, _, rest = path.strip("/").partition("/")
        send = connection.sendall
        if kind == "cut":  # /cut/7: the body in pieces of 7 bytes
            send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for start in range(0, len(BODY), int(rest)):
                piece = BODY[start : start + int(rest)]
                send(b"%x\r\n%s\r\n" % (len(piece), piece))
            send(b"0\r\n\r\n")
        elif kind == "gzip":
            packed = gzip.compress(BODY)
            send(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed)
        elif kind == "status":
            data = b'{"error": "no"}'
            send(b"HTTP/1.1 %s X\r\ncontent-length: %d\r\n\r\n" % (rest.encode(), len(data)) + data)
        elif kind == "endless":  # until the client leaves
            send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            self._until_gone(connection)
            return False
        elif kind == "one":  # one event, then silence until released or left
            send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            send(b"%x\r\n%s\r\n" % (len(EVENTS[0]), EVENTS[0]))
            self._wait(connection)
            return False
        elif kind == "silent":  # no answer until released or left
            self._wait(connection)
            return False
        elif kind == "break":  # in the middle of the body
            send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            send(b"%x\r\n%s\r\n" % (len(EVENTS[0]), EVENTS[0]))
            send(b"ffff\r\nhalf")
            return False
        elif kind == "redirect":
            send(b"HTTP/1.1 307 X\r\nlocation: /echo\r\ncontent-length: 0\r\n\r\n")
        elif kind == "echo":
            send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        else:  # a CONNECT, too
            send(b"HTTP/1.1 502 Bad\r\ncontent-length: 0\r\n\r\n")
        return True

    def _until_gone(self, connection: socket.socket) -> None:
        number = 0
        try:
            while not self.release.is_set():
                event = EVENTS[number % len(EVENTS)]
                connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
                number += 1
                time.sleep(0.002)
        except OSError:
            self.gone.set()

    def _wait(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        while not self.release.is_set():
            try:
                if connection.recv(1) == b"":
                    self.gone.set()
                    return
            except TimeoutError:
                continue
            except OSError:
                self.gone.set()
                return


class Kit:
    """One library in one colour. Everything awaits; the sync colour just never suspends."""

    def __init__(self, library: str, colour: str) -> None:
        self.module: Any = importlib.import_module(library)
        self.colour = colour
        self.is_async = colour != "sync"

    def __repr__(self) -> str:
        return f"{self.module.__name__}-{self.colour}"

    def run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return anyio.run(function, backend="trio" if self.colour == "trio" else "asyncio")

    def client(self, **options: Any) -> Any:
        return (self.module.AsyncClient if self.is_async else self.module.Client)(**options)

    @contextlib.asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Any]:
        client = self.client(**options)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await self.call(client, "close")

    async def call(self, thing: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """thing.name(...), or thing.aname(...) where there is one."""
        if self.is_async:
            return await getattr(thing, f"a{name}", getattr(thing, name, None))(*args, **kwargs)
        return getattr(thing, name)(*args, **kwargs)

    async def send(self, client: Any, url: str, *, stream: bool = False, **options: Any) -> Any:
        request = client.build_request("POST", url, **options)
        return await self.call(client, "send", request, stream=stream)

    async def each(self, response: Any, how: str = "bytes") -> AsyncIterator[Any]:
        """The response's pieces as `how` gives them: "bytes", "raw", "text", "lines", or "stream" (below them all)."""
        if how == "stream":
            iterable = response.stream
        else:
            iterable = getattr(response, f"aiter_{how}" if self.is_async else f"iter_{how}")()
        if self.is_async:
            async for piece in iterable:
                yield piece
        else:
            for piece in iterable:
                yield piece

    def mock(self, handler: Callable[[Any], Any]) -> Any:
        return self.module.MockTransport(handler)


COLOURS = [(library, colour) for library in ("httpx", "httpx2") for colour in ("sync", "asyncio", "trio")]


def _kit(request: pytest.FixtureRequest) -> Kit:
    library, colour = request.param
    pytest.importorskip(library)
    if colour == "trio":
        pytest.importorskip("trio", reason="trio is not installed")
    return Kit(library, colour)


@pytest.fixture(params=COLOURS, ids=["-".join(pair) for pair in COLOURS])
def kit(request: pytest.FixtureRequest) -> Kit:
    """Every library in every colour."""
    return _kit(request)


_ASYNC = [pair for pair in COLOURS if pair[1] != "sync"]


@pytest.fixture(params=_ASYNC, ids=["-".join(pair) for pair in _ASYNC])
def akit(request: pytest.FixtureRequest) -> Kit:
    """What can be cancelled."""
    return _kit(request)


_SYNC = [pair for pair in COLOURS if pair[1] == "sync"]


@pytest.fixture(params=_SYNC, ids=["-".join(pair) for pair in _SYNC])
def skit(request: pytest.FixtureRequest) -> Kit:
    return _kit(request)


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def script() -> Iterator[Script]:
    """An instrumented process whose gate follows this script."""
    script = Script()
    instrument.instrument(lambda: script)
    yield script
    instrument.uninstrument()
