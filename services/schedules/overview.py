"""Schedules of all accounts, for operators."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.postgres import Executor
from services.schedules.store import COLUMNS, Schedule


async def list_schedules(
    conn: Executor,
    *,
    account_id: UUID | None = None,
    status: str | None = None,
    late: timedelta | None = None,
    limit: int = 20,
) -> list[Schedule]:
    """Those that fire next first, then the others, newest first. `late`: only what was due so long ago."""
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS} FROM schedules s
        WHERE ($1::uuid IS NULL OR account_id = $1) AND ($2::text IS NULL OR status = $2)
          AND ($3::interval IS NULL OR next_fire_at < now() - $3)
        ORDER BY next_fire_at NULLS LAST, created_at DESC LIMIT $4
        """,
        account_id,
        status,
        late,
        limit,
    )
    return [Schedule(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Lateness:
    """Schedules that are due and that nobody is firing: how many, and since how many seconds the longest is."""

    due: int
    seconds: float


async def lateness(conn: Executor) -> Lateness:
    """One that is held up is left out while a worker keeps it from others: it comes back to it within seconds."""
    row = await conn.fetchrow(
        """
        SELECT count(*) AS due, coalesce(extract(epoch FROM now() - min(next_fire_at)), 0)::float8 AS seconds
        FROM schedules WHERE next_fire_at <= now() AND (claimed_until IS NULL OR claimed_until <= now())
        """
    )
    assert row
    return Lateness(**row)
