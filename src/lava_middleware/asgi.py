"""This file knows how to serve an ASGI application's requests on somebody's account.

Pure ASGI: nothing is buffered, the application runs in its server's own task, and everything that is not HTTP or a
websocket passes untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from . import adapter, context
from .adapter import BINDING_KEY, Customer
from .context import Binding, Identity, Unbilled
from .ids import new_id
from .inbound import Problem

if TYPE_CHECKING:
    from .lava import Lava

STARTED = frozenset({"http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start"})
"""After one of these messages the status is spent."""

POLICY_VIOLATION = 1008  # https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1


class LavaMiddleware:
    """Opens a Binding for every request, and answers refusals that escape the application.

    `app.add_middleware(LavaMiddleware)` is configured from LAVA_* variables, which keywords override; `lava=` takes a
    Lava that exists. `customer=` is a plain function of the request, called at the first provider call in whichever
    thread makes it; what must await or read a body calls identify() in a dependency or view instead. Without either,
    the user that the host's own authentication put into the scope pays. A client's headers never say who pays.

    Instruments the HTTP libraries when it is built. Raises ConfigurationError for what cannot work.
    """

    # `app` by position: with **settings, type checkers take the class for starlette's factory only so.
    def __init__(
        self, app: ASGIApp, /, lava: Lava | None = None, customer: Customer | None = None, **settings: Any
    ) -> None:
        self.app = app
        self.lava = adapter.ready(lava, customer, settings)
        self._customer = customer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or adapter.is_inner(scope, self.lava, self._customer):
            await self.app(scope, receive, send)
            return
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            if message["type"] in STARTED:
                started = True
            await send(message)

        binding = scope[BINDING_KEY] = Binding(
            self.lava, lambda: self._who(scope), request_id=new_id(), route=str(scope.get("path", ""))
        )
        opened = context.open_request(binding)
        try:
            await self.app(scope, receive, watching)
        except Exception as error:
            answer = None if started else adapter.refusal(error, binding, self.lava)
            if answer is None:
                raise
            await _answer(answer, scope, send)
        finally:
            binding.end()
            context.close_request(opened)

    def _who(self, scope: Scope) -> Identity | Unbilled | None:
        if self._customer is None:
            return authenticated(scope)
        return adapter.asked(self._customer, _connection(scope))


def _connection(scope: Scope) -> HTTPConnection:
    return Request(scope) if scope["type"] == "http" else WebSocket(scope, _no_receive, _no_send)


async def _no_receive() -> Message:
    raise RuntimeError("customer= cannot read messages: identify() in the endpoint can")


async def _no_send(message: Message) -> None:
    raise RuntimeError("customer= cannot send messages")


def authenticated(scope: Scope) -> Identity | None:
    """The user that the host's own authentication put into the scope, by an id that never changes hands."""
    return adapter.authenticated(scope.get("user"))


async def _answer(answer: Problem, scope: Scope, send: Send) -> None:
    if scope["type"] == "http":
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": body})
    elif "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "websocket.http.response.body", "body": answer.body})
    else:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
