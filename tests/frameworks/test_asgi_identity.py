"""Where the customer of a request is known, and where it is lost: on real uvicorn, with FastAPI."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection

from lava_middleware.asgi import LavaMiddleware
from lava_middleware.context import bind_context, charge_to, identify, unbilled
from lava_middleware.errors import NotBound, forget_what_was_said

from ..context.fakes import FakeLava, call
from .served import serving

TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}


class Tokens(AuthenticationBackend):
    """The host's own authentication."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        name = TOKENS.get(token)
        return None if name is None else (AuthCredentials(), SimpleUser(name))


seen: queue.Queue[str] = queue.Queue()
"""Who paid for calls that are made when nobody waits for their answer."""


async def acall() -> str:
    await asyncio.sleep(0)
    return call()


async def async_dependency() -> str:
    return call()


def sync_dependency() -> str:
    return call()


def make_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    app.add_middleware(LavaMiddleware, lava=FakeLava())  # outside: the user is found when first needed

    @app.get("/async-endpoint")
    async def _async_endpoint() -> str:
        return call()

    @app.get("/sync-endpoint")
    def _sync_endpoint() -> str:
        return call()

    @app.get("/async-dependency")
    async def _async_dependency(found: Annotated[str, Depends(async_dependency)]) -> str:
        return found

    @app.get("/sync-dependency")
    async def _sync_dependency(found: Annotated[str, Depends(sync_dependency)]) -> str:
        return found

    @app.get("/create-task")
    async def _create_task() -> str:
        return await asyncio.create_task(acall())

    @app.get("/gather")
    async def _gather() -> str:
        (found,) = set(await asyncio.gather(*(acall() for _ in range(10))))
        return found

    @app.get("/to-thread")
    async def _to_thread() -> str:
        return await asyncio.to_thread(call)

    @app.get("/call-soon")
    async def _call_soon() -> str:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[str] = loop.create_future()
        loop.call_soon(lambda: found.set_result(call()))
        return await found

    @app.get("/bound-executor")
    async def _bound_executor() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, bind_context(call))

    @app.get("/bound-pool")
    def _bound_pool() -> str:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(bind_context(call)).result()

    @app.get("/bound-thread")
    def _bound_thread() -> str:
        found: list[str] = []
        thread = threading.Thread(target=bind_context(lambda: found.append(call())))
        thread.start()
        thread.join()
        return found[0]

    @app.get("/async-stream")
    async def _async_stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield '"'
            await asyncio.sleep(0)
            yield call()
            yield '"'

        return StreamingResponse(body())

    @app.get("/sync-stream")
    def _sync_stream() -> StreamingResponse:
        def body() -> Iterator[str]:
            yield '"'
            yield call()
            yield '"'

        return StreamingResponse(body())

    @app.get("/later/async-background")
    async def _async_background(tasks: BackgroundTasks) -> str:
        async def work() -> None:
            seen.put(await acall())

        tasks.add_task(work)
        return call()

    @app.get("/later/sync-background")
    async def _sync_background(tasks: BackgroundTasks) -> str:
        tasks.add_task(lambda: seen.put(call()))
        return call()

    async def async_teardown() -> AsyncIterator[None]:
        yield
        seen.put(call())

    def sync_teardown() -> Iterator[None]:
        yield
        seen.put(call())

    @app.get("/later/async-teardown", dependencies=[Depends(async_teardown)])
    async def _async_teardown() -> str:
        return call()

    @app.get("/later/sync-teardown", dependencies=[Depends(sync_teardown)])
    async def _sync_teardown() -> str:
        return call()

    @app.get("/later/leaked-task")
    async def _leaked_task() -> str:
        async def work() -> None:
            await asyncio.sleep(0.05)
            seen.put(call())

        app.state.leaked = asyncio.create_task(work())
        return call()

    @app.get("/lost/{how}")
    async def _lost(how: str) -> str:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            if how == "executor":
                return await loop.run_in_executor(None, call)
            if how == "pool":
                return await asyncio.wrap_future(pool.submit(call))
        found: asyncio.Future[str] = loop.create_future()

        def work() -> None:
            try:
                answer = call()
            except NotBound as error:
                loop.call_soon_threadsafe(found.set_exception, error)
            else:
                loop.call_soon_threadsafe(found.set_result, answer)

        threading.Thread(target=work).start()
        return await found

    return app


KEPT = [
    "async-endpoint",
    "sync-endpoint",
    "async-dependency",
    "sync-dependency",
    "create-task",
    "gather",
    "to-thread",
    "call-soon",
    "bound-executor",
    "bound-pool",
    "bound-thread",
    "async-stream",
    "sync-stream",
]
KEPT_LATER = ["async-background", "sync-background", "async-teardown", "sync-teardown", "leaked-task"]
LOST = ["executor", "pool", "thread"]


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serving(make_app()) as address, httpx.Client(base_url=address, timeout=20) as client:
        yield client


