"""This file knows how to keep money exact: integers of ten-billionths of a credit."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext
from typing import TypeAlias

Ticks: TypeAlias = int
"""Ten-billionths of a credit (10⁻¹⁰). Inside the core every sum of money is a whole number of these."""

TICKS_PER_CREDIT = 10_000_000_000
PER_MILLION = 1_000_000

LARGEST = 2**62
"""No amount and no sum may reach this (about 461 million credits): it keeps every column within 64 bits."""


class AmountError(ValueError):
    """The amount is not a finite decimal number with at most ten decimal digits, or is too large."""


def within_bounds(ticks: Ticks) -> Ticks:
    """The same ticks, or AmountError when they lie outside ±2⁶²."""
    if not -LARGEST < ticks < LARGEST:
        raise AmountError("amount out of range: at most 461 million credits either way")
    return ticks


def at_most(ticks: Ticks, most: Ticks, what: str) -> Ticks:
    """The same ticks, or AmountError where they would take a sum out of its bounds."""
    if ticks > most:
        raise AmountError(f"{what}: no sum may reach 461 million credits")
    return ticks


def ticks_of(credits: object, *, what: str = "amount") -> Ticks:
    """Ticks in a decimal number of credits: "5.00", 5, Decimal("0.1") or an Amount.

    Floats are refused (0.1 is not a tenth), and so are NaN, infinities and more than ten decimal digits.
    """
    if isinstance(credits, Amount):
        return credits.ticks
    if isinstance(credits, bool) or not isinstance(credits, int | str | Decimal):
        raise AmountError(f'{what} must be a string such as "5.00", a Decimal or an int, not {type(credits).__name__}')
    if isinstance(credits, str) and len(credits) > 40:
        raise AmountError(f"{what} is too long: at most 40 characters")
    with localcontext() as context:
        context.prec = 60
        try:
            exact = Decimal(credits)
            if not exact.is_finite() or exact.adjusted() > 20:
                raise AmountError(f"{what} must be a finite number below 461 million credits")
            scaled = exact * TICKS_PER_CREDIT
        except InvalidOperation:
            raise AmountError(f'{what} is not a decimal number such as "5.00"') from None
        if scaled != scaled.to_integral_value():
            raise AmountError(f"{what} has more than ten decimal digits")
    return within_bounds(int(scaled))


def charge_ceiling(quantity: int, ticks_per_million: int) -> Ticks:
    """What `quantity` units cost at most, rounded up: the way holds round."""
    return -(-quantity * ticks_per_million // PER_MILLION)


def half_even(numerator: int, denominator: int) -> Ticks:
    """numerator / denominator to the nearest tick, half to even: the one rounding of a record."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def decimal_text(ticks: Ticks, *, digits: int = 10) -> str:
    """Credits as a plain decimal string with exactly `digits` (0 to 10) decimals, truncated towards zero."""
    sign = "-" if ticks < 0 else ""
    whole, part = divmod(abs(ticks), TICKS_PER_CREDIT)
    return f"{sign}{whole}.{part:010d}"[: len(sign) + len(str(whole)) + 1 + digits] if digits else f"{sign}{whole}"


@dataclass(frozen=True, slots=True, order=True)
class Amount:
    """A sum of credits, exact to ten decimal digits. `Amount.of("5.00")`, `str(amount)`, `amount.decimal`."""

    ticks: Ticks

    def __post_init__(self) -> None:
        if not isinstance(self.ticks, int) or isinstance(self.ticks, bool):
            raise AmountError('Amount takes whole ticks; write Amount.of("5.00") for credits')
        within_bounds(self.ticks)

    @classmethod
    def of(cls, credits: object) -> Amount:
        """The amount of a decimal number of credits. Raises AmountError for floats, NaN, more than ten decimals."""
        return cls(ticks_of(credits))

    @property
    def decimal(self) -> Decimal:
        return Decimal(self.ticks).scaleb(-10)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.ticks + other.ticks) if isinstance(other, Amount) else NotImplemented

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.ticks - other.ticks) if isinstance(other, Amount) else NotImplemented

    def __neg__(self) -> Amount:
        return Amount(-self.ticks)

    def __bool__(self) -> bool:
        return self.ticks != 0

    def __str__(self) -> str:
        """At least two decimals, no trailing zeros beyond them: "5.00", "0.000125"."""
        whole, part = decimal_text(self.ticks).split(".")
        return f"{whole}.{part.rstrip('0').ljust(2, '0')}"

    def __repr__(self) -> str:
        return f'Amount.of("{self}")'
