"""Calendars as customers meet them, by calls and balances: every edge is a literal, worked out by hand. T11.

A call over a month's end, a plan that changes under an open stream, and two catalogues at once are in test_plans and
test_catalogue too; the arithmetic alone is in tests/core/test_windows.py and test_cycles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_middleware import Amount, Lava
from lava_middleware.core.events import Cycled, Held, Settled
from lava_middleware.testing import FakeProvider, FrozenClock, Script
from tests.faults.kit import CHAT, PRICES, chat, client_of, entries, events, lava_at

from .kit import adds_up, settled


def utc(moment: str) -> datetime:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC)


def ticks_of(moment: datetime) -> int:
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def clock_at(moment: str) -> FrozenClock:
    return FrozenClock(ticks_of(utc(moment)))


def to(clock: FrozenClock, moment: str) -> None:
    clock.set(ticks_of(utc(moment)))


@contextmanager
def open_stream(lava: Lava, provider: FakeProvider, script: Script, cap: int = 1000) -> Iterator[Any]:
    """A stream of "acme" whose first line has come; the lines that are left."""
    provider.queue(script)
    body = chat(cap, stream=True)
    with client_of(provider) as client, lava.charge_to("acme"), client.stream("POST", CHAT, json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        yield lines
    settled(lava)


# Days -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "begins", "hours"),
    [
        ("Europe/Berlin", "2026-03-28 23:00", 23),
        ("Europe/Berlin", "2026-10-24 22:00", 25),
        ("America/New_York", "2026-03-08 05:00", 23),
        ("America/Santiago", "2026-09-06 04:00", 23),
        ("America/Havana", "2026-11-01 04:00", 25),
        ("Australia/Lord_Howe", "2026-04-04 13:00", 24.5),
        ("Pacific/Kiritimati", "2026-03-28 10:00", 24),
        ("Etc/GMT+12", "2026-03-29 12:00", 24),
        ("UTC", "2028-02-29 00:00", 24),
    ],
)
def test_a_daily_limit_lasts_as_long_as_the_day_where_the_customer_lives(
    open_lava: Any, provider: FakeProvider, zone: str, begins: str, hours: float
) -> None:
    """Clocks that go forward and back, at midnight too; +14 and -12; the leap day. The refusal's time is the true one,
    and one microsecond later than the last refusal it is another day."""
    clock = FrozenClock(ticks_of(utc(begins)) - 1_000)  # each entry is a microsecond later than the one before it
    lava = open_lava(clock=clock)
    lava.grant("acme", "5")
    lava.limit("acme", 2, "requests", window="day", zone=zone)
    ends = utc(begins) + timedelta(hours=hours)
    with client_of(provider) as client, lava.charge_to("acme"):

        def call() -> Any:
            answer = client.post(CHAT, json=chat(20))
            settled(lava)
            return answer

        assert [call().status_code for _ in range(3)] == [200, 200, 429], "the day before"
        to(clock, begins)
        assert [call().status_code for _ in range(2)] == [200, 200]
        refused = call()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == str(int(hours * 3600))
        assert datetime.fromisoformat(refused.json()["lava"]["resets_at"]) == ends
        clock.set(ticks_of(ends) - 1)
        assert call().status_code == 429
        clock.set(ticks_of(ends))
        assert [call().status_code for _ in range(3)] == [200, 200, 429]
    adds_up(lava)


def test_the_hour_that_comes_twice_is_in_one_day_and_in_two_hours(open_lava: Any, provider: FakeProvider) -> None:
    """02:30 in Berlin, and an hour later 02:30 again: the day goes on, a limit per hour begins anew."""
    clock = clock_at("2026-10-25 00:30")
    lava = open_lava(clock=clock)
    lava.grant("acme", "5")
    lava.limit("acme", 3, "requests", window="day", zone="Europe/Berlin")
    lava.limit("acme", 2, "requests", window="hour", zone="Europe/Berlin")
    with client_of(provider) as client, lava.charge_to("acme"):

        def limit() -> str | None:
            answer = client.post(CHAT, json=chat(20))
            settled(lava)
            return None if answer.status_code == 200 else str(answer.json()["lava"]["limit"])

        assert [limit() for _ in range(3)] == [None, None, "requests/hour"]
        to(clock, "2026-10-25 01:30")
        assert [limit() for _ in range(2)] == [None, "requests/day"]


# Cycles ---------------------------------------------------------------------------------------------------------------

LAST_DAYS = [
    *("2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31", "2027-06-30", "2027-07-31", "2027-08-31"),
    *("2027-09-30", "2027-10-31", "2027-11-30", "2027-12-31", "2028-01-31", "2028-02-29", "2028-03-31"),
]


@pytest.mark.parametrize(("zone", "ahead_h"), [("UTC", 0), ("Pacific/Kiritimati", 14), ("Etc/GMT+12", -12)])
def test_a_plan_of_the_31st_renews_on_each_months_last_day(open_lava: Any, zone: str, ahead_h: int) -> None:
    """Fourteen cycles, a leap year's February among them; at midnight where the customer lives, not a moment before."""
    edges = [utc(day) - timedelta(hours=ahead_h) for day in LAST_DAYS]
    clock = FrozenClock(ticks_of(utc("2027-01-31") - timedelta(hours=ahead_h)))
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="3", anchor="2026-01-31", zone=zone)
    for number, edge in enumerate(edges):
        lava.report("acme", charge="1", request_id=f"r{number}")
        clock.set(ticks_of(edge) - 1)
        balance = lava.balance("acme")
        assert (balance.cycle_ends, balance.available) == (edge, Amount.of("2")), edge
        clock.set(ticks_of(edge))
        assert lava.balance("acme").available == Amount.of("3"), edge
    adds_up(lava)


