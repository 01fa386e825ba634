"""A Binding: one per request, set once, shared by everything the request starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lava_middleware import context
from lava_middleware.context import Binding, Identity, Payer, Unbilled, charge_to, current, identify, payer
from lava_middleware.core.money import Amount
from lava_middleware.errors import AlreadyBound, IdError, OutsideRequest, forget_what_was_said

from .fakes import FakeLava, record


@contextmanager
def request(resolver: Any = None, lava: Any = None) -> Iterator[Binding]:
    binding = Binding(lava, resolver, request_id="req-1")
    opened = context.open_request(binding)
    try:
        yield binding
    finally:
        binding.end()
        context.close_request(opened)


def test_the_resolver_is_asked_at_the_first_call_and_never_again() -> None:
    asked = []

    def resolver() -> Identity:
        asked.append(1)
        return Identity("alice", "resolver")

    with request(resolver):
        assert not asked
        assert payer().basis == "resolver"  # type: ignore[union-attr]
        assert payer().customer == "alice"  # type: ignore[union-attr]
    assert asked == [1]


def test_a_resolver_that_finds_nobody_is_asked_once_too() -> None:
    asked: list[int] = []
    with request(lambda: asked.append(1)):
        assert payer() is None
        assert payer() is None
    assert asked == [1]


def test_threads_that_come_first_together_all_get_the_one_answer() -> None:
    """The others wait for the answer instead of being refused as unbound."""
    asked = []
    together = threading.Barrier(8)

    def resolver() -> Identity:
        asked.append(1)
        threading.Event().wait(0.05)
        return Identity("alice", "resolver")

    binding = Binding(None, resolver, request_id="r")
    found: list[Any] = []

    def first() -> None:
        together.wait()
        found.append(binding.payer())

    threads = [threading.Thread(target=first) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert asked == [1]
    assert [who.customer for who in found] == ["alice"] * 8


def test_identify_wins_over_the_resolver_if_it_comes_first() -> None:
    with request(lambda: Identity("alice", "resolver")):
        identify("bob", user="u1")
        who = payer()
        assert isinstance(who, Payer)
        assert (who.customer, who.user, who.basis) == ("bob", "u1", "identified")


def test_a_resolver_may_itself_identify() -> None:
    with request(lambda: identify("bob")):
        assert payer().customer == "bob"  # type: ignore[union-attr]


def test_a_resolver_that_makes_a_call_of_its_own_is_refused_that_call_and_not_asked_again() -> None:
    inner: list[Any] = []

    def resolver() -> Identity:
        inner.append(payer())
        return Identity("alice", "resolver")

    with request(resolver):
        assert payer().customer == "alice"  # type: ignore[union-attr]
    assert inner == [None]


def test_identify_the_same_twice_is_fine_and_another_raises() -> None:
    with request() as binding:
        identify("alice")
        identify("alice")
        identify("alice", user="u1")
        identify("alice", user="u1")
        identify("alice")
        with pytest.raises(AlreadyBound) as refusal:
            identify("mallory")
        with pytest.raises(AlreadyBound):
            identify("alice", user="u2")
        assert (binding.payer().customer, binding.payer().user) == ("alice", "u1")  # type: ignore[union-attr]
    assert "alice" not in str(refusal.value)
    assert "mallory" not in str(refusal.value)


def test_identify_after_the_resolver_answered_may_not_change_it() -> None:
    with request(lambda: Identity("alice", "session")):
        payer()
        identify("alice")
        with pytest.raises(AlreadyBound):
            identify("bob")


def test_identify_still_names_one_after_nobody_was_found() -> None:
    with request(lambda: None):
        assert payer() is None
        identify("alice")
        assert payer().customer == "alice"  # type: ignore[union-attr]


def test_an_unbilled_request_cannot_become_somebodys() -> None:
    with request(lambda: Unbilled("health check")) as binding:
        who = payer()
        assert isinstance(who, Unbilled)
        assert (who.reason, who.binding) == ("health check", binding)
        with pytest.raises(AlreadyBound):
            identify("alice")


def test_a_resolver_that_raises_binds_nobody_and_says_so_without_ids(caplog: pytest.LogCaptureFixture) -> None:
    """T13: an error raised here would reach the SDK, which takes it for a broken connection and retries. T32."""
    forget_what_was_said()

    def resolver() -> Identity:
        raise KeyError("secret-customer")

    for _ in range(2):
        with request(resolver):
            assert payer() is None
    assert caplog.text.count("KeyError") == 1
    assert "test_binding.py" in caplog.text
    assert "secret" not in caplog.text


def test_identify_and_current_outside_a_request_say_what_to_do() -> None:
    with pytest.raises(OutsideRequest, match=r"charge_to\(\)"):
        identify("alice")
    with pytest.raises(OutsideRequest, match="outside a request"):
        current()


@pytest.mark.parametrize("bad", ["", "x" * 10_000, "a\nb", 7])
def test_identify_refuses_what_cannot_be_an_id(bad: Any) -> None:
    with request(), pytest.raises(IdError):
        identify(bad)


def test_an_override_leaves_the_binding_as_it_was() -> None:
    """T37."""
    with request() as binding:
        identify("alice")
        with charge_to("bob"):
            assert payer().binding is binding  # type: ignore[union-attr]
            identify("alice")
        assert payer().customer == "alice"  # type: ignore[union-attr]


def test_a_frame_of_whoever_started_the_server_does_not_reach_into_requests() -> None:
    with charge_to("operator"), request(lambda: Identity("alice", "session")):
        assert payer().customer == "alice"  # type: ignore[union-attr]


def test_what_is_called_after_the_request_has_ended_is_marked() -> None:
    with request(lambda: Identity("alice", "session")) as binding:
        who = payer()
        assert isinstance(who, Payer)
        assert not who.after_request
    assert who.after_request
    assert binding.ended
    assert payer() is None


def test_current_tells_what_the_request_has_cost_so_far() -> None:
    with request(lambda: Identity("alice", "session"), FakeLava()) as binding:
        now = current()
        assert (now.records, now.charge, now.stopped, now.request_id) == ((), Amount(0), False, "req-1")
        assert now.available == Amount.of("5.00")
        binding.add(record("0.25"))
        binding.add(record("0.50", stopped="insufficient_credit"))
        assert [one.charge for one in now.records] == [Amount.of("0.25"), Amount.of("0.50")]
        assert now.charge == Amount.of("0.75")
        assert now.stopped


def test_available_is_none_where_nobody_pays() -> None:
    with request(lambda: None, FakeLava()):
        assert current().available is None


def test_records_are_bounded_and_their_sum_is_not() -> None:
    """T29."""
    with request() as binding:
        one = record("0.01")
        for _ in range(context.RECORDS_MAX + 500):
            binding.add(one)
        assert len(current().records) == context.RECORDS_MAX
        assert current().charge == Amount.of("15.00")


def test_leaving_a_request_in_another_context_is_harmless() -> None:
    from contextvars import copy_context

    opened = copy_context().run(context.open_request, Binding(None, request_id="r"))
    context.close_request(opened)
    assert payer() is None
