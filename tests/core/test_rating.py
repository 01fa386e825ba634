"""Usage becomes cost, cost becomes charge, a request the dearest rates it can meet: exactly, and rounded once."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.money import PER_MILLION, AmountError, ticks_of
from lava_middleware.core.pricing import Price, rates_for, variant_of
from lava_middleware.core.rating import (
    Line,
    Markup,
    MarkupError,
    Rating,
    charge,
    dearest,
    describe,
    fees,
    provenance,
    rate,
)
from lava_middleware.core.usage import UNITS, Usage


def usd(**prices: str) -> dict[str, int]:
    """Dollars per million as rates."""
    return {unit: ticks_of(price) for unit, price in prices.items()}


def each(price: str) -> int:
    """Dollars each as a rate."""
    return ticks_of(price) * PER_MILLION


GPT_4O = Price(
    "openai",
    "gpt-4o",
    usd(input="2.50", output="10.00", cache_read="1.25"),
    variants={
        "priority": usd(input="4.25", output="17.00", cache_read="2.125"),
        "batch": usd(input="1.25", output="5.00"),
    },
)
SONNET = Price(
    "anthropic",
    "claude-sonnet-4-5",
    {
        **usd(input="3", output="15", cache_read="0.30", cache_write="3.75", cache_write_1h="6"),
        "web_search": each("0.01"),
    },
    tiers=((200_000, usd(input="6", output="22.5", cache_read="0.60", cache_write="7.5", cache_write_1h="12")),),
    variants={"batch": usd(input="1.5", output="7.5")},
    variant_tiers={"batch": ((200_000, usd(input="3", output="11.25")),)},
)
FREE = Price("openrouter", "some/model:free", {}, free=True)
EMBEDDING = Price("openai", "text-embedding-3-small", usd(input="0.02"))

MILLION = 1_000_000


def cost(price: Price, tier: str | None = None, **units: int) -> str:
    """The cost in dollars as text."""
    return str(Decimal(rate(price, Usage(units), tier=tier).cost).scaleb(-10).normalize())


# Cost ------------------------------------------------------------------------------------------------------------


def test_each_unit_is_charged_at_its_own_rate_once() -> None:
    """T21: cached tokens cost the cached rate, and nothing else besides."""
    rating = rate(GPT_4O, Usage(input=1_000, cache_read=2_000, output=300))
    assert rating.lines == (
        Line("input", 1_000, ticks_of("2.50")),
        Line("cache_read", 2_000, ticks_of("1.25")),
        Line("output", 300, ticks_of("10.00")),
    )
    assert rating.cost == ticks_of("0.0080")
    assert rating.basis == "computed"


def test_a_unit_without_a_rate_costs_what_it_falls_back_to() -> None:
    """T22, T23: reasoning as output, audio and images as text, a long cache write as a short one."""
    assert cost(GPT_4O, reasoning=MILLION) == cost(GPT_4O, output=MILLION)
    assert cost(GPT_4O, input_audio=MILLION) == cost(GPT_4O, input=MILLION)
    assert cost(GPT_4O, cache_read_audio=MILLION) == cost(GPT_4O, cache_read=MILLION)
    assert cost(GPT_4O, cache_write_1h=MILLION) == cost(GPT_4O, input=MILLION)
    assert cost(GPT_4O, output_image=MILLION) == cost(GPT_4O, output=MILLION)


def test_a_used_unit_that_nothing_prices_is_named_not_silently_free() -> None:
    """T5"""
    rating = rate(EMBEDDING, Usage(input=1_000, output=5, web_search=2))
    assert rating.unpriced == ("output", "web_search")
    assert rating.cost == ticks_of("0.00002")


def test_an_unknown_price_is_unknown_and_a_free_model_is_free() -> None:
    """T5: three states."""
    unknown = rate(None, Usage(input=1_000))
    assert (unknown.basis, unknown.cost, unknown.unpriced) == ("unknown", 0, ("input",))
    free = rate(FREE, Usage(input=1_000, output=5))
    assert (free.basis, free.cost, free.unpriced) == ("computed", 0, ())
    assert [line.unit for line in free.lines] == ["input", "output"]


@pytest.mark.parametrize(("tokens", "expected"), [(200_000, "0.6"), (200_001, "1.200006")])
def test_one_token_above_the_tier_prices_the_whole_call_at_it(tokens: int, expected: str) -> None:
    """T2, T25: a cliff, not a slope."""
    assert cost(SONNET, input=tokens) == expected


def test_all_input_units_count_towards_the_tier_and_output_does_not() -> None:
    assert cost(SONNET, input=1, cache_read=200_000) == str(Decimal("0.12") + Decimal("0.000006"))
    assert cost(SONNET, input=1, output=300_000) == str(Decimal("4.500003"))


def test_cache_writes_cost_by_their_lifetime() -> None:
    """T21"""
    assert cost(SONNET, cache_write=100_000) == "0.375"
    assert cost(SONNET, cache_write_1h=100_000) == "0.6"


def test_the_service_tier_that_was_used_sets_the_rates() -> None:
    """T25: what a variant does not name keeps the standard rate, as OpenAI's batch keeps cached input."""
    assert cost(GPT_4O, "priority", input=MILLION, cache_read=MILLION, output=MILLION) == "23.375"
    assert cost(GPT_4O, "batch", input=MILLION, cache_read=MILLION, output=MILLION) == "7.5"
    assert cost(GPT_4O, "default", input=MILLION) == cost(GPT_4O, None, input=MILLION) == "2.5"
    assert rate(GPT_4O, Usage(input=1), tier="priority").variant == "priority"


