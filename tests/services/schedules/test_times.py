"""When schedules fire, clocks set forward and back included."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.schedules.times import SECOND, BadCron, Cron, Every, Timetable, describe, read_cron

NOW = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
ZONES = ("America/New_York", "Australia/Lord_Howe", "Europe/Berlin", "Africa/Casablanca", "Asia/Kolkata")


def on_day(expression: str, zone_name: str, year: int, month: int, day: int) -> list[str]:
    """What clocks of the zone show when it fires on that day, with the offset."""
    zone = ZoneInfo(zone_name)
    start = datetime(year, month, day, tzinfo=zone).astimezone(UTC)
    end = (datetime(year, month, day, tzinfo=zone) + timedelta(days=1)).astimezone(UTC)
    table = Timetable(Cron(read_cron(expression), zone))
    return [f"{each.astimezone(zone):%H:%M%z}" for each in table.between(start, end - SECOND)]


@pytest.mark.parametrize(
    ("zone", "day", "firings"),
    [
        ("America/New_York", (2026, 3, 8), 276),
        ("America/New_York", (2026, 11, 1), 300),
        ("Australia/Lord_Howe", (2026, 4, 5), 294),
        ("Australia/Lord_Howe", (2026, 10, 4), 282),
        ("America/New_York", (2026, 6, 1), 288),
    ],
)
def test_every_five_minutes_follows_time_over_days_on_which_clocks_are_set(
    zone: str, day: tuple[int, int, int], firings: int
) -> None:
    assert len(on_day("*/5 * * * *", zone, *day)) == firings


def test_a_job_at_a_fixed_hour_fires_once_when_clocks_are_set_back() -> None:
    assert on_day("30 1 * * *", "America/New_York", 2026, 11, 1) == ["01:30-0400"]
    assert on_day("45 1 * * *", "Australia/Lord_Howe", 2026, 4, 5) == ["01:45+1100"]


def test_a_job_in_the_gap_fires_once_right_after_it() -> None:
    assert on_day("30 2 * * *", "America/New_York", 2026, 3, 8) == ["03:00-0400"]
    assert on_day("5,15,25 2 * * *", "Australia/Lord_Howe", 2026, 10, 4) == ["02:30+1100"]


def test_every_hour_fires_in_both_of_the_repeated_hours() -> None:
    shown = on_day("30 * * * *", "America/New_York", 2026, 11, 1)
    assert shown[:4] == ["00:30-0400", "01:30-0400", "01:30-0500", "02:30-0500"]


def test_half_an_hour_that_is_repeated_loses_none_of_what_comes_after_it() -> None:
    assert on_day("*/10 2 * * *", "Australia/Lord_Howe", 2026, 4, 5) == [f"02:{m}0+1030" for m in range(6)]


@given(
    st.sampled_from(["*/7 * * * *", "0 * * * *", "*/5 1-2 * * *", "0 3 * * *", "15,45 1,2,3 * * SUN"]),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)),  # noqa: DTZ001 - made UTC below
)
def test_the_following_time_is_the_same_however_one_comes_there(
    expression: str, zone_name: str, start: datetime
) -> None:
    moment, cron = start.replace(tzinfo=UTC), Cron(expression, ZoneInfo(zone_name))
    following = cron.after(moment)
    assert following
    assert following > moment
    assert cron.after(following - SECOND) == following
    assert cron.after(moment + (following - moment) / 2) == following


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "* * * * * *", "61 * * * *", "a b c d e", "0 0 31 2 *", "*/0 * * * *", "* " * 60]
)
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(BadCron):
        read_cron(expression)


def test_what_fires_too_rarely_has_no_next_time() -> None:
    assert Cron("0 0 */31 2 1#5", ZoneInfo("UTC")).after(NOW) is None
    assert Cron("0 0 29 2 *", ZoneInfo("UTC")).after(NOW) == datetime(2028, 2, 29, tzinfo=UTC)


def test_an_expression_is_told_in_words() -> None:
    assert describe("*/5 * * * *") == "Every fifth minute of every hour"


def test_intervals_count_from_their_anchor() -> None:
    every = Every(timedelta(minutes=7), datetime(2026, 11, 29, 12, 0, tzinfo=UTC))
    assert every.after(NOW) == datetime(2026, 11, 29, 12, 7, tzinfo=UTC)
    assert every.after(datetime(2026, 11, 29, 12, 7, tzinfo=UTC)) == datetime(2026, 11, 29, 12, 14, tzinfo=UTC)
    assert every.after(NOW - timedelta(days=400)) == datetime(2026, 11, 29, 12, 7, tzinfo=UTC)


@pytest.mark.parametrize("minutes", [1, 5, 7, 15, 45, 60, 90, 120, 300, 1440, 4320, 10080])
def test_what_wakes_an_interval_is_there_at_each_of_its_times(minutes: int) -> None:
    every = Every(timedelta(minutes=minutes), datetime(2026, 11, 29, 12, 3, tzinfo=UTC))
    wakes = Timetable(Cron(every.wakes, ZoneInfo("UTC")))
    for due in Timetable(every).upcoming(NOW, 20):
        assert wakes.after(due - SECOND) == due


def test_a_timetable_keeps_its_bounds() -> None:
    start, end = datetime(2026, 12, 1, 9, tzinfo=UTC), datetime(2026, 12, 3, 9, tzinfo=UTC)
    table = Timetable(Cron("0 9 * * *", ZoneInfo("UTC")), start, end)
    assert [each.day for each in table.upcoming(NOW, 10)] == [1, 2, 3]


def test_the_newest_times_of_a_year_are_found_without_walking_through_it() -> None:
    first = datetime(2026, 1, 1, tzinfo=UTC)
    minutely = Timetable(Cron("* * * * *", ZoneInfo("UTC")))
    assert minutely.newest(first, NOW, 1) == [NOW.replace(second=0)]
    assert len(minutely.newest(first, NOW, 24)) == 24
    assert minutely.newest(NOW.replace(second=0), NOW, 24) == [NOW.replace(second=0)]
    yearly = Timetable(Cron("0 0 1 1 *", ZoneInfo("UTC")))
    assert yearly.newest(first, NOW, 3) == [first]
