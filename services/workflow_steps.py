"""The steps of executions as they happen: begun and ended under the fence of the run, each visit of a step once."""

from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.postgres import LONG_SECONDS, Connection, Executor
from services.runs.fence import Fence, FenceLost

PAGE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of a step. `finished` says in which order visits ended; `sets` are variables that got new values."""

    step_id: str
    visit: str
    position: int
    status: str
    tries: int
    inputs: dict[str, Any]
    output: Any
    sets: dict[str, Any]
    usage: dict[str, Any]
    error: str | None
    wake_at: datetime | None
    finished: int | None
    started_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a visit has come to: `completed` or `failed`; `running` while it goes on."""

    status: str
    output: Any = None
    sets: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    tries: int = 0
    finished: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    """Of a visit that was not begun before."""


NAMES = tuple(f.name for f in fields(Visit))
COLUMNS = ", ".join(NAMES)
HELD = "held AS (SELECT id FROM agent_runs WHERE id = $1 AND attempt = $2 AND status = 'running' FOR NO KEY UPDATE)"
PROGRESSED = """held AS (
    UPDATE agent_runs SET crashes = 0, updated_at = now()
    WHERE id = $1 AND attempt = $2 AND status = 'running' RETURNING id
)"""
"""What ended is progress: a worker's death before it is forgotten."""


async def begin(
    conn: Connection,
    fence: Fence,
    execution_id: UUID,
    step_id: str,
    visit: str,
    *,
    inputs: dict[str, Any],
    wait: timedelta | None = None,
    until: datetime | None = None,
) -> Visit:
    """Note that a visit begins; one that has begun stays as it is. Raises: FenceLost."""
    row = await conn.fetchrow(
        f"""
        WITH {HELD}
        INSERT INTO workflow_steps AS s (execution_id, step_id, visit, inputs, wake_at)
        SELECT $3, $4, $5, $6, coalesce($8::timestamptz, clock_timestamp() + $7::interval) FROM held
        ON CONFLICT (execution_id, step_id, visit) DO UPDATE SET visit = s.visit
        RETURNING {COLUMNS}
        """,
        fence.run_id,
        fence.attempt,
        execution_id,
        step_id,
        visit,
        inputs,
        wait,
        until,
    )
    return held(row, fence)


async def note(conn: Connection, fence: Fence, execution_id: UUID, step_id: str, visit: str, outcome: Outcome) -> Visit:
    """Write down what a visit has come to, or how far it is. Raises: FenceLost."""
    over = outcome.status != "running"
    row = await conn.fetchrow(
        f"""
        WITH {PROGRESSED if over else HELD}
        INSERT INTO workflow_steps
            (execution_id, step_id, visit, inputs, status, output, sets, usage, error, tries, finished, completed_at)
        SELECT $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, CASE WHEN $14 THEN clock_timestamp() END FROM held
        ON CONFLICT (execution_id, step_id, visit) DO UPDATE SET
            status = excluded.status, output = excluded.output, sets = excluded.sets, usage = excluded.usage,
            error = excluded.error, tries = excluded.tries, finished = excluded.finished,
            completed_at = excluded.completed_at
        RETURNING {COLUMNS}
        """,
        fence.run_id,
        fence.attempt,
        execution_id,
        step_id,
        visit,
        outcome.inputs,
        outcome.status,
        outcome.output,
        outcome.sets,
        outcome.usage,
        outcome.error,
        outcome.tries,
        outcome.finished,
        over,
    )
    return held(row, fence)


def held(row: Any, fence: Fence) -> Visit:
    if row is None:
        raise FenceLost(str(fence.run_id))
    return Visit(**row)


async def is_due(conn: Executor, moment: datetime) -> bool:
    """By the clock of the database, which everything else is timed by."""
    due: bool = await conn.fetchval("SELECT clock_timestamp() >= $1", moment)
    return due


async def load(conn: Executor, execution_id: UUID) -> list[Visit]:
    """All visits of an execution; what they hold together is bounded when they are written."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM workflow_steps WHERE execution_id = $1 ORDER BY position",
        execution_id,
        timeout=LONG_SECONDS,
    )
    return [Visit(**row) for row in rows]


async def page(conn: Executor, execution_id: UUID, *, after: int, limit: int) -> tuple[list[Visit], bool]:
    """Visits behind position `after`, as they began, and whether there are more; up to PAGE_BYTES, one at least."""
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS}, found FROM (
            SELECT *, count(*) OVER () AS found, sum(size) OVER (ORDER BY position) - size AS bytes_before FROM (
                SELECT *, octet_length(inputs::text) + coalesce(octet_length(output::text), 0) AS size
                FROM workflow_steps WHERE execution_id = $1 AND position > $2 ORDER BY position LIMIT $3 + 1
            ) AS wanted
        ) AS summed
        WHERE bytes_before < {PAGE_BYTES} ORDER BY position LIMIT $3
        """,
        execution_id,
        after,
        limit,
    )
    visits = [Visit(**{name: row[name] for name in NAMES}) for row in rows]
    return visits, bool(rows) and rows[0]["found"] > len(rows)
