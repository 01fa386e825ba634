"""Graduated prices: each unit at the rate of its own tier, cumulative per customer, meter and window."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.commands import Authorize, Extend, Report, Settle, Void
from lava_middleware.core.decide import Declined
from lava_middleware.core.events import Adjusted, Extended, Held, Reported, Settled
from lava_middleware.core.money import PER_MILLION
from lava_middleware.core.tiers import Tiers, dearest_step, graduated

from .history import CREDIT, History, granted, moment

FALLING = Tiers("chat", ((0, 5 * CREDIT), (1_000_000, 3 * CREDIT), (10_000_000, CREDIT)))
"""Credits per million: 5, from a million on 3, from ten on 1."""
RISING = Tiers("chat", ((0, 0), (1_000, PER_MILLION), (2_000, 7 * PER_MILLION)))
"""The first thousand are free, then one tick each, from two thousand on seven."""
DAY = 86_400_000_000


def ask(hold: str, units: int, tiers: Tiers = FALLING, each: int = 0, tokens: int = 0) -> Authorize:
    return Authorize(hold, "o", 0, 0, 0, tokens, tokens, tiers=tiers, metered=units, metered_each=each)


def used(hold: str, units: int, tiers: Tiers = FALLING, **more: bool) -> Settle:
    return Settle(hold, 0, 0, 0, tiers=tiers, metered=units, **more)


def exact(tiers: Tiers, quantity: int) -> Fraction:
    """Unit by unit, as a person would add it up (in ticks)."""
    ends = [start for start, _ in tiers.steps[1:]] + [quantity]
    spans = [(max(0, min(end, quantity) - start), rate) for (start, rate), end in zip(tiers.steps, ends, strict=True)]
    return sum((Fraction(units * rate, PER_MILLION) for units, rate in spans), Fraction())


def test_five_million_tokens_cost_seventeen_credits() -> None:
    history = History().given(granted(100), ask("h", 5_000_000))
    event = history.event(used("h", 5_000_000))
    assert isinstance(event, Settled)
    assert event.charge == 17 * CREDIT
    assert event.tiers == ((5 * CREDIT, 1_000_000), (3 * CREDIT, 4_000_000)), "the record shows each tier"
    assert event.overrun == 0


@pytest.mark.parametrize("size", [1, 7, 999_983, 1_000_000, 1_000_001, 2_500_000, 4_999_999])
def test_in_however_many_requests_to_the_last_digit(size: int) -> None:
    history = History().given(granted(100))
    left, number = 5_000_000 if size > 1_000 else 400 * size, 0
    total = left
    while left:
        history.given(Report(f"r{number}", 0, tiers=FALLING, metered=min(size, left)))
        left, number = left - min(size, left), number + 1
    assert history.account.charged == exact(FALLING, total)


def test_a_request_that_straddles_a_tier_pays_each_part_at_its_own_rate() -> None:
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=999_990))
    event = history.event(Report("s", 0, tiers=FALLING, metered=20))
    assert isinstance(event, Reported)
    assert event.tiers == ((5 * CREDIT, 10), (3 * CREDIT, 10))
    assert event.charge == 10 * 5 * CREDIT // PER_MILLION + 10 * 3 * CREDIT // PER_MILLION


def test_two_that_straddle_it_at_once_pay_what_they_would_one_after_the_other() -> None:
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=999_990))
    history.given(ask("a", 20), ask("b", 20))
    assert [hold.amount for hold in history.account.holds.values()] == [20 * 50_000, 20 * 50_000], "the dearest tier"
    events = [history.event(used("b", 20)), history.event(used("a", 20))]
    assert [event.charge for event in events] == [10 * 50_000 + 10 * 30_000, 20 * 30_000]  # type: ignore[union-attr]
    assert history.account.charged == exact(FALLING, 1_000_030)


def test_a_tier_begins_with_its_first_unit_and_not_before() -> None:
    """A thousand free units are a thousand: the hold of the last free one costs nothing."""
    history = History()
    assert history.event(ask("a", 1_000, RISING)).amount == 0  # type: ignore[union-attr]
    declined = history.ask(ask("b", 1, RISING))
    assert isinstance(declined, Declined)
    assert declined.required == 1
    history.given(used("a", 999, RISING))
    assert history.event(ask("b", 1, RISING)).amount == 0  # type: ignore[union-attr]


def test_open_holds_reach_the_tier_together() -> None:
    """Where the price rises, the call that would reach the dearer tier with all others holds at its rate."""
    history = History().given(granted(1))
    amounts = [history.event(ask(f"h{number}", 400, RISING)).amount for number in range(6)]  # type: ignore[union-attr]
    assert amounts == [0, 0, 400, 400, 400, 2_800]


def test_a_stream_in_the_free_tier_goes_on_without_credit_until_it_is_used_up() -> None:
    history = History().given(Authorize("h", "o", 0, 0, 0, 64, 32, grows=True, tiers=RISING, metered_each=1))
    total, size = 64, 64
    while isinstance(decision := history.ask(Extend("h", 0, 10_000, size, RISING, 1)), list):
        extended = decision[-1]
        assert isinstance(extended, Extended)
        total, size = total + extended.output_tokens, extended.output_tokens
    assert decision.reason == "insufficient_credit"  # type: ignore[union-attr]
    assert 500 <= total <= 1_000, "free units are not refused for a tier that is far"
    event = history.event(used("h", total, RISING))
    assert (event.charge, event.overrun) == (0, 0)  # type: ignore[union-attr]


def test_a_window_that_is_over_begins_at_the_first_tier_again() -> None:
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=1_000_000))
    assert history.event(Report("s", 0, tiers=FALLING, metered=1)).charge == 30_000  # type: ignore[union-attr]
    history.at(moment("2026-10-01 00:00"))
    assert history.event(Report("t", 0, tiers=FALLING, metered=1)).charge == 50_000  # type: ignore[union-attr]


def test_a_call_across_the_edge_is_priced_in_the_window_that_it_was_held_in() -> None:
    """T11."""
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=1_000_000), ask("h", 10))
    history.at(moment("2026-10-01 00:00")).given(Report("s", 0, tiers=FALLING, metered=5))
    event = history.event(used("h", 10))
    assert isinstance(event, Settled)
    assert event.charge == 10 * 30_000
    assert history.account.counters["meter|chat", "2026-10"].used == 5


def test_what_is_reported_late_meets_the_tier_that_it_would_have_met_in_time() -> None:
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=1_000_000))
    history.at(moment("2026-10-03 00:00")).given(Report("s", 0, tiers=FALLING, metered=1))
    late = history.event(Report("t", 0, tiers=FALLING, metered=1, when=moment("2026-09-30 23:00")))
    assert late.charge == 30_000  # type: ignore[union-attr]
    history.at(moment("2026-11-01 00:00")).given(Report("u", 0, tiers=FALLING, metered=1))
    assert ("meter|chat", "2026-09") not in history.account.counters, "for a week, not for ever"


def test_meters_count_apart() -> None:
    other = Tiers("voice", FALLING.steps)
    history = History().given(granted(100), Report("r", 0, tiers=FALLING, metered=1_000_000))
    assert history.event(Report("s", 0, tiers=other, metered=1)).charge == 50_000  # type: ignore[union-attr]


def test_a_void_gives_back_the_units_it_held() -> None:
    history = History().given(granted(100), ask("h", 10), Void("h", "unsent"))
    counter = history.account.counters["meter|chat", "2026-09"]
    assert (counter.held, counter.used) == (0, 0)


def test_what_a_later_call_pushed_into_a_dearer_tier_is_an_overrun_with_its_cause_and_the_total_is_exact() -> None:
    """Only where the price rises, and only if the later call ends first: whose units come first is known at the end."""
    history = History().given(granted(1), ask("first", 900, RISING), ask("later", 900, RISING))
    later, first = history.event(used("later", 900, RISING)), history.event(used("first", 900, RISING))
    assert isinstance(later, Settled)
    assert isinstance(first, Settled)
    assert (later.charge, first.charge) == (0, 800)
    assert (first.overrun, first.cause) == (800, "dearer_tier")
    assert history.account.charged == exact(RISING, 1_800)


class TestLate:
    """An expiry counted an estimate; what the owner says later counts in its place."""

    def test_the_quantity_is_replaced_not_added(self) -> None:
        history = History().given(granted(100), ask("h", 1_000_000), used("h", 400_000, lost_owner=True))
        event = history.event(used("h", 1_000_000))
        assert isinstance(event, Adjusted)
        assert event.charge == exact(FALLING, 1_000_000) - exact(FALLING, 400_000)
        assert history.account.counters["meter|chat", "2026-09"].used == 1_000_000

    def test_less_gives_back_and_nothing_gives_all_back(self) -> None:
        for late, left in ((used("h", 100_000), 100_000), (Void("h", "unsent"), 0), (used("h", 0), 0)):
            history = History().given(granted(100), ask("h", 1_000_000), used("h", 400_000, lost_owner=True), late)
            assert history.account.charged == exact(FALLING, left)
            assert history.account.counters["meter|chat", "2026-09"].used == left

    def test_an_expiry_counts_what_its_charge_has_already(self) -> None:
        """A dead owner's hold says what it owes; the next call meets the tier that this one has brought nearer."""
        history = History().given(
            granted(100), ask("h", 1_000_000), Settle("h", 5 * CREDIT, 0, 0, lost_owner=True, metered=999_990)
        )
        assert history.account.charged == 5 * CREDIT
        assert history.event(Report("r", 0, tiers=FALLING, metered=20)).tiers == ((5 * CREDIT, 10), (3 * CREDIT, 10))  # type: ignore[union-attr]
        history.given(used("h", 10))
        assert history.account.counters["meter|chat", "2026-09"].used == 30

    def test_an_expiry_that_counted_nothing(self) -> None:
        history = History().given(granted(100), ask("h", 10), Settle("h", 7, 0, 0, lost_owner=True), used("h", 10))
        assert history.account.charged == exact(FALLING, 10)
        assert history.account.counters["meter|chat", "2026-09"].used == 10


