"""The snapshot and our rating agree with genai-prices' own calculator, where that is installed."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from lava_middleware.core.money import TICKS_PER_CREDIT
from lava_middleware.core.rating import rate
from lava_middleware.core.usage import Usage
from lava_middleware.prices.book import Book
from lava_middleware.prices.snapshot import shipped

genai_prices = pytest.importorskip("genai_prices", reason='genai-prices is not installed (dependency group "prices")')

AS_OF = datetime.fromisoformat(shipped().as_of).replace(hour=2, tzinfo=UTC)
"""At this hour DeepSeek's prices are those of its peak: the snapshot has the dearest."""

CONTEXTS: list[tuple[str | None, dict[str, str]]] = [
    (None, {}),
    ("batch", {"processing": "batch"}),
    ("flex", {"service_tier": "flex"}),
    ("priority", {"service_tier": "priority"}),
]
CALLS = [
    Usage(input=1_000, cache_read=500, output=300),
    Usage(input=150_000, cache_read=50_000, output=4_000),
    Usage(input=150_001, cache_read=50_000, output=4_000),
    Usage(input=250_000, cache_read=22_001, output=4_000),
]
UNCACHED_CALLS = [Usage(input=usage.input_tokens, output=usage.output_tokens) for usage in CALLS]


def theirs(usage: Usage) -> Any:
    return genai_prices.Usage(
        input_tokens=usage.input_tokens, cache_read_tokens=usage.get("cache_read", 0), output_tokens=usage.output_tokens
    )


@pytest.mark.parametrize(
    ("ours", "provider"),
    [
        ("openai", "openai"),
        ("anthropic", "anthropic"),
        ("groq", "groq"),
        ("mistral", "mistral"),
        ("deepseek", "deepseek"),
    ],
)
def test_every_model_costs_the_same(ours: str, provider: str) -> None:
    """T2, T21, T25"""
    from genai_prices.data import providers

    book, compared = Book(), 0
    catalogue = next(one for one in providers if one.id == provider)
    for model in catalogue.models:
        price = book.find((ours,), model.id)
        if price is None or price.source == "litellm" or price.free:
            continue
        for usage in CALLS if _prices_cache_reads(model) else UNCACHED_CALLS:
            for tier, context in CONTEXTS:
                if tier and not any(variant.when == context for variant in model.price_variants or ()):
                    continue
                calculated = model.calc_price(
                    theirs(usage), catalogue, genai_request_timestamp=AS_OF, price_context=context
                ).total_price
                exact = Decimal(rate(price, usage, tier=tier).cost) / TICKS_PER_CREDIT
                if price.tiers and not _tiered(model):
                    continue  # a tier that only the other catalogue knows
                assert abs(exact - calculated) <= Decimal("1e-10"), (model.id, usage, tier)
                compared += 1
    assert compared > 20


def _prices_cache_reads(model: Any) -> bool:
    """Else our rate for them is the other catalogue's."""
    return model.get_prices(AS_OF).cache_read_mtok is not None


def _tiered(model: Any) -> bool:
    prices = model.get_prices(AS_OF)
    return any(type(value).__name__ == "TieredPrices" for value in prices.__dict__.values())


def test_cache_writes_of_both_lifetimes_cost_the_same() -> None:
    """T21"""
    price = Book().find(("anthropic",), "claude-sonnet-4-5")
    for short, long in ((1_000, 2_000), (100_000, 100_001)):
        usage = genai_prices.Usage(
            input_tokens=short + long, cache_write_tokens=short + long, cache_write_1h_tokens=long, output_tokens=10
        )
        calculated = genai_prices.calc_price(usage, "claude-sonnet-4-5", provider_id="anthropic").total_price
        rating = rate(price, Usage(cache_write=short, cache_write_1h=long, output=10))
        assert Decimal(rating.cost) / TICKS_PER_CREDIT == calculated
