"""charge_to() and unbilled(): immutable overrides that go where the code goes, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from lava_middleware import context
from lava_middleware.context import Binding, Payer, Unbilled, bind_context, charge_to, payer, unbilled
from lava_middleware.errors import ConfigurationError, IdError

from .fakes import FakeLava, call

pytestmark = pytest.mark.anyio


def paying() -> str | None:
    who = payer()
    return who.customer if isinstance(who, Payer) else None


def test_nobody_pays_where_nobody_was_named() -> None:
    """T6: absent is not a customer."""
    assert payer() is None


def test_the_innermost_frame_pays_and_leaving_it_restores_the_outer() -> None:
    with charge_to("alice"):
        with charge_to("bob", meter="chat", user="u1", tags={"team": "x", "app": "y"}):
            who = payer()
            assert isinstance(who, Payer)
            assert (who.customer, who.user, who.meter, who.basis) == ("bob", "u1", "chat", "explicit")
            assert who.tags == (("app", "y"), ("team", "x"))
        assert paying() == "alice"
        with unbilled("health check"):
            assert payer() == Unbilled("health check")
        assert paying() == "alice"
    assert payer() is None


async def test_it_works_as_an_async_context_manager_too() -> None:
    async with charge_to("alice"):
        assert paying() == "alice"
    assert payer() is None


def test_an_exception_leaves_the_frame() -> None:
    with pytest.raises(KeyError), charge_to("alice"):
        raise KeyError
    assert payer() is None


def test_frames_left_out_of_order_leave_only_themselves() -> None:
    outer, inner = charge_to("alice"), charge_to("bob")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert paying() == "bob"
    inner.__exit__(None, None, None)
    assert payer() is None


def test_one_override_may_be_entered_again_and_again() -> None:
    alice = charge_to("alice")
    with alice, charge_to("bob"), alice:
        assert paying() == "alice"
    assert payer() is None


def test_leaving_in_a_context_that_never_entered_changes_nothing_there() -> None:
    """T18: a generator may be closed by the collector, in anybody's context."""

    def steps() -> Iterator[None]:
        with charge_to("alice"):
            yield

    running = steps()
    copy_context().run(next, running)
    with charge_to("bob"):
        running.close()
        assert paying() == "bob"


def test_as_a_decorator_it_covers_functions() -> None:
    @charge_to("alice")
    def work(factor: int) -> tuple[str, int]:
        """Doc."""
        return call(), factor

    assert work(factor=2) == ("alice", 2)
    assert work.__doc__ == "Doc."
    assert payer() is None


async def test_as_a_decorator_it_covers_coroutines_to_their_end() -> None:
    @charge_to("alice")
    async def work() -> str:
        await asyncio.sleep(0)
        return call()

    assert await asyncio.gather(work(), work()) == ["alice", "alice"]
    assert payer() is None


def test_as_a_decorator_it_covers_the_steps_of_a_generator_and_nothing_between_them() -> None:
    ended = []

    @charge_to("alice")
    def steps() -> Iterator[Any]:
        try:
            sent = yield call()
            try:
                yield sent, call()
            except KeyError:
                yield "thrown", call()
        finally:
            ended.append(call())

    running: Any = steps()
    assert next(running) == "alice"
    assert payer() is None
    assert running.send("sent") == ("sent", "alice")
    assert running.throw(KeyError()) == ("thrown", "alice")
    running.close()
    assert ended == ["alice"]


def test_a_decorated_generator_keeps_its_return_value() -> None:
    @charge_to("alice")
    def steps() -> Any:
        yield 1
        return "returned"

    def outer() -> Any:
        return (yield from steps())

    running = outer()
    next(running)
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "returned"


@pytest.mark.parametrize("wrapped", ["charge_to", "bind_context"])
async def test_a_decorator_covers_the_steps_of_an_async_generator(wrapped: str) -> None:
    ended = []

    async def steps() -> AsyncIterator[Any]:
        try:
            sent = yield call()
            await asyncio.sleep(0)
            try:
                yield sent, call()
            except KeyError:
                yield "thrown", call()
        finally:
            ended.append(call())

    if wrapped == "charge_to":
        covered: Any = charge_to("alice")(steps)
    else:
        with charge_to("alice"):
            covered = bind_context(steps)
    running = covered()
    assert await anext(running) == "alice"
    assert payer() is None
    assert await running.asend("sent") == ("sent", "alice")
    assert await running.athrow(KeyError()) == ("thrown", "alice")
    await running.aclose()
    assert ended == ["alice"]
    assert [item async for item in charge_to("bob")(one_call)()] == ["bob"]