def test_service_tiers_are_known_by_their_other_names() -> None:
    assert variant_of(GPT_4O, "PRIORITY") == variant_of(GPT_4O, "fast") == "priority"
    assert variant_of(GPT_4O, "ON_DEMAND_PRIORITY") == "priority"
    # Anthropic's "priority" is a commitment at standard rates; its "fast" is dearer. One is not the other.
    assert variant_of(Price("anthropic", "claude", {}, variants={"fast": {}}), "priority") == ""


def test_a_variant_has_tiers_of_its_own() -> None:
    assert cost(SONNET, "batch", input=200_000) == "0.3"
    assert cost(SONNET, "batch", input=200_001) == "0.600003"
    assert rates_for(SONNET, 300_000, "batch")["cache_read"] == ticks_of("0.60")


def test_searches_cost_each_and_flat_fees_are_added_without_being_reported() -> None:
    """T23"""
    assert cost(SONNET, web_search=3) == "0.03"
    sonar = Price("perplexity", "sonar", {**usd(input="1", output="1"), "request": each("0.005")})
    assert cost(sonar, input=1_000) == "0.006"
    assert fees(sonar, searches=2) == ticks_of("0.005")
    assert fees(SONNET, searches=2) == ticks_of("0.02")
    assert fees(GPT_4O, searches=2) == 0


# The provider's own cost -----------------------------------------------------------------------------------------


def test_a_reported_cost_sets_the_cost_and_ours_is_kept_to_compare() -> None:
    rating = rate(GPT_4O, Usage(input=MILLION), reported=ticks_of("2.60"))
    assert (rating.cost, rating.basis, rating.differs) == (ticks_of("2.60"), "reported", False)
    assert rating.computed == ticks_of("2.50") * PER_MILLION
    assert rate(GPT_4O, Usage(input=MILLION), reported=ticks_of("3.01")).differs
    assert rate(GPT_4O, Usage(input=MILLION), reported=ticks_of("1.99")).differs
    assert rate(None, Usage(input=MILLION), reported=7).cost == 7


def test_a_reported_zero_counts_only_for_a_model_that_is_explicitly_free() -> None:
    """T5"""
    assert rate(GPT_4O, Usage(input=MILLION), reported=0).cost == ticks_of("2.50")
    assert rate(GPT_4O, Usage(input=MILLION), reported=-1).cost == ticks_of("2.50")
    assert rate(None, Usage(input=MILLION), reported=0).basis == "unknown"
    assert rate(FREE, Usage(input=MILLION), reported=0).basis == "reported"


# Exactness -------------------------------------------------------------------------------------------------------

rates = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 10**13), max_size=6)
usages = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 10**7), max_size=6).map(Usage)
markups = st.decimals("0.000001", "999.999999", places=6)


