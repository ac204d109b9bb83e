"""Slots: how many runs an account may have at a time (MAX_CONCURRENT_RUNS); rows are counted, nothing is kept.

A project has one slot as long as it has an unfinished run that is judged: its first one, and those behind it wait. So
a run that ends leaves the slot to the next one. A delayed run that is due stands in line for a slot, judged only when
its project has one: first come, first served, before whatever is started later. So does a run that was set aside until
some time; it leaves its slot meanwhile, unless others wait behind it.
"""

from collections.abc import Sequence
from uuid import UUID

from services.errors import TooManyRequests
from services.postgres import Connection, Executor
from services.runs.store import LIVE, TURN
from services.settings import LimitSettings

NO_LIMIT = 0
MAX_SHOWN = 100
RETRY_SECONDS = 5
"""When to try again: nobody knows when a run ends."""

DUE_UNJUDGED = """(
    status = 'queued' AND NOT judged AND not_before <= now()
    AND (expires_at IS NULL OR expires_at > now() OR started_at IS NOT NULL)
)"""

CLAIMS = f"""
SELECT account_id, project_id, bool_or(judged) AS judged, min(coalesce(not_before, created_at)) AS since,
    (array_agg(thread_id ORDER BY status DESC, {TURN.format("run")}))[1] AS thread_id
FROM agent_runs AS run
WHERE {LIVE} AND (judged OR not_before <= now()) AND {{condition}} GROUP BY account_id, project_id
"""
"""The projects that have a slot (`judged`) or stand in line for one, since when, and the thread of their first run."""

BUSY = f"""(
    SELECT CASE WHEN NOT bool_or(project_id = {{project}} AND judged)
        THEN array_agg(thread_id ORDER BY since) FILTER (WHERE project_id <> {{project}}) END
    FROM ({CLAIMS.format(condition="account_id = {account} AND {allowed}::int > 0")}) AS claim
)"""
"""The threads whose runs leave a new one of the project no slot once there are as many as the account may have.

NULL when there is no limit, and for a project that has a slot: the new run takes it over, or waits for it.
"""

ALLOWED = "coalesce((SELECT max_concurrent_runs FROM account_limits WHERE account_id = {0}), {1})"
LOCK = "hashtextextended(account_id::text, 5013)"
"""The advisory lock of an account's slots: no row of its is locked, which others write in other orders."""


async def take_turns(conn: Connection, account_id: UUID, project_id: UUID, limits: LimitSettings) -> int:
    """Parallel starts of one project wait for each other, and with a limit those of one account.

    Returns how many runs the account may have, 0 for any number.
    """
    allowed: int | None = await conn.fetchval(
        f"""
        WITH account AS MATERIALIZED (SELECT {ALLOWED.format("$1", "$3")} AS allowed)
        SELECT allowed, CASE WHEN allowed > 0 THEN pg_advisory_xact_lock({LOCK}) END
        FROM projects, account WHERE project_id = $2 FOR NO KEY UPDATE OF projects
        """,
        account_id,
        project_id,
        limits.max_concurrent_runs,
    )
    return allowed or NO_LIMIT


async def has_turn(conn: Connection, project_id: UUID, limits: LimitSettings) -> bool:
    """As `take_turns`, or not at all: a sweep never waits."""
    query = f"""
        SELECT {ALLOWED.format("projects.account_id", "$2")} = 0 OR pg_try_advisory_xact_lock({LOCK})
        FROM projects WHERE project_id = $1 FOR NO KEY UPDATE SKIP LOCKED
    """
    return bool(await conn.fetchval(query, project_id, limits.max_concurrent_runs))


def require(allowed: int, busy: Sequence[UUID]) -> None:
    """Raises: TooManyRequests `{message, running_thread_ids, running_count, limit}`, of at most 100 threads."""
    if not allowed or len(busy) < allowed:
        return
    raise TooManyRequests(
        {
            "message": f"This account has {len(busy)} runs under way and may have {allowed} at a time.",
            "running_thread_ids": [str(thread_id) for thread_id in busy[:MAX_SHOWN]],
            "running_count": len(busy),
            "limit": allowed,
        },
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


async def open_projects(
    conn: Executor, limits: LimitSettings, most: int, *, project_id: UUID | None = None
) -> list[UUID]:
    """Projects whose delayed runs are due and may be judged: they have a slot, or theirs is the next one left.

    Those that have waited longest come first.
    """
    rows = await conn.fetch(
        f"""
        WITH due AS (
            SELECT project_id, account_id FROM agent_runs
            WHERE {DUE_UNJUDGED} AND ($3::uuid IS NULL OR project_id = $3)
        ), claim AS (
            SELECT project_id, account_id, judged, since,
                row_number() OVER (PARTITION BY account_id ORDER BY NOT judged, since, project_id) AS place
            FROM ({CLAIMS.format(condition="account_id IN (SELECT account_id FROM due)")}) AS claim
        )
        SELECT project_id FROM claim, LATERAL (SELECT {ALLOWED.format("claim.account_id", "$1")} AS allowed) AS account
        WHERE (judged OR allowed = 0 OR place <= allowed) AND project_id IN (SELECT project_id FROM due)
        ORDER BY since, project_id LIMIT $2
        """,
        limits.max_concurrent_runs,
        most,
        project_id,
    )
    return [row["project_id"] for row in rows]


async def is_open(conn: Connection, project_id: UUID, limits: LimitSettings) -> bool:
    """Whether `open_projects` has this one; to be asked when `has_turn` said so."""
    return bool(await open_projects(conn, limits, 1, project_id=project_id))
