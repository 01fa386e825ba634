"""LavaMiddleware as an ASGI application: what it passes on untouched, and what it leaves behind."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from lava_middleware import context
from lava_middleware.asgi import LavaMiddleware, authenticated
from lava_middleware.context import charge_to, payer
from lava_middleware.errors import ConfigurationError, Denied, IdError, refused

from ..context.fakes import FakeLava, call
from .served import serving

pytestmark = pytest.mark.anyio


def scope(kind: str = "http", **more: Any) -> dict[str, Any]:
    return {"type": kind, "method": "GET", "path": "/", "query_string": b"", "headers": [], **more}


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class Sent(list[dict[str, Any]]):
    async def __call__(self, message: Any) -> None:
        self.append(message)


def user(name: str = "alice") -> SimpleUser:
    return SimpleUser(name)


@pytest.mark.parametrize("kind", ["lifespan", "something.else"])
async def test_other_scopes_pass_with_the_very_same_arguments(kind: str) -> None:
    """T19: lifespan is only a hint, and a mounted application never sees it."""
    given: list[Any] = []

    async def app(*arguments: Any) -> None:
        given.extend(arguments)
        given.append(payer())

    sent = Sent()
    its_scope = {"type": kind}
    await LavaMiddleware(app, FakeLava())(its_scope, receive, sent)  # type: ignore[arg-type]
    assert given == [its_scope, receive, sent, None]


async def test_each_message_goes_on_at_once_and_unchanged() -> None:
    """Nothing is buffered: the second chunk is made after the first has reached the server."""
    sent = Sent()
    messages = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "http.response.body", "body": b"two"},
        {"type": "something.else"},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, message in enumerate(messages, 1):
            await send(message)
            assert len(sent) == number
            assert sent[-1] is message

    await LavaMiddleware(app, FakeLava())(scope(), receive, sent)  # type: ignore[arg-type]
    assert len(sent) == 4


async def test_the_applications_receive_is_the_servers() -> None:
    async def app(scope: Any, given: Any, send: Any) -> None:
        assert given is receive

    await LavaMiddleware(app, FakeLava())(scope(), receive, Sent())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ending", [None, ValueError("app"), refused(Denied("limit_reached")), asyncio.CancelledError()]
)
async def test_however_a_request_ends_nothing_of_it_is_left(ending: BaseException | None) -> None:
    """A set without a reset leaked one customer into the next anonymous request."""
    bindings = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bindings.append(context.binding())
        assert call() == "alice"
        charge_to("left over").__enter__()
        if ending is not None:
            raise ending

    middleware = LavaMiddleware(app, FakeLava())  # type: ignore[arg-type]
    try:
        await middleware(scope(user=user()), receive, Sent())
    except BaseException as error:
        assert error is ending  # noqa: PT017 - some endings do not raise
    assert payer() is None
    assert context.binding() is None
    assert bindings[0].ended


async def test_a_cancelled_request_is_not_answered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(10)

    sent = Sent()
    task = asyncio.create_task(LavaMiddleware(app, FakeLava())(scope(), receive, sent))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent == []


async def test_a_coroutine_closed_by_somebody_else_ends_quietly() -> None:
    """Servers close what they abandon, from another context."""
    import contextvars

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(10)

    running = LavaMiddleware(app, FakeLava())(scope(), receive, Sent())  # type: ignore[arg-type]
    contextvars.copy_context().run(running.send, None)
    running.close()
    assert payer() is None


# Who the host's authentication says it is ---------------------------------------------------------------------------


class OnlyDisplayName(BaseUser):
    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return "Alice"

    username = "alice"
    email = "alice@example.com"


class WithId(OnlyDisplayName):
    def __init__(self, found: Any) -> None:
        self.id = found


class NotSaid:
    identity = "alice"


class Method:
    identity = "alice"

    def is_authenticated(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("found", "customer"),
    [
        (SimpleUser("alice"), "alice"),
        (WithId(7), "7"),
        (WithId(UUID(int=1)), "00000000-0000-0000-0000-000000000001"),
        (WithId("u-7"), "u-7"),
        (Method(), "alice"),
    ],
)
def test_the_hosts_user_pays_by_an_id_that_never_changes_hands(found: Any, customer: str) -> None:
    identity = authenticated(scope(user=found))
    assert identity is not None
    assert (identity.customer, identity.basis) == (customer, "session")


@pytest.mark.parametrize(
    "found",
    [None, UnauthenticatedUser(), OnlyDisplayName(), WithId(None), WithId(True), WithId(""), NotSaid(), "alice", {}],
)
def test_a_user_without_a_stable_id_or_without_authentication_is_nobody(found: Any) -> None:
    """T6: user names, display names and addresses can be taken over by somebody else."""
    assert authenticated(scope(user=found)) is None


def test_a_hosts_id_that_cannot_be_one_is_not_cut_to_fit() -> None:
    with pytest.raises(IdError):
        authenticated(scope(user=SimpleUser("x" * 10_000)))


# Building it --------------------------------------------------------------------------------------------------------


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


def test_building_it_instruments() -> None:
    lava = FakeLava()
    LavaMiddleware(nothing, lava)  # type: ignore[arg-type]
    assert lava.instrumented == 1


def test_a_second_lava_leaves_the_default_alone() -> None:
    """Its own requests are on its own ledger; the process is instrumented already."""
    first, second = FakeLava(), FakeLava()
    context.set_default(first)  # type: ignore[arg-type]
    try:
        middleware = LavaMiddleware(nothing, second)  # type: ignore[arg-type]
        assert (middleware.lava, second.instrumented) == (second, 0)
        LavaMiddleware(nothing, first)  # type: ignore[arg-type]
        assert first.instrumented == 1
    finally:
        context.drop_default(first)  # type: ignore[arg-type]


def test_settings_beside_a_finished_lava_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"mode: .*give them to Lava"):
        LavaMiddleware(nothing, FakeLava(), mode="observe")  # type: ignore[arg-type]


class AsyncCallable:
    async def __call__(self, request: Request) -> str:
        return "alice"


async def acustomer(request: Request) -> str:
    return "alice"


@pytest.mark.parametrize("customer", [acustomer, AsyncCallable(), "alice"])
def test_a_customer_that_is_no_plain_function_is_refused_at_once(customer: Any) -> None:
    with pytest.raises(ConfigurationError, match="customer= must be a"):
        LavaMiddleware(nothing, FakeLava(), customer=customer)  # type: ignore[arg-type]


# Several of them ----------------------------------------------------------------------------------------------------


def endpoint(request: Request) -> PlainTextResponse:
    return PlainTextResponse(call())


def authenticating(app: Any, name: str = "alice") -> Any:
    async def authenticated_app(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "user": SimpleUser(name)}, receive, send)

    return authenticated_app


def test_a_mounted_application_is_served_on_the_same_account() -> None:
    inner = FastAPI()
    inner.add_api_route("/", lambda: call(), methods=["GET"])
    outer = Starlette(routes=[Mount("/inner", inner), Route("/", endpoint)])
    outer.add_middleware(LavaMiddleware, lava=FakeLava())
    client = TestClient(authenticating(outer))
    assert client.get("/").text == "alice"
    assert client.get("/inner/").json() == "alice"


def test_on_a_mounted_application_alone_it_works_without_lifespan() -> None:
    inner = Starlette(routes=[Route("/", endpoint)])
    inner.add_middleware(LavaMiddleware, lava=FakeLava())
    outer = Starlette(routes=[Mount("/inner", inner)])
    with TestClient(authenticating(outer)) as client:
        assert client.get("/inner/").text == "alice"


def test_added_twice_for_one_lava_the_outer_ones_customer_stays() -> None:
    lava = FakeLava()
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(LavaMiddleware, lava=lava)
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "acme")
    assert TestClient(authenticating(app)).get("/").text == "acme"


def test_an_inner_one_with_another_lava_or_its_own_customer_binds_anew() -> None:
    lava = FakeLava()
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "inner")
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "outer")
    assert TestClient(app).get("/").text == "inner"
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(LavaMiddleware, lava=FakeLava())
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "outer")
    assert TestClient(authenticating(app)).get("/").text == "alice"


async def test_a_request_that_an_application_makes_to_itself_is_its_own_request() -> None:
    """T37: it is not on the account of whoever's request made it."""
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(LavaMiddleware, lava=FakeLava())

    async def calling_itself(request: Request) -> PlainTextResponse:
        transport = httpx.ASGITransport(authenticating(app, "bob"))
        async with httpx.AsyncClient(transport=transport, base_url="http://self") as client:
            inner = (await client.get("/")).text
        return PlainTextResponse(f"{call()} {inner}")

    app.router.routes.append(Route("/self", calling_itself))
    transport = httpx.ASGITransport(authenticating(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://self") as client:
        assert (await client.get("/self")).text == "alice bob"


def test_a_client_that_leaves_ends_the_request() -> None:
    """T17: the Binding of a request whose client is gone is marked ended."""
    import threading

    bindings: list[Any] = []
    left = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        bindings.append(context.binding())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    with serving(LavaMiddleware(app, FakeLava())) as address:  # type: ignore[arg-type]
        with httpx.stream("GET", address) as answer:
            assert next(answer.iter_bytes()) == b"one"
        assert left.wait(10)
    assert bindings[0].ended


@pytest.mark.alone
def test_its_own_time_on_a_request_is_small(figures: Callable[[str], None]) -> None:
    """Aim: 30 µs. The bound here is for slow machines."""
    running = asyncio.new_event_loop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one"})

    async def bound(scope: Any, receive: Any, send: Any) -> None:
        payer()
        await app(scope, receive, send)

    async def seconds(served: Any) -> float:
        sent = Sent()
        started = time.perf_counter()
        for _ in range(500):
            await served(scope(user=user()), receive, sent)
        return (time.perf_counter() - started) / 500

    async def added(inner: Any) -> float:
        middleware = LavaMiddleware(inner, FakeLava())  # type: ignore[arg-type]
        return statistics.median([await seconds(middleware) - await seconds(inner) for _ in range(9)])

    try:
        idle, asked = running.run_until_complete(added(app)), running.run_until_complete(added(bound))
    finally:
        running.close()
    figures(f"LavaMiddleware adds {idle * 1e6:.1f} µs to a request, {asked * 1e6:.1f} µs where somebody must pay")
    assert asked < 300e-6
