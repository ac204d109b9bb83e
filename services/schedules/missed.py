"""Which of the times that have come is fired, and what becomes of those that were missed. Pure."""

from dataclasses import dataclass
from datetime import datetime

from services.schedules.store import Schedule
from services.settings import ScheduleSettings

LATE = "It was missed: no worker and no delivery was there for it in time."


@dataclass(frozen=True, slots=True)
class Turn:
    """The time to fire, or to note as skipped for the reason of `skipped`; then the one that follows, if any."""

    fire_time: datetime
    following: datetime | None
    skipped: str | None = None


def turn_of(schedule: Schedule, now: datetime, settings: ScheduleSettings) -> Turn:
    """For a schedule that is due. `skip`: only a time that is hardly late; `once`: the newest one, within a grace;
    `all`: one by one from the oldest, but no more than so many.
    """
    assert schedule.next_fire_at, "it is due"
    timetable, first = schedule.timetable, schedule.next_fire_at
    if schedule.missed == "all":
        oldest = timetable.newest(first, max(now, first), settings.max_catch_up)[0]
        return Turn(oldest, timetable.after(oldest))
    [newest] = timetable.newest(first, max(now, first), 1)
    too_late = settings.on_time if schedule.missed == "skip" else settings.grace
    return Turn(newest, timetable.after(max(newest, now)), LATE if now - newest > too_late else None)
