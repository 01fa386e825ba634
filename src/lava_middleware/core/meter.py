"""This file knows a meter: a named rule for what the customer is charged, beside what the provider costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from .money import PER_MILLION, Ticks, charge_ceiling, half_even, within_bounds
from .pricing import FALLBACKS, Price
from .rating import Line, Markup, Rating
from .tiers import Tiers
from .usage import INPUT_UNITS, OUTPUT_UNITS, Usage

SUMS = ("tokens", "input_tokens", "output_tokens")
"""Units that are sums over a usage's token units."""
MILLIONS = (*SUMS, *INPUT_UNITS, *OUTPUT_UNITS, "characters")
"""Units that are priced per million unless a price says otherwise; all others are priced each."""


class Charge(NamedTuple):
    """What a meter charges for one exchange, apart from its tiers."""

    ticks: Ticks
    lines: tuple[Line, ...]
    """Of the fixed rates."""


class Ceilings(NamedTuple):
    """The most a request can be charged, in ticks per million, and flat."""

    input_rate: int
    output_rate: int
    flat: Ticks


@dataclass(frozen=True, slots=True)
class Meter:
    """How usage becomes a charge: a multiple of the cost, fixed rates per unit, tiers of one unit, or their sum."""

    name: str
    cost_times: Markup | None = None
    """"1.20": the cost and a fifth more. None: the cost itself is not charged."""
    rates: Mapping[str, Ticks] = field(default_factory=dict)
    """Unit → ticks per million: token parts (input, cache_read, output, ...), SUMS, requests, or any reported unit."""
    unit: str = ""
    """What `tiers` count."""
    tiers: Tiers | None = None
    models: tuple[str, ...] = ()
    """Patterns ("gpt-4o*") of what it applies to where no meter is named; empty: to whatever is not named here."""
    providers: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    bills: bool = True
    """False: metered, limited and recorded, and nobody is charged."""

    @property
    def needs_cost(self) -> bool:
        return self.bills and self.cost_times is not None

    def applies(self, model: str, provider: str, route: str) -> bool:
        """Whether it is the meter of such a call that names none."""
        chosen = ((self.models, model), (self.providers, provider), (self.routes, route))
        if not any(patterns for patterns, _ in chosen):
            return False
        return all(
            not patterns or any(fnmatchcase(value.lower(), one.lower()) for one in patterns)
            for patterns, value in chosen
        )

    def charge(self, rating: Rating, usage: Usage, units: Mapping[str, int]) -> Charge:
        """What this usage is charged, rounded once, half to even. `units`: quantities beside the usage's own."""
        if not self.bills:
            return Charge(0, ())
        lines = self._lines(usage, units)
        # Kept apart from the multiple of the cost, which is rounded by itself: the record shows both.
        fixed = half_even(sum(line.quantity * line.rate for line in lines), PER_MILLION)
        multiple = self.cost_times.charge(rating) if self.cost_times is not None else 0
        return Charge(within_bounds(fixed + multiple), lines)

    def ceilings(
        self, price: Price | None, dearest: tuple[int, int], fees: Ticks, units: Mapping[str, int]
    ) -> Ceilings:
        """The most that input, output and the rest can be charged. `dearest` and `fees`: what the provider costs."""
        if not self.bills:
            return Ceilings(0, 0, 0)
        times = self.cost_times
        input_rate, output_rate, flat = (0, 0, 0)
        if times is not None and price is not None:
            input_rate, output_rate, flat = times.ceiling(dearest[0]), times.ceiling(dearest[1]), times.ceiling(fees)
        both = self.rates.get("tokens", 0)
        input_rate += both + self.rates.get("input_tokens", 0) + self._dearest(INPUT_UNITS)
        output_rate += both + self.rates.get("output_tokens", 0) + self._dearest(OUTPUT_UNITS)
        for unit, quantity in {"requests": 1, **units}.items():
            flat += charge_ceiling(quantity, self.rates.get(unit, 0))
        return Ceilings(input_rate, output_rate, flat)

    def counted(self, usage: Usage, units: Mapping[str, int]) -> int:
        """How much of the tiers' unit this is."""
        return quantity_of(self.unit, usage, units) if self.tiers is not None and self.bills else 0

    @property
    def counts_input(self) -> bool:
        return self.unit in ("tokens", "input_tokens", *INPUT_UNITS)

    @property
    def counts_output(self) -> bool:
        return self.unit in ("tokens", "output_tokens", *OUTPUT_UNITS)

    def _lines(self, usage: Usage, units: Mapping[str, int]) -> tuple[Line, ...]:
        lines = [
            Line(unit, quantity, self.rates[unit])
            for unit in self.rates
            if unit not in usage and (quantity := quantity_of(unit, usage, units))
        ]
        for unit in usage:
            rate = self._rate_of(unit)
            if rate is not None:
                lines.append(Line(unit, usage[unit], rate))
        return tuple(lines)

    def _rate_of(self, unit: str) -> Ticks | None:
        """The rate of a token part, or of the part it counts as where it has none of its own."""
        name: str | None = unit
        while name is not None and name not in self.rates:
            name = FALLBACKS.get(name)
        return None if name is None else self.rates[name]

    def _dearest(self, units: tuple[str, ...]) -> Ticks:
        return max((self._rate_of(unit) or 0 for unit in units), default=0)


def quantity_of(unit: str, usage: Usage, units: Mapping[str, int]) -> int:
    """How much of a unit was used: a sum over tokens, a token part, one request, or a quantity that was reported."""
    if unit in units:
        return units[unit]
    match unit:
        case "tokens":
            return usage.tokens
        case "input_tokens":
            return usage.input_tokens
        case "output_tokens":
            return usage.output_tokens
        case "requests":
            return 1
        case _:
            return usage.get(unit, 0)


AT_COST = Meter("", Markup())
