"""How far behind the telling of runs' ends is, of all accounts."""

from dataclasses import dataclass

from services.postgres import Executor

MOST = 10_000
"""A look takes a moment, however large the backlog is: what tells of it must not fail because of it."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Ends that their receivers have not been told of: how many there are, and the seconds since the oldest of them.

    Of deliveries, and of ends of which none was made yet, the first `MOST` are looked at, those that are due first.

    `late`: the seconds for which the longest due waits for a worker; one that is to be tried again is not due yet.
    """

    untold: int
    age: float
    late: float


async def look(conn: Executor) -> Backlog:
    """Along the partial indexes of what is pending, and of ends of which no delivery was made yet."""
    row = await conn.fetchrow(
        f"""
        WITH pending AS (
            SELECT count(*) AS count, min(created_at) AS oldest, min(due_at) AS due FROM (
                SELECT created_at, due_at FROM webhook_deliveries WHERE state = 'pending' ORDER BY due_at LIMIT {MOST}
            ) AS soonest
        ), unnoted AS (
            SELECT count(*) AS count, min(completed_at) AS oldest FROM (
                SELECT completed_at FROM agent_runs
                WHERE completed_at IS NOT NULL AND webhook_url IS NOT NULL AND webhook_noted_at IS NULL
                ORDER BY completed_at LIMIT {MOST}
            ) AS first
        )
        SELECT pending.count + unnoted.count AS untold,
            extract(epoch FROM now() - least(pending.oldest, unnoted.oldest))::float8 AS age,
            extract(epoch FROM now() - least(pending.due, unnoted.oldest))::float8 AS late
        FROM pending, unnoted
        """
    )
    assert row
    return Backlog(row["untold"], max(row["age"] or 0.0, 0.0), max(row["late"] or 0.0, 0.0))
