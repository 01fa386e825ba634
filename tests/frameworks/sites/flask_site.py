"""A Flask site whose customers pay: `app`, for `flask run` and WSGI servers."""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, Response, request, session, stream_with_context

from lava_middleware import identify
from lava_middleware.flask import LavaFlask
from tests.context.fakes import call

from . import work

app = Flask(__name__)
app.secret_key = "of the tests"


def customer(request: Request) -> str | None:
    return session.get("account") or work.signed_in(request.headers.get("authorization"))


lava = LavaFlask()
lava.init_app(app, customer=customer)


@app.get("/ready")
def ready() -> str:
    return "ready"


@app.post("/sign-in/<name>")
def sign_in(name: str) -> str:
    session["account"] = name
    return name


@app.get("/who/<where>")
def who(where: str) -> str:
    return work.WHERE[where]()


@app.get("/awho/view")
async def awho() -> str:
    return call()


@app.get("/identified")
def identified() -> Response:
    identify("dora")
    return Response(work.body())


@app.get("/body")
def body() -> Response:
    return Response(work.body())


@app.get("/body-with-context")
def body_with_context() -> Response:
    return Response(stream_with_context(_with_context()))


def _with_context() -> Any:
    yield from work.body()
    yield " " + (work.signed_in(request.headers.get("authorization")) or "nobody")


@app.get("/two-accounts")
def two_accounts() -> Response:
    return Response(work.body_on_two_accounts())


@app.get("/ask")
def ask() -> str:
    return work.ask(request.args.get("model"))


@app.get("/stream")
def stream() -> Response:
    return Response(work.events(work.open_stream(request.args.get("model"))), mimetype="text/event-stream")


@app.get("/late")
def late() -> Response:
    return Response(work.late_events(request.args.get("model")), mimetype="text/event-stream")


@app.get("/pool")
def pool() -> str:
    return work.in_a_pool(work.ask)


@app.get("/mistake")
def mistake() -> str:
    raise ZeroDivisionError
