"""Money is whole ten-billionths of a credit, and nothing else."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.money import Amount, AmountError, charge_ceiling, decimal_text, half_even, ticks_of


@pytest.mark.parametrize(
    ("written", "ticks"),
    [("5.00", 50_000_000_000), ("0.0000000001", 1), (3, 30_000_000_000), (Decimal("-0.5"), -5_000_000_000)],
)
def test_amounts_are_read_exactly(written: object, ticks: int) -> None:
    assert ticks_of(written) == ticks


@pytest.mark.parametrize(
    "written",
    [0.1, True, None, "NaN", "Infinity", "-inf", "1e400", "0.00000000001", "five", "", "1" * 41, b"1", "1e99", [1]],
)
def test_what_is_no_exact_amount_is_refused_with_a_clear_error(written: object) -> None:
    """T24: floats, NaN, overflow."""
    with pytest.raises(AmountError):
        ticks_of(written)


def test_an_error_never_repeats_what_was_written() -> None:
    """T32."""
    with pytest.raises(AmountError) as error:
        ticks_of("sk-secret")
    assert "sk-secret" not in str(error.value)
    assert error.value.__cause__ is None


@given(st.integers(-(2**61), 2**61))
def test_an_amount_survives_being_written_and_read(ticks: int) -> None:
    assert Amount.of(str(Amount(ticks))).ticks == ticks
    assert Amount.of(decimal_text(ticks)).ticks == ticks
    assert Amount(ticks).decimal == Decimal(ticks) / Decimal(10**10)


def test_an_amount_shows_at_least_cents_and_no_idle_zeros() -> None:
    assert [str(Amount.of(text)) for text in ("5", "0.1", "-0.000125", "1234567")] == [
        "5.00",
        "0.10",
        "-0.000125",
        "1234567.00",
    ]


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**12))
def test_the_one_rounding_is_half_to_even(numerator: int, denominator: int) -> None:
    assert half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(st.integers(0, 10**9), st.integers(0, 10**13))
def test_holds_round_up(quantity: int, price: int) -> None:
    assert 0 <= charge_ceiling(quantity, price) * 10**6 - quantity * price < 10**6


def test_sums_stay_within_64_bits() -> None:
    with pytest.raises(AmountError):
        Amount.of("461168601") + Amount.of("461168601")
