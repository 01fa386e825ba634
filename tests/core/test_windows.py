"""Which window or cycle a moment lies in (T11): calendars as people live by them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.core.terms import Limit, Plan, TermsError
from lava_middleware.core.windows import NEVER, begun, period_of, starts_at, window_of, zone_of

from .history import moment

HOUR = 3_600_000_000
DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("America/Santiago", "2026-09-06", 23),
        ("UTC", "2026-03-29", 24),
        ("Pacific/Kiritimati", "2026-03-29", 24),
        ("Etc/GMT+12", "2026-03-29", 24),
    ],
)
def test_a_day_is_as_long_as_its_zone_makes_it(zone: str, day: str, hours: float) -> None:
    noon = moment(f"{day} 12:00", zone)
    period = period_of("day", "", zone, noon)
    assert period.id == day
    assert period.ends - period.starts == hours * HOUR


def test_where_midnight_is_skipped_the_day_begins_at_the_first_instant_after_it() -> None:
    """Santiago goes from 23:59:59 on the 5th to 01:00 on the 6th of September 2026."""
    first = moment("2026-09-06 01:00", "America/Santiago")
    assert period_of("day", "", "America/Santiago", first).starts == first
    assert period_of("day", "", "America/Santiago", first - 1).id == "2026-09-05"


def test_where_midnight_comes_twice_the_day_begins_at_the_first() -> None:
    """Havana's clocks go back from 01:00 to 00:00 on the first of November 2026."""
    period = period_of("day", "", "America/Havana", moment("2026-11-01 12:00", "America/Havana"))
    assert period.ends - period.starts == 25 * HOUR
    assert period_of("day", "", "America/Havana", period.starts).id == "2026-11-01"
    assert period_of("day", "", "America/Havana", period.starts - 1).id == "2026-10-31"


def test_a_date_that_a_zone_skipped_is_no_window() -> None:
    """Samoa went from the 29th to the 31st of December 2011."""
    edge = moment("2011-12-31 00:00", "Pacific/Apia")
    before, after = [period_of("day", "", "Pacific/Apia", at) for at in (edge - 1, edge)]
    assert (before.id, after.id) == ("2011-12-29", "2011-12-31")
    assert before.ends == edge == after.starts
    assert begun("day", before, after) == 2


def test_the_same_moment_is_another_date_at_either_end_of_the_world() -> None:
    at = moment("2026-01-01 11:30")
    assert period_of("day", "", "Pacific/Kiritimati", at).id == "2026-01-02", "+14"
    assert period_of("day", "", "Etc/GMT+12", at).id == "2025-12-31", "-12"
    assert period_of("year", "", "Etc/GMT+12", at).id == "2025"


def test_a_month_anchored_on_the_31st_begins_on_the_last_day_of_shorter_months() -> None:
    begins = []
    at = moment("2027-01-31 00:00")
    for _ in range(14):
        period = period_of("month", "2026-01-31", "UTC", at)
        assert period.starts == at, "no gap and no overlap"
        begins.append(period.id[2:])
        at = period.ends
    assert begins == [
        *("27-01-31", "27-02-28", "27-03-31", "27-04-30", "27-05-31", "27-06-30", "27-07-31"),
        *("27-08-31", "27-09-30", "27-10-31", "27-11-30", "27-12-31", "28-01-31", "28-02-29"),
    ]


def test_a_year_anchored_on_the_29th_of_february_begins_on_the_28th_of_other_years() -> None:
    begins, at = [], moment("2024-02-29 00:00")
    for _ in range(6):
        period = period_of("year", "2024-02-29", "UTC", at)
        begins.append(period.id)
        at = period.ends
    assert begins == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29", "2029-02-28"]


def test_the_29th_of_february_is_a_day_of_its_month_and_year() -> None:
    leap = moment("2028-02-29 23:59")
    assert period_of("month", "", "UTC", leap).id == "2028-02"
    assert period_of("month", "", "UTC", leap).ends == moment("2028-03-01 00:00")
    assert period_of("year", "", "UTC", leap).ends - period_of("year", "", "UTC", leap).starts == 366 * DAY