@given(rates, usages)
def test_the_cost_is_the_exact_sum_rounded_once_half_to_even(rates: dict[str, int], usage: Usage) -> None:
    """T24"""
    rating = rate(Price("p", "m", rates), usage)
    exact = sum((Fraction(line.quantity * line.rate, PER_MILLION) for line in rating.lines), Fraction(0))
    assert Fraction(rating.millionths, PER_MILLION) == exact
    assert rating.cost == round(exact)  # Python's round() of a fraction is half to even


@given(st.integers(0, 10**20), markups)
def test_the_charge_is_rounded_once_from_the_exact_product(millionths: int, markup: Decimal) -> None:
    """T24: never from the rounded cost."""
    exact = Fraction(millionths, PER_MILLION) * Fraction(markup)
    assert charge(Rating(millionths), Markup(str(markup))) == round(exact)


@given(st.integers(0, 10**15))
def test_half_a_tick_goes_to_the_even_one(ticks: int) -> None:
    expected = (Decimal(ticks) + Decimal("0.5")).to_integral_value(ROUND_HALF_EVEN)
    assert charge(Rating(ticks * PER_MILLION + PER_MILLION // 2)) == expected


def test_rounding_twice_would_give_another_charge() -> None:
    rating = Rating(1_500_000)
    assert rating.cost == 2
    assert charge(rating, Markup("3")) == 4  # 4.5, half to even; 3 × 2 would be 6
    assert charge(2, Markup("3")) == 6


@given(st.lists(usages, max_size=4))
def test_passes_by_several_models_add_before_the_rounding(passes: list[Usage]) -> None:
    ratings = [rate(GPT_4O if index % 2 else SONNET, usage) for index, usage in enumerate(passes)]
    total = sum(ratings, Rating(0))
    assert total.millionths == sum(one.millionths for one in ratings)
    assert total.cost == round(Fraction(total.millionths, PER_MILLION))
    assert total.lines == tuple(line for one in ratings for line in one.lines)


def test_the_weakest_basis_is_that_of_the_sum() -> None:
    known, reported = rate(GPT_4O, Usage(input=1)), rate(GPT_4O, Usage(input=1), reported=5)
    assert (known + known).basis == "computed"
    assert (known + reported).basis == (reported + known).basis == "reported"
    assert (reported + rate(None, Usage(output=1))).basis == "unknown"
    assert (known + rate(None, Usage(output=1)) + rate(None, Usage(output=1))).unpriced == ("output",)


def test_a_cost_beyond_any_account_is_refused_not_wrapped() -> None:
    """T24"""
    with pytest.raises(AmountError):
        _ = rate(GPT_4O, Usage(input=10**18)).cost
    with pytest.raises(AmountError):
        charge(2**61, Markup("2"))


# Markup ----------------------------------------------------------------------------------------------------------


def test_a_markup_sells_at_a_multiple_of_the_cost() -> None:
    assert charge(rate(GPT_4O, Usage(input=MILLION)), Markup("1.20")) == ticks_of("3.00")
    assert charge(100, Markup()) == charge(100) == charge(100, Markup("1")) == 100
    assert Markup(Decimal("1.2")) == Markup("1.20")
    assert str(Markup("1.20")) == "1.20"
    assert Markup("1.000001").ceiling(1) == 2
    assert Markup("0.5").ceiling(3) == 2


@pytest.mark.parametrize(
    "wrong",
    ["0", "-1", "NaN", "Infinity", "1e7", "1.0000001", "1e-50", "", "1,20", "20%", "1" * 41, 1.2, True, b"1", []],
)
def test_a_markup_that_cannot_be_right_is_refused(wrong: object) -> None:
    """T24"""
    with pytest.raises(MarkupError):
        Markup(wrong)


# Bounds ----------------------------------------------------------------------------------------------------------


def test_a_hold_takes_the_dearest_tier_its_input_can_reach() -> None:
    """T2"""
    assert dearest(SONNET, 200_000) == (ticks_of("3"), ticks_of("15"))
    assert dearest(SONNET, 200_001) == (ticks_of("6"), ticks_of("22.5"))


def test_a_cheap_upper_tier_does_not_hide_a_dear_lower_one() -> None:
    odd = Price("p", "m", usd(input="5", output="9"), tiers=((100, usd(input="1", output="1")),))
    assert dearest(odd, 1_000) == (ticks_of("5"), ticks_of("9"))


def test_a_hold_assumes_the_service_tier_that_was_asked_for_or_the_standard_one() -> None:
    """T25: a tier may be refused and served at standard rates, so flex and batch hold for those."""
    assert dearest(GPT_4O, 1_000, "priority") == (ticks_of("4.25"), ticks_of("17"))
    for tier in ("batch", "default", "auto", None):
        assert dearest(GPT_4O, 1_000, tier) == (ticks_of("2.50"), ticks_of("10"))


def test_a_hold_assumes_cache_writes_where_the_request_marks_them() -> None:
    assert dearest(SONNET, 1_000, None, "5m")[0] == ticks_of("3.75")
    assert dearest(SONNET, 1_000, None, "1h")[0] == ticks_of("6")
    assert dearest(SONNET, 300_000, None, "1h")[0] == ticks_of("12")


def test_models_that_write_to_the_cache_unasked_are_held_for_it() -> None:
    """OpenAI bills cache writes at 1.25 times the input since GPT-5.6, without being asked to."""
    unasked = Price("openai", "gpt-6", usd(input="2", output="10", cache_write="2.5", cache_write_1h="5"))
    assert dearest(unasked, 1_000)[0] == ticks_of("2.5")
    assert dearest(unasked, 1_000, None, "12h")[0] == ticks_of("5")


def test_a_hold_assumes_audio_and_images_in_and_out() -> None:
    """T23"""
    audio = Price("openai", "gpt-audio", usd(input="2.5", output="10", input_audio="32", output_audio="64"))
    assert dearest(audio, 1_000) == (ticks_of("32"), ticks_of("64"))
    assert dearest(audio, 1_000, media=False) == (ticks_of("2.5"), ticks_of("64"))


def test_a_free_model_is_held_for_nothing_and_one_without_output_for_its_input() -> None:
    assert dearest(FREE, 1_000) == (0, 0)
    assert fees(FREE, searches=3) == 0
    assert dearest(EMBEDDING, 1_000) == (ticks_of("0.02"), 0)


prices = st.builds(
    Price,
    provider=st.just("p"),
    model=st.sampled_from(["m", "claude-x"]),
    rates=rates,
    tiers=st.lists(st.tuples(st.integers(1, 1_000), rates), max_size=3).map(
        lambda some: tuple(sorted(some, key=lambda one: one[0]))
    ),
    variants=st.dictionaries(st.sampled_from(["flex", "priority"]), rates, max_size=2),
)
token_usages = st.dictionaries(st.sampled_from(UNITS[:11]), st.integers(0, 300), max_size=8).map(Usage)


@given(prices, token_usages, st.sampled_from([None, "flex", "priority", "auto"]), st.integers(0, 2_000))
def test_no_usage_within_the_bound_costs_more_than_the_dearest_rates(
    price: Price, usage: Usage, tier: str | None, slack: int
) -> None:
    """T2: whether the tier asked for is used or the standard one."""
    input_rate, output_rate = dearest(price, usage.input_tokens + slack, tier, "1h")
    most = usage.input_tokens * input_rate + usage.output_tokens * output_rate
    flat = price.rates.get("request", 0)
    for used in (tier, None):
        rated = rate(price, usage, tier=used)
        assert sum(line.quantity * line.rate for line in rated.lines if line.unit != "request") <= most
        assert flat == 0 or any(line.unit == "request" for line in rated.lines)


# For people ------------------------------------------------------------------------------------------------------


def test_a_price_is_described_in_rows() -> None:
    rows = dict(describe(SONNET))
    assert rows["input"] == "3.00 per million tokens"
    assert rows["cache_read"] == "0.30 per million tokens"
    assert rows["web_search"] == "0.01 each"
    assert rows["output, above 200,000 input tokens"] == "22.50 per million tokens"
    assert rows["input, batch"] == "1.50 per million tokens"
    assert rows["input, batch, above 200,000 input tokens"] == "3.00 per million tokens"
    assert dict(describe(FREE))["price"] == "explicitly free"


def test_the_record_says_where_a_price_is_from() -> None:
    price = Price("openai", "gpt-4o", {}, source="operator")
    assert provenance(price, "v1") == {"version": "v1", "provider": "openai", "model": "gpt-4o", "source": "operator"}
