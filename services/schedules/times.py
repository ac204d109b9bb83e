"""When a schedule fires. Pure: instants go in and come out, in UTC. Cron by cronsim, zones by the IANA database.

As Debian's cron: a job at fixed hours fires once when clocks are set back, and right after the gap when they are set
forward over its time; one whose minute or hour begins with a star follows the time that passes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import gcd
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = 5
MAX_CHARS = 100
NEVER = "does not fire within the next ten years"
HORIZON = timedelta(days=10 * 366)
"""What does not fire within it counts as never."""
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
INSTANT = timedelta(microseconds=1)
WINDOWS = (timedelta(hours=1), DAY, timedelta(days=31), timedelta(days=366), HORIZON)
"""How far back to look for the newest times: of every minute of a year nobody walks through all."""


class BadCron(ValueError):
    """An expression that is none; the text says why."""


def read_cron(expression: str) -> str:
    """The expression with single spaces. Raises: BadCron."""
    fields = expression.split()
    if len(expression) > MAX_CHARS or len(fields) != FIELDS:
        raise BadCron(
            f"a cron expression has {FIELDS} fields (minute, hour, day of month, month, day of week) and at most "
            f"{MAX_CHARS} characters"
        )
    try:
        CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001 - walls have no zone
    except CronSimError as error:
        raise BadCron(f"is no cron expression: {error}") from error
    return " ".join(fields)


def describe(expression: str) -> str:
    """An expression that has been read, in words."""
    return CronSim(expression, datetime(2000, 1, 1)).explain()  # noqa: DTZ001 - walls have no zone


@dataclass(frozen=True, slots=True)
class Every:
    """Each `span` after `anchor`."""

    span: timedelta
    anchor: datetime

    def after(self, moment: datetime) -> datetime | None:
        return self.anchor + max((moment - self.anchor) // self.span + 1, 1) * self.span

    @property
    def wakes(self) -> str:
        """A cron expression in UTC that is met at each of these times, and maybe in between."""
        minutes, at = self.span // MINUTE, self.anchor.astimezone(UTC)
        if minutes % 60:
            step = gcd(minutes, 60)
            return f"{stepped(at.minute, step, 60)} * * * *"
        hours = minutes // 60
        if hours % 24 == 0:
            return f"{at.minute} {at.hour} * * *"
        return f"{at.minute} {stepped(at.hour, gcd(hours, 24), 24)} * * *"


def stepped(first: int, step: int, end: int) -> str:
    return ",".join(map(str, range(first % step, end, step)))


@dataclass(frozen=True, slots=True)
class Cron:
    """An expression that has been read, by the clocks of a zone."""

    expression: str
    zone: ZoneInfo

    @property
    def follows_time(self) -> bool:
        minute, hour, *_ = self.expression.split()
        return minute.startswith("*") or hour.startswith("*")

    @property
    def wakes(self) -> str:
        return f"CRON_TZ={self.zone.key} {self.expression}"

    def after(self, moment: datetime) -> datetime | None:
        """The first time after `moment`; None when there is none within HORIZON."""
        found = self.passing_after(moment) if self.follows_time else self.fixed_after(moment)
        return found if found and found - moment <= HORIZON else None

    def fixed_after(self, moment: datetime) -> datetime | None:
        for wall in self.walls(moment.astimezone(self.zone).replace(tzinfo=None)):
            instant = first_instant(wall, self.zone)
            if instant > moment:
                return instant
        return None

    def passing_after(self, moment: datetime) -> datetime | None:
        """Offset by offset: as long as it stays the same, the clock goes as time does."""
        since = moment.astimezone(UTC).replace(microsecond=0)
        from_wall = since + offset_at(since, self.zone)
        while True:
            wall = next(self.walls(from_wall.replace(tzinfo=None)), None)
            if wall is None:
                return None
            instant = wall.replace(tzinfo=UTC) - offset_at(since, self.zone)
            change = change_of_offset(self.zone, since, min(instant, since + HORIZON))
            if change is None:
                return instant
            since, from_wall = change, change + offset_at(change, self.zone) - SECOND

    def walls(self, after: datetime) -> Iterator[datetime]:
        """What a clock that is never set shows when it is time, after it shows `after`."""
        return CronSim(self.expression, after)


def offset_at(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta(0)


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """When clocks show it for the first time; the end of the gap when they never do."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return change_of_offset(zone, before, instant) or instant


def change_of_offset(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """The first whole second in (start, end] at which clocks are not set as they are at `start`."""
    offset, low = offset_at(start, zone), start
    while low < end:
        high = min(low + DAY, end)
        if offset_at(high, zone) != offset:
            return bisected(zone, offset, low, high)
        low = high
    return None


def bisected(zone: ZoneInfo, offset: timedelta, low: datetime, high: datetime) -> datetime:
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        low, high = (middle, high) if offset_at(middle, zone) == offset else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class Timetable:
    """All times of a schedule: those of a pattern from `start` to `end`, both included."""

    pattern: Every | Cron
    start: datetime | None = None
    end: datetime | None = None

    def after(self, moment: datetime) -> datetime | None:
        if self.start and moment < self.start:
            if self.start - moment > HORIZON:
                return None
            moment = self.start - INSTANT
        found = self.pattern.after(moment)
        return None if found is None or (self.end and found > self.end) else found

    def upcoming(self, moment: datetime, most: int) -> list[datetime]:
        found: list[datetime] = []
        while len(found) < most and (following := self.after(found[-1] if found else moment)):
            found.append(following)
        return found

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        moment = self.after(first - INSTANT)
        while moment and moment <= last:
            yield moment
            moment = self.after(moment)

    def newest(self, first: datetime, last: datetime, most: int) -> list[datetime]:
        """The last ones of those from `first`, which is one of them, to `last`; the oldest of them first."""
        for window in WINDOWS:
            found = deque(self.between(max(first, last - window), last), maxlen=most)
            if len(found) == most or first >= last - window:
                break
        return list(found) or [first]
