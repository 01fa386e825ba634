"""LavaWSGIMiddleware as a WSGI application: what PEP 3333 asks of it, and what it leaves behind."""

from __future__ import annotations

import gc
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from lava_middleware import context
from lava_middleware.bodies import Body, Kept, abody
from lava_middleware.context import charge_to, current, identify, payer, unbilled
from lava_middleware.core.money import Amount
from lava_middleware.errors import ConfigurationError, Denied, NotBound, StreamCut, forget_what_was_said, refused
from lava_middleware.wsgi import LavaWSGIMiddleware

from ..context.fakes import FakeLava, call

SHORT = Denied("request_exceeds_credit", available=Amount.of("1.20"), required=Amount.of("2"), output_tokens_fit=400)
PLAIN = [("Content-Type", "text/plain")]


def environ(**more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"QUERY_STRING": ""}
    setup_testing_defaults(made)
    return {**made, **more}


class Server:
    """A WSGI server's own part, and what has reached it in which order."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        if exc_info and any(isinstance(one, bytes) for one in self.log):
            raise exc_info[1].with_traceback(exc_info[2])
        self.log.append((status, headers))
        return self.log.append

    def serve(self, app: Any, **more: Any) -> list[Any]:
        """As servers do: iterate, then close, whatever happens."""
        body = app(environ(**more), self.start_response)
        try:
            for piece in body:
                self.log.append(piece)
        finally:
            if hasattr(body, "close"):
                body.close()
        return self.log


def serve(app: Any, lava: Any = None, customer: Any = lambda environ: "alice", **more: Any) -> list[Any]:
    return Server().serve(LavaWSGIMiddleware(app, lava or FakeLava(), customer), **more)


def refuse(*_: Any) -> Any:
    raise refused(SHORT)


def answered(log: list[Any]) -> tuple[str, dict[str, Any]]:
    """Status and problem of the one answer."""
    ((status, headers), body) = log
    assert dict(headers)["Content-Type"] == "application/problem+json"
    assert int(dict(headers)["Content-Length"]) == len(body)
    return status, json.loads(body)


# What passes ----------------------------------------------------------------------------------------------------------


def test_a_list_goes_to_the_server_as_it_is() -> None:
    """Servers look at its length."""
    body = [b"one", b"two"]

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return body

    server = Server()
    assert LavaWSGIMiddleware(app, FakeLava())(environ(), server.start_response) is body  # type: ignore[arg-type]
    assert server.log == [("200 OK", PLAIN)]


def test_a_file_wrapper_goes_to_the_server_as_it_is() -> None:
    """Servers send it by faster means, if they get it back."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    found = LavaWSGIMiddleware(app, FakeLava())(  # type: ignore[arg-type]
        environ(**{"wsgi.file_wrapper": FileWrapper}), Server().start_response
    )
    assert isinstance(found, FileWrapper)


def test_each_piece_goes_on_before_the_next_is_made() -> None:
    server = Server()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"one"
        assert server.log == [("200 OK", PLAIN), b"one"]
        yield b""
        yield b"two"

    assert server.serve(LavaWSGIMiddleware(app, FakeLava())) == [("200 OK", PLAIN), b"one", b"", b"two"]  # type: ignore[arg-type]


def test_what_an_application_writes_imperatively_goes_out_at_once() -> None:
    server = Server()

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        assert server.log == []  # as with any server, nothing is sent before there is a body
        write(b"one")
        assert server.log == [("200 OK", PLAIN), b"one"]
        write(b"two")
        return [b"three"]

    assert server.serve(LavaWSGIMiddleware(app, FakeLava()))[1:] == [b"one", b"two", b"three"]  # type: ignore[arg-type]


def test_an_application_may_replace_its_start_until_something_is_sent() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        try:
            raise KeyError
        except KeyError:
            start_response("500 Oops", PLAIN, sys.exc_info())
        return [b"oops"]

    assert serve(app) == [("500 Oops", PLAIN), b"oops"]


def test_an_application_that_starts_twice_without_a_reason_is_told() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)

    with pytest.raises(AssertionError, match="exc_info"):
        serve(app)


def test_a_start_that_comes_too_late_raises_what_it_was_for() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"one"
        try:
            raise KeyError("mine")
        except KeyError:
            start_response("500 Oops", PLAIN, sys.exc_info())
        yield b"two"

    with pytest.raises(KeyError, match="mine"):
        serve(app)


