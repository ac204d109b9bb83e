"""Runs of all accounts, for operators: what lives, what ended, and what nobody seems to look after."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.postgres import LONG_SECONDS, Executor
from services.runs.store import COULD_BEGIN_SINCE, EARLIER_UNFINISHED, LIVE, PHASE, Conditions


@dataclass(frozen=True, slots=True)
class SeenRun:
    """`spoke_at`: when its newest archived event was stored; `heartbeat_age` by the database's clock."""

    id: UUID
    kind: str
    account_id: UUID
    project_id: UUID
    thread_id: UUID
    status: str
    phase: str
    model_name: str
    attempt: int
    crashes: int
    instance_id: str | None
    heartbeat_age: timedelta | None
    spoke_at: datetime | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    closed_at: datetime | None


SPOKE_AT = """(
    SELECT created_at FROM agent_run_event_blocks WHERE agent_run_id = run.id ORDER BY first_id DESC LIMIT 1
)"""
MADE = {"phase": PHASE, "heartbeat_age": "now() - heartbeat_at", "spoke_at": SPOKE_AT}
COLUMNS = ", ".join(f"{MADE[f.name]} AS {f.name}" if f.name in MADE else f.name for f in fields(SeenRun))

STUCK = f"""(
    (status = 'running' AND heartbeat_at < now() - {{0}}::interval)
    OR (status = 'running' AND greatest({SPOKE_AT}, updated_at) < now() - {{1}}::interval)
    OR (status = 'running' AND stop_requested_at < now() - {{0}}::interval)
    OR (status = 'queued' AND judged AND {COULD_BEGIN_SINCE} < now() - {{1}}::interval
        AND NOT {EARLIER_UNFINISHED})
)"""
"""Of live runs: the driver's heartbeat is old, nothing was said for long (nor by the worker before, when one has just
taken it up), a stop takes its time, or none begins it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs. `status`: a word of the row, or `live`; `stuck`: (dead after, silent for)."""

    status: str | None = None
    account_id: UUID | None = None
    project_id: UUID | None = None
    thread_id: UUID | None = None
    instance_id: str | None = None
    stuck: tuple[timedelta, timedelta] | None = None


async def list_runs(conn: Executor, wanted: Wanted, limit: int) -> list[SeenRun]:
    """Live ones, newest first, and behind them those that ended last."""
    live: list[SeenRun] = []
    if wanted.status in (None, "live", "queued", "running"):
        live = await page(conn, wanted, LIVE, "created_at", limit)
    if len(live) >= limit or wanted.stuck or wanted.status in ("live", "queued", "running"):
        return live
    return live + await page(conn, wanted, "completed_at IS NOT NULL", "completed_at", limit - len(live))


async def page(conn: Executor, wanted: Wanted, part: str, order: str, limit: int) -> list[SeenRun]:
    terms = Conditions()
    terms.add(part)
    for name in ("account_id", "project_id", "thread_id", "instance_id"):
        if value := getattr(wanted, name):
            terms.add(f"{name} = {{}}", value)
    if wanted.status not in (None, "live"):
        terms.add("status = {}", wanted.status)
    if wanted.stuck:
        terms.add(STUCK, *wanted.stuck)
    query = f"""
        SELECT {COLUMNS} FROM agent_runs AS run WHERE {terms.sql}
        ORDER BY {order} DESC LIMIT ${len(terms.values) + 1}
    """
    rows = await conn.fetch(query, *terms.values, limit, timeout=LONG_SECONDS)
    return [SeenRun(*row) for row in rows]


async def driven(conn: Executor) -> list[SeenRun]:
    """All running runs, by who drives them."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM agent_runs AS run WHERE status = 'running' ORDER BY instance_id, started_at"
    )
    return [SeenRun(*row) for row in rows]


async def counts(conn: Executor, dead_after: timedelta) -> dict[str, Any]:
    """How many wait, could start (and the oldest age), run, stop, have no live driver, are final and not closed."""
    row = await conn.fetchrow(
        f"""
        SELECT count(*) FILTER (WHERE phase = 'waiting') AS waiting,
            count(*) FILTER (WHERE phase = 'queued') AS queued,
            max(now() - since) FILTER (WHERE phase = 'queued') AS oldest_queued,
            count(*) FILTER (WHERE phase = 'running') AS running,
            count(*) FILTER (WHERE phase = 'stopping') AS stopping,
            count(*) FILTER (WHERE status = 'running' AND heartbeat_at < now() - $1::interval) AS without_driver,
            (SELECT count(*) FROM agent_runs WHERE completed_at IS NOT NULL AND closed_at IS NULL) AS unclosed
        FROM (
            SELECT status, heartbeat_at, {COULD_BEGIN_SINCE} AS since, {PHASE} AS phase
            FROM agent_runs AS run WHERE {LIVE}
        ) AS live
        """,
        dead_after,
        timeout=LONG_SECONDS,
    )
    assert row
    return dict(row)


async def before_in_project(conn: Executor, run_id: UUID) -> list[UUID]:
    """The unfinished runs of its project that a run waits for."""
    rows = await conn.fetch(
        """
        SELECT other.id FROM agent_runs AS run JOIN agent_runs AS other ON other.project_id = run.project_id
        WHERE run.id = $1 AND other.status IN ('queued', 'running') AND other.id <> run.id
          AND (other.status = 'running' OR other.created_at < run.created_at)
        ORDER BY other.created_at LIMIT 5
        """,
        run_id,
    )
    return [row["id"] for row in rows]


async def phases(conn: Executor, run_ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = await conn.fetch(f"SELECT id, {PHASE} AS phase FROM agent_runs AS run WHERE id = ANY($1)", run_ids)
    return {row["id"]: row["phase"] for row in rows}
