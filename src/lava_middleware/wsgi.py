"""This file knows how to serve a WSGI application's requests on somebody's account.

Pure WSGI (PEP 3333): no piece of a body is kept back. Each request runs in a Context of its own, so nothing that one
sets is there in the thread's next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from . import adapter, context
from .adapter import BINDING_KEY, Customer
from .bodies import Body, Kept
from .context import Binding, Identity, Unbilled
from .ids import new_id
from .inbound import Problem

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .lava import Lava


class LavaWSGIMiddleware:
    """Opens a Binding for every request, and answers refusals that escape the application.

    `application = LavaWSGIMiddleware(application)` is configured from LAVA_* variables, which keywords override;
    `lava=` takes a Lava that exists. `customer=` is a plain function of the WSGI environ, called at the first provider
    call in whichever thread makes it; without it the application says who pays with identify(). A client's headers,
    which are in the environ too, must never say so.

    A refusal becomes a 402 as long as the server has sent nothing: that of a body's first step too. Instruments the
    HTTP libraries when it is built. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self, app: WSGIApplication, /, lava: Lava | None = None, customer: Customer | None = None, **settings: Any
    ) -> None:
        self.app = app
        self.lava = adapter.ready(lava, customer, settings)
        self._customer = customer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if adapter.is_inner(environ, self.lava, self._customer):
            return self.app(environ, start_response)
        binding = environ[BINDING_KEY] = Binding(
            self.lava, lambda: self._who(environ), request_id=new_id(), route=environ.get("PATH_INFO", "")
        )
        request = _Request(binding, self.lava, environ, _Start(start_response))
        try:
            body = request.kept.run(self._begin, request)
        except Exception as error:
            body = [request.answer(error)]
        if request.is_head or isinstance(body, list | tuple) or _is_file(body, environ):
            request.start.now()
        if isinstance(body, list | tuple) or _is_file(body, environ):  # nothing is left to run; servers know these
            binding.end()
            return body
        return _Body(body, request)

    def _begin(self, request: _Request) -> Iterable[bytes]:
        context.open_request(request.binding)  # left with the Context
        return self.app(request.environ, request.start)

    def _who(self, environ: WSGIEnvironment) -> Identity | Unbilled | None:
        return None if self._customer is None else adapter.asked(self._customer, environ)


class _Start:
    """The application's start_response. It reaches the server's when the first piece of the body does.

    The server would keep status and headers until then anyway, and may not expect them earlier (PEP 3333, "The
    start_response() Callable"). So a refusal can still replace them; gunicorn adds headers to earlier ones instead.
    """

    __slots__ = ("_held", "_servers", "_write", "begun")

    def __init__(self, servers: StartResponse) -> None:
        self.begun = False
        self._servers = servers
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self.begun:  # raises what exc_info holds, if the headers are sent
            return self._servers(status, headers, exc_info)
        if self._held is not None and exc_info is None:
            raise AssertionError("start_response() was called before, and there is no exc_info")
        self._held = (status, headers)
        return self.write

    def write(self, piece: bytes) -> None:
        """For applications that send imperatively."""
        self.now()
        assert self._write is not None
        self._write(piece)

    def now(self) -> None:
        if not self.begun and self._held is not None:
            self.begun = True
            self._write = self._servers(*self._held)


class _Request:
    """One request that is being served."""

    __slots__ = ("binding", "environ", "kept", "lava", "start")

    def __init__(self, binding: Binding, lava: Lava, environ: WSGIEnvironment, start: _Start) -> None:
        self.binding = binding
        self.lava = lava
        self.environ = environ
        self.start = start
        self.kept = Kept()

    @property
    def is_head(self) -> bool:
        return self.environ.get("REQUEST_METHOD") == "HEAD"

    def answer(self, error: Exception) -> bytes:
        """Start the answer to a refusal, and give its body. Raises the error itself if it is none, or comes too late.

        Called while the error is handled.
        """
        problem = None if self.start.begun else adapter.refusal(error, self.binding, self.lava)
        if problem is None:
            raise error
        self.start(_status(problem), _headers(problem), sys.exc_info())
        self.start.now()
        return b"" if self.is_head else problem.body


class _Body(Body[bytes]):
    """The application's body, or the answer to a refusal of its first step."""

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        super().__init__(body, request.kept)
        self._request = request
        self._over = False

    def __next__(self) -> bytes:
        if self._over:
            raise StopIteration
        try:
            piece = super().__next__()
        except StopIteration:
            self._request.start.now()
            raise
        except Exception as error:
            self._over = True
            return self._request.answer(error)
        if not self._request.start.begun:
            self._request.start.now()
        return piece

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._request.binding.end()


def _is_file(body: object, environ: WSGIEnvironment) -> bool:
    """Made by the server's own wsgi.file_wrapper, which it sends by faster means if it gets it back."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _status(problem: Problem) -> str:
    return f"{problem.status} {HTTPStatus(problem.status).phrase}"


def _headers(problem: Problem) -> list[tuple[str, str]]:
    return [(name.decode("ascii").title(), value.decode("ascii")) for name, value in problem.headers]
