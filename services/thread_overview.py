"""A thread as it is opened: with its project, its newest runs and its newest messages, in one statement."""

from dataclasses import dataclass
from uuid import UUID

from pydantic import TypeAdapter

from services import messages, threads
from services.errors import NotFound
from services.messages import Message
from services.postgres import Executor
from services.projects import Project
from services.runs import store
from services.runs.store import ListedRun
from services.threads import Thread

RUNS, MESSAGES = TypeAdapter(list[ListedRun]), TypeAdapter(list[Message])


@dataclass(frozen=True, slots=True)
class ThreadOverview:
    """`runs` and `messages` are the newest, newest first."""

    thread: Thread
    project: Project
    message_count: int
    runs: list[ListedRun]
    messages: list[Message]


OVERVIEW = f"""
SELECT {threads.WITH_PROJECT},
    (SELECT count(*) FROM messages WHERE thread_id = t.thread_id) AS message_count,
    (SELECT coalesce(json_agg(listed), '[]') FROM (
        SELECT {store.LISTED} FROM agent_runs AS run WHERE thread_id = t.thread_id
        ORDER BY created_at DESC, id DESC LIMIT $3
    ) AS listed) AS runs,
    (SELECT coalesce(json_agg(fitting), '[]') FROM (
        SELECT {messages.COLUMNS} FROM (
            SELECT *, sum(size) OVER (ORDER BY position DESC) - size AS bytes_before FROM (
                SELECT *, {messages.SIZE} AS size FROM messages
                WHERE thread_id = t.thread_id ORDER BY position DESC LIMIT $4
            ) AS newest
        ) AS summed WHERE bytes_before < $5 ORDER BY position DESC
    ) AS fitting) AS messages
FROM threads t JOIN projects p USING (project_id)
WHERE t.thread_id = $1 AND {threads.READABLE}
"""


async def get(
    conn: Executor,
    account_id: UUID,
    thread_id: UUID,
    *,
    runs: int,
    messages: int = 0,
    max_bytes: int = messages.PAGE_BYTES,
) -> ThreadOverview:
    """At most so many runs and messages; no more messages once they are over `max_bytes`, one at least.

    Raises: NotFound, alike for a thread that is somebody else's and one that is not there.
    """
    row = await conn.fetchrow(OVERVIEW, thread_id, account_id, runs, messages, max_bytes)
    if not row:
        raise NotFound(threads.MISSING)
    thread, project = threads.with_project(row)
    return ThreadOverview(
        thread,
        project,
        row["message_count"],
        RUNS.validate_json(row["runs"]),
        MESSAGES.validate_json(row["messages"]),
    )
