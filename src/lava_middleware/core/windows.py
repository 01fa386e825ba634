"""This file knows which window or cycle a moment lies in, and when that begins and ends.

A window's id is computed once, when something is counted, and stands on the entry; its end is derived from the moment.
Calendar periods begin at local midnight: where daylight saving skips midnight, at the first instant after it.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .terms import Limit, Plan, TermsError

MICROSECONDS = 1_000_000
NEVER = 2**62
"""The end of a window that never ends."""

_SECONDS = {"minute": 60, "hour": 3600}
_DAY = 86_400 * MICROSECONDS
_MONDAY = date(2024, 1, 1).toordinal()
_LAST_DAY = date.max.toordinal() - 1


class Period(NamedTuple):
    """One window or cycle."""

    id: str
    starts: int
    """Microseconds since 1970, likewise `ends`."""
    ends: int
    number: int
    """Counts up from each period to the next of the same kind: by one, but for dates that a zone has skipped."""


@lru_cache(maxsize=256)
def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name; TermsError if there is none of that name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise TermsError("zone must be an IANA time zone name such as 'Europe/Berlin'") from None


def window_of(limit: Limit, at: int, plan: Plan | None = None) -> tuple[str, int]:
    """(id, end in microseconds since 1970) of the window of this limit that holds the moment `at`."""
    return window_at(limit.window, limit.anchor, limit.zone, at, plan)


def window_at(window: str, anchor: str, zone: str, at: int, plan: Plan | None) -> tuple[str, int]:
    """(id, end) of a window. `plan`: whose cycle is meant where the window is the billing cycle; None: the month."""
    if window == "cycle":
        window, anchor, zone = cycle_of(plan) if plan else ("month", "", zone)
    period = period_of(window, anchor, zone, at)
    return period.id, period.ends


def cycle_of(plan: Plan) -> tuple[str, str, str]:
    """(kind, anchor, zone) of the plan's cycles."""
    return plan.cycle, plan.anchor, plan.zone


_last: dict[tuple[str, str, str], Period] = {}
"""The period that was asked for last, per kind: nearly every question is about the present. Bounded by _remember."""


def period_of(kind: str, anchor: str, zone: str, at: int) -> Period:
    """The minute, hour, day, week, month, year or lifetime that holds the moment `at`."""
    key = (kind, anchor, zone)
    period = _last.get(key)
    if period is not None and period.starts <= at < period.ends:
        return period
    period = _period(kind, anchor, zone, at)
    if len(_last) > 4096:
        _last.clear()
    _last[key] = period
    return period


def _period(kind: str, anchor: str, zone: str, at: int) -> Period:
    if kind == "lifetime":
        return Period("ever", 0, NEVER, 0)
    if kind in _SECONDS:
        length = _SECONDS[kind] * MICROSECONDS
        number = at // length
        moment = datetime.fromtimestamp(number * length // MICROSECONDS, UTC)
        name = moment.strftime("%Y-%m-%dT%H:%M" if kind == "minute" else "%Y-%m-%dT%H")
        return Period(name, number * length, (number + 1) * length, number)
    local = datetime.fromtimestamp(at // MICROSECONDS, zone_of(zone)).date()
    number = _number(kind, anchor, local)
    while (ends := starts_at(kind, anchor, zone, number + 1)) <= at:  # a date that a zone has skipped
        number += 1
    return Period(_id(kind, anchor, number), starts_at(kind, anchor, zone, number), ends, number)


def starts_at(kind: str, anchor: str, zone: str, number: int) -> int:
    """Microseconds since 1970 of the first instant of the calendar period of that number."""
    first = _first_day(kind, anchor, number)
    # Of a midnight that is skipped, `timestamp` gives the instant of the change; of one that comes twice, the first.
    return int(datetime(first.year, first.month, first.day, tzinfo=zone_of(zone)).timestamp()) * MICROSECONDS


def begun(kind: str, first: Period, last: Period) -> int:
    """How many periods begin from the first to the last, both included. A date that a zone skipped is none."""
    if kind == "day":  # numbers count the dates of the calendar, the zone's own are those that pass
        return (last.starts - first.starts + _DAY // 2) // _DAY + 1
    return last.number - first.number + 1


def _number(kind: str, anchor: str, day: date) -> int:
    if kind == "day":
        return day.toordinal()
    if kind == "week":
        return (day.toordinal() - _week_begins(anchor)) // 7
    number = _months(day) if kind == "month" else day.year
    return number if day >= _first_day(kind, anchor, number) else number - 1


def _first_day(kind: str, anchor: str, number: int) -> date:
    if kind == "day":
        return date.fromordinal(min(number, _LAST_DAY))
    if kind == "week":
        return date.fromordinal(min(_week_begins(anchor) + 7 * number, _LAST_DAY))
    start = date.fromisoformat(anchor) if anchor else date(2024, 1, 1)
    year, month = (number // 12, number % 12 + 1) if kind == "month" else (number, start.month)
    if year > date.max.year - 1:
        return date.fromordinal(_LAST_DAY)
    return date(year, month, min(start.day, monthrange(year, month)[1]))


def _week_begins(anchor: str) -> int:
    return date.fromisoformat(anchor).toordinal() % 7 if anchor else _MONDAY % 7


def _months(day: date) -> int:
    return day.year * 12 + day.month - 1


def _id(kind: str, anchor: str, number: int) -> str:
    first = _first_day(kind, anchor, number)
    if anchor or kind in ("day", "week"):
        return first.isoformat()
    return first.isoformat()[:7] if kind == "month" else first.isoformat()[:4]