def test_a_yearly_plan_of_the_leap_day(open_lava: Any) -> None:
    clock = clock_at("2024-02-29 00:00")
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="3", cycle="year", anchor="2024-02-29")
    ends = []
    for _ in range(5):
        edge = lava.balance("acme").cycle_ends
        assert edge is not None
        ends.append(edge.date().isoformat())
        clock.set(ticks_of(edge))
    assert ends == ["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29", "2029-02-28"]


@pytest.mark.parametrize(("rollover", "available"), [("none", "1"), ("full", "3653"), ("40", "41")])
def test_thousands_of_idle_cycles_are_there_at_the_first_look(open_lava: Any, rollover: str, available: str) -> None:
    """Ten years of days that nobody asked about, in a zone whose clocks change: as for one who came every tenth day,
    and no more entries than that takes."""
    clock = clock_at("2026-01-01 11:00")
    lava = open_lava(clock=clock)
    for customer in ("idle", "regular"):
        lava.subscribe(customer, "daily", credits="1", cycle="day", zone="Europe/Berlin", rollover=rollover)
    for number in range(365):
        clock.advance(10 * 86_400)
        lava.report("regular", charge="0", request_id=f"r{number}")
    to(clock, "2036-01-01 11:00")
    balances = [lava.balance(customer) for customer in ("idle", "regular")]
    assert [one.available for one in balances] == [Amount.of(available)] * 2, "3,652 days, and this one"
    assert {one.cycle_ends for one in balances} == {utc("2036-01-01 23:00")}
    lava.report("idle", charge="0.25", request_id="the first")
    assert lava.balance("idle").available == Amount.of(available) - Amount.of("0.25")
    assert sum(isinstance(one, Cycled) for one in events(lava, "idle")) <= 2
    assert len(entries(lava, "idle")) < 6
    adds_up(lava, "idle")


# Calls over an edge ---------------------------------------------------------------------------------------------------


def test_a_call_over_the_end_of_a_long_day_counts_in_the_day_it_began_in(
    open_lava: Any, provider: FakeProvider
) -> None:
    """The day of 25 hours: what it holds, what it holds more of as it streams before the edge, and what it used."""
    clock = clock_at("2026-10-25 22:59")
    lava = open_lava(clock=clock)
    lava.grant("acme", "5")
    lava.limit("acme", 10_000, "tokens", window="day", zone="Europe/Berlin")
    with open_stream(lava, provider, Script(output_tokens=40, tokens_per_chunk=5), cap=60) as lines:
        to(clock, "2026-10-25 23:05")
        assert lava.balance("acme").limits[0].held == 0, "of the new day nothing is held"
        list(lines)
    held, ended = [[one for one in events(lava, "acme") if isinstance(one, kind)] for kind in (Held, Settled)]
    (record,) = lava.records("acme")
    assert [window for one in held for _, window, _ in one.counts] == ["2026-10-25"]
    assert [one.counts for one in ended] == [(("tokens/day", "2026-10-25", record.usage.tokens),)]
    (state,) = lava.balance("acme").limits
    assert (state.used, state.resets_at) == (0, utc("2026-10-26 23:00"))
    adds_up(lava)


