"""What was deleted and may have left something outside Postgres: a project its sandbox, runs their logs in Redis.

It is noted with the deletion itself, so that somebody goes on whoever dies after that. A note is kept for KEPT: a
worker that has not heard yet that its run is gone may make a folder or a log anew.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.postgres import Connection, Executor

KEPT = timedelta(hours=1)
LOGS_LAST = timedelta(hours=48)
"""Longer than Redis keeps the log of a run that has ended."""
PAGE_ROWS = 100


@dataclass(frozen=True, slots=True)
class Removal:
    """`project_id` is None where only a thread was deleted: the sandbox stays."""

    removal_id: int
    project_id: UUID | None
    run_ids: Sequence[UUID]


async def note_project(conn: Connection, account_id: UUID, project_id: UUID) -> None:
    """To be called just before a project of the account is deleted, in the same transaction."""
    await conn.execute(
        """
        INSERT INTO removals (project_id, run_ids)
        SELECT project_id, ARRAY(
            SELECT id FROM agent_runs r
            WHERE r.project_id = p.project_id AND (completed_at IS NULL OR completed_at > now() - $3::interval)
        )
        FROM projects p WHERE project_id = $1 AND account_id = $2
        """,
        project_id,
        account_id,
        LOGS_LAST,
    )


async def note_thread(conn: Connection, account_id: UUID, thread_id: UUID) -> None:
    """As `note_project`."""
    await conn.execute(
        """
        INSERT INTO removals (run_ids)
        SELECT array_agg(id) FROM agent_runs
        WHERE thread_id = $1 AND account_id = $2 AND (completed_at IS NULL OR completed_at > now() - $3::interval)
        HAVING count(*) > 0
        """,
        thread_id,
        account_id,
        LOGS_LAST,
    )


async def noted(conn: Executor) -> AsyncIterator[Removal]:
    """All that is noted, the oldest first."""
    last = 0
    while rows := await conn.fetch(
        "SELECT removal_id, project_id, run_ids FROM removals WHERE removal_id > $1 ORDER BY removal_id LIMIT $2",
        last,
        PAGE_ROWS,
    ):
        for row in rows:
            yield Removal(**row)
        last = rows[-1]["removal_id"]


async def forget(conn: Executor, removal_ids: Sequence[int]) -> None:
    """Those of them that are old enough."""
    await conn.execute(
        "DELETE FROM removals WHERE removal_id = ANY($1::bigint[]) AND noted_at < now() - $2::interval",
        removal_ids,
        KEPT,
    )
