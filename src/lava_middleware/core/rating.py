"""This file knows how to turn usage into cost, cost into charge, and a request into the dearest rates it can meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from .money import PER_MILLION, Ticks, charge_ceiling, half_even, within_bounds
from .pricing import Price, Rates, rate_of, rates_for, variant_of
from .usage import INPUT_UNITS, OTHER_UNITS, OUTPUT_UNITS, Usage

MARKUP_DECIMALS = 6
MARKUP_MOST = 1_000_000

DIFFERENCE_PERCENT = 20
"""A provider's own cost that is further than this from ours is worth counting."""


class MarkupError(ValueError):
    """The markup is not a finite decimal number above 0 with at most six decimals."""


class Line(NamedTuple):
    """So much of one unit at such a rate (ticks per million)."""

    unit: str
    quantity: int
    rate: int


@dataclass(frozen=True, slots=True)
class Rating:
    """What one exchange cost, exactly: ratings add without rounding, `cost` rounds once."""

    millionths: int
    """The cost in millionths of a tick: the exact figure."""
    lines: tuple[Line, ...] = ()
    basis: str = "computed"
    """"computed" from the price list, "reported" by the provider, "unknown": no price is known, which is not free."""
    computed: int = 0
    """Millionths of a tick by the price list, also where the provider's own cost is taken."""
    unpriced: tuple[str, ...] = ()
    """Units that were used and that the price list does not name: their part of the cost is unknown."""
    variant: str = ""
    """The service tier's own rates that were used; empty: the standard ones."""

    @property
    def cost(self) -> Ticks:
        """Ticks, half to even. Raises AmountError beyond what any account can hold."""
        return within_bounds(half_even(self.millionths, PER_MILLION))

    @property
    def differs(self) -> bool:
        """The provider's own cost is further from ours than a fifth of ours."""
        distance = abs(self.millionths - self.computed)
        return self.basis == "reported" and bool(self.lines) and distance * 100 > DIFFERENCE_PERCENT * self.computed

    def __add__(self, other: Rating) -> Rating:
        """Both as one cost: further passes of the same answer, by whatever model."""
        return Rating(
            self.millionths + other.millionths,
            self.lines + other.lines,
            max(self.basis, other.basis, key=_WEAKNESS.index),
            self.computed + other.computed,
            self.unpriced + tuple(unit for unit in other.unpriced if unit not in self.unpriced),
            self.variant or other.variant,
        )


_WEAKNESS = ("computed", "reported", "unknown")
"""Of two bases the later one is that of their sum."""


def rate(price: Price | None, usage: Usage, *, tier: str | None = None, reported: Ticks | None = None) -> Rating:
    """What this usage costs at this price, by the service tier that the answer says was used.

    `reported` is the provider's own cost, given only where it is to be believed (a row that `reports_cost`). It sets
    the cost; a reported zero counts only for a model that is explicitly free (T5).
    """
    rating = _computed(price, usage, tier)
    if reported is None or reported < 0 or (reported == 0 and not (price is not None and price.free)):
        return rating
    return Rating(reported * PER_MILLION, rating.lines, "reported", rating.computed, rating.unpriced, rating.variant)


def _computed(price: Price | None, usage: Usage, tier: str | None) -> Rating:
    if price is None:
        return Rating(0, basis="unknown", unpriced=tuple(usage))
    if price.free:
        return Rating(0, tuple(Line(unit, usage[unit], 0) for unit in usage))
    variant = variant_of(price, tier)
    rates = rates_for(price, usage.input_tokens if price.tiers or variant else 0, variant)
    lines, unpriced, total = [], [], 0
    for unit, quantity in _quantities(usage, rates):
        per_million = rates.get(unit)
        if per_million is None:
            per_million = rate_of(rates, unit)
        if per_million is None:
            unpriced.append(unit)
        else:
            lines.append(Line(unit, quantity, per_million))
            total += quantity * per_million
    return Rating(total, tuple(lines), "computed", total, tuple(unpriced), variant)


def _quantities(usage: Usage, rates: Rates) -> list[tuple[str, int]]:
    """What is billed: the usage, and one request where the list has a flat fee that no dialect reports."""
    quantities = [(unit, usage[unit]) for unit in usage]
    if "request" in rates and "request" not in usage:
        quantities.append(("request", 1))
    return quantities