def test_a_plan_that_ends_under_an_open_stream_pays_for_it_and_leaves_nothing(
    open_lava: Any, provider: FakeProvider
) -> None:
    """Cancelled to its cycle's end, which comes while the stream is open: what it held is charged to the old cycle,
    what it needs more of comes from what was bought, and the plan's credits do not come back."""
    clock = clock_at("2026-01-31 23:59")
    lava = open_lava(clock=clock)
    lava.subscribe("acme", "pro", credits="1", rollover="full")
    lava.grant("acme", "0.50", key="bought")
    with open_stream(lava, provider, Script(output_tokens=600, tokens_per_chunk=10)) as lines:
        lava.cancel("acme")
        to(clock, "2026-02-01 00:01")
        balance = lava.balance("acme")
        assert (balance.plan, balance.available) == (None, Amount.of("0.50"))
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    (record,) = lava.records("acme")
    assert (record.usage.output_tokens, record.debt, record.overrun) == (600, Amount(0), Amount(0))
    after = lava.balance("acme")
    assert (after.plan, after.held) == (None, Amount(0))
    assert Amount.of("0.50") - record.charge < after.available <= Amount.of("0.50")
    adds_up(lava)


@pytest.mark.parametrize("quantity", [400, 10_000], ids=["lowered", "raised"])
def test_a_limit_that_is_edited_in_mid_window_under_an_open_stream_keeps_what_was_counted(
    open_lava: Any, provider: FakeProvider, quantity: int
) -> None:
    """Lowered, it stops the stream at what it holds; raised, it lets it go on; the window and its count stay."""
    clock = clock_at("2026-03-29 12:00")
    lava = open_lava(clock=clock)
    lava.grant("acme", "5")
    lava.limit("acme", 800, "tokens", window="day", zone="Europe/Berlin")
    with open_stream(lava, provider, Script(output_tokens=900, tokens_per_chunk=10)) as lines:
        lava.limit("acme", quantity, "tokens", window="day", zone="Europe/Berlin")
        assert "[DONE]" in "".join(lines)
    (record,) = lava.records("acme")
    (state,) = lava.balance("acme").limits
    assert (state.used, state.quantity, state.resets_at) == (record.usage.tokens, quantity, utc("2026-03-29 22:00"))
    if quantity == 400:
        assert record.facts["stopped"] == "limit_reached"
        assert state.used <= 800
    else:
        assert record.usage.output_tokens == 900
    to(clock, "2026-03-29 22:00")
    assert lava.balance("acme").limits[0].used == 0
    adds_up(lava)


# Two versions at once -------------------------------------------------------------------------------------------------


def catalogue(version: int, credits: str) -> dict[str, Any]:
    plan = {"credits": credits, "zone": "Europe/Berlin", "cycle": "month"}
    return {"version": version, "plans": {"pro": plan}, "prices": PRICES}


def test_a_month_that_ends_in_the_middle_of_a_rolling_deploy_begins_once_with_the_newer_plan(
    shared: str, provider: FakeProvider
) -> None:
    """Two processes' worth of catalogues on one ledger; whoever of them sees the new month first gives the same."""
    clock = clock_at("2026-03-31 21:59")
    with (
        lava_at(provider, shared, catalogue=catalogue(3, "20"), prices=None, clock=clock) as old,
        Lava(shared, catalogue=catalogue(4, "30"), clock=clock) as new,
        client_of(provider) as client,
    ):
        for customer in ("first seen by the old", "first seen by the new"):
            assert old.subscribe(customer, "pro").available == Amount.of("20")
        assert new.apply_catalogue().changed == 2
        to(clock, "2026-03-31 22:00")
        with old.charge_to("first seen by the old"):
            assert client.post(CHAT, json=chat(20)).status_code == 200
        settled(old, "first seen by the old")
        new.report("first seen by the new", charge="1", request_id="r")
        for one in (old, new):
            balance = one.balance("first seen by the old")
            assert Amount.of("29.99") < balance.available < Amount.of("30")
            assert one.balance("first seen by the new").available == Amount.of("29")
            assert balance.cycle_ends == utc("2026-04-30 22:00")
        for customer in ("first seen by the old", "first seen by the new"):
            begun = [event.id for event in events(new, customer) if isinstance(event, Cycled)]
            assert begun == ["2026-03", "2026-04"]
            adds_up(new, customer)
