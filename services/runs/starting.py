"""Starting a run: its row, in one transaction with all that belongs to it, then its message."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from services import origin
from services.errors import Conflict
from services.log import logger
from services.postgres import Connection, transaction
from services.runs import idempotency, lifecycle, slots, stopping, store
from services.runs.idempotency import RequestKey
from services.runs.naming import about
from services.runs.slots import DUE_UNJUDGED
from services.runs.store import COLUMNS, LIVE, TURN, Run
from services.runs.stores import Stores
from services.settings import LimitSettings


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a client asks for. `on_active` says what becomes of the project's unfinished runs."""

    account_id: UUID
    project_id: UUID
    thread_id: UUID
    model_name: str
    run_id: UUID = field(default_factory=uuid4)
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

    @property
    def judged(self) -> bool:
        """Whether it has its place from the start; a delayed run stops the others, and takes a slot, when it is due."""
        return not self.delay


@dataclass(frozen=True, slots=True)
class Started:
    """The new run, and the earlier ones whose stop was committed with it: announce those after the commit."""

    run: Run
    stopped: list[Run]


async def begin(
    stores: Stores,
    account_id: UUID,
    make: Callable[[Connection, UUID], Awaitable[Started]],
    key: RequestKey | None = None,
) -> Run:
    """The run that `make(conn, run_id)` starts in one transaction, sent after the commit; with a key once for all.

    A repeat answers the run of the first request as it is now, and makes, stops and sends nothing.
    Raises: Conflict as `idempotency.claim`, and what `make` raises: then the key is as free as before.
    """
    run_id = uuid4()
    gate = stores.starts.through(account_id) if stores.settings.limits.max_concurrent_runs else nullcontext()
    async with gate, transaction(stores.pool) as conn:
        known_id = await idempotency.claim(conn, key, run_id) if key else run_id
        if known_id != run_id:
            known = await store.get(conn, known_id)
            assert known, "a key goes with its run"
            return known
        started = await make(conn, run_id)
    logger.info("run.queued", kind=started.run.kind, phase=started.run.phase, **about(started.run))
    await send(stores, started)
    return started.run


async def send(stores: Stores, started: Started) -> None:
    """After the commit: tell the drivers of what was stopped, and wake a worker unless the run is delayed.

    One that waits for an earlier run is sent too: that one may have ended before this start was committed.
    """
    await stopping.announce(stores, started.stopped)
    if started.run.not_before is None:
        stores.dispatch.send_run(started.run)


async def start(conn: Connection, new: NewRun, limits: LimitSettings) -> Started:
    """Insert the row of a run in the caller's transaction; send its message after the commit.

    Raises: Conflict `{message, agent_run_id}` when `on_active` is `reject` and a run is unfinished; TooManyRequests
    when the project has no slot and the account none left.
    """
    allowed = await slots.take_turns(conn, new.account_id, new.project_id, limits)
    run, unfinished, busy = await insert_after(conn, new, allowed if new.judged else slots.NO_LIMIT)
    if unfinished and new.judged and new.on_active == "reject":
        raise Conflict({"message": "A run of this project has not finished yet.", "agent_run_id": str(unfinished[0])})
    slots.require(allowed, busy)
    if not unfinished or not new.judged or new.on_active == "queue":
        return Started(run, [])
    stopped = await lifecycle.request_stops(conn, unfinished)
    return Started(await store.get(conn, run.id) or run, stopped)


async def take_turns(conn: Connection, project_id: UUID) -> None:
    """Parallel starts of one project wait for each other; adding a thread to it does not."""
    await conn.execute("SELECT FROM projects WHERE project_id = $1 FOR NO KEY UPDATE", project_id)


async def judge(conn: Connection, project_id: UUID, limits: LimitSettings) -> list[Run]:
    """Let the delayed runs of a project that are due take their place and stop the others, in the order of their turns.

    Each stops what it would have stopped on time: the unfinished runs that had been started when it became due.
    Returns what was stopped: announce it after the commit. Nothing is done while a start of the project or its account
    is under way or somebody writes one of its runs, nor before there is a slot for the project.
    """
    if not await slots.has_turn(conn, project_id, limits) or not await slots.is_open(conn, project_id, limits):
        return []
    if not await lock_unfinished(conn, project_id):
        return []
    stopped: list[Run] = []
    while due := await judge_next(conn, project_id):
        if due.on_active == "stop" and not due.begun:
            stopped += await lifecycle.request_stops(conn, await in_the_way(conn, project_id, due))
    return stopped


