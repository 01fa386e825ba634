"""Units are disjoint and add up, whatever a provider's totals include."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.usage import Reading, Usage, usage_of

figures = st.none() | st.integers(0, 5_000)


def test_cached_tokens_are_not_also_plain_input() -> None:
    """T21."""
    usage = usage_of(Reading(input_tokens=1_000, cached_input_tokens=600, cache_write_tokens=100, output_tokens=5))
    assert usage == Usage(input=300, cache_read=600, cache_write=100, output=5)


def test_reasoning_is_part_of_output() -> None:
    """T22."""
    usage = usage_of(Reading(input_tokens=1, output_tokens=50, reasoning_tokens=40))
    assert usage == Usage(input=1, output=10, reasoning=40)


def test_cache_writes_are_split_by_lifetime() -> None:
    usage = usage_of(Reading(input_tokens=100, cache_write_tokens=90, cache_write_1h_tokens=40))
    assert usage == Usage(input=10, cache_write=50, cache_write_1h=40)


def test_a_part_above_its_total_is_cut_to_it() -> None:
    assert usage_of(Reading(input_tokens=203, cached_input_tokens=314)) == Usage(cache_read=203)
    assert usage_of(Reading(output_tokens=10, reasoning_tokens=12)) == Usage(reasoning=10)


@given(
    st.builds(
        Reading, figures, figures, figures, figures, figures, figures, figures, figures, figures, figures, figures
    )
)
def test_the_parts_always_sum_to_the_totals(reading: Reading) -> None:
    """T21, T22."""
    usage = usage_of(reading)
    assert usage.input_tokens == (reading.input_tokens or 0)
    assert usage.output_tokens == (reading.output_tokens or 0)


def test_negative_and_broken_quantities_are_refused() -> None:
    for wrong in (-1, 1.5, None):
        with pytest.raises(ValueError, match="whole number"):
            Usage({"input": wrong})  # type: ignore[dict-item]


def test_usages_add_unit_by_unit() -> None:
    assert Usage(input=1, output=2) + Usage(input=3, reasoning=1) == Usage(input=4, output=2, reasoning=1)