def test_weeks_begin_on_monday_or_on_the_weekday_of_the_anchor() -> None:
    wednesday = moment("2026-09-23 15:00")
    assert period_of("week", "", "UTC", wednesday).id == "2026-09-21"
    assert period_of("week", "2026-01-04", "UTC", wednesday).id == "2026-09-20", "a Sunday"
    assert period_of("week", "2026-01-07", "UTC", wednesday).id == "2026-09-23"


def test_minutes_and_hours_follow_the_clock_of_utc() -> None:
    at = moment("2026-09-23 15:07") + 41_000_000
    assert period_of("minute", "", "Asia/Kathmandu", at)[:3] == ("2026-09-23T15:07", at - 41_000_000, at + 19_000_000)
    assert period_of("hour", "", "Asia/Kathmandu", at).id == "2026-09-23T15"


def test_a_lifetime_never_ends() -> None:
    assert period_of("lifetime", "", "UTC", moment("2026-09-23 15:00")).ends == NEVER


def test_the_window_cycle_is_that_of_the_plan_and_without_one_the_month() -> None:
    at, limit = moment("2026-09-23 15:00"), Limit("l", "tokens", 1, "cycle")
    assert window_of(limit, at)[0] == "2026-09"
    assert window_of(limit, at, Plan("p", cycle="week"))[0] == "2026-09-21"
    assert window_of(limit, at, Plan("p", anchor="2026-01-31")) == ("2026-08-31", moment("2026-09-30 00:00"))


def test_a_zone_that_is_none_is_refused() -> None:
    for name in ("Mars/Olympus", "../etc/passwd", "", "/etc/passwd"):
        with pytest.raises(TermsError, match="zone"):
            zone_of(name)


ZONES = [
    *("UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia"),
    *("Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kathmandu", "America/St_Johns", "Africa/Casablanca", "Asia/Tehran"),
]
anchors = st.just("") | st.dates(date(1996, 1, 1), date(2030, 1, 1)).map(date.isoformat)


@given(
    st.sampled_from(["day", "week", "month", "year"]),
    anchors,
    st.sampled_from(ZONES),
    st.integers(0, int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())),
)
def test_every_moment_lies_in_its_window_and_windows_meet(kind: str, anchor: str, zone: str, second: int) -> None:
    at = second * 1_000_000
    period = period_of(kind, anchor, zone, at)
    assert period.starts <= at < period.ends
    following = period_of(kind, anchor, zone, period.ends)
    assert following.starts == period.ends
    assert following.number > period.number
    assert following.id != period.id
    assert period_of(kind, anchor, zone, period.ends - 1) == period
    local = datetime.fromtimestamp(period.starts // 1_000_000, ZoneInfo(zone) if zone != "UTC" else UTC)
    assert local.hour < 3, "windows begin with a local day"


@pytest.mark.parametrize("zone", ZONES)
def test_every_hour_around_every_change_of_the_clocks_lies_in_its_window(zone: str) -> None:
    """Every offset that these zones had since 1990."""
    begin = moment("1990-01-01 00:00")
    for day in range(0, 50 * 365, 7):
        here = datetime.fromtimestamp((begin + day * DAY) // 1_000_000, zone_of(zone)).utcoffset()
        then = datetime.fromtimestamp((begin + (day + 7) * DAY) // 1_000_000, zone_of(zone)).utcoffset()
        if here == then:
            continue
        for half_hours in range(14 * 24):
            at = begin + day * DAY + half_hours * HOUR // 2
            period = period_of("day", "", zone, at)
            assert period.starts <= at < period.ends
            assert period.starts == starts_at("day", "", zone, period.number)
            assert timedelta(microseconds=period.ends - period.starts) <= timedelta(hours=49)
