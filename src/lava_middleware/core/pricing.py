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
    output_tokens_max: int | None = None
    """The most output the model gives in one answer."""
    context_tokens: int | None = None
    free: bool = False
    """Explicitly free: zero prices count only with this."""
    source: str = ""
    """Which list: "genai-prices", "litellm", "operator"."""
    as_of: str = ""
    """ISO date of the list."""


class PriceBook(Protocol):
    """Prices by provider and model. Unknown is None: it is never free (T5)."""

    version: str
    """Names the snapshot and overlays; stands on every record."""

    def find(self, providers: tuple[str, ...], model: str) -> Price | None:
        """The price in the first of these providers' lists that knows the model or the alias it is of."""


FALLBACKS = {
    # unit → the unit whose rate it has when the list names none. A missing entry: free of charge.
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
