"""Runs that ended long ago, with all that hangs on them: log, uploads, deliveries, executions and their steps."""

from datetime import timedelta

from services.postgres import LONG_SECONDS, Connection
from services.runs import archive

RUNS_AT_ONCE = 10
"""Each may have thousands of messages, which are told that their run is gone, and megabytes of uploads."""
OLD = """completed_at < now() - $1::interval AND closed_at IS NOT NULL
AND (webhook_url IS NULL OR webhook_noted_at IS NOT NULL)
AND NOT EXISTS (SELECT FROM uploads WHERE agent_run_id = id AND placed_at IS NULL)
AND NOT EXISTS (SELECT FROM webhook_deliveries WHERE agent_run_id = id AND state = 'pending')"""
"""Of runs: that ended so long ago and have said so to all who are to hear it; their files are in the sandbox."""


async def count_old(conn: Connection, age: timedelta, seconds: float) -> int:
    """Raises: TimeoutError."""
    return int(await conn.fetchval(f"SELECT count(*) FROM agent_runs WHERE {OLD}", age, timeout=seconds))


async def remove_old(conn: Connection, age: timedelta) -> tuple[int, bool]:
    """Remove some runs that ended longer than `age` ago, the longest ago first; to be committed.

    How many, and whether there may be more. Their logs go first, for as long as that takes; their messages stay.
    """
    rows = await conn.fetch(
        f"SELECT id FROM agent_runs WHERE {OLD} ORDER BY completed_at LIMIT {RUNS_AT_ONCE} FOR UPDATE SKIP LOCKED", age
    )
    run_ids = [row["id"] for row in rows]
    if await archive.remove_blocks(conn, run_ids) == archive.BLOCKS_AT_ONCE:
        return 0, True
    await conn.execute("DELETE FROM agent_runs WHERE id = ANY($1)", run_ids, timeout=LONG_SECONDS)
    return len(run_ids), len(run_ids) == RUNS_AT_ONCE
