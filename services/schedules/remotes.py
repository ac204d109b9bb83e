"""What QStash has been told of schedules, and what it has to be told.

A schedule's row says which revision of it QStash knows; schedule_remotes names all that it may know anything of, before
it is told: what is deleted here is found there, whoever died in between. One at a time tells QStash of a schedule: a
lease that outlasts the telling, so that nothing old overtakes what is new.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.postgres import Executor, Pool, transaction
from services.schedules.store import COLUMNS, Schedule

MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class Known:
    """What QStash may know of a schedule; whoever claimed it may speak of it until then."""

    schedule_id: UUID
    telling_until: datetime


async def claim_untold(conn: Executor, *, most: int, lease: timedelta) -> list[Schedule]:
    """Schedules whose newest revision QStash does not know."""
    rows = await conn.fetch(
        f"""
        WITH untold AS (
            SELECT schedule_id FROM schedules
            WHERE told_revision IS DISTINCT FROM revision AND (telling_until IS NULL OR telling_until <= now())
            LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
        ), noted AS (
            INSERT INTO schedule_remotes (schedule_id, telling_until)
            SELECT schedule_id, now() + $2::interval FROM untold
            ON CONFLICT (schedule_id) DO UPDATE SET telling_until = excluded.telling_until
        )
        UPDATE schedules s SET telling_until = now() + $2::interval FROM untold
        WHERE s.schedule_id = untold.schedule_id RETURNING {COLUMNS}
        """,
        most,
        lease,
    )
    return [Schedule(**row) for row in rows]


async def note_told(pool: Pool, schedule: Schedule) -> None:
    """QStash knows this revision; of one that has ended it knows nothing any more."""
    async with transaction(pool) as conn:
        await conn.execute(
            """
            UPDATE schedules SET told_revision = $2, telling_until = NULL, telling_error = NULL WHERE schedule_id = $1
            """,
            schedule.schedule_id,
            schedule.revision,
        )
        if schedule.status == "completed":
            await conn.execute("DELETE FROM schedule_remotes WHERE schedule_id = $1", schedule.schedule_id)
        else:
            await conn.execute(
                "UPDATE schedule_remotes SET telling_until = NULL WHERE schedule_id = $1", schedule.schedule_id
            )


async def note_failed(conn: Executor, schedule: Schedule, error: str, retry: timedelta) -> None:
    await conn.execute(
        """
        UPDATE schedules SET telling_until = now() + $2::interval, telling_error = $3 WHERE schedule_id = $1
        """,
        schedule.schedule_id,
        retry,
        error[:MAX_ERROR_CHARS],
    )


async def claim_orphans(conn: Executor, *, most: int, lease: timedelta) -> list[Known]:
    """What QStash may know of schedules that are there no more."""
    return await claim(conn, "NOT EXISTS (SELECT FROM schedules s WHERE s.schedule_id = r.schedule_id)", most, lease)


async def claim_all(conn: Executor, *, most: int, lease: timedelta) -> list[Known]:
    """What QStash may know of any schedule."""
    return await claim(conn, "true", most, lease)


async def claim(conn: Executor, which: str, most: int, lease: timedelta) -> list[Known]:
    rows = await conn.fetch(
        f"""
        UPDATE schedule_remotes SET telling_until = now() + $2::interval WHERE schedule_id IN (
            SELECT schedule_id FROM schedule_remotes r
            WHERE (telling_until IS NULL OR telling_until <= now()) AND {which}
            LIMIT $1 FOR UPDATE SKIP LOCKED
        ) RETURNING schedule_id, telling_until
        """,
        most,
        lease,
    )
    return [Known(**row) for row in rows]


async def forget(conn: Executor, known: Known) -> None:
    """QStash knows nothing of it any more: unless it has ended, it would have to be told of it again.

    What another has told it meanwhile (a worker that still runs with SCHEDULES=qstash) stays to be forgotten.
    """
    await conn.execute(
        """
        WITH forgotten AS (DELETE FROM schedule_remotes WHERE schedule_id = $1 AND telling_until = $2)
        UPDATE schedules SET told_revision = NULL WHERE schedule_id = $1 AND status <> 'completed'
        """,
        known.schedule_id,
        known.telling_until,
    )
