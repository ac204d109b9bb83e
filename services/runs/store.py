"""The agent_runs table: rows in, rows out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.postgres import Connection, Executor
from services.runs.fence import Fence, FenceLost


@dataclass(frozen=True, slots=True)
class Run:
    """One row of agent_runs, with `phase` computed by the database clock."""

    id: UUID
    kind: str
    account_id: UUID
    project_id: UUID
    thread_id: UUID
    agent_id: UUID | None
    agent_version_id: UUID | None
    created_by: UUID | None
    status: str
    phase: str
    model_name: str
    settings: dict[str, Any]
    metadata: dict[str, Any]
    webhook_url: str | None
    priority: int
    on_active: str
    attempt: int
    crashes: int
    instance_id: str | None
    heartbeat_at: datetime | None
    stop_requested_at: datetime | None
    not_before: datetime | None
    expires_at: datetime | None
    waited: timedelta
    message_sent_at: datetime | None
    message_tried_at: datetime | None
    error: str | None
    usage: dict[str, Any]
    archived_events: int
    reserved_events: int
    log_epoch: str | None
    event_count: int | None
    started_at: datetime | None
    completed_at: datetime | None
    closed_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def queued(self) -> timedelta:
        """How long it was due before it was first claimed."""
        due = max(self.created_at, self.not_before or self.created_at)
        return max((self.started_at or due) - due, timedelta(0))

    @property
    def worked(self) -> timedelta:
        """How long it has been at work, as of its last change: what it was set aside for is not counted."""
        return self.updated_at - (self.started_at or self.updated_at) - self.waited

    @property
    def final(self) -> bool:
        return self.completed_at is not None

    @property
    def began_at(self) -> datetime:
        """What clients are told: when it was first claimed, or made if it never was."""
        return self.started_at or self.created_at

    @property
    def public_status(self) -> str:
        """What JSON answers show: `running` until it is final (existing frontends rely on it)."""
        return self.status if self.final else "running"


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What a list shows of a run."""

    id: UUID
    thread_id: UUID
    status: str
    phase: str
    model_name: str
    usage: dict[str, Any]
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def public_status(self) -> str:
        return self.status if self.completed_at else "running"


TURN = "({0}.started_at IS NULL, coalesce({0}.not_before, {0}.created_at), {0}.id)"
"""The order of a project's runs: what was begun first, then what is due longest."""

LIVE = "status IN ('queued', 'running')"
"""Not final, in the words of the partial indexes: `completed_at IS NULL` means the same and finds none of them."""

EARLIER_UNFINISHED = f"""EXISTS (
    SELECT 1 FROM agent_runs AS other
    WHERE other.project_id = run.project_id AND other.status IN ('queued', 'running') AND other.id <> run.id
      AND (other.status = 'running' OR {TURN.format("other")} < {TURN.format("run")})
)"""
"""Whether the project of `agent_runs AS run` has a run that must end first."""

COULD_BEGIN_SINCE = "greatest(created_at, not_before, CASE WHEN attempt > 0 THEN updated_at END)"
"""Since when a queued run of `agent_runs` waits for a worker: since it was due, or was handed over."""

PHASE = f"""CASE
    WHEN completed_at IS NOT NULL THEN status
    WHEN stop_requested_at IS NOT NULL THEN 'stopping'
    WHEN status = 'queued' AND (not_before > now() OR NOT judged OR {EARLIER_UNFINISHED}) THEN 'waiting'
    ELSE status
END"""
PHASES_OF_LIVE = ("waiting", "queued", "running", "stopping")


def columns_of(kind: type[Run] | type[ListedRun]) -> str:
    """What a statement over `agent_runs AS run` returns for a run of this kind."""
    return ", ".join(f"{PHASE} AS phase" if f.name == "phase" else f.name for f in fields(kind))


COLUMNS = columns_of(Run)
LISTED = columns_of(ListedRun)


async def hold(conn: Connection, fence: Fence) -> None:
    """Keep a run this attempt's until the transaction ends: nobody claims or ends it meanwhile.

    Raises: FenceLost when it is another's, or has ended.
    """
    query = "SELECT true FROM agent_runs WHERE id = $1 AND attempt = $2 AND status = 'running' FOR NO KEY UPDATE"
    if not await conn.fetchval(query, fence.run_id, fence.attempt):
        raise FenceLost(str(fence.run_id))


