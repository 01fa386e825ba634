"""This file knows how to make plans, limits and top-ups from what an operator writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..core.money import ticks_of
from ..core.terms import Limit, Plan, TermsError, TopUp
from ..core.windows import zone_of


def limit_name(unit: str, window: str | None) -> str:
    return f"{unit}/{window or _window(unit)}"


def _window(unit: str) -> str:
    return "lifetime" if unit == "open_calls" else "month"


def made_limit(
    name: str | None,
    quantity: object,
    unit: str,
    *,
    window: str | None = None,
    zone: str = "UTC",
    anchor: str = "",
    of: Mapping[str, str] | None = None,
    per: str = "",
    on_reach: str = "block",
    strict: bool = False,
    thresholds: tuple[int, ...] = (),
) -> Limit:
    """A limit from what an operator writes. Raises TermsError, AmountError."""
    if not isinstance(zone, str) or not (name is None or isinstance(name, str)):
        raise TermsError("a limit's zone and name must be strings")
    zone_of(zone)
    amount = ticks_of(quantity, what="a limit's quantity") if unit == "credits" else cast(int, quantity)
    return Limit(
        name or limit_name(unit, window),
        unit,
        amount,
        window or _window(unit),
        zone,
        anchor,
        tuple(sorted((of or {}).items())),
        per,
        on_reach,
        strict,
        tuple(thresholds),
    )


def made_top_up(below: object, amount: object, most: object, window: str = "month", zone: str = "UTC") -> TopUp:
    """An auto top-up from what an operator writes. Raises TermsError, AmountError."""
    least, each, all_in_all = (ticks_of(one, what="a top-up") for one in (below, amount, most))
    zone_of(zone)
    return TopUp(least, each, all_in_all, window, zone)


def plan_of(
    name: str,
    *,
    credits: object = 0,
    cycle: str = "month",
    anchor: str = "",
    zone: str = "UTC",
    rollover: object = "none",
    overage: object = "block",
    meters: tuple[str, ...] | None = None,
    models: tuple[str, ...] | None = None,
) -> Plan:
    """A plan from what an operator writes. Raises TermsError, AmountError."""
    zone_of(zone)
    over = {"none": 0, "full": None}.get(rollover, rollover) if isinstance(rollover, str) else rollover
    beyond = {"block": 0, "unlimited": None}.get(overage, overage) if isinstance(overage, str) else overage
    return Plan(
        name,
        ticks_of(credits, what="a plan's credits"),
        cycle,
        anchor,
        zone,
        None if over is None else ticks_of(over, what="a plan's rollover"),
        None if beyond is None else ticks_of(beyond, what="a plan's overage"),
        None if meters is None else tuple(meters),
        None if models is None else tuple(models),
    )
