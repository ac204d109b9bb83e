"""What a start on a thread stands on: the thread, and the account's default agent."""

from uuid import UUID

from services import agents, threads
from services.agents import Agent
from services.errors import NotFound
from services.postgres import Connection
from services.threads import Thread

FOOTING = f"""
SELECT {threads.COLUMNS}, {agents.COLUMNS}
FROM threads t JOIN projects p USING (project_id) LEFT JOIN agents a ON a.account_id = $2 AND a.is_default
WHERE t.thread_id = $1 AND {threads.READABLE}
"""


async def take(conn: Connection, account_id: UUID, thread_id: UUID) -> tuple[Thread, Agent | None]:
    """`threads.writable` and `agents.default_of` in one round trip.

    Raises: NotFound, Forbidden as `threads.writable`.
    """
    row = await conn.fetchrow(FOOTING, thread_id, account_id)
    if not row:
        raise NotFound(threads.MISSING)
    thread, agent = Thread(*row[: threads.WIDTH]), row[threads.WIDTH :]
    threads.require_owner(account_id, thread)
    return thread, Agent(*agent) if agent[0] else None
