"""This file knows which window a moment lies in, and when that window ends.

A window's id is computed once, when something is counted, and stands on the entry; its end is derived from the id.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .terms import Limit, TermsError

MICROSECONDS = 1_000_000


@lru_cache(maxsize=256)
def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name; TermsError if there is none of that name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise TermsError("limit zone must be an IANA time zone name such as 'Europe/Berlin'") from None


@lru_cache(maxsize=1024)
def _month(second: int, zone: str) -> tuple[str, int]:
    moment = datetime.fromtimestamp(second, zone_of(zone))
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    end = datetime(year, month, 1, tzinfo=zone_of(zone))
    return f"{moment.year:04d}-{moment.month:02d}", int(end.timestamp()) * MICROSECONDS


def window_of(limit: Limit, at: int) -> tuple[str, int]:
    """(id, end in microseconds since 1970) of the window of this limit that holds the moment `at`.

    A calendar month begins at its first local instant: at midnight, or just after it where daylight saving skips
    midnight (the two offsets of `datetime` agree there on the instant).
    """
    return _month(at // MICROSECONDS, limit.zone)