async def one_call() -> AsyncIterator[str]:
    yield call()


def test_a_hundred_tasks_and_twenty_threads_with_their_own_customers_never_cross() -> None:
    """T37: one request, a hundred tasks and twenty threads, each charging somebody else, many times over."""
    binding = Binding(None, request_id="r")
    binding.identify("owner")
    crossed: list[tuple[str, str]] = []

    def check(expected: str) -> None:
        if (found := call()) != expected:
            crossed.append((expected, found))

    async def task(number: int) -> None:
        for turn in range(20):
            check("owner")
            async with charge_to(f"task-{number}-{turn}"):
                await asyncio.sleep(0)
                check(f"task-{number}-{turn}")
                await asyncio.to_thread(check, f"task-{number}-{turn}")
                async with charge_to(f"inner-{number}"):
                    await asyncio.sleep(0)
                    check(f"inner-{number}")
                check(f"task-{number}-{turn}")

    def thread(number: int, start: threading.Barrier) -> None:
        start.wait()
        for turn in range(200):
            check("owner")
            with charge_to(f"thread-{number}-{turn}"):
                check(f"thread-{number}-{turn}")

    async def request() -> None:
        start = threading.Barrier(20)
        threads = [threading.Thread(target=bind_context(thread), args=(number, start)) for number in range(20)]
        for one in threads:
            one.start()
        await asyncio.gather(*(task(number) for number in range(100)))
        for one in threads:
            await asyncio.to_thread(one.join)

    opened = context.open_request(binding)
    try:
        asyncio.run(request())
    finally:
        context.close_request(opened)
    assert not crossed
    assert payer() is None


async def test_tasks_that_share_one_override_object_do_not_disturb_each_other() -> None:
    """T37: an override holds no state of who entered it."""
    shared = charge_to("alice")
    gate = asyncio.Event()

    async def inside() -> tuple[str | None, str | None]:
        async with shared:
            await gate.wait()
            within = paying()
        return within, paying()

    tasks = [asyncio.create_task(inside()) for _ in range(10)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*tasks) == [("alice", None)] * 10


def test_a_plain_thread_pool_loses_the_customer_and_bind_context_carries_it() -> None:
    with charge_to("alice"), ThreadPoolExecutor(4) as pool:
        assert pool.submit(paying).result() is None
        assert list(pool.map(bind_context(lambda _: paying()), range(8))) == ["alice"] * 8


def test_a_bound_function_runs_in_many_threads_at_once() -> None:
    """A Context cannot be entered twice at once, so each call gets a copy."""
    together = threading.Barrier(5)

    def work() -> str | None:
        together.wait(10)
        return paying()

    with charge_to("alice"):
        bound = bind_context(work)
    with ThreadPoolExecutor(5) as pool:
        assert [one.result() for one in [pool.submit(bound) for _ in range(5)]] == ["alice"] * 5


def test_a_bound_coroutine_function_carries_the_customer_into_another_loop() -> None:
    async def work() -> str | None:
        await asyncio.sleep(0)
        return paying()

    with charge_to("alice"):
        bound = bind_context(work)

    async def elsewhere() -> tuple[str | None, str | None]:
        with charge_to("bob"):
            return await bound(), paying()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(elsewhere())).result() == ("alice", "bob")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "must be a str, not NoneType"),
        (7, "must be a str, not int"),
        (b"alice", "must be a str, not bytes"),
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("x" * 10_000, "at most 255 characters; this one has 10,000"),
        ("ali\nce", "control characters"),
        ("ali\x00ce", "control characters"),
        ("ali\x85ce", "control characters"),
        ("ali\u2028ce", "control characters"),
        ("ali\ud800ce", "control characters"),
    ],
)
def test_what_cannot_be_a_customer_is_refused_without_repeating_it(bad: Any, said: str) -> None:
    """T32: an id of 10 kB, or with control characters, is not echoed."""
    with pytest.raises(IdError) as refusal:
        charge_to(bad)
    assert said in str(refusal.value)
    assert isinstance(refusal.value, ValueError)
    assert len(str(refusal.value)) < 200
    assert "ali" not in str(refusal.value)


def test_ids_of_any_language_and_255_characters_are_fine() -> None:
    for good in ("客户-42", "a b", "é" * 255, "user@example.com"):
        with charge_to(good):
            assert paying() == good


