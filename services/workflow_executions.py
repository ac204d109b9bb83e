"""Executions of workflows: which version with which variables. How one stands is in the row of its run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from services import agents, messages, projects, threads
from services.errors import NotFound
from services.messages import NewMessage
from services.postgres import Connection, Executor
from services.runs import slots, starting, store
from services.runs.starting import NewRun, Started
from services.runs.store import LIVE, PHASE, Run
from services.settings import LimitSettings
from services.workflows import Workflow

MISSING = "Execution not found."
PROJECT_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Execution:
    """What an execution is made of; `agent_run_id` is None until a worker has picked it up."""

    execution_id: UUID
    workflow_id: UUID
    version_id: UUID
    agent_run_id: UUID | None
    deterministic: bool
    variables: dict[str, Any]
    triggered_by: str
    created_by: UUID | None
    created_at: datetime
    workflow_name: str
    workflow_description: str
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShownExecution:
    """An execution and how its run stands."""

    execution_id: UUID
    workflow_id: UUID
    version: int
    agent_run_id: UUID | None
    thread_id: UUID | None
    project_id: UUID | None
    status: str | None
    phase: str | None
    deterministic: bool
    triggered_by: str
    variables: dict[str, Any]
    error: str | None
    usage: dict[str, Any] | None
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewExecution:
    """An execution of a workflow's current version; `brief` is the first message of its thread, if there is one."""

    workflow: Workflow
    model_name: str
    variables: dict[str, Any] = field(default_factory=dict)
    deterministic: bool = True
    triggered_by: str = "MANUAL"
    created_by: UUID | None = None
    execution_id: UUID = field(default_factory=uuid4)
    brief: NewMessage | None = None
    on_active: str = "queue"
    priority: int = 5
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    delay: timedelta | None = None
    settings: dict[str, Any] = field(default_factory=dict)


OWN = ", ".join(f"e.{f.name}" for f in fields(Execution)[:9])
COLUMNS = f"{OWN}, w.name AS workflow_name, w.description AS workflow_description, v.definition"
WHOLE = "workflow_executions e JOIN workflows w USING (workflow_id) JOIN workflow_versions v USING (version_id)"
SHOWN = f"""
    e.execution_id, e.workflow_id, v.version_number AS version, e.agent_run_id, run.thread_id, run.project_id,
    run.status, {PHASE} AS phase, e.deterministic, e.triggered_by, e.variables, run.error, run.usage, run.started_at,
    run.completed_at, e.created_at
"""
WITH_RUN = """
    workflow_executions e JOIN workflows w USING (workflow_id) JOIN workflow_versions v USING (version_id)
    LEFT JOIN agent_runs AS run ON run.id = e.agent_run_id
"""


async def start(conn: Connection, run_id: UUID, new: NewExecution, limits: LimitSettings) -> Started:
    """A thread, a run and the execution, in the caller's transaction; a project too if the workflow has none.

    Send the run after the commit. Raises: as `starting.start`; NotFound when the workflow's agent was deleted.
    """
    workflow = new.workflow
    if workflow.project_id:  # its turn before its thread: whoever deletes it has the turn, and waits for the thread
        await slots.take_turns(conn, workflow.account_id, workflow.project_id, limits)
    version_id = None
    if workflow.agent_id:
        version_id = await agents.current_version(conn, workflow.account_id, workflow.agent_id)
    project_id = (
        workflow.project_id
        or (await projects.create(conn, workflow.account_id, workflow.name[:PROJECT_NAME_CHARS])).project_id
    )
    named = {"workflow_id": str(workflow.workflow_id), "execution_id": str(new.execution_id)}
    thread = await threads.create(conn, workflow.account_id, project_id, {"title": workflow.name, **named})
    if new.brief:
        await messages.add(conn, thread.thread_id, [new.brief])
    asked = NewRun(
        run_id=run_id,
        kind="workflow",
        account_id=workflow.account_id,
        project_id=project_id,
        thread_id=thread.thread_id,
        model_name=new.model_name,
        created_by=new.created_by,
        agent_id=workflow.agent_id,
        agent_version_id=version_id,
        settings={**new.settings, **named, "workflow_name": workflow.name, "triggered_by": new.triggered_by},
        metadata=new.metadata,
        webhook_url=new.webhook_url,
        priority=new.priority,
        on_active=new.on_active,
        delay=new.delay,
    )
    started = await starting.start(conn, asked, limits)
    await add(conn, new, run_id)
    return started


