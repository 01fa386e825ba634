"""This file knows how to read and check one file with all that an operator sells: plans, limits, meters, prices.

It needs pydantic and is imported only where settings are read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ..core.meter import Meter
from ..core.terms import LIMIT_UNITS, TOP_UP, Limit, Plan, Terms, TopUp
from ..prices import overlay
from ..providers import operator
from . import meters as own_meters
from .terms import made_limit, made_top_up, plan_of

SECTIONS = ("prices", "meters", "providers")
"""What may stand in the catalogue instead of in a setting of that name."""


class CatalogueError(ValueError):
    """The catalogue cannot be right; the message says where and why, never the value."""


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable() or "|" in value:
        raise ValueError("must be 1 to 64 printable characters, without '|'")
    return value


_Name = Annotated[str, BeforeValidator(_name)]


class GivenLimit(BaseModel):
    """A limit under its name; of a name such as "tokens/month" unit and window are clear."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantity: Any
    unit: str | None = None
    window: str | None = None
    zone: str | None = None
    """None: the customer's, as its plan has it."""
    anchor: str = ""
    of: dict[str, str] = {}
    per: str = ""
    on_reach: Literal["block", "warn"] = "block"
    strict: Annotated[bool, Field(strict=True)] = False
    thresholds: tuple[int, ...] = ()

    def limit(self, name: str, zone: str) -> Limit:
        unit, _, window = name.partition("/")
        return made_limit(
            name,
            self.quantity,
            self.unit or unit,
            window=self.window or window or None,
            zone=self.zone or zone,
            anchor=self.anchor,
            of=self.of,
            per=self.per,
            on_reach=self.on_reach,
            strict=self.strict,
            thresholds=self.thresholds,
        )


def _limits(value: object) -> object:
    """ "tokens/month" = 100000 is short for a table with that quantity."""
    if not isinstance(value, Mapping):
        raise ValueError('must be a table of limits such as "tokens/month" = 100000')
    return {name: one if isinstance(one, Mapping) else {"quantity": one} for name, one in value.items()}


_Limits = Annotated[dict[_Name, GivenLimit], BeforeValidator(_limits)]


class GivenTopUp(BaseModel):
    """What is bought when credit runs low."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    below: Any
    amount: Any
    most: Any
    window: str = "month"
    zone: str = "UTC"

    @model_validator(mode="after")
    def _is_one(self) -> GivenTopUp:
        self.made()
        return self

    def made(self) -> TopUp:
        return made_top_up(self.below, self.amount, self.most, self.window, self.zone)


class GivenPlan(BaseModel):
    """A plan as the operator gives it: the words of lava.subscribe()."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    credits: Any = 0
    cycle: Literal["day", "week", "month", "year"] = "month"
    anchor: str = ""
    zone: str = "UTC"
    rollover: Any = "none"
    overage: Any = "block"
    meters: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    limits: _Limits = {}
    top_up: GivenTopUp | None = None

    @model_validator(mode="after")
    def _is_one(self) -> GivenPlan:
        self.made("plan")
        return self

    def made(self, name: str) -> Plan:
        return plan_of(
            name,
            credits=self.credits,
            cycle=self.cycle,
            anchor=self.anchor,
            zone=self.zone,
            rollover=self.rollover,
            overage=self.overage,
            meters=self.meters,
            models=self.models,
        )


class Given(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(strict=True, ge=1, lt=2**31)]
    default_plan: str | None = None
    plans: dict[_Name, GivenPlan] = {}
    limits: _Limits = {}
    meters: dict[str, Any] = {}
    prices: dict[str, Any] = {}
    providers: dict[str, Any] = {}


_FILE = TypeAdapter(Given)


@dataclass(frozen=True)
class Offer:
    """A plan with what comes with it."""

    plan: Plan
    limits: Mapping[str, GivenLimit] = field(default_factory=dict)
    top_up: TopUp | None = None

    def limits_in(self, zone: str) -> tuple[Limit, ...]:
        return tuple(one.limit(name, zone) for name, one in self.limits.items())

    def terms(self, before: Terms, *, anchor: str | None, zone: str | None, catalogue: int) -> Terms:
        """The customer's terms on this plan; `before` itself where nothing changes.

        What an operator set for this one customer stays, and goes before what the plan brings under the same name. So
        does the anchor of its cycles and its zone, unless they are named.
        """
        same = before.plan if before.plan is not None and before.plan.name == self.plan.name else self.plan
        plan = replace(
            self.plan, anchor=same.anchor if anchor is None else anchor, zone=same.zone if zone is None else zone
        )
        own = tuple(one for one in before.limits if one.name not in before.of_plan)
        names = {one.name for one in own}
        brought = tuple(one for one in self.limits_in(plan.zone) if one.name not in names)
        top_up, of_plan = before.top_up, tuple(sorted(one.name for one in brought))
        if TOP_UP in before.of_plan or top_up is None:
            top_up, of_plan = self.top_up, (*of_plan, TOP_UP) if self.top_up else of_plan
        changed = before.changed(
            plan=plan, limits=_in_order(before.limits, (*own, *brought)), top_up=top_up, of_plan=of_plan
        )
        if replace(changed, version=before.version) == before:
            return before
        return replace(changed, catalogue=catalogue)


