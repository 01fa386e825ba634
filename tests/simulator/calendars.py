"""This file knows in which window or cycle a moment lies: from local dates, by arithmetic of its own."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from lava_middleware.core.terms import Plan

SECOND = 1_000_000
DAY = 86_400 * SECOND
_FIXED = {"minute": (60 * SECOND, "%Y-%m-%dT%H:%M"), "hour": (3_600 * SECOND, "%Y-%m-%dT%H")}


class Span(NamedTuple):
    """A window or cycle: its name, its first microsecond, the first one after it, and its place in the row of them."""

    id: str
    starts: int
    ends: int
    place: int


_known: dict[tuple[str, str, str], Span] = {}


def span(kind: str, anchor: str, zone: str, at: int) -> Span:
    known = _known.get((kind, anchor, zone))
    if known is None or not known.starts <= at < known.ends:
        known = _known[kind, anchor, zone] = _span(kind, anchor, zone, at)
    return known


def window(kind: str, anchor: str, zone: str, at: int, plan: Plan | None) -> Span:
    """That of a limit: `cycle` is the plan's, or the calendar month."""
    if kind != "cycle":
        return span(kind, anchor, zone, at)
    return span("month", "", zone, at) if plan is None else span(plan.cycle, plan.anchor, plan.zone, at)


def _span(kind: str, anchor: str, zone: str, at: int) -> Span:
    if kind == "lifetime":
        return Span("ever", 0, 2**62, 0)
    if kind in _FIXED:
        length, form = _FIXED[kind]
        starts = at - at % length
        return Span(_utc(starts).strftime(form), starts, starts + length, starts // length)
    tz = ZoneInfo(zone)
    today = datetime.fromtimestamp(at // SECOND, tz).date()
    first, after, place = _days(kind, date.fromisoformat(anchor) if anchor else None, today)
    name = first.isoformat()
    if not anchor and kind in ("month", "year"):
        name = name[:7] if kind == "month" else name[:4]
    return Span(name, _midnight(first, tz), _midnight(after, tz), place)


def _days(kind: str, anchor: date | None, today: date) -> tuple[date, date, int]:
    """(its first day, the first day after it, its place)."""
    if kind == "day":
        return today, today + timedelta(1), today.toordinal()
    if kind == "week":
        first = today - timedelta((today.weekday() - (anchor.weekday() if anchor else 0)) % 7)
        return first, first + timedelta(7), first.toordinal() // 7
    step = 1 if kind == "month" else 12
    place = today.year * 12 + today.month - 1
    if kind == "year":
        place += (anchor.month if anchor else 1) - today.month
    if today < _in_month(place, anchor):
        place -= step
    return _in_month(place, anchor), _in_month(place + step, anchor), place // step


def _in_month(place: int, anchor: date | None) -> date:
    """The anchor's day of that month, or the month's last."""
    year, month = divmod(place, 12)
    return date(year, month + 1, min(anchor.day if anchor else 1, monthrange(year, month + 1)[1]))


def _midnight(day: date, tz: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=tz).timestamp()) * SECOND


def _utc(at: int) -> datetime:
    return datetime.fromtimestamp(at // SECOND, UTC)
