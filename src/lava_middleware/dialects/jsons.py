"""This file knows how to read a provider's JSON without trusting it: what is not as it should be reads as absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from ..core.money import TICKS_PER_CREDIT, ticks_of

_DECODER = json.JSONDecoder(parse_float=Decimal)
"""Decimal: a cost that a provider reports is money and is never a float (T24)."""

LARGEST_COUNT = 2**53


def parsed(raw: bytes | str) -> Any:
    """The JSON value, or None if it is none (not UTF-8, truncated, nested too deeply, numbers without end)."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return _DECODER.decode(text)
    except (ValueError, RecursionError, ArithmeticError):
        return None


def value_at(raw: bytes, start: int) -> Any:
    """The JSON value that begins at this byte, whatever follows it; None if it is none."""
    try:
        text = raw[start:].decode("utf-8", "replace")
        return _DECODER.raw_decode(text.lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError, ArithmeticError):
        return None


def encoded(value: Any) -> bytes:
    """Compact JSON. Decimals are written as numbers."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain).encode("utf-8", "surrogatepass")


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[Any]:
    """The value if it is an array, else an empty one."""
    return value if isinstance(value, list) else ()


def text_or_none(value: object) -> str | None:
    """The value if it is a string with something in it."""
    return value if isinstance(value, str) and value else None


def count(value: object) -> int | None:
    """A whole number from 0 to 2^53, or None: not reported. 12.0 is 12; true, "12" and -1 are not counts."""
    if isinstance(value, Decimal):
        small = value.is_finite() and value.adjusted() <= 15
        whole = int(value) if small and value == value.to_integral_value() else None
    elif isinstance(value, float):
        whole = int(value) if value.is_integer() and abs(value) < LARGEST_COUNT else None
    elif isinstance(value, int) and not isinstance(value, bool):
        whole = value
    else:
        whole = None
    return whole if whole is not None and 0 <= whole <= LARGEST_COUNT else None


def first_count(*values: object) -> int | None:
    """The first that is a count: providers spell one figure in several ways, and null in some."""
    for value in values:
        if (found := count(value)) is not None:
            return found
    return None


def dollars_in_ticks(value: object) -> int | None:
    """Ticks in an amount of dollars that a provider reports, rounded up to a tick; None: not an amount."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    amount = Decimal(value)
    if not amount.is_finite() or not 0 <= amount < LARGEST_COUNT // TICKS_PER_CREDIT:
        return None
    ticks = amount * TICKS_PER_CREDIT
    return ticks_of(ticks.to_integral_value(rounding="ROUND_CEILING").scaleb(-10))
