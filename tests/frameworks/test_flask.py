"""LavaFlask in a Flask application: how it is installed, whom it binds, and whose error handlers come first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

pytest.importorskip("flask")

import httpx2
from flask import Blueprint, Flask, Response, abort, jsonify, send_file, session
from werkzeug.exceptions import HTTPException

from lava_middleware import Amount, ConfigurationError, Denied, Lava, context, identify
from lava_middleware.context import payer
from lava_middleware.errors import EXTENSION, InsufficientCredit, Refused, refused
from lava_middleware.flask import LavaFlask

from ..context.fakes import FakeLava, call

SHORT = Denied("request_exceeds_credit", available=Amount.of("1.20"), required=Amount.of("2"), output_tokens_fit=400)


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    yield
    assert payer() is None


def refused_by_sdk() -> Any:
    """As the SDK raises it for our answer."""
    request = httpx2.Request("POST", "https://api.example.com/v1/x")
    response = httpx2.Response(402, json={"error": {}}, request=request, extensions={EXTENSION: SHORT})
    raise openai.APIStatusError("no credit", response=response, body=None)


def make_app(customer: Any = lambda request: session.get("account"), *, install: bool = True) -> Flask:
    app = Flask(__name__)
    app.secret_key = "of the tests"
    if install:
        LavaFlask(app, FakeLava(), customer)  # type: ignore[arg-type]

    @app.post("/sign-in/<name>")
    def _sign_in(name: str) -> str:
        session["account"] = name
        return name

    @app.get("/view")
    def _view() -> str:
        return call()

    @app.get("/no-call")
    def _no_call() -> str:
        return "served"

    @app.get("/stream")
    def _stream() -> Response:
        def body() -> Iterator[str]:
            yield call()

        return Response(body())

    @app.get("/identified")
    def _identified() -> Response:
        identify("carol")
        return Response(call() for _ in range(1))

    @app.get("/file")
    def _file() -> Response:
        return send_file(__file__)

    @app.get("/refuse")
    def _refuse() -> str:
        raise refused(SHORT)

    @app.get("/refused-by-sdk")
    def _refused_by_sdk() -> str:
        return str(refused_by_sdk())

    @app.get("/first-step")
    def _first_step() -> Response:
        def body() -> Iterator[str]:
            raise refused(SHORT)
            yield

        return Response(body())

    @app.get("/mistake-while-handling")
    def _mistake_while_handling() -> str:
        try:
            raise refused(SHORT)
        except Exception:
            raise ZeroDivisionError  # noqa: B904 - a bug in the handler

    @app.get("/mistake")
    def _mistake() -> str:
        raise ZeroDivisionError

    @app.get("/teapot")
    def _teapot() -> str:
        abort(418)

    return app


# Who pays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["view", "stream"])
def test_customer_may_look_into_the_session_for_a_streamed_body_too(route: str) -> None:
    """The body runs after the request's context is gone, and flask.session with it."""
    client = make_app().test_client()
    client.post("/sign-in/alice")
    assert client.get(f"/{route}").text == "alice"


@pytest.mark.parametrize("route", ["view", "stream"])
def test_somebody_who_is_not_signed_in_is_nobody(route: str) -> None:
    """T6."""
    answer: Any = make_app().test_client().get(f"/{route}")
    assert (answer.status_code, answer.json["code"]) == (403, "customer_unknown")


def test_customer_is_given_the_request_in_a_thread_without_its_context_too() -> None:
    import threading

    from lava_middleware import bind_context

    app = make_app(lambda request: request.args["who"])
    found: list[str] = []

    @app.get("/thread")
    def _thread() -> str:
        kept = context.binding()
        assert kept is not None
        thread = threading.Thread(target=lambda: found.append(kept.payer().customer))  # type: ignore[union-attr]
        thread.start()
        thread.join()
        thread = threading.Thread(target=bind_context(lambda: found.append(call())))
        thread.start()
        thread.join()
        return "done"

    app.test_client().get("/thread?who=alice")
    assert found == ["alice", "alice"]


@pytest.mark.parametrize("route", ["no-call", "file"])
def test_customer_is_not_asked_if_no_call_is_made(route: str) -> None:
    def never(request: Any) -> str:
        raise AssertionError("asked")

    answer = make_app(never).test_client().get(f"/{route}", buffered=True)
    assert answer.status_code == 200
    assert answer.text


def test_identify_in_a_view_holds_for_its_body() -> None:
    assert make_app(None).test_client().get("/identified").text == "carol"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["refuse", "refused-by-sdk", "first-step", "mistake-while-handling"])
@pytest.mark.parametrize("testing", [False, True])
def test_a_refusal_that_escapes_is_a_402(route: str, testing: bool, caplog: pytest.LogCaptureFixture) -> None:
    """T13."""
    app = make_app()
    app.testing = testing
    answer: Any = app.test_client().get(f"/{route}")
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["code"] == "request_exceeds_credit"
    assert answer.json["request_id"]
    mistakes = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(mistakes) == (route == "mistake-while-handling")


