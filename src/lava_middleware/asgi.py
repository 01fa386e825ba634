"""This file knows how to serve an ASGI application's requests on somebody's account.

Pure ASGI: nothing is buffered, the application runs in its server's own task, and everything that is not HTTP or a
websocket passes untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from . import context
from .context import Binding, Identity, Unbilled, checked_id
from .errors import ConfigurationError, Denied, denied, logger, say_once
from .ids import new_id
from .inbound import Problem, problem

if TYPE_CHECKING:
    from .lava import Lava

Customer: TypeAlias = "Callable[[Any], str | Unbilled | context.Override | None]"
"""customer=: given the starlette Request (or WebSocket), whoever pays; None: nobody is known."""

STABLE_IDS = ("identity", "pk", "id")
"""Where a user object keeps an id that never changes hands, best first. Never a user name, display name or address:
they can be given up by one person and taken by another."""

SCOPE_KEY = "lava_middleware.binding"

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
        if lava is not None and settings:
            raise ConfigurationError(
                f"{', '.join(settings)}: settings belong to the Lava that is passed as lava=; give them to Lava(...)"
            )
        if customer is not None:
            _check_plain(customer)
        if lava is None:
            from .lava import Lava

            lava = Lava.from_env(**settings)
        self.app = app
        self.lava = lava
        self._customer = customer
        if context.default() in (None, lava):  # another default has instrumented this process already
            lava.instrument()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_inner(scope):
            await self.app(scope, receive, send)
            return
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            if message["type"] in STARTED:
                started = True
            await send(message)

        binding = scope[SCOPE_KEY] = Binding(self.lava, lambda: self._who(scope), request_id=new_id())
        opened = context.open_request(binding)
        try:
            await self.app(scope, receive, watching)
        except Exception as error:
            decision = None if started else denied(error)
            if decision is None:
                raise
            _tell_operator(decision, error)
            await _answer(problem(decision, request_id=binding.request_id, settings=self.lava.settings), scope, send)
        finally:
            binding.end()
            context.close_request(opened)

    def _is_inner(self, scope: Scope) -> bool:
        """Added twice for the same Lava (by a mounted application, say): the outer one's Binding stays."""
        outer = scope.get(SCOPE_KEY)
        return self._customer is None and outer is not None and outer.lava is self.lava

    def _who(self, scope: Scope) -> Identity | Unbilled | None:
        if self._customer is None:
            return authenticated(scope)
        return _answered(self._customer(_connection(scope)))


def _check_plain(customer: Customer) -> None:
    if not callable(customer):
        raise ConfigurationError("customer= must be a function of the request, such as lambda request: request.user.id")
    if inspect.iscoroutinefunction(customer) or inspect.iscoroutinefunction(getattr(customer, "__call__", None)):  # noqa: B004
        raise ConfigurationError(
            "customer= must be a plain function: it is called in whichever thread makes a provider call. "
            "Await in a dependency or view, and call identify() there"
        )


def _connection(scope: Scope) -> HTTPConnection:
    return Request(scope) if scope["type"] == "http" else WebSocket(scope, _no_receive, _no_send)


async def _no_receive() -> Message:
    raise RuntimeError("customer= cannot read messages: identify() in the endpoint can")


async def _no_send(message: Message) -> None:
    raise RuntimeError("customer= cannot send messages")


def _answered(found: object) -> Identity | Unbilled | None:
    """What customer= returned. Raises IdError for what cannot be a customer: then nobody is bound."""
    if found is None or isinstance(found, Unbilled):
        return found
    if isinstance(found, context.Override) and isinstance(found.who, Unbilled):
        return found.who
    if inspect.iscoroutine(found):
        found.close()
    return Identity(checked_id(found), "resolver")


def authenticated(scope: Scope) -> Identity | None:
    """The user that the host's own authentication put into the scope, by an id that never changes hands."""
    user = scope.get("user")
    if user is None:
        return None
    known = getattr(user, "is_authenticated", False)
    if callable(known):
        known = known()
    if known is not True:
        return None
    for name in STABLE_IDS:
        try:
            found = getattr(user, name, None)
        except NotImplementedError:  # starlette's BaseUser
            continue
        if isinstance(found, int | UUID) and not isinstance(found, bool):
            found = str(found)
        if isinstance(found, str) and found:
            return Identity(checked_id(found), "session")
    return None


def _tell_operator(decision: Denied, error: Exception) -> None:
    """What the client's answer hides: a mistake of the application's."""
    if decision.absent:
        say_once("absent", "lava answered 403 customer_unknown: %s. This is said once per process.", decision.message)
    for mistake in _leaves(error):
        if denied(mistake, implied=False) is None:
            logger.error("lava answered a refusal; this was raised while, or beside, it was handled", exc_info=mistake)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


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