async def get(conn: Executor, run_id: UUID) -> Run | None:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM agent_runs AS run WHERE id = $1", run_id)
    return Run(**row) if row else None


async def list_runs(
    conn: Executor,
    account_id: UUID,
    *,
    status: str | None = None,
    phase: str | None = None,
    thread_id: UUID | None = None,
    project_id: UUID | None = None,
    before: tuple[datetime, UUID] | None = None,
    limit: int = 50,
) -> list[ListedRun]:
    """Runs of an account, newest first. `status="running"` means all that is not final; `phase` is exact.

    `before` is the (created_at, id) of the last row of the page before.
    """
    wanted = Conditions()
    wanted.add("account_id = {}", account_id)
    if status == "running":
        wanted.add(LIVE)
    elif status:
        wanted.add("status = {}", status)
    if phase in PHASES_OF_LIVE:
        wanted.add(f"{LIVE} AND {PHASE} = {{}}", phase)
    elif phase:
        wanted.add("status = {}", phase)
    if thread_id:
        wanted.add("thread_id = {}", thread_id)
    if project_id:
        wanted.add("project_id = {}", project_id)
    if before:
        wanted.add("(created_at, id) < ({}, {})", *before)
    rows = await conn.fetch(
        f"""
        SELECT {LISTED} FROM agent_runs AS run WHERE {wanted.sql}
        ORDER BY created_at DESC, id DESC LIMIT ${len(wanted.values) + 1}
        """,
        *wanted.values,
        limit,
    )
    return [ListedRun(*row) for row in rows]


class Conditions:
    """WHERE terms joined by AND; each `{}` becomes the next `$n`."""

    def __init__(self) -> None:
        self.terms: list[str] = []
        self.values: list[Any] = []

    def add(self, term: str, *values: Any) -> None:
        first = len(self.values) + 1
        self.values += values
        self.terms.append(term.format(*(f"${first + n}" for n in range(len(values)))))

    @property
    def sql(self) -> str:
        return " AND ".join(self.terms)


async def next_queued(conn: Executor, project_id: UUID) -> Run | None:
    """The queued run of a project whose turn it is."""
    row = await conn.fetchrow(
        f"""
        SELECT {COLUMNS} FROM agent_runs AS run
        WHERE project_id = $1 AND status = 'queued' AND (not_before IS NULL OR not_before <= now()) AND judged
          AND NOT {EARLIER_UNFINISHED}
        ORDER BY {TURN.format("run")} LIMIT 1
        """,
        project_id,
    )
    return Run(**row) if row else None


async def next_queued_of(conn: Executor, project_ids: Sequence[UUID]) -> list[Run | None]:
    """As `next_queued`, for many projects in one statement."""
    rows = await conn.fetch(
        f"""
        SELECT DISTINCT ON (project_id) {COLUMNS} FROM agent_runs AS run
        WHERE project_id = ANY($1) AND status = 'queued' AND (not_before IS NULL OR not_before <= now()) AND judged
          AND NOT {EARLIER_UNFINISHED}
        ORDER BY project_id, {TURN.format("run")}
        """,
        project_ids,
    )
    found = {row["project_id"]: Run(**row) for row in rows}
    return [found.get(project_id) for project_id in project_ids]


async def lock_all(conn: Executor, *, thread_id: UUID | None = None, project_id: UUID | None = None) -> bool:
    """Lock the runs of a thread or project that is about to be deleted, in one order: no deadlocks.

    Whoever writes for a run locks its row before that of its thread; so must whoever deletes both.
    Returns whether every one of them has ended, or was asked to stop.
    """
    rows = await conn.fetch(
        f"""
        SELECT {LIVE} AND stop_requested_at IS NULL AS goes_on FROM agent_runs
        WHERE thread_id = $1 OR project_id = $2 ORDER BY id FOR UPDATE
        """,
        thread_id,
        project_id,
    )
    return not any(row["goes_on"] for row in rows)


async def forget_message(conn: Executor, run_id: UUID) -> None:
    """The wake-up message of a run was spent without effect: the sweeper sends another one soon."""
    await conn.execute(
        "UPDATE agent_runs SET message_sent_at = NULL, message_tried_at = now() WHERE id = $1 AND status = 'queued'",
        run_id,
    )