def _in_order(before: tuple[Limit, ...], now: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """The same limits, those that were there before where they stood."""
    places = {one.name: place for place, one in enumerate(before)}
    return tuple(sorted(now, key=lambda one: places.get(one.name, len(places))))


@dataclass(frozen=True)
class Catalogue:
    """All that an operator sells, checked. A later version has a higher number."""

    version: int
    offers: Mapping[str, Offer] = field(default_factory=dict, repr=False)
    default_plan: str | None = None
    meters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prices: Mapping[str, Any] = field(default_factory=dict, repr=False)
    providers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    """What can be meant, and often is not."""

    def made_meters(self) -> dict[str, Meter]:
        return own_meters.read(self.meters)


def read(catalogue: Mapping[str, Any] | str | os.PathLike[str]) -> Catalogue:
    """From a TOML file or a mapping of that shape. Raises CatalogueError with the place in it, never a value."""
    where = ""
    if isinstance(catalogue, str | os.PathLike):
        where, catalogue = f"{os.fspath(catalogue)}: ", _from_file(catalogue)
    try:
        given = _FILE.validate_python(dict(catalogue))
    except ValidationError as error:
        raise CatalogueError(where + _first(error)) from None
    try:
        return _checked(given)
    except ValueError as error:
        raise CatalogueError(where + str(error)) from None


def _checked(given: Given) -> Catalogue:
    meters = _section("meters", lambda: own_meters.read(given.meters))
    _section("prices", lambda: overlay.read(given.prices))
    lists = {name.partition("/")[0] for name in given.prices if "/" in name}
    _section("providers", lambda: operator.read(given.providers, named=given.providers, price_lists=_lists(lists)))
    units = {*LIMIT_UNITS, *(unit for one in meters.values() for unit in (*one.rates, one.unit) if unit)}
    offers = {}
    for name, plan in given.plans.items():
        limits = {**given.limits, **plan.limits}
        for called, one in limits.items():
            place = f"plans.{name}.limits.{called}" if called in plan.limits else f"limits.{called}"
            made = _placed(place, lambda called=called, one=one, plan=plan: one.limit(called, plan.zone))
            if made.unit not in units:
                raise ValueError(f"{place}: the unit must be one of {', '.join(LIMIT_UNITS)}, or of a meter")
        offers[name] = Offer(plan.made(name), limits, None if plan.top_up is None else plan.top_up.made())
    if not given.plans:  # then no plan has looked at them
        for called, one in given.limits.items():
            _placed(f"limits.{called}", lambda called=called, one=one: one.limit(called, "UTC"))
    if given.default_plan is not None and given.default_plan not in offers:
        raise ValueError(f"default_plan: is none of the plans {', '.join(offers) or '(there are none)'}")
    return Catalogue(
        given.version,
        offers,
        given.default_plan,
        given.meters,
        given.prices,
        given.providers,
        tuple(_notes(given, meters)),
    )


def _lists(own: set[str]) -> set[str]:
    from ..prices.book import Book

    return {*Book().providers, *own}


def _section(name: str, reader: Any) -> Any:
    """What a section's own reader says, with its place in the catalogue."""
    try:
        return reader()
    except ValueError as error:
        raise ValueError(f"{name}.{str(error).removeprefix(f'{name}: ')}") from None


def _placed(place: str, make: Any) -> Any:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _notes(given: Given, meters: Mapping[str, Meter]) -> Any:
    for name, plan in given.plans.items():
        for one in plan.meters or ():
            if one not in meters:
                yield f"plan {name} allows the meter {one}, which is not in [meters]: it is a label at cost × markup"
        if plan.credits in (0, "0") and plan.overage == "block" and plan.top_up is None:
            yield f"plan {name} includes no credits and allows no overage: its customers need grants"
    if given.limits and not given.plans:
        yield "there are limits and no plan that they could be a part of"


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:80] for part in one["loc"] if part != "[key]")
    what = one["msg"].removeprefix("Value error, ")
    if one["type"] == "missing":
        what = "is missing; write, for example, version = 1" if place == "version" else "is missing"
    elif one["type"] == "extra_forbidden":
        what = "is not known here"
    return f"{place}: {what}" if place else what


def _from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file, parse_float=Decimal)
    except OSError as error:
        raise CatalogueError(f"{os.fspath(path)} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{os.fspath(path)} is not TOML: {error}") from None