@pytest.mark.parametrize(
    "arguments",
    [{"user": ""}, {"meter": "x" * 65}, {"tags": {str(number): "x" for number in range(17)}}, {"tags": {"a": "\n"}}],
)
def test_users_meters_and_tags_are_checked_too(arguments: dict[str, Any]) -> None:
    with pytest.raises(IdError):
        charge_to("alice", **arguments)


def test_no_repr_names_the_customer() -> None:
    """T32."""
    binding = Binding(None, request_id="r")
    binding.identify("secret-customer", user="secret-user")
    with charge_to("secret-customer", user="secret-user", tags={"a": "secret-tag"}) as _:
        shown = repr((payer(), charge_to("secret-customer"), binding, binding.payer(), context._frame.get()))
    assert "secret" not in shown


def test_the_frames_lava_acts_else_the_bindings_else_the_default() -> None:
    default, bound, framed = FakeLava(), FakeLava(), FakeLava()
    binding = Binding(bound, request_id="r")  # type: ignore[arg-type]
    context.set_default(default)  # type: ignore[arg-type]
    try:
        assert context.acting() is default
        with charge_to("alice"):
            assert payer().lava is default  # type: ignore[union-attr]
        opened = context.open_request(binding)
        assert context.acting() is bound
        with charge_to("alice", lava=framed):  # type: ignore[arg-type]
            assert context.acting() is framed
            with charge_to("bob"):  # a frame that names no Lava leaves the enclosing one's in force
                assert context.acting() is framed
                assert payer().lava is framed  # type: ignore[union-attr]
                assert payer().binding is binding  # type: ignore[union-attr]
        context.close_request(opened)
    finally:
        context.drop_default(default)  # type: ignore[arg-type]
    assert context.acting() is None


def test_a_second_default_is_refused_and_dropping_frees_the_place() -> None:
    one, two = FakeLava(), FakeLava()
    context.set_default(one)  # type: ignore[arg-type]
    try:
        context.set_default(one)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="another Lava"):
            context.set_default(two)  # type: ignore[arg-type]
        context.drop_default(two)  # type: ignore[arg-type]
        assert context.default() is one
    finally:
        context.drop_default(one)  # type: ignore[arg-type]
    assert context.default() is None


async def test_an_abandoned_async_generator_leaves_no_frame_behind() -> None:
    """T18: dropped, not closed: the loop's hook ends it, in a task of its own."""
    steps: Any = charge_to("alice")(one_call)()
    assert await anext(steps) == "alice"
    del steps
    gc.collect()
    await asyncio.sleep(0.01)
    assert payer() is None


# A generator's own frames, while its caller runs ----------------------------------------------------------------------


def on_two_accounts() -> Iterator[str]:
    yield call()
    with charge_to("bob"):
        yield call()
        yield call()
    yield call()


async def aon_two_accounts() -> AsyncIterator[str]:
    yield call()
    with charge_to("bob"):
        yield call()
        yield call()
    yield call()


@pytest.mark.parametrize("decorate", [charge_to("acme"), bind_context])
def test_a_frame_around_a_yield_is_the_generators_alone_and_holds_for_its_next_step(decorate: Any) -> None:
    """T37, G6: it was the caller's too, and gone in the step after it."""
    with charge_to("acme"):
        steps = decorate(on_two_accounts)()
        first = next(steps)
    with charge_to("caller"):
        assert [first, *((step, call()) for step in steps)] == [
            "acme",
            ("bob", "caller"),
            ("bob", "caller"),
            ("acme", "caller"),
        ]
    assert payer() is None


@pytest.mark.parametrize("decorate", [charge_to("acme"), bind_context])
async def test_so_it_is_in_an_async_generator(decorate: Any) -> None:
    with charge_to("acme"):
        steps = decorate(aon_two_accounts)()
        first = await anext(steps)
    with charge_to("caller"):
        assert [first, *[(step, call()) async for step in steps]] == [
            "acme",
            ("bob", "caller"),
            ("bob", "caller"),
            ("acme", "caller"),
        ]
    assert payer() is None


def test_a_generator_that_pushed_a_frame_and_is_dropped_leaves_none() -> None:
    steps = charge_to("acme")(on_two_accounts)()
    assert [next(steps), next(steps)] == ["acme", "bob"]
    steps.close()
    assert payer() is None
