"""Workflows and their versions. What a definition may hold is agent.workflows' to say."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from services import agents, projects
from services.errors import NotFound
from services.postgres import LONG_SECONDS, Connection, Executor

MISSING = "Workflow not found."
DETAILS = ("name", "description", "state", "project_id", "agent_id")


@dataclass(frozen=True, slots=True)
class ListedWorkflow:
    """What a list shows of a workflow: not its steps, of which there may be many."""

    workflow_id: UUID
    account_id: UUID
    project_id: UUID | None
    agent_id: UUID | None
    name: str
    description: str
    state: str
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Workflow(ListedWorkflow):
    """`definition` is that of its current version, as JSON."""

    current_version_id: UUID
    created_by: UUID | None
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a workflow: `details` that are absent stay; a definition that is new makes a version."""

    details: Mapping[str, Any]
    definition: Mapping[str, Any] | None = None


OWN = tuple(f.name for f in fields(Workflow) if f.name != "definition")
COLUMNS = ", ".join((*(f"w.{name}" for name in OWN), "v.definition"))
LISTED = ", ".join(f.name for f in fields(ListedWorkflow))
WITH_VERSION = "workflows w JOIN workflow_versions v ON v.version_id = w.current_version_id"


async def get(conn: Executor, account_id: UUID, workflow_id: UUID) -> Workflow:
    """Raises: NotFound, alike for a workflow that is somebody else's and one that is not there."""
    return await found(conn, account_id, workflow_id, "")


async def lock(conn: Connection, account_id: UUID, workflow_id: UUID) -> Workflow:
    """As `get`, for a change: parallel ones of the same workflow wait for each other. It may be executed meanwhile."""
    return await found(conn, account_id, workflow_id, "FOR NO KEY UPDATE OF w")


async def lock_out(conn: Connection, account_id: UUID, workflow_id: UUID) -> Workflow:
    """As `lock`, for its deletion: what was begun is committed by now, and nothing more is begun."""
    return await found(conn, account_id, workflow_id, "FOR UPDATE OF w")


async def found(conn: Executor, account_id: UUID, workflow_id: UUID, locking: str) -> Workflow:
    query = f"SELECT {COLUMNS} FROM {WITH_VERSION} WHERE w.workflow_id = $1 AND w.account_id = $2 {locking}"
    row = await conn.fetchrow(query, workflow_id, account_id)
    if not row:
        raise NotFound(MISSING)
    return Workflow(**row)


async def find(conn: Executor, workflow_id: UUID) -> Workflow | None:
    """A workflow of any account, for a message that names it."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM {WITH_VERSION} WHERE w.workflow_id = $1", workflow_id)
    return Workflow(**row) if row else None


async def page(
    conn: Executor, account_id: UUID, *, state: str | None = None, limit: int, offset: int
) -> tuple[list[ListedWorkflow], int]:
    """The account's workflows, newest first, and how many there are."""
    wanted = "account_id = $1 AND ($2::text IS NULL OR state = $2)"
    rows = await conn.fetch(
        f"""
        SELECT {LISTED} FROM workflows WHERE {wanted}
        ORDER BY created_at DESC, workflow_id DESC LIMIT $3 OFFSET $4
        """,
        account_id,
        state,
        limit,
        offset,
    )
    total: int = await conn.fetchval(f"SELECT count(*) FROM workflows WHERE {wanted}", account_id, state)
    return [ListedWorkflow(**row) for row in rows], total


async def create(conn: Connection, account_id: UUID, change: Change, *, created_by: UUID | None = None) -> Workflow:
    """A new workflow with its first version, in the caller's transaction.

    Raises: NotFound for a project or agent that is not the account's; Forbidden for a project that is only public.
    """
    await check_places(conn, account_id, change.details)
    workflow_id, version_id = uuid4(), uuid4()
    details = {"description": "", "state": "DRAFT", "project_id": None, "agent_id": None, **change.details}
    await conn.execute(
        f"""
        INSERT INTO workflows (workflow_id, account_id, current_version_id, created_by, {", ".join(DETAILS)})
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        workflow_id,
        account_id,
        version_id,
        created_by,
        *(details[name] for name in DETAILS),
    )
    await add_version(conn, workflow_id, version_id, 1, change.definition or {}, created_by)
    return await get(conn, account_id, workflow_id)


async def change(
    conn: Connection, account_id: UUID, workflow_id: UUID, change: Change, *, created_by: UUID | None = None
) -> Workflow:
    """Change a workflow in the caller's transaction; executions that have begun keep their version.

    Raises: as `create`.
    """
    workflow = await lock(conn, account_id, workflow_id)
    await check_places(conn, account_id, change.details)
    news = {name: value for name, value in change.details.items() if value != getattr(workflow, name)}
    if change.definition is not None and change.definition != workflow.definition:
        version_id = uuid4()
        news |= {"current_version_id": version_id, "version": workflow.version + 1}
        await add_version(conn, workflow_id, version_id, workflow.version + 1, change.definition, created_by)
    if not news:
        return workflow
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(news, 2))
    statement = f"UPDATE workflows SET {settings}, updated_at = now() WHERE workflow_id = $1"
    await conn.execute(statement, workflow_id, *news.values())
    return await get(conn, account_id, workflow_id)


async def check_places(conn: Connection, account_id: UUID, details: Mapping[str, Any]) -> None:
    if details.get("project_id"):
        await projects.writable(conn, account_id, details["project_id"])
    if details.get("agent_id"):
        await agents.get(conn, account_id, details["agent_id"])


async def add_version(
    conn: Connection,
    workflow_id: UUID,
    version_id: UUID,
    number: int,
    definition: Mapping[str, Any],
    created_by: UUID | None,
) -> None:
    await conn.execute(
        """
        INSERT INTO workflow_versions (version_id, workflow_id, version_number, definition, created_by)
        VALUES ($1, $2, $3, $4, $5)
        """,
        version_id,
        workflow_id,
        number,
        definition,
        created_by,
    )


async def delete(conn: Connection, account_id: UUID, workflow_id: UUID) -> None:
    """Delete a workflow with its versions and executions; runs and their threads stay. Raises: NotFound."""
    await lock_out(conn, account_id, workflow_id)
    await conn.execute("DELETE FROM workflows WHERE workflow_id = $1", workflow_id, timeout=LONG_SECONDS)
