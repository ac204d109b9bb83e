"""The moves of a run: one table, guarded UPDATEs. "Someone got there first" is None, not an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from asyncpg import UniqueViolationError

from services.postgres import Executor, storable_text
from services.runs.archive import FIRST_EVENTS
from services.runs.fence import Fence
from services.runs.store import COLUMNS, EARLIER_UNFINISHED, LIVE, Run

MOVES: dict[str, tuple[str, ...]] = {
    "running": ("queued", "running"),
    "queued": ("running",),
    "completed": ("running",),
    "failed": ("queued", "running"),
    "stopped": ("queued", "running"),
}
"""To a status: the statuses it may come from. `running` from `running` is a take-over."""

LOCKED = "locked AS (SELECT id AS run_id FROM agent_runs WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE)"
"""The rows of the runs in $1, locked in one order whatever order they are named in: no deadlocks."""

GIVEN = "given AS (SELECT * FROM unnest($1::uuid[], $2::int[]) AS given (run_id, fence))"
"""The runs in $1 with the attempts that are to be ours, in $2."""


STOP = f"""
UPDATE agent_runs AS run SET
    stop_requested_at = coalesce(stop_requested_at, now()),
    updated_at = CASE WHEN stop_requested_at IS NULL THEN now() ELSE updated_at END,
    attempt = attempt + (status = 'queued')::int,
    completed_at = CASE WHEN status = 'queued' THEN now() END,
    status = CASE WHEN status = 'queued' THEN 'stopped' ELSE status END