async def add(conn: Connection, new: NewExecution, run_id: UUID) -> None:
    """Store the execution; one that is there without a run is given this one."""
    await conn.execute(
        """
        INSERT INTO workflow_executions
            (execution_id, workflow_id, version_id, agent_run_id, deterministic, variables, triggered_by, created_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (execution_id) DO UPDATE SET agent_run_id = excluded.agent_run_id
        """,
        new.execution_id,
        new.workflow.workflow_id,
        new.workflow.current_version_id,
        run_id,
        new.deterministic,
        new.variables,
        new.triggered_by,
        new.created_by,
    )


async def start_again(conn: Connection, run: Run, again: NewRun, limits: LimitSettings) -> Started:
    """A new execution like that of `run`, of the same version, over the same thread. Raises: as `starting.start`."""
    execution_id = uuid4()
    settings = {**again.settings, "execution_id": str(execution_id)}
    new = NewRun(**{**{f.name: getattr(again, f.name) for f in fields(NewRun)}, "settings": settings})
    started = await starting.start(conn, new, limits)
    made = await conn.fetchval(
        """
        INSERT INTO workflow_executions
            (execution_id, workflow_id, version_id, agent_run_id, deterministic, variables, triggered_by, created_by)
        SELECT $1, workflow_id, version_id, $2, deterministic, variables, triggered_by, $3
        FROM workflow_executions WHERE agent_run_id = $4
        RETURNING true
        """,
        execution_id,
        again.run_id,
        again.created_by,
        run.id,
    )
    if not made:
        raise NotFound(MISSING)
    return started


async def of_run(conn: Executor, run_id: UUID) -> Execution | None:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM {WHOLE} WHERE e.agent_run_id = $1", run_id)
    return Execution(**row) if row else None


async def lock(conn: Connection, execution_id: UUID) -> Execution | None:
    """An execution of any account, for a message that names it; parallel ones wait for each other, row or no row."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1::text, 5014))", str(execution_id))
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM {WHOLE} WHERE e.execution_id = $1 FOR UPDATE OF e", execution_id)
    return Execution(**row) if row else None


async def get(conn: Executor, account_id: UUID, execution_id: UUID) -> ShownExecution:
    """Raises: NotFound, alike for an execution that is somebody else's and one that is not there."""
    query = f"SELECT {SHOWN} FROM {WITH_RUN} WHERE e.execution_id = $1 AND w.account_id = $2"
    row = await conn.fetchrow(query, execution_id, account_id)
    if not row:
        raise NotFound(MISSING)
    return ShownExecution(**row)


async def page(
    conn: Executor, workflow_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[ShownExecution]:
    """Executions of a workflow, newest first; `before` is the (created_at, id) of the last one of the page before."""
    rows = await conn.fetch(
        f"""
        SELECT {SHOWN} FROM {WITH_RUN}
        WHERE e.workflow_id = $1 AND ($2::timestamptz IS NULL OR (e.created_at, e.execution_id) < ($2, $3))
        ORDER BY e.created_at DESC, e.execution_id DESC LIMIT $4
        """,
        workflow_id,
        *(before or (None, None)),
        limit,
    )
    return [ShownExecution(**row) for row in rows]


async def live_runs(conn: Executor, workflow_id: UUID) -> Sequence[UUID]:
    """The unfinished runs of a workflow."""
    rows = await conn.fetch(
        f"""
        SELECT run.id FROM workflow_executions e JOIN agent_runs AS run ON run.id = e.agent_run_id
        WHERE e.workflow_id = $1 AND run.{LIVE} ORDER BY run.id
        """,
        workflow_id,
    )
    return [row["id"] for row in rows]


async def run_of(conn: Executor, execution_id: UUID) -> Run | None:
    run_id = await conn.fetchval("SELECT agent_run_id FROM workflow_executions WHERE execution_id = $1", execution_id)
    return await store.get(conn, run_id) if run_id else None