async def lock_unfinished(conn: Connection, project_id: UUID) -> bool:
    """All rows that a judgement may write, or False: a deletion may hold one for a minute, and a sweep never waits."""
    query = f"""
        WITH locked AS (
            SELECT id FROM agent_runs WHERE project_id = $1 AND {LIVE} ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
        )
        SELECT NOT EXISTS (
            SELECT FROM agent_runs WHERE project_id = $1 AND {LIVE} AND id NOT IN (SELECT id FROM locked)
        )
    """
    return bool(await conn.fetchval(query, project_id))


@dataclass(frozen=True, slots=True)
class Due:
    """A delayed run whose time has come, at `not_before`; one that has begun before was set aside by itself."""

    id: UUID
    not_before: datetime
    on_active: str
    begun: bool


async def judge_next(conn: Connection, project_id: UUID) -> Due | None:
    row = await conn.fetchrow(
        f"""
        UPDATE agent_runs SET judged = true, updated_at = now() WHERE id = (
            SELECT id FROM agent_runs AS run WHERE project_id = $1 AND {DUE_UNJUDGED}
            ORDER BY {TURN.format("run")} LIMIT 1
        ) RETURNING id, not_before, on_active, started_at IS NOT NULL AS begun
        """,
        project_id,
    )
    return Due(*row) if row else None


async def in_the_way(conn: Connection, project_id: UUID, due: Due) -> list[UUID]:
    rows = await conn.fetch(
        f"""
        SELECT id FROM agent_runs
        WHERE project_id = $1 AND {LIVE} AND id <> $2 AND created_at <= $3 ORDER BY created_at
        """,
        project_id,
        due.id,
        due.not_before,
    )
    return [row["id"] for row in rows]


async def insert(conn: Connection, new: NewRun) -> Run:
    run, _, _ = await insert_after(conn, new, slots.NO_LIMIT)
    return run


async def insert_after(conn: Connection, new: NewRun, allowed: int) -> tuple[Run, list[UUID], list[UUID]]:
    """The row, the unfinished runs of its project before it, oldest first, and `slots.BUSY` if slots are `allowed`.

    Its times are those of its place in line, not of the transaction, which may have waited for it. Its settings
    remember that it had an agent: the column lets go of one that is deleted.
    """
    row = await conn.fetchrow(
        f"""
        INSERT INTO agent_runs AS run (
            id, kind, account_id, project_id, thread_id, model_name, created_by, agent_id, agent_version_id,
            settings, metadata, webhook_url, priority, on_active, judged, created_at, not_before, expires_at
        )
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
            moment, moment + $16::interval, moment + $17::interval
        FROM clock_timestamp() AS moment
        RETURNING {COLUMNS}, (
            SELECT array_agg(other.id ORDER BY other.created_at) FROM agent_runs AS other
            WHERE other.project_id = $4 AND {LIVE}
        ) AS unfinished, {slots.BUSY.format(account="$3", project="$4", allowed="$18")} AS busy
        """,
        new.run_id,
        new.kind,
        new.account_id,
        new.project_id,
        new.thread_id,
        new.model_name,
        new.created_by,
        new.agent_id,
        new.agent_version_id,
        kept_settings(new),
        new.metadata,
        new.webhook_url,
        new.priority,
        new.on_active,
        new.judged,
        new.delay,
        new.expires_in,
        allowed,
    )
    assert row is not None
    *columns, unfinished, busy = row.values()
    return Run(*columns), unfinished or [], busy or []


def kept_settings(new: NewRun) -> dict[str, Any]:
    """What was asked for, and by which request: one that starts a run again has an id of its own."""
    agent = {"agent_id": str(new.agent_id)} if new.agent_id else {}
    asked = {name: value for name, value in new.settings.items() if name != origin.ORIGIN}
    words = origin.current.get().words
    return {**asked, **agent, **({origin.ORIGIN: words} if words else {})}
