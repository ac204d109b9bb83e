"""Threads: the conversations of a project."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from services import projects, removals
from services.errors import Forbidden, NotFound
from services.postgres import LONG_SECONDS, Connection, Executor
from services.projects import Project

MISSING = "Thread not found."
MISSING_RUN = "Run not found."
READ_ONLY = "This thread is public: you may read it, not change it."


@dataclass(frozen=True, slots=True)
class Thread:
    thread_id: UUID
    account_id: UUID
    project_id: UUID
    metadata: dict[str, Any]
    is_public: bool
    created_at: datetime
    updated_at: datetime


COLUMNS = ", ".join(f"t.{f.name}" for f in fields(Thread))


@dataclass(frozen=True, slots=True)
class ListedThread:
    """What a list shows of a thread and its project."""

    thread_id: UUID
    project_id: UUID
    metadata: dict[str, Any]
    is_public: bool
    created_at: datetime
    updated_at: datetime
    project_name: str
    project_description: str
    project_sandbox: dict[str, Any]
    project_is_public: bool
    project_created_at: datetime
    project_updated_at: datetime


LISTED = ", ".join(
    f"t.{f.name}" if f.name in Thread.__slots__ else f.name.replace("project_", "p.") for f in fields(ListedThread)
)
LISTED_WIDTH = len(fields(ListedThread))
WIDTH = len(fields(Thread))
WITH_PROJECT = ", ".join((COLUMNS, *(f"p.{name}" for name in projects.NAMES)))
"""What a statement over `threads t` and `projects p` returns for `with_project`; more may follow."""
SHOWN = "FROM threads WHERE account_id = $1 ORDER BY created_at DESC, thread_id DESC LIMIT $2 OFFSET $3"
PAGE = f"(SELECT * {SHOWN}) AS t"
FAR_PAGE = f"(SELECT thread_id {SHOWN}) AS shown JOIN threads t USING (thread_id)"
"""What it skips is read from the index alone; then the page's rows are looked up one by one."""
READABLE = "(t.account_id = $2 OR t.is_public OR p.is_public)"


async def create(
    conn: Connection, account_id: UUID, project_id: UUID, metadata: dict[str, Any] | None = None
) -> Thread:
    row = await conn.fetchrow(
        f"INSERT INTO threads AS t (account_id, project_id, metadata) VALUES ($1, $2, $3) RETURNING {COLUMNS}",
        account_id,
        project_id,
        metadata or {},
    )
    assert row
    return Thread(**row)


async def readable(conn: Executor, account_id: UUID, thread_id: UUID) -> Thread:
    """A thread of the account, or anybody's that is public by itself or by its project.

    Raises: NotFound, alike for a thread that is somebody else's and one that is not there.
    """
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM threads t JOIN projects p USING (project_id) WHERE t.thread_id = $1 AND {READABLE}",
        thread_id,
        account_id,
    )
    if not row:
        raise NotFound(MISSING)
    return Thread(**row)


async def writable(conn: Connection, account_id: UUID, thread_id: UUID) -> Thread:
    """A thread of the account.

    Raises: NotFound as `readable`; Forbidden when it is somebody else's public one.
    """
    thread = await readable(conn, account_id, thread_id)
    require_owner(account_id, thread)
    return thread


async def readable_by_run(conn: Executor, account_id: UUID, run_id: UUID) -> Thread:
    """The thread of a run that the account may read.

    Raises: NotFound, alike for a run that is somebody else's and one that is not there.
    """
    (thread,) = await readable_by_runs(conn, account_id, [run_id])
    return thread


async def writable_by_runs(conn: Executor, account_id: UUID, run_ids: Sequence[UUID]) -> None:
    """Check that every run is one that the account may change.

    Raises: NotFound when one of them may not even be read; Forbidden when one is only public.
    """
    for thread in await readable_by_runs(conn, account_id, run_ids):
        require_owner(account_id, thread)


async def readable_by_runs(conn: Executor, account_id: UUID, run_ids: Sequence[UUID]) -> list[Thread]:
    asked = set(run_ids)
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS}
        FROM agent_runs r JOIN threads t USING (thread_id) JOIN projects p ON p.project_id = t.project_id
        WHERE r.id = ANY($1::uuid[]) AND {READABLE}
        """,
        list(asked),
        account_id,
    )
    if len(rows) < len(asked):
        raise NotFound(MISSING_RUN)
    return [Thread(**row) for row in rows]


def require_owner(account_id: UUID, thread: Thread) -> None:
    if thread.account_id != account_id:
        raise Forbidden(READ_ONLY)


def with_project(row: asyncpg.Record) -> tuple[Thread, Project]:
    return Thread(*row[:WIDTH]), Project(*row[WIDTH : WIDTH + projects.WIDTH])


async def page(conn: Executor, account_id: UUID, *, limit: int, offset: int) -> tuple[list[ListedThread], int]:
    """The account's threads with their projects, newest first, and how many threads it has."""
    rows = await conn.fetch(
        f"""
        SELECT {LISTED}, (SELECT count(*) FROM threads WHERE account_id = $1) AS total
        FROM {FAR_PAGE if offset > limit else PAGE} JOIN projects p USING (project_id)
        ORDER BY t.created_at DESC, t.thread_id DESC
        """,
        account_id,
        limit,
        offset,
    )
    if not rows:
        return [], await count(conn, account_id) if offset else 0
    return [ListedThread(*row[:LISTED_WIDTH]) for row in rows], rows[0]["total"]


async def count(conn: Executor, account_id: UUID) -> int:
    total: int = await conn.fetchval("SELECT count(*) FROM threads WHERE account_id = $1", account_id)
    return total


async def update(
    conn: Connection,
    account_id: UUID,
    thread_id: UUID,
    *,
    title: str | None = None,
    is_public: bool | None = None,
) -> Thread:
    """Change what is given, in a thread of the account; the title lives in the metadata.

    Raises: NotFound, Forbidden as `writable`.
    """
    await writable(conn, account_id, thread_id)
    row = await conn.fetchrow(
        f"""
        UPDATE threads t SET is_public = coalesce($4, is_public), updated_at = now(),
            metadata = metadata || jsonb_strip_nulls(jsonb_build_object('title', $3::text))
        WHERE thread_id = $1 AND account_id = $2
        RETURNING {COLUMNS}
        """,
        thread_id,
        account_id,
        title,
        is_public,
    )
    if not row:
        raise NotFound(MISSING)
    return Thread(**row)


async def delete(conn: Connection, account_id: UUID, thread_id: UUID) -> None:
    """Delete a thread of the account with its messages and runs; what else there is, is noted."""
    await removals.note_thread(conn, account_id, thread_id)
    statement = "DELETE FROM threads WHERE thread_id = $1 AND account_id = $2"
    await conn.execute(statement, thread_id, account_id, timeout=LONG_SECONDS)