class Markup:
    """What a charge is, as an exact multiple of the cost: "1.20" sells at cost × 1.20. None sells at cost.

    Above 0, finite, at most six decimals, below a million; floats are refused. Raises MarkupError.
    """

    __slots__ = ("_denominator", "_numerator", "_text")

    def __init__(self, factor: object = None) -> None:
        exact = _markup_decimal(factor)
        self._numerator, self._denominator = exact.as_integer_ratio()
        self._text = f"{exact:f}"

    def charge(self, cost: Rating | Ticks) -> Ticks:
        """The charge in ticks, rounded once, half to even, from the exact cost. Raises AmountError if too large."""
        millionths = cost.millionths if isinstance(cost, Rating) else cost * PER_MILLION
        return within_bounds(half_even(millionths * self._numerator, PER_MILLION * self._denominator))

    def ceiling(self, rate: int) -> int:
        """The rate with the markup in it, rounded up: for holds."""
        return -(-rate * self._numerator // self._denominator)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Markup({self._text!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Markup):
            return NotImplemented
        return (self._numerator, self._denominator) == (other._numerator, other._denominator)

    def __hash__(self) -> int:
        return hash((self._numerator, self._denominator))


def _markup_decimal(factor: object) -> Decimal:
    if factor is None:
        return Decimal(1)
    if isinstance(factor, bool) or not isinstance(factor, str | int | Decimal):
        raise MarkupError(f'markup must be a string such as "1.20", not {type(factor).__name__}')
    try:
        exact = Decimal(factor) if len(str(factor)) <= 40 else Decimal("NaN")
    except InvalidOperation:
        raise MarkupError('markup must be a decimal number such as "1.20" (sell at cost × 1.20)') from None
    if not exact.is_finite() or exact <= 0 or exact >= MARKUP_MOST:
        raise MarkupError('markup must be above 0 and below a million; "1" sells at cost, "1.20" at cost × 1.20')
    if exact != exact.quantize(Decimal(1).scaleb(-MARKUP_DECIMALS)):
        raise MarkupError(f"markup must have at most {MARKUP_DECIMALS} decimals")
    return exact


def charge(cost: Rating | Ticks, markup: Markup | None = None) -> Ticks:
    """What the customer is charged for it, in ticks: cost × markup, rounded once."""
    return (markup or _AT_COST).charge(cost)


_AT_COST = Markup()


def dearest(
    price: Price, input_tokens: int, tier: str | None = None, cache_writes: str | None = None, *, media: bool = True
) -> tuple[int, int]:
    """The dearest (input rate, output rate) a request can meet, in ticks per million: what holds assume (T2, T25).

    `input_tokens` is the input at its bound: every price tier below it can be reached. `tier` is the service tier the
    request asks for; providers may serve it at the standard rates instead, never at a dearer tier than was asked.
    `cache_writes` is "5m", "1h" or another lifetime where the request marks content for caching. `media`: audio or
    images may go in. Output counts as whatever the model can give: an image model's text call holds for images.
    """
    if price.free:
        return 0, 0
    units = _input_units(price, cache_writes, media)
    input_rate = output_rate = 0
    for rates in _reachable(price, input_tokens, variant_of(price, tier)):
        for unit, per_million in rates.items():  # what falls back has the rate of one of these
            if unit in units:
                input_rate = max(input_rate, per_million)
            elif unit in OUTPUT_UNITS:
                output_rate = max(output_rate, per_million)
    return input_rate, output_rate


_MEDIA_UNITS = ("input_audio", "cache_read_audio", "input_image")
_WRITES_ON_REQUEST = "claude"
"""Models with this in their name write to the cache only where the request says so; others that bill writes just do."""
_STANDARD_LIFETIMES = (None, "5m", "30m")


def _input_units(price: Price, cache_writes: str | None, media: bool) -> tuple[str, ...]:
    left_out: tuple[str, ...] = () if media else _MEDIA_UNITS
    if cache_writes in _STANDARD_LIFETIMES:
        left_out += ("cache_write_1h",)
    if cache_writes is None and _WRITES_ON_REQUEST in price.model:
        left_out += ("cache_write",)
    return tuple(unit for unit in INPUT_UNITS if unit not in left_out)


def _reachable(price: Price, input_tokens: int, variant: str) -> Iterator[Rates]:
    """All rates that a call with up to so many input tokens may be priced at."""
    for one in ("", variant) if variant else ("",):
        yield rates_for(price, 0, one)
        for above, _ in (*price.tiers, *price.variant_tiers.get(one, ())):
            if above < input_tokens:
                yield rates_for(price, above + 1, one)


def fees(price: Price, *, tier: str | None = None, searches: int = 0) -> Ticks:
    """What a call costs beside its tokens at most, in ticks, rounded up: a flat fee, and so many searches."""
    if price.free:
        return 0
    rates = rates_for(price, 0, variant_of(price, tier))
    quantities = zip(OTHER_UNITS, (searches, 1), strict=True)
    return charge_ceiling(1, sum(quantity * rates.get(unit, 0) for unit, quantity in quantities))


def provenance(price: Price, version: str) -> dict[str, str]:
    """Where a price is from, as the record keeps it."""
    facts = {"version": version, "provider": price.provider, "model": price.model}
    facts |= {"source": price.source, "as_of": price.as_of}
    return {name: text for name, text in facts.items() if text}


def describe(price: Price) -> list[tuple[str, str]]:
    """The price as rows of (what, how much) for people; money in credits per million, per search or per request."""
    rows = [("provider", price.provider), ("model", price.model)]
    if price.free:
        rows.append(("price", "explicitly free"))
    rows += _rate_rows(price.rates, "")
    for above, rates in price.tiers:
        rows += _rate_rows(rates, f", above {above:,} input tokens")
    for variant, rates in price.variants.items():
        rows += _rate_rows(rates, f", {variant}")
        for above, more in price.variant_tiers.get(variant, ()):
            rows += _rate_rows(more, f", {variant}, above {above:,} input tokens")
    if price.output_tokens_max:
        rows.append(("output at most", f"{price.output_tokens_max:,} tokens"))
    if price.context_tokens:
        rows.append(("context", f"{price.context_tokens:,} tokens"))
    rows.append(("source", price.source))
    if price.as_of:
        rows.append(("as of", price.as_of))
    return rows


def _rate_rows(rates: Rates, when: str) -> list[tuple[str, str]]:
    return [(unit + when, _price_text(unit, rate)) for unit, rate in rates.items()]


def _price_text(unit: str, rate: int) -> str:
    single = unit in OTHER_UNITS
    text = f"{Decimal(rate).scaleb(-16 if single else -10):f}"
    whole, _, part = text.partition(".")
    per = "each" if single else "per million tokens"
    return f"{whole}.{part.rstrip('0').ljust(2, '0')} {per}"
