"""The schedule_firings table: every fire time once, with what it started or why it started nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.postgres import Connection, Executor
from services.runs.store import LIVE, Run
from services.schedules.store import Schedule

MAX_ERROR_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fire time: `started` a run, or `skipped`, or `failed` with a sentence that says why."""

    status: str
    fire_time: datetime
    run: Run | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Firing:
    """A row as logs show it; `run_status` and `completed_at` are those of its run."""

    firing_id: UUID
    schedule_id: UUID
    fire_time: datetime
    status: str
    agent_run_id: UUID | None
    execution_id: UUID | None
    error: str | None
    created_at: datetime
    run_status: str | None
    completed_at: datetime | None


async def note(
    conn: Connection,
    schedule: Schedule,
    outcome: Outcome,
    following: datetime | None,
    *,
    message_id: str | None = None,
) -> None:
    """Store the outcome of a fire time of a schedule that is locked, and move it on to the following one.

    A schedule has ended when none follows. Raises: UniqueViolationError for a time that was noted before.
    """
    execution_id = outcome.run.settings.get("execution_id") if outcome.run else None
    await conn.execute(
        f"""
        WITH noted AS (
            INSERT INTO schedule_firings
                (schedule_id, fire_time, status, agent_run_id, execution_id, error, message_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
        )
        {MOVE_ON.format("$8")},
            last_fired_at = CASE WHEN $3 = 'started' THEN $2 ELSE last_fired_at END,
            execution_count = execution_count + ($3 = 'started')::int,
            error_count = error_count + ($3 = 'failed')::int
        WHERE schedule_id = $1
        """,
        schedule.schedule_id,
        outcome.fire_time,
        outcome.status,
        outcome.run.id if outcome.run else None,
        UUID(execution_id) if execution_id else None,
        outcome.error and outcome.error[:MAX_ERROR_CHARS],
        message_id,
        following,
    )


MOVE_ON = """
    UPDATE schedules SET next_fire_at = {0}, claimed_until = NULL,
        status = CASE WHEN {0}::timestamptz IS NULL THEN 'completed' ELSE status END,
        revision = revision + ({0}::timestamptz IS NULL)::int
"""


async def move_on(conn: Connection, schedule: Schedule, following: datetime | None) -> None:
    """From a time that was fired already: the clock may have been set back."""
    await conn.execute(f"{MOVE_ON.format('$2')} WHERE schedule_id = $1", schedule.schedule_id, following)


async def is_noted(conn: Executor, schedule_id: UUID, fire_time: datetime) -> bool:
    query = "SELECT EXISTS (SELECT FROM schedule_firings WHERE schedule_id = $1 AND fire_time = $2)"
    return bool(await conn.fetchval(query, schedule_id, fire_time))


async def unfinished(conn: Executor, schedule_id: UUID) -> int:
    """How many runs of a schedule have not ended."""
    found: int = await conn.fetchval(
        f"""
        SELECT count(*) FROM schedule_firings f JOIN agent_runs run ON run.id = f.agent_run_id
        WHERE f.schedule_id = $1 AND run.{LIVE}
        """,
        schedule_id,
    )
    return found


async def of_message(conn: Executor, schedule_id: UUID, message_id: str) -> Firing | None:
    """What an earlier delivery of the same message came to."""
    row = await conn.fetchrow(f"{SHOWN} WHERE f.schedule_id = $1 AND f.message_id = $2", schedule_id, message_id)
    return Firing(**row) if row else None


SHOWN = """
    SELECT f.firing_id, f.schedule_id, f.fire_time, f.status, f.agent_run_id, f.execution_id, f.error, f.created_at,
        run.status AS run_status, run.completed_at
    FROM schedule_firings f LEFT JOIN agent_runs run ON run.id = f.agent_run_id
"""


async def page(conn: Executor, schedule_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int) -> list[Firing]:
    """Firings of a schedule, newest first; `before` is the (created_at, id) of the last one of the page before."""
    rows = await conn.fetch(
        f"""
        {SHOWN} WHERE f.schedule_id = $1 AND ($2::timestamptz IS NULL OR (f.created_at, f.firing_id) < ($2, $3))
        ORDER BY f.created_at DESC, f.firing_id DESC LIMIT $4
        """,
        schedule_id,
        *(before or (None, None)),
        limit,
    )
    return [Firing(**row) for row in rows]


async def forget_old(conn: Executor, older_than: timedelta, most: int) -> int:
    """Delete old firings, so many at a time; returns how many it deleted."""
    rows: Sequence[object] = await conn.fetch(
        """
        DELETE FROM schedule_firings WHERE firing_id IN (
            SELECT firing_id FROM schedule_firings WHERE created_at < now() - $1::interval
            ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ) RETURNING 1
        """,
        older_than,
        most,
    )
    return len(rows)
