"""This file knows a customer's plan as data: what is included, which limits apply, what is bought when it runs out."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any, Final, TypeVar

from .money import LARGEST, Ticks

TOKEN_UNITS = ("tokens", "input_tokens", "output_tokens")
LIMIT_UNITS = (*TOKEN_UNITS, "requests", "credits", "characters", "seconds", "open_calls")
"""Beside these a limit may name any unit that is reported: "pages", "gigabytes"."""
CYCLES = ("day", "week", "month", "year")
WINDOWS = ("minute", "hour", *CYCLES, "cycle", "lifetime")
"""`cycle` is the plan's billing cycle; a customer without one has calendar months."""
MOST_LIMITS = 64
TOP_UP = "|top_up"
"""In `Terms.of_plan` for the auto top-up; no limit can have such a name."""

_UNIT = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST: Final = 2**53

T = TypeVar("T")


class TermsError(ValueError):
    """Terms that cannot be enforced; the message names the field."""


def _name(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable() or "|" in value:
        raise TermsError(f"{what} must be 1 to 64 printable characters, without '|'")


def _whole(value: object, what: str, most: int = _MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < most:
        raise TermsError(f"{what} must be a whole number from 0 to 2^{most.bit_length() - 1}")


def _anchor(value: object, what: str) -> None:
    if value == "":
        return
    try:
        if isinstance(value, str) and len(value) == 10:
            date.fromisoformat(value)
            return
    except ValueError:
        pass
    raise TermsError(f"{what} anchor must be a date such as '2026-01-31'")


@dataclass(frozen=True, slots=True)
class Limit:
    """A quantity per window that admission may never pass: used + held − overrun ≤ quantity.

    Counted from the moment the limit is set: for the customer as a whole, or only for what has the scopes in `of`
    (("model", "gpt-4o"), ("user", "u1"), ...), or for each value of the scope `per` by itself.
    """

    name: str
    unit: str
    quantity: int
    """Whole units; ticks where the unit is credits."""
    window: str = "month"
    zone: str = "UTC"
    """IANA name of the time zone whose calendar the window follows. Minutes and hours are those of UTC."""
    anchor: str = ""
    """ISO date: windows begin at its weekday, its day of the month (or the month's last day), its day of the year."""
    of: tuple[tuple[str, str], ...] = ()
    per: str = ""
    on_reach: str = "block"
    """"warn" counts and fires thresholds, and lets pass."""
    strict: bool = False
    """Input is held at its hard bound, not at the cautious estimate."""
    thresholds: tuple[int, ...] = ()
    """Per cent of the quantity; each fires once per window, when it is used (not merely held)."""

    def __post_init__(self) -> None:
        _name(self.name, "limit name")
        if not isinstance(self.unit, str) or not _UNIT.fullmatch(self.unit):
            raise TermsError(
                f"limit unit must be one of {', '.join(LIMIT_UNITS)}, or a unit of yours in lower-case letters"
            )
        if self.window not in WINDOWS:
            raise TermsError(f"limit window must be one of {', '.join(WINDOWS)}")
        if isinstance(self.quantity, bool) or not isinstance(self.quantity, int):
            raise TermsError("limit quantity must be a whole number")
        _whole(self.quantity, "limit quantity", LARGEST if self.unit == "credits" else _MOST)
        _anchor(self.anchor, "limit")
        if self.on_reach not in ("block", "warn"):
            raise TermsError("limit on_reach must be block or warn")
        if self.unit == "open_calls" and self.window != "lifetime":
            raise TermsError("a limit of open_calls has the window lifetime: an open call is what it counts")
        for scope, _ in self.of:
            _name(scope, "limit scope")
        if self.per:
            _name(self.per, "limit per")
        if not all(isinstance(one, int) and 0 < one <= 1000 for one in self.thresholds):
            raise TermsError("limit thresholds must be whole per cents from 1 to 1000")

    @property
    def counted_in(self) -> tuple[Any, ...]:
        """What the counter of this limit means: a change of it would count one thing in the counter of another."""
        return self.unit, self.window, self.zone, self.anchor, self.of, self.per


@dataclass(frozen=True, slots=True)
class Plan:
    """What a customer gets per cycle. What it costs is the operator's business."""

    name: str
    credits: Ticks = 0
    """Included in each cycle."""
    cycle: str = "month"
    anchor: str = ""
    """ISO date that cycles are counted from; empty: calendar cycles."""
    zone: str = "UTC"
    rollover: Ticks | None = 0
    """The most that goes over into the next cycle: 0 nothing, None all that is left."""
    overage: Ticks | None = 0
    """What a cycle may go beyond its credits: 0 is blocked, None unlimited."""
    meters: tuple[str, ...] | None = None
    """The meters that may be used; None: any."""
    models: tuple[str, ...] | None = None
    """The models that may be used, "gpt-4o" or "gpt-4o*"; None: any."""

    def __post_init__(self) -> None:
        _name(self.name, "plan name")
        if self.cycle not in CYCLES:
            raise TermsError(f"plan cycle must be one of {', '.join(CYCLES)}")
        _whole(self.credits, "plan credits", LARGEST)
        for value, what in ((self.rollover, "plan rollover"), (self.overage, "plan overage")):
            if value is not None:
                _whole(value, what, LARGEST)
        _anchor(self.anchor, "plan")


@dataclass(frozen=True, slots=True)
class TopUp:
    """Buy `amount` when less than `below` is available, at most `most` per window."""

    below: Ticks
    amount: Ticks
    most: Ticks
    window: str = "month"
    zone: str = "UTC"

    def __post_init__(self) -> None:
        for value, what in ((self.below, "below"), (self.amount, "amount"), (self.most, "most")):
            _whole(value, f"top-up {what}", LARGEST)
        if not 0 < self.amount <= self.most:
            raise TermsError("a top-up's amount must be more than 0 and not above its most")
        if self.window not in WINDOWS or self.window == "cycle":
            raise TermsError("top-up window must be one of minute, hour, day, week, month, year, lifetime")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a customer may do. Version 0 is the state before any terms were set."""

    version: int = 0
    limits: tuple[Limit, ...] = ()
    plan: Plan | None = None
    top_up: TopUp | None = None
    suspended: bool = False
    catalogue: int = 0
    """The version of the operator's catalogue that these terms are from; 0: of none. A lower one never overwrites."""
    of_plan: tuple[str, ...] = ()
    """What came with the plan and leaves with it: names of limits, and TOP_UP."""

    def with_limit(self, limit: Limit) -> Terms:
        """The next version, with this limit added or put in place of the one of the same name.

        Raises TermsError where that would count one thing in the counter of another.
        """
        others = tuple(one for one in self.limits if one.name != limit.name)
        for old in self.limits:
            if old.name == limit.name and old.counted_in != limit.counted_in:
                raise TermsError(
                    "a limit keeps its unit, window, zone and scopes, for what was counted is counted in them; "
                    "take it away first, or give the new one another name"
                )
        if len(others) >= MOST_LIMITS:
            raise TermsError(f"a customer has at most {MOST_LIMITS} limits")
        return self.changed(limits=(*others, limit))

    def without_limit(self, name: str) -> Terms:
        """The next version, without the limit of that name."""
        return self.changed(limits=tuple(one for one in self.limits if one.name != name))

    def changed(self, **fields: Any) -> Terms:
        """The next version, with these fields instead."""
        return replace(self, version=self.version + 1, **fields)


NO_TERMS = Terms()


# As JSON --------------------------------------------------------------------------------------------------------------


def terms_data(terms: Terms) -> dict[str, Any]:
    """The terms as integers, strings and lists. What equals its default is left out."""
    data: dict[str, Any] = {"version": terms.version, "limits": [_limit_data(one) for one in terms.limits]}
    if terms.plan is not None:
        data["plan"] = _changed(terms.plan)
    if terms.top_up is not None:
        data["top_up"] = _changed(terms.top_up)
    if terms.suspended:
        data["suspended"] = True
    if terms.catalogue:
        data["catalogue"] = terms.catalogue
    if terms.of_plan:
        data["of_plan"] = list(terms.of_plan)
    return data


def terms_from(data: dict[str, Any]) -> Terms:
    """The terms that `terms_data` wrote; a field that is not known raises TypeError."""
    return Terms(
        data["version"],
        tuple(_limit_from(*one) for one in data["limits"]),
        _made(Plan, data["plan"]) if "plan" in data else None,
        _made(TopUp, data["top_up"]) if "top_up" in data else None,
        data.get("suspended", False),
        data.get("catalogue", 0),
        tuple(data.get("of_plan", ())),
    )


def _limit_data(limit: Limit) -> list[Any]:
    first = [limit.name, limit.unit, limit.quantity, limit.window, limit.zone]
    more = {name: value for name, value in _changed(limit).items() if name not in Limit.__slots__[:5]}
    return [*first, more] if more else first


def _limit_from(
    name: str, unit: str, quantity: int, window: str, zone: str, more: dict[str, Any] | None = None
) -> Limit:
    return Limit(name, unit, quantity, window, zone, **{key: _frozen(value) for key, value in (more or {}).items()})


def _changed(made: Any) -> dict[str, Any]:
    return {field.name: value for field in fields(made) if (value := getattr(made, field.name)) != field.default}


def _made(kind: type[T], data: dict[str, Any]) -> T:
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
