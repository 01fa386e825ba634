"""This file knows what the two-coloured shell and one exchange say to each other: the seam of bytes and decisions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from .library import Library

_SCHEMES_OWN = {"https": 443, "http": 80}


class Seen:
    """An application's request, as the gate may look at it.

    Everything is read from the library's object when asked for: a request to a host nobody knows costs one look at it.
    """

    __slots__ = ("_library", "_request")

    def __init__(self, request: Any, library: Library) -> None:
        self._request = request
        self._library = library

    def __repr__(self) -> str:  # neither query nor headers: they may hold keys
        return f"<Seen {self.method} {self.host}{self.path}>"

    @property
    def library(self) -> str:
        """ "httpx" or "httpx2"."""
        return self._library.name

    @property
    def method(self) -> str:
        method: str = self._request.method
        return method

    @property
    def scheme(self) -> str:
        scheme: str = self._request.url.scheme
        return scheme

    @property
    def host(self) -> str:
        """As it goes over the wire: lower case, ASCII (xn--...), without userinfo, brackets and port; a trailing dot is
        still there."""
        raw: bytes = self._request.url.raw_host
        return raw.decode("ascii")

    @property
    def port(self) -> int | None:
        """The one it connects to: the scheme's own too, which the libraries' URLs leave out."""
        port: int | None = self._request.url.port
        return _SCHEMES_OWN.get(self.scheme) if port is None else port

    @property
    def path(self) -> str:
        """As it goes over the wire (percent-encoded), without query. The fragment never goes (`#stream` of Mistral)."""
        raw: bytes = self._request.url.raw_path
        return raw.partition(b"?")[0].decode("ascii")

    @property
    def query(self) -> bytes:
        query: bytes = self._request.url.query
        return query

    @property
    def headers(self) -> Headers:
        headers: Headers = self._request.headers
        return headers

    @property
    def extensions(self) -> Mapping[str, Any]:
        extensions: Mapping[str, Any] = self._request.extensions
        return extensions

    def content(self) -> bytes | None:
        """The body, if it is bytes already. None for files, multipart and generators: these are never buffered."""
        if not isinstance(self._request.stream, self._library.ByteStream):
            return None
        # The library's own bytes: reading copies nothing, and a redirected request has not been read yet.
        content: bytes = self._request.read()
        return content


class Headers(Protocol):
    def get(self, key: str, default: None = None) -> str | None: ...

    def get_list(self, key: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A response we give ourselves, instead of the provider."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    extensions: Mapping[str, Any] = field(default_factory=dict)
    """Goes to `response.extensions`: the typed decision."""


@dataclass(frozen=True, slots=True)
class Departure:
    """How a request goes out, or why it does not."""

    refusal: Answer | None = None
    content: bytes | None = field(default=None, repr=False)
    """Replaces the body."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Set, or removed with None."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream ends here: close upstream, pass `data` on, then raise `error` or end."""

    data: bytes | None = field(default=None, repr=False)
    error: Exception | None = None


class Ticket(Protocol):
    """An answer that may still be on its way."""

    @property
    def done(self) -> bool: ...

    def wait(self) -> Any: ...

    def __await__(self) -> Generator[Any, Any, Any]: ...


Item: TypeAlias = bytes | Ticket | Stop


class Flight(Protocol):
    """One exchange. Ending methods are idempotent, the first ending wins, and none of them raises.

    `abandoned` may be called by the garbage collector, in any thread and between any two statements (T35), whatever
    `how` says: the libraries close their responses in `finally` clauses of generators, which the collector runs. It
    must not wait for a lock that its own thread may hold.
    """

    reading: bool
    """Written by the shell: a send or a read is pending, and nobody's patience runs out meanwhile."""
    last_read: float
    """Written by the shell: time.monotonic() when bytes last came, or `reading` last ended."""
    hang_up: Callable[[], None] | None
    """Written by the shell where a body passes: closes it upstream, in any thread, unless it is being read. Never
    raises. It holds the body weakly."""

    @property
    def ended(self) -> bool: ...

    @property
    def extensions(self) -> Mapping[str, Any]:
        """Goes to `response.extensions`."""

    def authorize(self) -> Ticket | None:
        """None: decided at once."""

    def withdrawn(self) -> None:
        """Cancelled while the authorize was still on its way (T45)."""

    def departure(self) -> Departure:
        """What to send. Asked once, after the ticket is done."""

    def dispatched(self) -> None:
        """Bytes are about to leave."""

    def unsent(self, error: BaseException) -> None:
        """No byte left: connect, pool, TLS, local protocol error, or cancelled before."""

    def lost(self, error: BaseException) -> None:
        """It broke after the send."""

    def abandoned(self, how: str) -> None:
        """The reader stopped: "closed", "cancelled", "interrupted", "collected", "stalled"."""

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        """False: nothing left to meter, the body passes untouched."""

    def push(self, data: bytes) -> bytes | None:
        """Body bytes as they came from the network, still content-encoded. What can go on at once is given back;
        None: pull."""

    def pull(self) -> Item | None:
        """bytes: pass on. Ticket: wait for it and pull again. None: needs more input."""

    def end(self) -> None:
        """The body ended. What is left to pull is pulled afterwards."""


class Gate(Protocol):
    def open(self, request: Seen) -> Flight | None:
        """None: not a provider, or nothing to do. Cheap for unknown hosts. Errors of configuration propagate."""
