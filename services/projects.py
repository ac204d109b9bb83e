"""Projects: what an account works on."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from services import removals
from services.errors import Forbidden, NotFound
from services.postgres import LONG_SECONDS, Connection, Executor

SHOWN_OF_SANDBOX = ("id", "sandbox_url", "vnc_preview", "network")
MISSING = "Project not found."
READ_ONLY = "This project is public: you may read it, not change it."


@dataclass(frozen=True, slots=True)
class Project:
    project_id: UUID
    account_id: UUID
    name: str
    description: str
    sandbox: dict[str, Any]
    is_public: bool
    created_at: datetime
    updated_at: datetime

    @property
    def shown_sandbox(self) -> dict[str, Any]:
        return shown_of_sandbox(self.sandbox)


def shown_of_sandbox(sandbox: dict[str, Any]) -> dict[str, Any]:
    """What anybody may know of a project's sandbox; passwords and tokens stay here."""
    return {name: sandbox[name] for name in SHOWN_OF_SANDBOX if name in sandbox}


NAMES = tuple(f.name for f in fields(Project))
COLUMNS = ", ".join(NAMES)
WIDTH = len(NAMES)
SHOWN = "FROM projects WHERE account_id = $1 ORDER BY created_at DESC, project_id DESC LIMIT $2 OFFSET $3"
PAGE = f"(SELECT * {SHOWN}) AS page"
FAR_PAGE = f"(SELECT project_id {SHOWN}) AS shown JOIN projects USING (project_id)"
"""What it skips is read from the index alone; then the page's rows are looked up one by one."""


async def create(conn: Connection, account_id: UUID, name: str) -> Project:
    row = await conn.fetchrow(
        f"INSERT INTO projects (account_id, name) VALUES ($1, $2) RETURNING {COLUMNS}", account_id, name
    )
    assert row
    return Project(**row)


async def exists(conn: Executor, project_id: UUID) -> bool:
    found: bool = await conn.fetchval("SELECT EXISTS (SELECT FROM projects WHERE project_id = $1)", project_id)
    return found


async def readable(conn: Connection, account_id: UUID, project_id: UUID) -> Project:
    """A project of the account, or anybody's public one.

    Raises: NotFound, alike for a project that is somebody else's and one that is not there.
    """
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM projects WHERE project_id = $1 AND (account_id = $2 OR is_public)",
        project_id,
        account_id,
    )
    if not row:
        raise NotFound(MISSING)
    return Project(**row)


async def writable(conn: Connection, account_id: UUID, project_id: UUID) -> Project:
    """A project of the account.

    Raises: NotFound as `readable`; Forbidden when it is somebody else's public one.
    """
    project = await readable(conn, account_id, project_id)
    if project.account_id != account_id:
        raise Forbidden(READ_ONLY)
    return project


async def wants_network(conn: Executor, project_id: UUID) -> bool | None:
    """Whether its owner wants a network in its sandbox; None where the owner has not said."""
    wanted: bool | None = await conn.fetchval(
        "SELECT (sandbox -> 'network')::boolean FROM projects WHERE project_id = $1", project_id
    )
    return wanted


async def page(conn: Executor, account_id: UUID, *, limit: int, offset: int) -> tuple[list[Project], int]:
    """The account's projects, newest first, and how many it has."""
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS}, (SELECT count(*) FROM projects WHERE account_id = $1) AS total
        FROM {FAR_PAGE if offset > limit else PAGE} ORDER BY created_at DESC, project_id DESC
        """,
        account_id,
        limit,
        offset,
    )
    if not rows:
        return [], await count(conn, account_id) if offset else 0
    return [Project(*row[:WIDTH]) for row in rows], rows[0]["total"]


async def count(conn: Executor, account_id: UUID) -> int:
    total: int = await conn.fetchval("SELECT count(*) FROM projects WHERE account_id = $1", account_id)
    return total


async def update(
    conn: Connection,
    account_id: UUID,
    project_id: UUID,
    *,
    name: str | None = None,
    description: str | None = None,
    is_public: bool | None = None,
    network: bool | None = None,
) -> Project:
    """Change what is given, in a project of the account.

    Raises: NotFound, Forbidden as `writable`.
    """
    await writable(conn, account_id, project_id)
    row = await conn.fetchrow(
        f"""
        UPDATE projects SET name = coalesce($3, name), description = coalesce($4, description),
            is_public = coalesce($5, is_public),
            sandbox = CASE WHEN $6::boolean IS NULL THEN sandbox
                ELSE sandbox || jsonb_build_object('network', $6::boolean) END,
            updated_at = now()
        WHERE project_id = $1 AND account_id = $2
        RETURNING {COLUMNS}
        """,
        project_id,
        account_id,
        name,
        description,
        is_public,
        network,
    )
    if not row:
        raise NotFound(MISSING)
    return Project(**row)


async def delete(conn: Connection, account_id: UUID, project_id: UUID) -> None:
    """Delete a project of the account with its threads, messages, runs and uploads; what else there is, is noted."""
    await removals.note_project(conn, account_id, project_id)
    statement = "DELETE FROM projects WHERE project_id = $1 AND account_id = $2"
    await conn.execute(statement, project_id, account_id, timeout=LONG_SECONDS)
