"""Claims of due schedules: which ones a process may fire now, and what is locked while it does."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.postgres import Connection, Executor
from services.schedules.store import COLUMNS, Schedule


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule that is due, when it was so by the clock of whoever claims, and what has to be locked to fire it."""

    schedule_id: UUID
    project_id: UUID | None
    workflow_id: UUID | None
    now: datetime


PLACES = """
    LEFT JOIN threads t ON t.thread_id = s.thread_id LEFT JOIN workflows w ON w.workflow_id = s.workflow_id
"""


async def take(conn: Executor, *, most: int, lease: timedelta, at: datetime | None = None) -> list[Due]:
    """Due schedules that nobody else fires for as long as `lease`, the longest due first.

    `at`: what time it is, by default what the clock of the database says.
    """
    rows = await conn.fetch(
        f"""
        WITH clock AS (SELECT coalesce($3::timestamptz, clock_timestamp()) AS now), due AS (
            SELECT schedule_id FROM schedules, clock
            WHERE next_fire_at <= clock.now AND (claimed_until IS NULL OR claimed_until <= clock.now)
            ORDER BY next_fire_at LIMIT $1 FOR NO KEY UPDATE OF schedules SKIP LOCKED
        ), claimed AS (
            UPDATE schedules SET claimed_until = clock.now + $2::interval FROM due, clock
            WHERE schedules.schedule_id = due.schedule_id
            RETURNING schedules.schedule_id, schedules.thread_id, schedules.workflow_id, next_fire_at, clock.now
        )
        SELECT s.schedule_id, coalesce(t.project_id, w.project_id) AS project_id, s.workflow_id, s.now
        FROM claimed s {PLACES} ORDER BY next_fire_at
        """,
        most,
        lease,
        at,
    )
    return [Due(**row) for row in rows]


async def postpone(conn: Executor, schedule_id: UUID, until: timedelta, at: datetime | None = None) -> None:
    """Leave a due schedule to whoever comes after a while."""
    await conn.execute(
        """
        UPDATE schedules SET claimed_until = coalesce($3::timestamptz, clock_timestamp()) + $2::interval
        WHERE schedule_id = $1
        """,
        schedule_id,
        until,
        at,
    )


async def of_delivery(conn: Executor, schedule_id: UUID) -> Due | None:
    """A schedule that somebody else says is due now, which nobody is kept from firing meanwhile."""
    row = await conn.fetchrow(
        f"""
        SELECT s.schedule_id, coalesce(t.project_id, w.project_id) AS project_id, s.workflow_id,
            clock_timestamp() AS now
        FROM schedules s {PLACES} WHERE s.schedule_id = $1
        """,
        schedule_id,
    )
    return Due(**row) if row else None


async def seconds_to_next(conn: Executor, at: datetime | None = None) -> float | None:
    """How long until something may be claimed; None when nothing is scheduled."""
    seconds = await conn.fetchval(
        """
        SELECT extract(epoch FROM min(greatest(next_fire_at, claimed_until)) - coalesce($1, clock_timestamp()))
        FROM (
            SELECT next_fire_at, claimed_until FROM schedules WHERE next_fire_at IS NOT NULL
            ORDER BY next_fire_at LIMIT 100
        ) AS soonest
        """,
        at,
    )
    return None if seconds is None else float(seconds)


BOUNDED = "SELECT set_config('lock_timeout', $1, true) IS NOT NULL AND EXISTS ({0})"
PROJECT = BOUNDED.format("SELECT FROM projects WHERE project_id = $2 FOR NO KEY UPDATE SKIP LOCKED")
WORKFLOW = BOUNDED.format("SELECT FROM workflows WHERE workflow_id = $2 FOR KEY SHARE SKIP LOCKED")


async def take_turns(conn: Connection, due: Due, wait: timedelta) -> bool:
    """Lock what a firing touches before its schedule, as deletions do; False when somebody has it, or it is gone.

    Of what this transaction waits for later on, it waits for so long.
    """
    milliseconds = f"{wait / timedelta(milliseconds=1):.0f}"
    if due.project_id and not await conn.fetchval(PROJECT, milliseconds, due.project_id):
        return False
    return not due.workflow_id or bool(await conn.fetchval(WORKFLOW, milliseconds, due.workflow_id))


IS_DUE = "schedule_id = $1 AND next_fire_at <= $2::timestamptz + $3::interval"


async def lock(conn: Connection, due: Due, tolerance: timedelta) -> Schedule | None:
    """The schedule, locked, if it is still due (`tolerance` before its time counts) and nobody else is at it."""
    query = f"SELECT {COLUMNS} FROM schedules s WHERE {IS_DUE} FOR NO KEY UPDATE SKIP LOCKED"
    row = await conn.fetchrow(query, due.schedule_id, due.now, tolerance)
    return Schedule(**row) if row else None


async def is_due(conn: Connection, due: Due, tolerance: timedelta) -> bool:
    """Whoever may be at it."""
    query = f"SELECT EXISTS (SELECT FROM schedules WHERE {IS_DUE})"
    return bool(await conn.fetchval(query, due.schedule_id, due.now, tolerance))