# Held and charged -----------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9 * PER_MILLION)), max_size=4).map(
    lambda parts: tuple(
        zip(itertools.accumulate((0, *(width for width, _ in parts))), (3, *(rate for _, rate in parts)), strict=True)
    )
)


@given(steps, st.integers(0, 200), st.integers(0, 200))
def test_graduated_is_what_each_unit_costs_by_itself(
    steps: tuple[tuple[int, int], ...], before: int, quantity: int
) -> None:
    def of_unit(number: int) -> int:
        return next(rate for start, rate in reversed(steps) if start <= number)

    total, lines = graduated(steps, before, quantity)
    rates = [of_unit(number) for number in range(before, before + quantity)]
    assert total == sum(rates)
    assert sum(units for _, units in lines) == quantity
    assert dearest_step(steps, before, before + quantity) == max(rates or [of_unit(before)])


@given(steps, st.integers(0, 2**32))
def test_a_charge_within_its_quantity_never_exceeds_its_hold_unless_a_later_call_overtook_it(
    steps: tuple[tuple[int, int], ...], seed: int
) -> None:
    """Calls begin, grow and end in any order; the sum of all charges is exact but for one rounding each."""
    rng, tiers = random.Random(seed), Tiers("m", steps)
    falling = all(one >= other for (_, one), (_, other) in itertools.pairwise(steps))
    history = History().given(granted(1))
    history.account.credits[0].remaining = 10**9
    open_: list[tuple[str, int]] = []
    overtaken: set[str] = set()
    total = calls = 0
    for number in range(25):
        if open_ and rng.random() < 0.5:
            hold, bound = open_.pop(0 if rng.random() < 0.5 else rng.randrange(len(open_)))
            quantity = rng.randint(0, bound)
            event = history.event(used(hold, quantity, tiers))
            assert isinstance(event, Settled)
            assert event.overrun == 0 or (not falling and hold in overtaken)
            assert not event.overrun or event.cause == "dearer_tier"
            overtaken |= {earlier for earlier, _ in open_ if int(earlier) < int(hold)}
            total, calls = total + quantity, calls + 1
        elif isinstance(event := history.event(ask(str(number), rng.randint(0, 40), tiers)), Held):
            open_.append((str(number), event.metered[0][2]))
    for hold, _ in open_:
        history.given(Void(hold, "unsent"))
    assert abs(history.account.charged - exact(tiers, total)) <= Fraction(calls, 2)
    counter = history.account.counters.get(("meter|m", "2026-09"))
    assert (counter.used, counter.held) == (total, 0) if counter else total == 0