def of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer token-of-{name}"}


@pytest.mark.parametrize("where", KEPT)
def test_the_customer_is_known(server: httpx.Client, where: str) -> None:
    assert server.get(f"/{where}", headers=of("alice")).json() == "alice"


@pytest.mark.parametrize("where", KEPT_LATER)
def test_the_customer_is_known_after_the_answer_too(server: httpx.Client, where: str) -> None:
    assert server.get(f"/later/{where}", headers=of("alice")).json() == "alice"
    assert seen.get(timeout=10) == "alice"


@pytest.mark.parametrize("where", LOST)
def test_a_thread_that_lost_the_context_is_refused_and_the_error_says_why(
    server: httpx.Client, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """T6: never somebody else's account, and never free."""
    forget_what_was_said()
    answer = server.get(f"/lost/{where}", headers=of("alice"))
    assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown")
    assert "bind_context" not in answer.text  # the client is not told of the application's threads
    assert "bind_context" in caplog.text
    assert "ERROR" not in caplog.text


def test_requests_of_two_customers_at_once_never_cross(server: httpx.Client) -> None:
    """T37, G6: all routes, sixteen requests at once."""

    def ask(number: int) -> tuple[str, str]:
        name = "alice" if number % 2 else "bob"
        found: str = server.get(f"/{KEPT[number // 2 % len(KEPT)]}", headers=of(name)).json()
        return name, found

    with ThreadPoolExecutor(16) as pool:
        assert all(name == found for name, found in pool.map(ask, range(4 * len(KEPT))))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer forged"},
        {"x-lava-customer": "alice"},
        {"lava-customer": "alice", "x-user-id": "alice", "x-forwarded-user": "alice", "remote-user": "alice"},
        {"x_lava_customer": "alice", "cookie": "customer=alice; user=alice"},
    ],
)
def test_a_clients_headers_are_never_an_identity(server: httpx.Client, headers: dict[str, str]) -> None:
    """T6: a spoofed header names nobody."""
    answer = server.get("/async-endpoint", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown")
    assert "alice" not in answer.text


def test_a_clients_headers_do_not_change_an_identity_either(server: httpx.Client) -> None:
    """T6."""
    headers = {**of("bob"), "x-lava-customer": "alice", "x-forwarded-user": "alice"}
    assert server.get("/async-endpoint", headers=headers).json() == "bob"


# identify(), wherever it is called --------------------------------------------------------------------------------


def identifying(depends: Callable[..., Any]) -> FastAPI:
    app = FastAPI(dependencies=[Depends(depends)])
    app.add_middleware(LavaMiddleware, lava=FakeLava())

    @app.get("/async")
    async def _async() -> str:
        return call()

    @app.get("/sync")
    def _sync() -> str:
        return call()

    @app.get("/stream")
    async def _stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield f'"{call()}"'

        return StreamingResponse(body())

    return app


async def in_an_async_dependency() -> None:
    identify("alice", user="u1")


def in_a_sync_dependency() -> None:
    identify("alice", user="u1")


async def in_an_async_yield_dependency() -> AsyncIterator[None]:
    identify("alice")
    yield


def in_a_sync_yield_dependency() -> Iterator[None]:
    identify("alice")
    yield


@pytest.mark.parametrize("route", ["async", "sync", "stream"])
@pytest.mark.parametrize(
    "depends",
    [in_an_async_dependency, in_a_sync_dependency, in_an_async_yield_dependency, in_a_sync_yield_dependency],
    ids=lambda depends: depends.__name__,
)
def test_identify_in_a_dependency_holds_for_the_endpoint(depends: Callable[..., Any], route: str) -> None:
    """A context variable set in a sync dependency is lost before the endpoint; the Binding is shared."""
    with serving(identifying(depends)) as address:
        assert httpx.get(f"{address}/{route}").json() == "alice"


def test_identify_in_a_middleware_that_runs_the_application_in_another_task_holds() -> None:
    async def name_the_customer(request: Request, call_next: Callable[[Request], Any]) -> Any:
        identify("alice")
        return await call_next(request)

    app = identifying(lambda: None)
    app.user_middleware.append(type(app.user_middleware[0])(BaseHTTPMiddleware, dispatch=name_the_customer))
    with serving(app) as address:
        assert httpx.get(f"{address}/async").json() == "alice"


def test_charge_to_held_by_an_async_dependency_reaches_the_endpoint() -> None:
    async def charging() -> AsyncIterator[None]:
        with charge_to("alice"):
            yield

    with TestClient(identifying(charging)) as client:
        assert client.get("/async").json() == "alice"
        assert client.get("/sync").json() == "alice"


def test_charge_to_held_by_a_sync_dependency_is_lost_and_harmless() -> None:
    """Its two halves run in two copies of the context: nobody pays, rather than the wrong one."""

    def charging() -> Iterator[None]:
        with charge_to("alice"):
            yield

    with TestClient(identifying(charging)) as client:
        assert client.get("/async").status_code == 403


@pytest.mark.parametrize("decorated", ["async", "sync"])
def test_charge_to_decorates_endpoints(decorated: str) -> None:
    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=FakeLava())

    @app.get("/async")
    @charge_to("alice")
    async def _async(word: str) -> str:
        return call() + word

    @app.get("/sync")
    @charge_to("alice")
    def _sync(word: str) -> str:
        return call() + word

    with TestClient(app) as client:
        assert client.get(f"/{decorated}?word=!").json() == "alice!"