def test_a_head_request_is_refused_without_a_body() -> None:
    answer = make_app().test_client().head("/refuse")
    assert (answer.status_code, answer.data) == (402, b"")


def test_other_errors_are_flasks_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    assert app.test_client().get("/mistake").status_code == 500
    assert "ZeroDivisionError" in caplog.text
    for route, status in {"/teapot": 418, "/nowhere": 404}.items():
        answer = app.test_client().get(route)
        assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert app.test_client().post("/view").status_code == 405
    app.testing = True
    with pytest.raises(ZeroDivisionError):
        app.test_client().get("/mistake")


def answer_json(error: Exception) -> Any:
    return jsonify(mine=type(error).__name__), 418


@pytest.mark.parametrize("kind", [Refused, type(refused(SHORT)), Exception])
@pytest.mark.parametrize("first", [False, True])
def test_handlers_of_the_application_come_first_in_whichever_order(kind: type[Exception], first: bool) -> None:
    app = make_app(install=not first)
    app.register_error_handler(kind, answer_json)
    if first:
        LavaFlask(app, FakeLava())  # type: ignore[arg-type]
    client = app.test_client()
    answer: Any = client.get("/refused-by-sdk")
    assert (answer.status_code == 402) == (kind is not Exception)  # nobody else would know it for a refusal
    answer = client.get("/refuse")
    assert answer.status_code == (402 if kind is Exception else 418)
    answer = client.get("/mistake")
    assert answer.status_code == (418 if kind is Exception else 500)


def test_a_handler_for_500_is_still_asked_for_other_errors_and_sees_them() -> None:
    app = make_app()
    seen: list[Any] = []

    @app.errorhandler(500)
    def _oops(error: HTTPException) -> Any:
        seen.append(error.original_exception)  # type: ignore[attr-defined]
        return "oops", 500

    assert app.test_client().get("/mistake").text == "oops"
    assert isinstance(seen[0], ZeroDivisionError)
    assert app.test_client().get("/refuse").status_code == 402


def test_the_handlers_of_a_blueprint_come_first_in_it() -> None:
    app = make_app()
    part = Blueprint("part", __name__, url_prefix="/part")
    part.register_error_handler(InsufficientCredit, answer_json)

    @part.get("/none")
    def _none() -> str:
        raise InsufficientCredit

    @part.get("/short")
    def _short() -> str:
        raise refused(SHORT)

    app.register_blueprint(part)
    assert app.test_client().get("/part/none").status_code == 418
    assert app.test_client().get("/part/short").status_code == 402


# Installing it --------------------------------------------------------------------------------------------------------


def test_an_application_factory_installs_it_in_each_application() -> None:
    lava: Any = FakeLava()
    extension = LavaFlask(lava=lava, customer=lambda request: "alice")
    for _ in range(2):
        app = make_app(install=False)
        extension.init_app(app)
        assert app.extensions["lava"] is lava
        assert app.test_client().get("/view").text == "alice"
    app = make_app(install=False)
    extension.init_app(app, customer=lambda request: "bob")
    assert app.test_client().get("/view").text == "bob"


def test_twice_in_one_application_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="already"):
        LavaFlask(make_app(), FakeLava())  # type: ignore[arg-type]


def closing(app: Flask) -> Lava:
    lava = app.extensions["lava"]
    assert isinstance(lava, Lava)
    lava.close()
    return lava


def test_settings_come_from_the_applications_config_and_keywords_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVA_MARKUP", "9")
    app = Flask(__name__)
    app.config.update(LAVA_LEDGER="memory://", LAVA_MODE="observe", LAVA_MARKUP="1.20", LAVA_LAMP="of others")
    LavaFlask(app, mode="enforce")
    settings = closing(app).settings
    assert (settings.mode, str(settings.markup), settings.ledger) == ("enforce", "1.20", None)


def test_without_any_it_is_configured_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVA_LEDGER", "memory://")
    app = Flask(__name__)
    LavaFlask().init_app(app)
    assert closing(app).settings.ledger is None


async def coming(request: Any) -> str:
    return "alice"


@pytest.mark.parametrize(
    "install",
    [
        lambda app: LavaFlask(app, FakeLava(), coming),  # type: ignore[arg-type]
        lambda app: LavaFlask(app, FakeLava(), "alice"),  # type: ignore[arg-type]
        lambda app: LavaFlask(app, FakeLava(), mode="observe"),  # type: ignore[arg-type]
        lambda app: LavaFlask(app, legder="memory://"),
    ],
)
def test_what_cannot_work_is_refused_at_once(install: Callable[[Flask], Any]) -> None:
    app = Flask(__name__)
    with pytest.raises(ConfigurationError):
        install(app)
    assert "lava" not in app.extensions
