"""This file knows what a model costs per unit, from which price list, in whole ticks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Rates: TypeAlias = Mapping[str, int]
"""Unit (core.usage.UNITS) → ticks per million of it. Ten dollars per million tokens are 100,000,000,000 ticks."""


@dataclass(frozen=True, slots=True)
class Price:
    """One model's prices at one provider. A unit that has no rate of its own falls back as FALLBACKS says."""

    provider: str
    model: str
    """As the price list names it."""
    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    """(input tokens, rates): a call with MORE input tokens than this is priced whole at these rates; ascending."""
    variants: Mapping[str, Rates] = field(default_factory=dict)
    """Service tier ("flex", "priority", "batch", "fast", ...) → rates that replace the standard ones."""
    variant_tiers: Mapping[str, tuple[tuple[int, Rates], ...]] = field(default_factory=dict)
    """Service tier → its own `tiers`; without any, the standard tiers go on for units the variant does not name."""
    output_tokens_max: int | None = None
    """The most output the model gives in one answer."""
    context_tokens: int | None = None
    free: bool = False
    """Explicitly free: zero prices count only with this."""
    source: str = ""
    """Which list: "genai-prices", "litellm", "operator"."""
    as_of: str = ""
    """ISO date of the list; empty for the operator's own."""


class PriceBook(Protocol):
    """Prices by provider and model. Unknown is None: it is never free (T5)."""

    version: str
    """Names the snapshot and overlays; stands on every record."""

    def find(self, providers: tuple[str, ...], model: str) -> Price | None:
        """The price in the first of these providers' lists that knows the model or the alias it is of."""


FALLBACKS = {
    # unit → the unit whose rate it has when the list names none. A missing entry: it must be listed to be priced.
    "cache_read": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "input_audio": "input",
    "cache_read_audio": "cache_read",
    "input_image": "input",
    "reasoning": "output",
    "output_audio": "output",
    "output_image": "output",
}

VARIANT_NAMES = {
    # What responses and requests call a service tier → the name price lists have for it. Else it is its own name.
    "fast": "priority",
    "on_demand_priority": "priority",
    "on_demand_flex": "flex",
}


def variant_of(price: Price, tier: str | None) -> str:
    """The variant of this price that a service tier means; empty for the standard rates, also for tiers not listed."""
    if not tier or not price.variants:
        return ""
    name = tier.lower()
    if name in price.variants:
        return name
    other = VARIANT_NAMES.get(name, "")
    return other if other in price.variants else ""


def rates_for(price: Price, input_tokens: int, variant: str = "") -> Rates:
    """The rates of a call with so many input tokens: the highest tier it passes counts for the whole call."""
    rates = price.rates
    if price.tiers and (reached := _reached(price.tiers, input_tokens)):
        rates = {**rates, **reached}
    if variant:
        rates = {**rates, **price.variants[variant]}
        if reached := _reached(price.variant_tiers.get(variant, ()), input_tokens):
            rates = {**rates, **reached}
    return rates


def _reached(tiers: tuple[tuple[int, Rates], ...], input_tokens: int) -> Rates | None:
    reached = None
    for above, rates in tiers:
        if input_tokens > above:
            reached = rates
    return reached


def rate_of(rates: Rates, unit: str) -> int | None:
    """Ticks per million of the unit, or of the one it falls back to; None: the list names neither."""
    name: str | None = unit
    while name is not None:
        rate = rates.get(name)
        if rate is not None:
            return rate
        name = FALLBACKS.get(name)
    return None
