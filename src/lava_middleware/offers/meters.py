"""This file knows how to read and check the meters that an operator gives, and which one a call is charged by.

It needs pydantic and is imported only where settings are read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ..core.meter import MILLIONS, Meter
from ..core.money import PER_MILLION, ticks_of
from ..core.rating import Markup
from ..core.tiers import Tiers
from ..core.usage import INPUT_UNITS, OUTPUT_UNITS
from ..core.windows import zone_of

EXAMPLE = '{"chat": {"cost_times": "1.20"}, "tts": {"rates": {"characters": "15.00"}}}'
STEPS_MOST = 64
_SUMS = {
    "tokens": ("input_tokens", "output_tokens", *INPUT_UNITS, *OUTPUT_UNITS),
    "input_tokens": INPUT_UNITS,
    "output_tokens": OUTPUT_UNITS,
}


class MetersError(ValueError):
    """The operator's meters cannot be right; the message says where and why, never the value."""


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable() or "|" in value:
        raise ValueError("must be 1 to 64 printable characters, without '|'")
    return value


_Name = Annotated[str, BeforeValidator(_name)]


def rate_of(unit: str, price: object) -> int:
    """Ticks per million units of a price: a number of credits, or {"price": "0.006", "per": 60}.

    Tokens and characters are priced per million, all else each, unless `per` says otherwise.
    """
    per = PER_MILLION if unit in MILLIONS else 1
    if isinstance(price, Mapping):
        if set(price) != {"price", "per"}:
            raise ValueError('a price is a number of credits, or {"price": "0.006", "per": 60}')
        named: Mapping[str, Any] = price
        price, per = named["price"], named["per"]
        if isinstance(per, bool) or not isinstance(per, int) or not 0 < per <= 10**9:
            raise ValueError("per must be a whole number of units, 1 to a thousand million")
    ticks = ticks_of(price, what="a price")
    if ticks < 0:
        raise ValueError("a price must be at least 0")
    rate, rest = divmod(ticks * PER_MILLION, per)
    if rest:
        raise ValueError("a price must be a whole number of ten-billionths of a credit per million units")
    return rate


def _rates(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError('must be a table of prices such as {"input": "3.00", "output": "15.00"}')
    return {_name(unit): rate_of(unit, price) for unit, price in value.items()}


_Patterns = Annotated[tuple[str, ...], Field(max_length=100)]


class Given(BaseModel):
    """One meter as the operator gives it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cost_times: Any = None
    """The charge as a multiple of the cost: "1.20" is the cost and a fifth more."""
    rates: Annotated[dict[str, int], BeforeValidator(_rates)] = {}
    unit: _Name | None = None
    tiers: list[Any] | None = None
    """[[0, "5.00"], [1000000, "3.00"]]: each unit at the rate of its own tier, counted per customer and window."""
    window: Literal["minute", "hour", "day", "week", "month", "year", "cycle", "lifetime"] = "month"
    zone: str = "UTC"
    models: _Patterns = ()
    providers: _Patterns = ()
    routes: _Patterns = ()
    billing: Literal["charge", "meter_only"] = "charge"

    @model_validator(mode="after")
    def _is_a_meter(self) -> Given:
        if self.cost_times is not None:
            Markup(self.cost_times)
        zone_of(self.zone)
        if (self.tiers is None) != (self.unit is None):
            raise ValueError('"unit" and "tiers" stand together: what is counted, and from where on which price')
        if self.tiers is not None:
            _steps(self.unit or "", self.tiers)
        for total, parts in _SUMS.items():
            twice = next((part for part in parts if total in self.rates and part in self.rates), None)
            if twice is not None:
                raise ValueError(f"prices tokens twice: {twice} is a part of {total}")
        if self.billing == "charge" and self.cost_times is None and not self.rates and self.tiers is None:
            raise ValueError('charges nothing: give cost_times, rates or tiers, or {"billing": "meter_only"}')
        return self

    def meter(self, name: str) -> Meter:
        tiers = None
        if self.tiers is not None:
            tiers = Tiers(name, _steps(self.unit or "", self.tiers), self.window, self.zone)
        times = None if self.cost_times is None else Markup(self.cost_times)
        return Meter(
            name,
            times,
            dict(self.rates),
            self.unit or "",
            tiers,
            self.models,
            self.providers,
            self.routes,
            self.billing == "charge",
        )


def _steps(unit: str, given: list[Any]) -> tuple[tuple[int, int], ...]:
    if not 0 < len(given) <= STEPS_MOST:
        raise ValueError(f"tiers must be 1 to {STEPS_MOST}")
    steps: list[tuple[int, int]] = []
    for one in given:
        if not isinstance(one, list | tuple) or len(one) != 2:
            raise ValueError('tiers must be pairs of a start and a price, as [[0, "5.00"], [1000000, "3.00"]]')
        start, price = one
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < 2**53:
            raise ValueError("a tier's start must be a whole number of units")
        if (steps and start <= steps[-1][0]) or (not steps and start):
            raise ValueError("tiers must start at 0 and go up")
        steps.append((start, rate_of(unit, price)))
    return tuple(steps)


_ALL = TypeAdapter(dict[_Name, Given])


class Meters:
    """All meters of one operator. `cost × markup` is what a call without a meter of its own is charged."""

    def __init__(self, meters: Mapping[str, Meter], markup: Markup) -> None:
        self._named = dict(meters)
        self._chosen = [one for one in meters.values() if one.models or one.providers or one.routes]
        self.default = Meter("", markup)

    def __contains__(self, name: str) -> bool:
        return name in self._named

    def __iter__(self) -> Any:
        return iter(self._named.values())

    def named(self, name: str) -> Meter | None:
        return self._named.get(name)

    def choose(self, name: str, model: str, provider: str, route: str) -> Meter:
        """The meter that was named, else the first that applies, else cost × markup.

        A name that no meter has is a label: it stands on the record and limits may count it.
        """
        named = self._named.get(name)
        if named is not None:
            return named
        for one in self._chosen:
            if one.applies(model, provider, route):
                return one
        return self.default


def read(meters: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Meter]:
    """Name → meter, from a mapping or a TOML file of that shape. Raises MetersError with the place in it."""
    where = "meters: "
    if isinstance(meters, str | os.PathLike):
        where, meters = f"meters file {os.fspath(meters)}: ", _from_file(meters)
    if not isinstance(meters, Mapping):
        raise MetersError(f"meters must be a mapping or the path of a TOML file, for example {EXAMPLE}")
    try:
        given = _ALL.validate_python(dict(meters))
    except ValidationError as error:
        one = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in one["loc"] if part != "[key]")
        raise MetersError(f"{where}{place}: {one['msg'].removeprefix('Value error, ')}") from None
    return {name: one.meter(name) for name, one in given.items()}


def _from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file, parse_float=Decimal)
    except OSError as error:
        raise MetersError(f"meters file {os.fspath(path)} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MetersError(f"meters file {os.fspath(path)} is not TOML: {error}") from None
