"""What the application's own client sees of a refusal: problem details, on real uvicorn, with FastAPI and the SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from lava_middleware.asgi import LavaMiddleware
from lava_middleware.context import identify
from lava_middleware.core.money import Amount
from lava_middleware.errors import EXTENSION, REASONS, Denied, NotBound, StreamCut, forget_what_was_said, refused
from lava_middleware.inbound import RETRY_DEFAULT_S, WORDS, problem

from ..context.fakes import FakeLava
from .served import serving

CUSTOMER = "customer-whose-name-is-nobodys-business"

SHORT = Denied(
    "request_exceeds_credit", available=Amount.of("1.20"), required=Amount.of("2"), output_tokens_fit=400, record_id="r"
)


def refuse(decision: Denied = SHORT) -> Any:
    raise refused(decision)


def refused_by_sdk(sdk: Any) -> Any:
    """As the SDK raises it for our answer."""
    request = httpx2.Request("POST", "https://api.example.com/v1/x")
    response = httpx2.Response(402, json={"error": {}}, request=request, extensions={EXTENSION: SHORT})
    raise sdk.APIStatusError("no credit", response=response, body=None)


async def refusing_dependency() -> None:
    refuse()


def refusing_sync_dependency() -> None:
    refuse()


async def refusing_teardown() -> AsyncIterator[None]:
    yield
    refuse()


def refusing_sync_teardown() -> Iterator[None]:
    yield
    refuse()


EARLY = Depends(refusing_teardown, scope="function")
EARLY_SYNC = Depends(refusing_sync_teardown, scope="function")


def make_app(**settings: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=FakeLava(**settings))

    @app.get("/endpoint")
    async def _endpoint() -> None:
        identify(CUSTOMER)
        refuse()

    @app.get("/sync-endpoint")
    def _sync_endpoint() -> None:
        refuse()

    @app.get("/openai")
    async def _openai() -> None:
        refused_by_sdk(openai)

    @app.get("/anthropic")
    def _anthropic() -> None:
        refused_by_sdk(anthropic)

    @app.get("/dependency", dependencies=[Depends(refusing_dependency)])
    async def _dependency() -> None: ...

    @app.get("/sync-dependency", dependencies=[Depends(refusing_sync_dependency)])
    async def _sync_dependency() -> None: ...

    @app.get("/teardown", dependencies=[EARLY])
    async def _teardown() -> None: ...

    @app.get("/sync-teardown", dependencies=[EARLY_SYNC])
    def _sync_teardown() -> None: ...

    @app.get("/wrapped")
    async def _wrapped() -> None:
        try:
            refused_by_sdk(openai)
        except openai.APIStatusError as error:
            raise LookupError("my own error") from error

    @app.get("/group")
    async def _group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(10))
            tasks.create_task(asyncio.to_thread(refuse))

    @app.get("/cut")
    async def _cut() -> None:
        raise StreamCut(SHORT)

    @app.get("/late-teardown", dependencies=[Depends(refusing_teardown)])
    async def _late_teardown() -> str:
        return "served"

    @app.get("/background")
    async def _background(tasks: BackgroundTasks) -> str:
        tasks.add_task(refuse)
        return "served"

    @app.get("/stream")
    async def _stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "first"
            await asyncio.sleep(0.05)
            refuse()

        return StreamingResponse(body())

    @app.get("/handled")
    async def _handled() -> str:
        try:
            refuse()
        except Exception:
            return "a fallback"
        return "served"

    @app.get("/translated")
    async def _translated() -> None:
        try:
            refuse()
        except Exception:
            raise HTTPException(418, "my own answer") from None

    @app.get("/mistake")
    async def _mistake() -> None:
        raise ZeroDivisionError

    @app.get("/mistake-while-handling")
    async def _mistake_while_handling() -> None:
        try:
            refuse()
        except Exception:
            raise ZeroDivisionError  # noqa: B904 - a bug in the handler

    @app.get("/mistake-beside")
    async def _mistake_beside() -> None:
        mistake, refusal = ZeroDivisionError("a bug"), refused(SHORT)
        raise ExceptionGroup("both", [mistake, refusal])

    @app.get("/unbound")
    async def _unbound() -> None:
        raise NotBound

    return app


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serving(make_app()) as address, httpx.Client(base_url=address, timeout=20) as client:
        yield client


BEFORE_THE_START = [
    "endpoint",
    "sync-endpoint",
    "openai",
    "anthropic",
    "dependency",
    "sync-dependency",
    "teardown",
    "sync-teardown",
    "wrapped",
    "group",
    "cut",
]


@pytest.mark.parametrize("where", BEFORE_THE_START)
def test_a_refusal_that_escapes_is_a_402_and_not_an_error_of_the_server(
    server: httpx.Client, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """T13."""
    answer = server.get(f"/{where}")
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "retry-after" not in answer.headers
    body = answer.json()
    assert body.pop("request_id")
    assert body == {
        "type": "urn:lava-middleware:problem:request_exceeds_credit",
        "title": "The request exceeds the credit",
        "status": 402,
        "detail": "This request may cost more than the credit that is left. A smaller one would be possible.",
        "code": "request_exceeds_credit",
        "output_tokens_max": 400,
    }
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
    assert CUSTOMER not in caplog.text + answer.text + str(answer.headers)


@pytest.mark.parametrize("where", ["late-teardown", "background"])
def test_once_the_answer_has_started_it_stays_and_the_error_passes_unchanged(
    server: httpx.Client, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = server.get(f"/{where}")
    assert (answer.status_code, answer.json()) == (200, "served")
    server.get("/handled")  # on the same connection: the server has logged the first by now
    assert "RequestExceedsCredit" in caplog.text


def test_a_stream_that_has_started_breaks_off(server: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/stream")


def test_an_application_may_handle_refusals_itself(server: httpx.Client) -> None:
    assert server.get("/handled").json() == "a fallback"
    answer = server.get("/translated")
    assert (answer.status_code, answer.json()) == (418, {"detail": "my own answer"})


def test_other_errors_are_the_servers_as_ever(server: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    assert server.get("/mistake").status_code == 500
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("where", ["mistake-while-handling", "mistake-beside"])
def test_a_mistake_beside_a_refusal_is_answered_as_the_refusal_and_logged_as_the_mistake(
    server: httpx.Client, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.get(f"/{where}").status_code == 402
    (logged,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert logged.name == "lava_middleware"
    assert logged.exc_info is not None
    assert logged.exc_info[0] is ZeroDivisionError


def test_an_unbound_call_is_a_403_to_the_client_and_a_loud_log_for_the_operator_once(
    server: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """T6."""
    forget_what_was_said()
    for _ in range(3):
        answer = server.get("/unbound")
        assert (answer.status_code, answer.json()["code"]) == (403, "customer_unknown")
    assert caplog.text.count("bind_context") == 1


def test_a_head_request_is_answered_without_a_body(server: httpx.Client) -> None:
    app = make_app()
    app.add_api_route("/head", refuse_endpoint, methods=["HEAD"])
    with serving(app) as address:
        answer = httpx.head(f"{address}/head")
    assert (answer.status_code, answer.content) == (402, b"")
    assert int(answer.headers["content-length"]) > 0


async def refuse_endpoint() -> None:
    refuse()


def test_an_exception_handler_of_the_application_comes_first() -> None:
    app = make_app()

    @app.exception_handler(type(refused(SHORT)))
    async def _mine(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"mine": str(error)}, 402)

    with TestClient(app) as client:
        assert "1.20 credits available" in client.get("/endpoint").json()["mine"]


def test_a_plain_starlette_application_answers_the_same() -> None:
    app = Starlette(routes=[Route("/", lambda request: refuse())], debug=True)
    app.add_middleware(LavaMiddleware, lava=FakeLava())
    assert TestClient(app).get("/").status_code == 402


def test_a_middleware_that_runs_the_application_in_another_task_does_not_hide_it() -> None:
    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = FastAPI()
    app.add_api_route("/", refuse_endpoint)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    app.add_middleware(LavaMiddleware, lava=FakeLava())
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    assert TestClient(app).get("/").status_code == 402


def test_cors_outside_of_it_lets_a_browser_read_the_refusal() -> None:
    app = make_app()
    app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"])
    answer = TestClient(app).get("/endpoint", headers={"origin": "https://app.example"})
    assert answer.status_code == 402
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_the_request_id_is_that_of_the_binding() -> None:
    from lava_middleware.context import current

    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=FakeLava())
    ids = []

    @app.get("/")
    async def _endpoint() -> None:
        ids.append(current().request_id)
        refuse()

    client = TestClient(app)
    found = [client.get("/").json()["request_id"] for _ in range(2)]
    assert found == ids
    assert len(set(found)) == 2


# What the body says -------------------------------------------------------------------------------------------------


def told(decision: Denied, **settings: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    import json

    answer = problem(decision, request_id="req-1", settings=FakeLava(**settings).settings)
    return answer.status, {name.decode(): value.decode() for name, value in answer.headers}, json.loads(answer.body)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_words_for_the_client(reason: str) -> None:
    assert reason in WORDS
    decision = Denied(reason, available=Amount.of("1.20"), required=Amount.of("2"), model="m", door="d", record_id="r")
    status, headers, body = told(decision)
    assert status == body["status"] == REASONS[reason].inbound
    assert body["code"] == reason
    assert body["request_id"] == "req-1"
    assert headers["cache-control"] == "no-store"
    assert ("retry-after" in headers) == (reason in RETRY_DEFAULT_S)
    assert "1.20" not in str(body)
    assert "lava." not in str(body)  # nothing about how the operator mends it


def test_a_limit_is_told_with_its_reset() -> None:
    decision = Denied(
        "limit_reached",
        limit="tokens/month",
        unit="tokens",
        used=99_500,
        quantity=100_000,
        resets_at=datetime(2026, 12, 1, tzinfo=UTC),
        retry_after_s=3_600,
    )
    status, headers, body = told(decision)
    assert status == 429
    assert headers["retry-after"] == "3600"
    assert body["violated-policies"] == ["tokens/month"]
    assert body["type"].endswith("#quota-exceeded")
    assert body["limit"] == {
        "name": "tokens/month",
        "unit": "tokens",
        "quantity": 100_000,
        "used": 99_500,
        "resets_at": "2026-12-01T00:00:00+00:00",
    }


def test_amounts_are_told_only_where_the_operator_discloses_them() -> None:
    *_, body = told(SHORT)
    assert "available" not in body
    *_, body = told(SHORT, disclose_amounts=True)
    assert (body["available"], body["required"]) == ("1.20", "2.00")


def test_the_upgrade_address_is_told_where_paying_helps() -> None:
    url = "https://example.com/billing"
    assert told(SHORT, upgrade_url=url)[2]["upgrade_url"] == url
    assert "upgrade_url" not in told(Denied("ledger_unavailable"), upgrade_url=url)[2]
    assert "upgrade_url" not in told(SHORT)[2]


def test_an_unavailable_ledger_is_a_503_that_says_when_to_come_back() -> None:
    status, headers, _ = told(Denied("ledger_unavailable"))
    assert (status, headers["retry-after"]) == (503, "5")


# Websockets ---------------------------------------------------------------------------------------------------------


def websockets() -> FastAPI:
    app = FastAPI()
    app.add_middleware(LavaMiddleware, lava=FakeLava())

    @app.websocket("/before")
    async def _before(websocket: WebSocket) -> None:
        refuse()

    @app.websocket("/after")
    async def _after(websocket: WebSocket) -> None:
        await websocket.accept()
        refuse()

    return app


def test_a_websocket_that_is_not_accepted_yet_is_answered_402() -> None:
    with pytest.raises(WebSocketDenialResponse) as denial, TestClient(websockets()).websocket_connect("/before"):
        pass
    assert denial.value.status_code == 402
    assert denial.value.json()["code"] == "request_exceeds_credit"


def test_a_websocket_of_a_server_that_cannot_answer_is_closed() -> None:
    app = websockets()

    async def without_extension(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "extensions": {}}, receive, send)

    with pytest.raises(WebSocketDisconnect) as closed, TestClient(without_extension).websocket_connect("/before"):
        pass
    assert closed.value.code == 1008


def test_a_websocket_that_is_open_ends_with_the_error_itself() -> None:
    client = TestClient(websockets())
    with pytest.raises(type(refused(SHORT))), client.websocket_connect("/after") as socket:
        socket.receive_text()
