"""Messages that were said long ago, in threads where nothing goes on."""

from datetime import UTC, datetime, timedelta

from services.postgres import Connection

REMOVED_AT_ONCE = 500
QUIET = """
NOT EXISTS (
    SELECT FROM agent_runs AS run
    WHERE run.project_id = thread.project_id AND run.thread_id = thread.thread_id
      AND run.status IN ('queued', 'running')
) AND NOT EXISTS (
    SELECT FROM agent_runs AS run
    WHERE run.thread_id = thread.thread_id AND run.completed_at IS NOT NULL AND run.closed_at IS NULL
)
"""
"""Whether a thread has no run which is live, waits for its time, or has not said its last words."""


async def count_old(conn: Connection, age: timedelta, seconds: float) -> int:
    """How many messages are older than `age`, in threads where nothing goes on. Raises: TimeoutError."""
    query = f"""
        SELECT count(*) FROM messages AS message JOIN threads AS thread USING (thread_id)
        WHERE message.created_at < now() - $1::interval AND {QUIET}
    """
    return int(await conn.fetchval(query, age, timeout=seconds))


async def remove_old(
    conn: Connection, age: timedelta, after: tuple[datetime, int] | None
) -> tuple[int, tuple[datetime, int] | None]:
    """Remove some messages older than `age`, the oldest behind `after` (time and position) first; to be committed.

    How many, and behind which to go on (None: there are no more). Those of a thread that is in use, or locked, stay.
    """
    found = await conn.fetch(
        f"""
        SELECT message_id, thread_id, created_at, position FROM messages
        WHERE created_at < now() - $1::interval AND (created_at, position) > ($2, $3)
        ORDER BY created_at, position LIMIT {REMOVED_AT_ONCE}
        """,
        age,
        *(after or (datetime.min.replace(tzinfo=UTC), 0)),
    )
    if not found:
        return 0, None
    # No run can be started in a thread whose row is locked so; whether there is one is to be seen after that.
    locked = await conn.fetch(
        "SELECT thread_id FROM threads WHERE thread_id = ANY($1) FOR UPDATE SKIP LOCKED",
        list({row["thread_id"] for row in found}),
    )
    rows = await conn.fetch(
        f"SELECT thread_id FROM threads AS thread WHERE thread_id = ANY($1) AND {QUIET}",
        [row["thread_id"] for row in locked],
    )
    quiet = {row["thread_id"] for row in rows}
    old = [row["message_id"] for row in found if row["thread_id"] in quiet]
    await conn.execute("DELETE FROM messages WHERE message_id = ANY($1)", old)
    newest = found[-1]
    return len(old), (newest["created_at"], newest["position"]) if len(found) == REMOVED_AT_ONCE else None
