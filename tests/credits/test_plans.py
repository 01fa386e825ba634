"""Plans as people live them: cycles, what goes over, what goes beyond, the end of it, and calls across an edge."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lava_middleware import Amount, Lava, TermsError
from lava_middleware.core.events import Cycled
from lava_middleware.errors import ModelNotInPlan
from lava_middleware.testing import FakeProvider, FrozenClock, Script
from tests.faults.kit import CHAT, MODEL, chat, client_of, events

from .kit import adds_up, settled


def clock_at(*moment: int) -> FrozenClock:
    return FrozenClock(int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000)  # type: ignore[arg-type,misc]


def to(clock: FrozenClock, *moment: int) -> None:
    clock.set(int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000)  # type: ignore[arg-type,misc]


def spend(lava: Lava, credits: str, request_id: str) -> None:
    lava.report("acme", charge=credits, request_id=request_id)


def test_credits_come_with_each_cycle_and_what_is_left_goes_over(open_lava: Any) -> None:
    """25 granted, 15 used, and the next month has 25 + 10 = 35."""
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)
    assert lava.subscribe("acme", "pro", credits="25", rollover="full").available == Amount.of("25")
    spend(lava, "15", "a")
    to(clock, 2026, 2, 3)
    balance = lava.balance("acme")
    assert (balance.available, balance.plan) == (Amount.of("35"), "pro")
    assert balance.cycle_ends == datetime(2026, 3, 1, tzinfo=UTC)
    spend(lava, "1", "b")
    adds_up(lava)


@pytest.mark.parametrize(("rollover", "available"), [("none", "25"), ("full", "35"), ("4", "29")])
def test_rollover_none_full_or_capped(open_lava: Any, rollover: str, available: str) -> None:
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="25", rollover=rollover)
    spend(lava, "15", "a")
    to(clock, 2026, 2, 3)
    assert lava.balance("acme").available == Amount.of(available)


def test_cycles_of_the_31st_in_the_customers_zone(open_lava: Any) -> None:
    """T11: anchored to the 31st they begin on a month's last day, at midnight where the customer lives."""
    clock = clock_at(2026, 1, 31, 12)
    lava = open_lava(clock=clock)
    balance = lava.subscribe("acme", "pro", credits="1", anchor="2026-01-31", zone="Pacific/Kiritimati")
    assert balance.cycle_ends == datetime(2026, 2, 27, 10, tzinfo=UTC), "28 February, 14 hours ahead"
    to(clock, 2026, 2, 27, 10)
    assert lava.balance("acme").cycle_ends == datetime(2026, 3, 30, 10, tzinfo=UTC)


@pytest.mark.parametrize("overage", ["block", "2.00", "unlimited"])
def test_beyond_the_credits_it_is_blocked_or_goes_up_to_the_card_limit_or_on(
    open_lava: Any, provider: FakeProvider, overage: str
) -> None:
    """T8: "hit their card limit" is a refusal too; what is beyond is the operator's to invoice, and no debt."""
    lava = open_lava()
    lava.subscribe("acme", "pro", credits="1.00", overage=overage)
    spend(lava, "0.9995", "most of it")
    with client_of(provider) as client, lava.charge_to("acme"):
        statuses = [client.post(CHAT, json=chat(100)).status_code for _ in range(3)]
        assert statuses == [402 if overage == "block" else 200] * 3
        settled(lava)
        if overage == "2.00":
            spend(lava, "1.9988", "up to the limit")
            answer = client.post(CHAT, json=chat(100))
            assert answer.status_code == 402
            assert answer.json()["lava"]["code"] in ("insufficient_credit", "request_exceeds_credit")
    balance = lava.balance("acme")
    assert balance.unlimited == (overage == "unlimited")
    assert balance.debt == Amount(0)
    if overage != "block":
        assert balance.overage_used.ticks > 0
        assert balance.balance == -balance.overage_used
    adds_up(lava)


def test_overage_that_was_used_is_on_the_entry_that_ends_its_cycle(open_lava: Any) -> None:
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="1", overage="5")
    spend(lava, "3", "a")
    to(clock, 2026, 2, 3)
    assert lava.balance("acme").available == Amount.of("6")
    spend(lava, "0.01", "b")
    ended = [one for one in events(lava, "acme") if isinstance(one, Cycled)][-1]
    assert Amount(ended.overage_used) == Amount.of("2")


def test_a_cancelled_plan_goes_on_to_its_cycles_end_or_ends_at_once(open_lava: Any, provider: FakeProvider) -> None:
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="5")
    lava.grant("acme", "1", key="bought")
    assert lava.cancel("acme").available == Amount.of("6")
    assert lava.terms_to_follow("acme") is not None
    to(clock, 2026, 2, 1)
    balance = lava.balance("acme")
    assert (balance.plan, balance.available) == (None, Amount.of("1")), "what was bought stays"
    lava.subscribe("acme", "pro", credits="5")
    assert lava.cancel("acme", at_cycle_end=False).available == Amount.of("1")
    lava.cancel("acme")
    adds_up(lava)


def test_a_cancellation_is_called_off_and_survives_everything_else(open_lava: Any) -> None:
    """A limit, a suspension or a changed content says nothing about the end of the plan; the same plan again does."""
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)

    def subscribe(**more: Any) -> None:
        lava.subscribe("acme", "pro", **{"credits": "5", **more})

    subscribe()
    lava.cancel("acme")
    lava.limit("acme", 1000)
    lava.suspend("acme")
    lava.resume("acme")
    lava.auto_top_up("acme", below="1", amount="5", most="10")
    following = lava.terms_to_follow("acme")
    assert following is not None
    assert (following[1].plan, [one.name for one in following[1].limits]) == (None, ["tokens/month"])
    assert following[1].top_up is not None
    assert not following[1].suspended
    assert lava.balance("acme").plan == "pro"
    subscribe()
    to(clock, 2026, 2, 3)
    assert lava.balance("acme").plan == "pro"
    lava.cancel("acme")
    subscribe(credits="7")
    to(clock, 2026, 3, 3)
    balance = lava.balance("acme")
    assert (balance.plan, balance.available) == ("pro", Amount.of("7"))
    adds_up(lava)


