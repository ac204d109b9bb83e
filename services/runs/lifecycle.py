"""The moves of a run: one table, guarded UPDATEs. "Someone got there first" is None, not an error."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.postgres import Executor
from services.runs.fence import Fence
from services.runs.store import COLUMNS, EARLIER_UNFINISHED, Run

MOVES: dict[str, tuple[str, ...]] = {
    "running": ("queued", "running"),
    "queued": ("running",),
    "completed": ("running",),
    "failed": ("queued", "running"),
    "stopped": ("queued", "running"),
}
"""To a status: the statuses it may come from. `running` from `running` is a take-over."""


async def claim(conn: Executor, run: Run, instance_id: str, *, dead_after: timedelta) -> Run | None:
    """Make `run` (as read) this instance's: attempt + 1. Only with the lock of that attempt in hand.

    A running one is taken over only when its heartbeat is older than `dead_after`, which counts as a crash.
    A project's earlier run must be final first. Returns the row as claimed, or None.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs AS run SET
            crashes = crashes + (status = 'running')::int, status = 'running', attempt = attempt + 1,
            instance_id = $3, heartbeat_at = now(), updated_at = now(), started_at = coalesce(started_at, now())
        WHERE id = $1 AND attempt = $2 AND status = ANY($4) AND stop_requested_at IS NULL
          AND (status = 'queued' OR heartbeat_at < now() - $5::interval)
          AND (not_before IS NULL OR not_before <= now())
          AND (started_at IS NOT NULL OR expires_at IS NULL OR expires_at > now())
          AND NOT {EARLIER_UNFINISHED}
        RETURNING {COLUMNS}
        """,
        run.id,
        run.attempt,
        instance_id,
        MOVES["running"],
        dead_after,
    )
    return Run(**row) if row else None


async def is_abandoned(conn: Executor, run_id: UUID, dead_after: timedelta) -> bool:
    """Whether nobody has kept the claim of a running run for `dead_after` (database time)."""
    return bool(
        await conn.fetchval(
            "SELECT heartbeat_at < now() - $2::interval FROM agent_runs WHERE id = $1", run_id, dead_after
        )
    )


async def end(conn: Executor, fence: Fence, status: str, *, error: str | None, usage: dict[str, Any]) -> Run | None:
    """Write the final status, once. A stop that was committed before wins over every other status.

    Returns the row with the status it really has, or None when the fence is lost or it was final already.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs AS run SET
            status = CASE WHEN stop_requested_at IS NULL THEN $3 ELSE 'stopped' END,
            error = CASE WHEN stop_requested_at IS NULL THEN $4 END,
            usage = usage || $5, completed_at = now(), updated_at = now()
        WHERE id = $1 AND attempt = $2 AND status = ANY($6)
        RETURNING {COLUMNS}
        """,
        fence.run_id,
        fence.attempt,
        status,
        error,
        usage,
        MOVES[status],
    )
    return Run(**row) if row else None


async def end_from_outside(
    conn: Executor, run_id: UUID, attempt: int, status: str, *, error: str | None = None
) -> Run | None:
    """End a run that this process does not drive: raises the fence, so that its driver can write no more."""
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs AS run SET
            status = CASE WHEN stop_requested_at IS NULL THEN $3 ELSE 'stopped' END,
            error = CASE WHEN stop_requested_at IS NULL THEN $4 END,
            attempt = attempt + 1, completed_at = now(), updated_at = now()
        WHERE id = $1 AND attempt = $2 AND status = ANY($5)
        RETURNING {COLUMNS}
        """,
        run_id,
        attempt,
        status,
        error,
        MOVES[status],
    )
    return Run(**row) if row else None


async def request_stops(conn: Executor, run_ids: Sequence[UUID]) -> list[Run]:
    """Commit a stop: a queued run is final at once (its fence raised), a running one can only end `stopped`.

    Returns the rows that were not final before; repeating it changes nothing.
    """
    rows = await conn.fetch(
        f"""
        UPDATE agent_runs AS run SET
            stop_requested_at = coalesce(stop_requested_at, now()), updated_at = now(),
            attempt = attempt + (status = 'queued')::int,
            completed_at = CASE WHEN status = 'queued' THEN now() END,
            status = CASE WHEN status = 'queued' THEN 'stopped' ELSE status END
        WHERE id = ANY($1) AND completed_at IS NULL
        RETURNING {COLUMNS}
        """,
        run_ids,
    )
    return [Run(**row) for row in rows]


async def take_up_closing(conn: Executor, run: Run) -> Run | None:
    """Raise the fence of a final run whose end was cut between row and last event, to finish it here."""
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs AS run SET attempt = attempt + 1, updated_at = now()
        WHERE id = $1 AND attempt = $2 AND completed_at IS NOT NULL AND closed_at IS NULL
        RETURNING {COLUMNS}
        """,
        run.id,
        run.attempt,
    )
    return Run(**row) if row else None


async def hand_over(conn: Executor, fence: Fence, *, length: int, settled: bool) -> Run | None:
    """Give a live run back to the queue, its log (`length` events) archived.

    `settled` says that no append is unanswered: then no id beyond was given out, and the reservation ends there.
    None when the fence is lost or a stop was asked.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs AS run SET
            status = 'queued', instance_id = NULL, heartbeat_at = NULL, message_sent_at = NULL,
            message_tried_at = now(), updated_at = now(),
            reserved_events = CASE WHEN $5 THEN $3 ELSE reserved_events END
        WHERE id = $1 AND attempt = $2 AND status = ANY($4) AND archived_events = $3 AND stop_requested_at IS NULL
        RETURNING {COLUMNS}
        """,
        fence.run_id,
        fence.attempt,
        length,
        MOVES["queued"],
        settled,
    )
    return Run(**row) if row else None
