"""A million reported events load, each is billed once, and the sums are exact to the last digit. T1, T15, T24."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from lava_middleware import Amount, Conflict, Lava
from tests.conftest import SOAK
from tests.faults.kit import run_processes

from . import reporters
from .kit import adds_up
from .reporters import CUSTOMERS, MONTHS, Event, event, numbers_of, open_lava, told

GRANTED = 1_000_000
BATCH = 1_000
"""Events that are reported again when the ledger is opened anew."""
WITHIN_S = 3_600


def price(meter: str, quantity: int) -> Fraction:
    """By hand: a page is a cent, a minute 0.6 cents; gigabytes 10, from 200 on 5, from 20,000 on 2.13 cents."""
    if meter == "pages":
        return Fraction(quantity, 100)
    if meter == "audio":
        return Fraction(6 * quantity, 60_000)
    first, second = min(quantity, 200), min(max(quantity - 200, 0), 19_800)
    return Fraction(first, 10) + Fraction(second, 20) + Fraction(213 * max(quantity - 20_000, 0), 10_000)


@pytest.mark.timeout(2 * WITHIN_S)
def test_a_million_reported_events_are_billed_once_each(
    tmp_path: Path, seed: int, soak_count: Callable[[int], int], figures: Callable[[str], None]
) -> None:
    """T15: by threads and tasks of two processes, a tenth of them by both; the tiers of two months fill meanwhile.

    `make test` loads 10,000.
    """
    events = soak_count(1_000_000) // (1 if SOAK else 10)
    ledger = f"sqlite:///{tmp_path}/lava.db"
    with open_lava(ledger) as lava:
        for number in range(CUSTOMERS):
            lava.grant(f"customer-{number}", str(GRANTED), key="first")
    arguments = [(ledger, process, seed, events) for process in range(reporters.PROCESSES)]
    results = run_processes(reporters.load, arguments, WITHIN_S)
    assert [problem for *_, problems in results for problem in problems] == []
    replays = sum(event(seed, number).twice for number in range(events))
    reports, seconds = sum(count for count, *_ in results), max(took for _, took, _ in results)
    assert reports == events + replays
    assert events // 12 < replays < events // 8
    figures(
        f"{events:,} events and {replays:,} replays from {reporters.PROCESSES} processes in {seconds:,.1f} s: "
        f"{reports / seconds:,.0f} reports a second"
    )
    with open_lava(ledger) as lava:
        before = [billed_as_they_happened(lava, number, seed, events) for number in range(CUSTOMERS)]
        replayed(lava, seed, events)
        assert [billed_as_they_happened(lava, number, seed, events) for number in range(CUSTOMERS)] == before
        adds_up(lava, "customer-0")


def billed_as_they_happened(lava: Lava, number: int, seed: int, events: int) -> int:
    """Each of the customer's events is one record with its quantity and price; how many entries the journal has."""
    customer = f"customer-{number}"
    expected = {one.id: one for one in (event(seed, number) for number in numbers_of(number, events))}
    gigabytes: dict[int, int] = defaultdict(int)
    charged: dict[int, Fraction] = defaultdict(Fraction)
    left, total, entries = dict(expected), Fraction(), 0
    for record in lava.records(customer):
        one = left.pop(record.id)  # a second one would raise
        charge = Fraction(record.charge.ticks, 10**10)
        total += charge
        entries += 1
        assert record.facts["units"] == {unit_of(one): one.quantity}
        if one.meter == "storage":
            gigabytes[one.month] += one.quantity
            charged[one.month] += charge
        else:
            assert charge == price(one.meter, one.quantity), one
    assert not left, "nothing was lost"
    for month in range(len(MONTHS)):
        assert charged[month] == price("storage", gigabytes[month]), "each month's tiers, whatever the order"
    balance = lava.balance(customer)
    assert Fraction(balance.balance.ticks, 10**10) == GRANTED - total
    assert balance.debt == Amount(0)
    return entries


def unit_of(one: Event) -> str:
    return {"pages": "pages", "audio": "seconds", "storage": "gigabytes"}[one.meter]


def replayed(lava: Lava, seed: int, events: int) -> None:
    """One batch again, after the ledger was opened anew: the first record comes back; other content is a conflict."""
    for number in range(events - BATCH, events):
        one = event(seed, number)
        again = lava.report(one.customer, **told(one))
        assert again is not None
        assert (again.id, again.facts["units"]) == (one.id, {unit_of(one): one.quantity})
        if one.meter == "pages" and number % 10 == 0:
            with pytest.raises(Conflict):
                lava.report(one.customer, **{**told(one), "quantity": one.quantity + 1})