def test_another_plan_begins_at_once_or_with_the_next_cycle(open_lava: Any) -> None:
    clock = clock_at(2026, 1, 10)
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "small", credits="5")
    balance = lava.subscribe("acme", "large", credits="50", at_cycle_end=True)
    assert (balance.plan, balance.available) == ("small", Amount.of("5"))
    to(clock, 2026, 2, 2)
    assert lava.balance("acme").available == Amount.of("50")
    balance = lava.subscribe("acme", "small", credits="5")
    assert (balance.plan, balance.available) == ("small", Amount.of("5"))


def test_a_plan_that_is_changed_under_an_open_stream_lets_it_end(open_lava: Any, provider: FakeProvider) -> None:
    """What it holds is its own to the end, though its plan is over; what it does not use lapses with the plan."""
    provider.queue(Script(output_tokens=90, tokens_per_chunk=10))
    lava = open_lava()
    lava.subscribe("acme", "pro", credits="1")
    with client_of(provider) as client, lava.charge_to("acme"):
        with client.stream("POST", CHAT, json=chat(100, stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert lava.balance("acme").held.ticks > 0
            lava.cancel("acme", at_cycle_end=False)
            lava.grant("acme", "0.01")
            rest = list(lines)
        assert rest[-1] or rest[-2] == "data: [DONE]"
        settled(lava)
        (record,) = lava.records("acme")
        assert record.usage.output_tokens == 90
        assert (record.overrun, record.debt) == (Amount(0), Amount(0))
    assert lava.balance("acme").balance <= Amount.of("0.01")
    adds_up(lava)


def test_a_call_that_starts_before_an_edge_and_settles_after_it_is_the_old_cycles(
    open_lava: Any, provider: FakeProvider
) -> None:
    clock = clock_at(2026, 1, 31, 23, 59)
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="1")
    lava.limit("acme", 10_000)
    with client_of(provider) as client, lava.charge_to("acme"):
        with client.stream("POST", CHAT, json=chat(100, stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            to(clock, 2026, 2, 1, 0, 5)
            list(lines)
        settled(lava)
    (record,) = lava.records("acme")
    assert record.charge.ticks > 0
    balance = lava.balance("acme")
    assert (balance.available, balance.limits[0].used) == (Amount.of("1"), 0)
    adds_up(lava)


def test_a_suspension_refuses_calls_and_stops_streams_that_need_more(lava: Lava, provider: FakeProvider) -> None:
    provider.queue(Script(endless=True, tokens_per_chunk=10))
    lava.grant("acme", "5")
    with client_of(provider) as client, lava.charge_to("acme"):
        with client.stream("POST", CHAT, json=chat(4000, stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert lava.suspend("acme").suspended
            assert '"length"' in "".join(lines)
        settled(lava)
        answer = client.post(CHAT, json=chat())
        assert (answer.status_code, answer.json()["lava"]["code"]) == (403, "customer_suspended")
        assert not lava.resume("acme").suspended
        assert client.post(CHAT, json=chat()).status_code == 200
    record = list(lava.records("acme"))[-1]
    assert record.facts["stopped"] == "customer_suspended"
    assert record.charge < Amount.of("0.02")


def test_only_what_the_plan_includes_may_be_used(open_lava: Any, provider: FakeProvider) -> None:
    """Whatever is left in credits; a call that names no meter is charged at cost, which no plan forbids."""
    prices = {name: {"input": "1", "output": "10"} for name in (MODEL, "large-1", "large-2")}
    lava = open_lava(meters={"chat": {"cost_times": "2"}, "dear": {"cost_times": "3"}}, prices=prices)
    lava.subscribe("acme", "pro", credits="5", models=("plain*", "large-1"), meters=("chat",))
    with client_of(provider) as client:

        def code(model: str, meter: str | None = None) -> str:
            with lava.charge_to("acme", meter=meter):
                answer = client.post(CHAT, json={**chat(), "model": model})
            return "ok" if answer.status_code == 200 else str(answer.json()["lava"]["code"])

        assert [code(MODEL), code("large-1"), code("large-2")] == ["ok", "ok", "model_not_in_plan"]
        assert [code(MODEL, "chat"), code(MODEL, "dear")] == ["ok", "meter_not_in_plan"]
    assert not lava.quote("acme", model="large-2", provider="openai", input_tokens=1, output_tokens_max=1).affordable
    with pytest.raises(ModelNotInPlan):
        lava.reserve("acme", model="large-2", provider="openai", usage={"input": 1}).__enter__()


@pytest.mark.parametrize(
    "wrong",
    [
        {"cycle": "fortnight"},
        {"anchor": "31.1.2026"},
        {"zone": "Europe/Hunter2"},
        {"credits": "-1"},
        {"rollover": "some"},
        {"overage": 0.5},
    ],
)
def test_a_plan_that_cannot_be_one_is_refused_and_its_value_is_not_repeated(lava: Lava, wrong: dict[str, Any]) -> None:
    with pytest.raises((TermsError, ValueError)) as error:
        lava.subscribe("acme", "pro", **wrong)
    assert "unter2" not in str(error.value)
    assert lava.terms("acme").version == 0
