"""This file knows how to read and check the prices that an operator gives: a mapping, or a TOML file of the same shape.

It needs pydantic and is imported only where there are such prices.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ..core.money import PER_MILLION, ticks_of
from ..core.usage import OTHER_UNITS, UNITS

EXAMPLE = '{"gpt-4o": {"input": "2.50", "output": "10.00", "cache_read": "1.25"}}, credits per million tokens'


class PricesError(ValueError):
    """The operator's prices cannot be right; the message says where and why, never the value."""


def _price(value: object) -> int:
    rate = ticks_of(value, what="a price")
    if rate < 0:
        raise ValueError("a price must be at least 0")
    return rate


def _units(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError('must be a table of prices such as {"input": "2.50", "output": "10.00"}')
    unknown = sorted(str(unit) for unit in value if unit not in UNITS)
    if unknown:
        raise ValueError(f"{unknown[0][:40]!r} is not a unit; the units are {', '.join(UNITS)}")
    return {unit: _per_million(unit, _price(price)) for unit, price in value.items()}


def _per_million(unit: str, rate: int) -> int:
    """Tokens are priced per million, searches and requests each."""
    return rate * PER_MILLION if unit in OTHER_UNITS else rate


_Units = Annotated[dict[str, int], BeforeValidator(_units)]
_TokenCount = Annotated[int, Field(strict=True, gt=0, lt=2**40)]


class Given(BaseModel):
    """One model's prices as the operator gives them. Units stand beside the other fields: {"input": "2.50", ...}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rates: _Units = {}
    tiers: dict[Annotated[int, Field(ge=0, lt=2**40)], _Units] = {}
    """Input tokens → prices of a call that has more."""
    variants: dict[str, _Units] = {}
    """Service tier → prices."""
    free: Annotated[bool, Field(strict=True)] = False
    output_tokens_max: _TokenCount | None = None
    context_tokens: _TokenCount | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            raise ValueError(f"must be a table of prices such as {EXAMPLE}")
        fields = {name: value for name, value in given.items() if name in cls.model_fields and name != "rates"}
        rest = {name: value for name, value in given.items() if name not in fields}
        return {**fields, "rates": rest}

    @model_validator(mode="after")
    def _is_a_price(self) -> Given:
        if self.free:
            if self.rates or self.tiers or self.variants:
                raise ValueError('"free" stands alone: a model is free or has prices')
        elif not {"input", "output"} <= self.rates.keys():
            raise ValueError('needs "input" and "output" (an embeddings model: "output": "0"), or {"free": true}')
        elif not any(self.rates.values()):
            raise ValueError('prices are all zero: say {"free": true} if the model is free')
        return self


_ALL = TypeAdapter(dict[str, Given])


def read(prices: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Given]:
    """Lower-case "model" or "provider/model" → what was given. Raises PricesError with the place in it."""
    if isinstance(prices, str | os.PathLike):
        where, prices = f"prices file {os.fspath(prices)}: ", _from_file(prices)
    else:
        where = "prices: "
    if not isinstance(prices, Mapping):
        raise PricesError(f"prices must be a mapping or the path of a TOML file, for example {EXAMPLE}")
    for name in prices:
        if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
            raise PricesError(f"{where}a model's name must be 1 to 200 printable characters")
    try:
        given = _ALL.validate_python(dict(prices))
    except ValidationError as error:
        raise PricesError(where + _first(error)) from None
    lowered = {name.lower(): one for name, one in given.items()}
    if len(lowered) < len(given):
        raise PricesError(f"{where}a model is named twice; upper and lower case are the same")
    return lowered


def _from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file, parse_float=Decimal)
    except OSError as error:
        raise PricesError(f"prices file {os.fspath(path)} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PricesError(f"prices file {os.fspath(path)} is not TOML: {error}") from None


def _first(error: ValidationError) -> str:
    """The first complaint, with its place and without the value."""
    one = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:80] for part in one["loc"] if part != "rates")
    message = one["msg"].removeprefix("Value error, ")
    return f"{place}: {message}"