FROM {{}}
WHERE id = run_id AND completed_at IS NULL
RETURNING {COLUMNS}
"""
"""Commit a stop of the runs in LOCKED or FREE."""

ACKNOWLEDGED = "updated_at > stop_requested_at"
"""Whether the driver of a running run has written since its stop was committed. A heartbeat would not say that."""

FREE = "free AS (SELECT id AS run_id FROM agent_runs WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED)"
"""Those of the runs in $1 whose rows nobody has locked: a statement for many waits for none of them."""


class Claimable(Protocol):
    """What a claim must know of a run."""

    @property
    def id(self) -> UUID: ...
    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A run that nobody had claimed when its message was sent: so the claim needs no look at the row before."""

    id: UUID
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The end of a run by its driver; `usage` is JSON."""

    fence: Fence
    status: str
    error: str | None
    usage: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """A run whose stop was committed a grace ago; `spare` it if its driver acknowledges the stop."""

    run_id: UUID
    attempt: int
    spare: bool


@dataclass(frozen=True, slots=True)
class HandOver:
    """A live run that is given back to the queue, its log archived up to `length` (None: as far as it got).

    `settled` says that no append is unanswered: then no id beyond was given out, and the reservation ends there.
    `until`: the run is set aside until then; it leaves its slot, and stands in line for one when the time has come.
    """

    fence: Fence
    length: int | None
    settled: bool
    until: datetime | None = None


async def claim(
    conn: Executor, run: Claimable, instance_id: str, *, dead_after: timedelta, epoch: str = ""
) -> Run | None:
    """Make `run` (as read, or as its message tells) this instance's: attempt + 1. Only with the lock of that in hand.

    A running one is taken over only when its heartbeat is older than `dead_after`, which counts as a crash.
    A project's earlier run must be final first. The first claim of all reserves the log's first ids, too, if the
    `epoch` of the log's Redis is known. Returns the row as claimed, or None.
    """
    try:
        row = await conn.fetchrow(
            f"""
            UPDATE agent_runs AS run SET
                crashes = crashes + (status = 'running')::int, status = 'running', attempt = attempt + 1,
                instance_id = $3, heartbeat_at = now(), updated_at = now(), started_at = coalesce(started_at, now()),
                waited = waited + coalesce(now() - parked_at, '0'), parked_at = NULL,
                reserved_events = CASE WHEN attempt = 0 AND $6 <> '' THEN $7 ELSE reserved_events END,
                log_epoch = CASE WHEN attempt = 0 AND $6 <> '' THEN $6 ELSE log_epoch END
            WHERE id = $1 AND attempt = $2 AND status = ANY($4) AND stop_requested_at IS NULL
              AND (status = 'queued' OR heartbeat_at < now() - $5::interval)
              AND (not_before IS NULL OR not_before <= now()) AND judged
              AND (started_at IS NOT NULL OR expires_at IS NULL OR expires_at > now())
              AND NOT {EARLIER_UNFINISHED}
            RETURNING {COLUMNS}
            """,
            run.id,
            run.attempt,
            instance_id,
            MOVES["running"],
            dead_after,
            epoch,
            FIRST_EVENTS,
        )
    except UniqueViolationError:
        return None  # the index lets one run of a project be running, whatever a clock that is set back does to turns
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
        error and storable_text(error),
        usage,
        MOVES[status],
    )
    return Run(**row) if row else None


async def end_free(conn: Executor, ends: Sequence[End]) -> list[Run | None]:
    """As `end`, for many running runs in one statement; None also for a run whose row is locked."""
    rows = await conn.fetch(
        f"""
        WITH {FREE}, given AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[])
                AS given (run_id, fence, ending, explanation, spent)
        )
        UPDATE agent_runs AS run SET
            status = CASE WHEN stop_requested_at IS NULL THEN ending ELSE 'stopped' END,
            error = CASE WHEN stop_requested_at IS NULL THEN explanation END,
            usage = usage || spent::jsonb, completed_at = now(), updated_at = now()
        FROM given JOIN free USING (run_id)
        WHERE id = run_id AND attempt = fence AND status = 'running'
        RETURNING {COLUMNS}
        """,
        [one.fence.run_id for one in ends],
        [one.fence.attempt for one in ends],
        [one.status for one in ends],
        [one.error and storable_text(one.error) for one in ends],
        [one.usage for one in ends],
    )
    found = {(row["id"], row["attempt"]): Run(**row) for row in rows}
    return [found.get((one.fence.run_id, one.fence.attempt)) for one in ends]


async def end_from_outside(
    conn: Executor, run_id: UUID, attempt: int, status: str, *, error: str | None = None
) -> Run | None:
    """End a run that this process does not drive: raises the fence, so that its driver can write no more."""
    ended = await end_all_from_outside(conn, [(run_id, attempt)], status, error=error)
    return ended[0] if ended else None


async def end_all_from_outside(
    conn: Executor, attempts: Sequence[tuple[UUID, int]], status: str, *, error: str | None = None
) -> list[Run]:
    """As `end_from_outside`, for many runs in one statement; returns those that it ended."""
    rows = await conn.fetch(
        f"""
        WITH {LOCKED}, {GIVEN}
        UPDATE agent_runs AS run SET
            status = CASE WHEN stop_requested_at IS NULL THEN $3 ELSE 'stopped' END,
            error = CASE WHEN stop_requested_at IS NULL THEN $4 END,
            attempt = attempt + 1, completed_at = now(), updated_at = now()
        FROM given JOIN locked USING (run_id)
        WHERE id = run_id AND attempt = fence AND status = ANY($5)
        RETURNING {COLUMNS}
        """,
        *as_columns(attempts),
        status,
        error,
        MOVES[status],
    )
    return [Run(**row) for row in rows]


def as_columns(attempts: Sequence[tuple[UUID, int]]) -> tuple[list[UUID], list[int]]:
    """The arguments of GIVEN."""
    return [run_id for run_id, _ in attempts], [attempt for _, attempt in attempts]


async def request_stops(conn: Executor, run_ids: Sequence[UUID]) -> list[Run]:
    """Commit a stop: a queued run is final at once (its fence raised), a running one can only end `stopped`.

    Returns the rows that were not final before; repeating it changes nothing.
    """
    return [Run(**row) for row in await conn.fetch(f"WITH {LOCKED} {STOP.format('locked')}", run_ids)]


async def request_free_stops(conn: Executor, run_ids: Sequence[UUID]) -> list[Run | None]:
    """As `request_stops`, answering in their order; None also for a run whose row is locked, or named before."""
    rows = await conn.fetch(f"WITH {FREE} {STOP.format('free')}", run_ids)
    found = {row["id"]: Run(**row) for row in rows}
    return [found.pop(run_id, None) for run_id in run_ids]


async def are_stops_committed(conn: Executor, run_ids: Sequence[UUID]) -> list[bool]:
    rows = await conn.fetch("SELECT id FROM agent_runs WHERE id = ANY($1) AND stop_requested_at IS NOT NULL", run_ids)
    asked = {row["id"] for row in rows}
    return [run_id in asked for run_id in run_ids]


async def acknowledge_stops(conn: Executor, fences: Sequence[Fence]) -> list[None]:
    """Say that the drivers of stopped runs are ending them. A row that is locked is being written by its driver."""
    await conn.execute(
        f"""
        WITH {GIVEN}, free AS (
            SELECT id AS run_id FROM agent_runs JOIN given ON id = run_id AND attempt = fence
            WHERE status = 'running' AND stop_requested_at IS NOT NULL FOR NO KEY UPDATE OF agent_runs SKIP LOCKED
        )
        UPDATE agent_runs SET updated_at = now() FROM free WHERE id = run_id
        """,
        *as_columns([(fence.run_id, fence.attempt) for fence in fences]),
    )
    return [None for _ in fences]


async def end_overdue(conn: Executor, asked: Sequence[Overdue]) -> list[Run | None]:
    """End stopped runs from outside, in one statement that waits for no row and locks none that is spared.

    Each as it is then: ended, or not, when it was spared or its row is locked; None when somebody else has ended it,
    who may be named before: whoever is told of an end says the last words.
    """
    rows = await conn.fetch(
        f"""
        WITH given AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::bool[]) AS given (run_id, fence, spare)
        ), free AS (
            SELECT id AS run_id FROM agent_runs JOIN given ON id = run_id AND attempt = fence
            WHERE {LIVE} AND NOT (spare AND {ACKNOWLEDGED}) FOR NO KEY UPDATE OF agent_runs SKIP LOCKED
        ), ended AS (
            UPDATE agent_runs AS run SET
                status = 'stopped', attempt = attempt + 1, completed_at = now(), updated_at = now()
            FROM free WHERE id = run_id
            RETURNING {COLUMNS}
        )
        SELECT * FROM ended
        UNION ALL
        SELECT {COLUMNS} FROM agent_runs AS run JOIN given ON id = run_id AND attempt = fence
        WHERE {LIVE} AND id NOT IN (SELECT id FROM ended)
        """,
        [one.run_id for one in asked],
        [one.attempt for one in asked],
        [one.spare for one in asked],
    )
    found = {row["id"]: Run(**row) for row in rows}
    ended = {run_id: found.pop(run_id) for run_id, run in list(found.items()) if run.final}
    return [ended.pop(one.run_id, None) or found.get(one.run_id) for one in asked]


async def take_up_closings(conn: Executor, runs: Sequence[Run]) -> list[Run]:
    """Raise the fences of final runs whose end was cut between row and last event, to finish them here.

    One statement for all; returns those that are ours now.
    """
    rows = await conn.fetch(
        f"""
        WITH {LOCKED}, {GIVEN}
        UPDATE agent_runs AS run SET attempt = attempt + 1, updated_at = now()
        FROM given JOIN locked USING (run_id)
        WHERE id = run_id AND attempt = fence AND completed_at IS NOT NULL AND closed_at IS NULL
        RETURNING {COLUMNS}
        """,
        *as_columns([(run.id, run.attempt) for run in runs]),
    )
    return [Run(**row) for row in rows]


async def hand_over_all(conn: Executor, handed: Sequence[HandOver]) -> list[Run | None]:
    """Give live runs back to the queue in one statement; answers in their order.

    None for a run whose fence is lost or of which a stop was asked.
    """
    rows = await conn.fetch(
        f"""
        WITH {LOCKED}, handed AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bool[], $6::timestamptz[])
                AS handed (run_id, fence, length, settled, until)
        )
        UPDATE agent_runs AS run SET
            status = 'queued', instance_id = NULL, heartbeat_at = NULL, message_sent_at = NULL,
            message_tried_at = CASE WHEN until IS NULL THEN now() END, updated_at = now(),
            not_before = coalesce(until, not_before), judged = judged AND until IS NULL,
            parked_at = CASE WHEN until IS NOT NULL THEN now() END,
            reserved_events = CASE WHEN settled THEN length ELSE reserved_events END
        FROM handed JOIN locked USING (run_id)
        WHERE id = run_id AND attempt = fence AND status = ANY($5) AND stop_requested_at IS NULL
          AND archived_events = coalesce(length, archived_events)
        RETURNING {COLUMNS}
        """,
        [one.fence.run_id for one in handed],
        [one.fence.attempt for one in handed],
        [one.length for one in handed],
        [one.settled and one.length is not None for one in handed],
        MOVES["queued"],
        [one.until for one in handed],
    )
    found = {(row["id"], row["attempt"]): Run(**row) for row in rows}
    return [found.get((one.fence.run_id, one.fence.attempt)) for one in handed]


async def take_back(conn: Executor, attempts: Sequence[tuple[UUID, int]]) -> list[Run]:
    """Take running runs from their drivers and put them into the queue: the fence is raised, nothing is ended.

    Returns those that were; one that is to be stopped stays where it is.
    """
    rows = await conn.fetch(
        f"""
        WITH {LOCKED}, {GIVEN}
        UPDATE agent_runs AS run SET
            status = 'queued', attempt = attempt + 1, instance_id = NULL, heartbeat_at = NULL, message_sent_at = NULL,
            message_tried_at = now(), updated_at = now()
        FROM given JOIN locked USING (run_id)
        WHERE id = run_id AND attempt = fence AND status = ANY($3) AND stop_requested_at IS NULL
        RETURNING {COLUMNS}
        """,
        *as_columns(attempts),
        MOVES["queued"],
    )
    return [Run(**row) for row in rows]