# customer= ----------------------------------------------------------------------------------------------------------


def with_customer(customer: Callable[[Any], Any], path: str = "/") -> Any:
    app = FastAPI()
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    app.add_middleware(LavaMiddleware, lava=FakeLava(), customer=customer)

    @app.get("/")
    async def _endpoint() -> str:
        return call()

    @app.get("/no-call")
    async def _no_call() -> str:
        return "served"

    return TestClient(app).get(path, headers=of("bob"))


def test_customer_is_a_function_of_the_request_and_wins_over_the_hosts_user() -> None:
    answer = with_customer(lambda request: f"{request.user.identity}-of-{request.method}")
    assert answer.json() == "bob-of-GET"


def test_customer_is_not_asked_if_no_call_is_made() -> None:
    def never(request: Request) -> str:
        raise AssertionError("asked")

    assert with_customer(never, "/no-call").json() == "served"


def failing(request: Request) -> str:
    raise KeyError("secret-id")


async def coming(request: Request) -> str:
    return "alice"


@pytest.mark.parametrize(
    "customer",
    [
        lambda request: None,
        lambda request: "",
        lambda request: 7,
        lambda request: "x" * 10_000,
        lambda request: charge_to("alice"),
        lambda request: coming(request),
        failing,
    ],
)
def test_whatever_else_customer_returns_or_raises_means_nobody(
    customer: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """T6, T32: it does not fall back to the host's user, and what it returned is shown to nobody."""
    answer = with_customer(customer)
    assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown")
    assert "secret-id" not in caplog.text + answer.text
    assert "xxx" not in caplog.text + answer.text


def test_customer_may_say_that_nobody_is_charged() -> None:
    assert with_customer(lambda request: unbilled("staff")).json() == "unbilled"


# Websockets ---------------------------------------------------------------------------------------------------------


def test_a_websockets_messages_are_on_its_users_account() -> None:
    app = FastAPI()
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    app.add_middleware(LavaMiddleware, lava=FakeLava())

    @app.websocket("/ws")
    async def _ws(websocket: WebSocket) -> None:
        await websocket.accept()
        async for _ in websocket.iter_text():
            await websocket.send_text(call())

    with TestClient(app).websocket_connect("/ws", headers=of("bob")) as socket:
        for _ in range(2):
            socket.send_text("hello")
            assert socket.receive_text() == "bob"


def test_customer_is_given_the_websocket() -> None:
    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=FakeLava(), customer=lambda websocket: websocket.path_params["who"])

    @app.websocket("/ws/{who}")
    async def _ws(websocket: WebSocket, who: str) -> None:
        await websocket.accept()
        await websocket.send_text(call())

    with TestClient(app).websocket_connect("/ws/carol") as socket:
        assert socket.receive_text() == "carol"


# charge_to() around a yield -------------------------------------------------------------------------------------------


async def async_team() -> AsyncIterator[None]:
    with charge_to("team"):
        yield


def sync_team() -> Iterator[None]:
    with charge_to("team"):
        yield


def sync_identity() -> Iterator[None]:
    identify("team")
    yield


@pytest.mark.parametrize("endpoint", ["sync", "async"])
@pytest.mark.parametrize(
    ("dependency", "payer"),
    [
        (async_team, "team"),
        (sync_team, "alice"),  # as the README warns: it runs in a copy of the context
        (sync_identity, "team"),
    ],
)
def test_a_dependency_that_yields_reaches_the_endpoint_as_the_readme_says(
    dependency: Callable[[], Any], payer: str, endpoint: str
) -> None:
    app = FastAPI()
    customer = None if dependency is sync_identity else (lambda request: "alice")
    app.add_middleware(LavaMiddleware, lava=FakeLava(), customer=customer)
    app.get("/", dependencies=[Depends(dependency)])(acall if endpoint == "async" else call)
    assert TestClient(app).get("/").json() == payer
