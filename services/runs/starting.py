"""Starting a run: its row, inside the caller's transaction."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.errors import Conflict
from services.postgres import Connection
from services.runs import lifecycle
from services.runs.store import COLUMNS, Run


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a client asks for. `on_active` says what becomes of the project's unfinished runs."""

    account_id: UUID
    project_id: UUID
    thread_id: UUID
    model_name: str
    created_by: UUID | None = None
    agent_id: UUID | None = None
    agent_version_id: UUID | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    priority: int = 5
    on_active: str = "stop"
    delay: timedelta | None = None
    expires_in: timedelta | None = None
    kind: str = "agent"


@dataclass(frozen=True, slots=True)
class Started:
    """The new run, and the earlier ones whose stop was committed with it: announce those after the commit."""

    run: Run
    stopped: list[Run]


async def start(conn: Connection, new: NewRun) -> Started:
    """Insert the row of a run in the caller's transaction; send its message after the commit.

    Parallel starts of one project take turns on its row.
    Raises: Conflict `{message, agent_run_id}` when `on_active` is `reject` and a run is unfinished.
    """
    await conn.execute("SELECT FROM projects WHERE project_id = $1 FOR UPDATE", new.project_id)
    stopped = [] if new.delay else await clear_the_way(conn, new)
    return Started(await insert(conn, new), stopped)


async def clear_the_way(conn: Connection, new: NewRun) -> list[Run]:
    if new.on_active == "queue":
        return []
    rows = await conn.fetch(
        "SELECT id FROM agent_runs WHERE project_id = $1 AND completed_at IS NULL ORDER BY created_at", new.project_id
    )
    unfinished = [row["id"] for row in rows]
    if unfinished and new.on_active == "reject":
        raise Conflict({"message": "A run of this project has not finished yet.", "agent_run_id": str(unfinished[0])})
    return await lifecycle.request_stops(conn, unfinished) if unfinished else []


async def insert(conn: Connection, new: NewRun) -> Run:
    row = await conn.fetchrow(
        f"""
        INSERT INTO agent_runs AS run (
            kind, account_id, project_id, thread_id, model_name, created_by, agent_id, agent_version_id,
            settings, metadata, webhook_url, priority, on_active, created_at, not_before, expires_at
        ) VALUES (
            $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, clock_timestamp(),
            now() + $14::interval, now() + $15::interval
        ) RETURNING {COLUMNS}
        """,
        new.kind,
        new.account_id,
        new.project_id,
        new.thread_id,
        new.model_name,
        new.created_by,
        new.agent_id,
        new.agent_version_id,
        new.settings,
        new.metadata,
        new.webhook_url,
        new.priority,
        new.on_active,
        new.delay,
        new.expires_in,
    )
    assert row is not None
    return Run(**row)
