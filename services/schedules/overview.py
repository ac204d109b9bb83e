"""Schedules of all accounts, for operators."""

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