@pytest.mark.parametrize("pieces", [[], [b""]])
def test_an_answer_without_a_body_is_started_too(pieces: list[bytes]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("204 No Content", [])
        yield from pieces

    assert serve(app) == [("204 No Content", []), *pieces]


def test_a_head_request_is_started_although_nobody_asks_for_its_body() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        return iter([b"body"])

    server = Server()
    LavaWSGIMiddleware(app, FakeLava())(environ(REQUEST_METHOD="HEAD"), server.start_response)  # type: ignore[arg-type]
    assert server.log == [("200 OK", PLAIN)]


@pytest.mark.parametrize("made", [list, iter, tuple])
def test_it_is_a_valid_application_for_a_valid_server(made: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    """The standard library's validator on both sides."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return made([call().encode()])

    out = io.BytesIO()
    handler = SimpleHandler(io.BytesIO(), out, io.StringIO(), environ())
    handler.run(validator(LavaWSGIMiddleware(validator(app), FakeLava(), lambda environ: "alice")))  # type: ignore[arg-type]
    assert out.getvalue().endswith(b"\r\n\r\nalice")


class Closing:
    """A body that notes who pays when it is pulled and closed."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __iter__(self) -> Iterator[bytes]:
        self.seen.append(call())
        return iter([b"one", b"two"])

    def close(self) -> None:
        self.seen.append(call())


def closing(seen: list[str]) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return Closing(seen)

    return app


def test_close_is_forwarded_on_the_same_account_and_ends_the_request() -> None:
    seen: list[str] = []
    bindings: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        bindings.append(context.binding())
        return closing(seen)(environ, start_response)

    serve(app)
    assert seen == ["alice", "alice"]
    assert bindings[0].ended


def test_close_is_forwarded_though_nothing_was_pulled_or_a_pull_has_failed() -> None:
    seen: list[str] = []
    body: Any = LavaWSGIMiddleware(closing(seen), FakeLava(), lambda environ: "alice")(  # type: ignore[arg-type]
        environ(), Server().start_response
    )
    body.close()
    assert seen == ["alice"]
    closed: list[bool] = []

    class Failing:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> bytes:
            raise ZeroDivisionError

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(ZeroDivisionError):
        serve(lambda environ, start_response: Failing())
    assert closed == [True]


# Who pays -------------------------------------------------------------------------------------------------------------

other: ContextVar[str] = ContextVar("other", default="unset")


def test_a_body_is_on_the_account_of_its_request_and_nothing_of_it_is_left() -> None:
    """T37: not after the answer, not between its pieces, not in the thread's next request; nothing but the body runs
    in the request's Context."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        other.set("mine")
        charge_to("left over").__enter__()
        for _ in range(3):
            yield f"{call()} {other.get()}".encode()

    body = iter(LavaWSGIMiddleware(app, FakeLava(), lambda environ: "alice")(environ(), Server().start_response))  # type: ignore[arg-type]
    for _ in range(3):
        assert next(body) == b"left over mine"
        assert payer() is None
        assert context.binding() is None
        assert other.get() == "unset"


def test_bodies_of_two_requests_on_one_thread_never_cross() -> None:
    """G6."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        while True:
            yield call().encode()

    middleware = LavaWSGIMiddleware(app, FakeLava(), lambda environ: environ["test.user"])  # type: ignore[arg-type]
    bodies = {
        name: iter(middleware(environ(**{"test.user": name}), Server().start_response)) for name in ("alice", "bob")
    }
    for _ in range(10):
        assert {name: next(body).decode() for name, body in bodies.items()} == {"alice": "alice", "bob": "bob"}


def test_a_frame_that_is_open_between_two_pieces_holds_for_the_second() -> None:
    """A copy of the Context for each piece would forget it, and charge the wrong one."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield call().encode()
        with charge_to("bob"):
            yield call().encode()
            yield call().encode()
        yield call().encode()

    assert serve(app)[1:] == [b"alice", b"bob", b"bob", b"alice"]


def test_a_body_may_reset_in_one_piece_what_it_set_in_another() -> None:
    """As Flask's stream_with_context does."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        token = other.set("mine")
        yield other.get().encode()
        other.reset(token)
        yield other.get().encode()

    assert serve(app)[1:] == [b"mine", b"unset"]


def test_a_body_that_is_closed_while_it_is_pulled_runs_in_a_copy() -> None:
    """Context.run() cannot be entered twice: not by close() from within a pull, not from another thread."""
    seen: list[str] = []
    bodies: list[Any] = []

    class Reentrant(Closing):
        def __iter__(self) -> Iterator[bytes]:
            bodies[0].close()
            thread = threading.Thread(target=bodies[0].close)
            thread.start()
            thread.join()
            return iter([call().encode()])

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return Reentrant(seen)

    bodies.append(LavaWSGIMiddleware(app, FakeLava(), lambda environ: "alice")(environ(), Server().start_response))  # type: ignore[arg-type]
    assert list(bodies[0]) == [b"alice"]
    assert seen == ["alice", "alice"]


def test_a_body_that_is_dropped_is_collected() -> None:
    """T18: a server that never closes; the generator's own end runs."""
    ended: list[bool] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        try:
            yield b"one"
        finally:
            ended.append(True)

    body = iter(LavaWSGIMiddleware(app, FakeLava())(environ(), Server().start_response))  # type: ignore[arg-type]
    next(body)
    del body
    gc.collect()
    assert ended == [True]


def test_the_application_identifies_whom_its_own_authentication_knows() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        identify("carol")
        return [call().encode()]

    assert serve(app, customer=None)[1:] == [b"carol"]


@pytest.mark.parametrize(
    "more", [{}, {"REMOTE_USER": "alice", "HTTP_REMOTE_USER": "alice", "HTTP_X_LAVA_CUSTOMER": "alice"}]
)
def test_without_customer_or_identify_nobody_pays(more: dict[str, str]) -> None:
    """T6: a name in the environ is a user name at best, and a header at worst."""
    status, body = answered(serve(lambda environ, start_response: call(), customer=None, **more))
    assert (status, body["code"]) == ("403 Forbidden", "customer_unknown")


def test_customer_is_asked_at_the_first_call_only_and_once() -> None:
    asked: list[Any] = []

    def customer(environ: Any) -> str:
        asked.append(environ)
        return "alice"

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"no call yet"
        assert not asked
        yield call().encode()
        yield call().encode()

    assert serve(app, customer=customer)[2:] == [b"alice", b"alice"]
    assert len(asked) == 1
    assert asked[0]["REQUEST_METHOD"] == "GET"


def test_customer_may_say_that_nobody_is_charged() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return [call().encode()]

    assert serve(app, customer=lambda environ: unbilled("staff"))[1] == b"unbilled"


def test_within_another_for_the_same_lava_the_outer_ones_customer_stays() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return [call().encode()]

    lava = FakeLava()
    inner = LavaWSGIMiddleware(app, lava)  # type: ignore[arg-type]
    assert serve(inner, lava)[1] == b"alice"
    own = LavaWSGIMiddleware(app, lava, lambda environ: "bob")  # type: ignore[arg-type]
    assert serve(own, lava)[1] == b"bob"


# Refusals -------------------------------------------------------------------------------------------------------------


def in_a_first_step(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
    refuse()
    yield b"never"


def after_a_start(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
    refuse()


def wrapped(environ: Any, start_response: Any) -> Any:
    try:
        refuse()
    except Exception as error:
        raise LookupError("my own error") from error


def cut(environ: Any, start_response: Any) -> Any:
    raise StreamCut(SHORT)


@pytest.mark.parametrize("app", [refuse, after_a_start, in_a_first_step, wrapped, cut])
def test_a_refusal_that_escapes_before_anything_is_sent_is_a_402(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """T13: and the server has heard of no other answer before it."""
    status, body = answered(serve(app))
    assert status == "402 Payment Required"
    assert body["code"] == "request_exceeds_credit"
    assert body["output_tokens_max"] == 400
    assert "alice" not in caplog.text + str(body)
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_head_request_is_refused_without_a_body() -> None:
    ((status, headers), body) = serve(refuse, REQUEST_METHOD="HEAD")
    assert (status, body) == ("402 Payment Required", b"")
    assert int(dict(headers)["Content-Length"]) > 0


@pytest.mark.parametrize("written", [False, True])
def test_a_refusal_that_comes_too_late_passes_unchanged(written: bool) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        if written:
            write(b"one")
            refuse()
        return steps()

    def steps() -> Iterator[bytes]:
        yield b"one"
        refuse()

    server = Server()
    with pytest.raises(type(refused(SHORT))):
        server.serve(LavaWSGIMiddleware(app, FakeLava()))  # type: ignore[arg-type]
    assert server.log == [("200 OK", PLAIN), b"one"]


def test_other_errors_pass_unchanged() -> None:
    error = ZeroDivisionError("a bug")

    def app(environ: Any, start_response: Any) -> Any:
        raise error

    with pytest.raises(ZeroDivisionError) as raised:
        serve(app)
    assert raised.value is error


def test_the_operator_is_told_once_of_an_unbound_call_and_every_time_of_a_mistake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """T6."""
    forget_what_was_said()

    def unbound(environ: Any, start_response: Any) -> Any:
        raise NotBound

    def mistaken(environ: Any, start_response: Any) -> Any:
        try:
            refuse()
        except Exception:
            raise ZeroDivisionError  # noqa: B904 - a bug in the handler

    for _ in range(3):
        assert answered(serve(unbound))[0] == "403 Forbidden"
    assert caplog.text.count("bind_context") == 1
    assert answered(serve(mistaken))[0] == "402 Payment Required"
    (logged,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert logged.exc_info is not None
    assert logged.exc_info[0] is ZeroDivisionError


def test_the_request_id_is_that_of_the_binding() -> None:
    ids: list[str] = []

    def app(environ: Any, start_response: Any) -> Any:
        ids.append(current().request_id)
        refuse()

    assert [answered(serve(app))[1]["request_id"] for _ in range(2)] == ids
    assert len(set(ids)) == 2


# Building it ----------------------------------------------------------------------------------------------------------


def test_building_it_instruments_and_refuses_what_cannot_work() -> None:
    lava = FakeLava()
    LavaWSGIMiddleware(refuse, lava)  # type: ignore[arg-type]
    assert lava.instrumented == 1
    with pytest.raises(ConfigurationError, match=r"mode: .*give them to Lava"):
        LavaWSGIMiddleware(refuse, lava, mode="observe")  # type: ignore[arg-type]

    async def coming(environ: Any) -> str:
        return "alice"

    for customer in (coming, "alice"):
        with pytest.raises(ConfigurationError, match="customer= must be a"):
            LavaWSGIMiddleware(refuse, lava, customer)  # type: ignore[arg-type]


@pytest.mark.alone
def test_its_own_time_on_a_request_is_small(figures: Callable[[str], None]) -> None:
    """Aim: 30 µs. The bound here is for slow machines."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return [b"one"]

    def bound(environ: Any, start_response: Any) -> Any:
        payer()
        return app(environ, start_response)

    made = environ()

    def seconds(served: Any) -> float:
        started = time.perf_counter()
        for _ in range(500):
            served(dict(made), lambda status, headers: None)
        return (time.perf_counter() - started) / 500

    def added(inner: Any) -> float:
        middleware = LavaWSGIMiddleware(inner, FakeLava(), lambda environ: "alice")  # type: ignore[arg-type]
        return statistics.median(seconds(middleware) - seconds(inner) for _ in range(9))

    idle, asked = added(app), added(bound)
    figures(f"LavaWSGIMiddleware adds {idle * 1e6:.1f} µs to a request, {asked * 1e6:.1f} µs where somebody must pay")
    assert asked < 300e-6


# Bodies in general ----------------------------------------------------------------------------------------------------


def test_an_async_body_runs_in_its_requests_context_and_the_task_stays_the_one_it_is() -> None:
    import asyncio

    async def steps() -> Any:
        token = other.set("mine")
        task = asyncio.current_task()
        try:
            yield other.get()
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            yield other.get()
        finally:
            await asyncio.sleep(0)
            other.reset(token)
            ended.append(other.get())

    ended: list[str] = []

    async def main() -> None:
        body = abody(steps(), Kept())
        assert [await anext(body), await anext(body)] == ["mine", "mine"]
        assert other.get() == "unset"
        await body.aclose()
        assert ended == ["unset"]
        assert [item async for item in abody(steps(), Kept())] == ["mine", "mine"]

    asyncio.run(main())


def test_an_async_body_is_cancelled_with_its_task() -> None:
    """T17."""
    import asyncio

    ended: list[type[BaseException]] = []

    async def steps() -> Any:
        try:
            yield "one"
            await asyncio.sleep(10)
        except BaseException as error:
            ended.append(type(error))
            raise

    async def main() -> None:
        async def read() -> None:
            async for _ in abody(steps(), Kept()):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [asyncio.CancelledError]


def test_a_body_without_close_is_closed_quietly() -> None:
    Body(iter([b"one"]), Kept()).close()
