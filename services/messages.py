"""The messages table: what a thread's people and agents said, in order."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID, uuid4

from services.billing import reserves
from services.billing.calls import Charge
from services.postgres import LONG_SECONDS, Connection, Executor, dump_json
from services.runs.fence import Fence, FenceLost

ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


@dataclass(frozen=True, slots=True)
class Message:
    """One row of messages; `position` orders a thread and is what page cursors are made of."""

    message_id: UUID
    position: int
    thread_id: UUID
    agent_run_id: UUID | None
    type: str
    is_llm_message: bool
    content: Any
    metadata: dict[str, Any]
    agent_id: UUID | None
    agent_version_id: UUID | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message before it is stored; give it a `message_id` to be able to store it at most once.

    `charge` is what the model call that it came of costs: it is settled in the statement that stores it.
    """

    type: str
    content: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    is_llm_message: bool = True
    agent_id: UUID | None = None
    agent_version_id: UUID | None = None
    message_id: UUID | None = None
    charge: Charge | None = None


@dataclass(frozen=True, slots=True)
class FencedMessage:
    """One message of a run under its fence, `content` and `metadata` as JSON that jsonb takes."""

    fence: Fence
    thread_id: UUID
    message_id: UUID
    type: str
    is_llm_message: bool
    content: str
    metadata: str

    @classmethod
    def of(cls, fence: Fence, thread_id: UUID, message_id: UUID, new: NewMessage) -> Self:
        content, metadata = storable(new.content), storable(new.metadata)
        return cls(fence, thread_id, message_id, new.type, new.is_llm_message, content, metadata)


NAMES = tuple(f.name for f in fields(Message))
COLUMNS = ", ".join(NAMES)
WIDTH = len(NAMES)
LAST_POSITION = 2**63 - 1
NEWER_ROWS = 1000
IMAGES_AT_ONCE = 5
REMOVED_AT_ONCE = 500
PAGE_BYTES = 16 * 1024 * 1024
"""What a page may hold, however many messages were asked for: it is read and written on the event loop."""
PLAIN_SIZE = "CASE WHEN pg_column_compression({0}) IS NULL THEN pg_column_size({0}) ELSE octet_length({0}::text) END"
SIZE = f"{PLAIN_SIZE.format('content')} + {PLAIN_SIZE.format('metadata')}"
"""Of a message as it is read: a megabyte of one letter is stored in a hundredth of that."""
GIVEN = """unnest($2::uuid[], $3::text[], $4::bool[], $5::text[], $6::text[], $7::uuid[], $8::uuid[])
    WITH ORDINALITY AS given (message_id, type, is_llm_message, content, metadata, agent_id, agent_version_id, nth)"""
ADD = f"""
WITH stored AS (
    INSERT INTO messages (message_id, thread_id, type, is_llm_message, content, metadata, agent_id, agent_version_id)
    SELECT message_id, $1, type, is_llm_message, content::jsonb, metadata::jsonb, agent_id, agent_version_id
    FROM {GIVEN}
    ORDER BY nth
    RETURNING {COLUMNS}
), touched AS (
    UPDATE threads SET updated_at = now() WHERE thread_id = $1
)
SELECT * FROM stored ORDER BY position
"""
# The UPDATE takes the row's lock, so a claim by somebody else either comes first and is seen, or waits for this.
FENCED = f"""
WITH held AS (
    UPDATE agent_runs SET crashes = 0, updated_at = now()
    WHERE id = $9 AND attempt = $10 AND status = 'running'
    RETURNING id, account_id, thread_id, project_id, agent_id, agent_version_id
), stored AS (
    INSERT INTO messages (message_id, thread_id, agent_run_id, type, is_llm_message, content, metadata,
        agent_id, agent_version_id)
    SELECT message_id, $1, held.id, type, is_llm_message, content::jsonb, metadata::jsonb,
        held.agent_id, held.agent_version_id
    FROM held, {GIVEN}
    ORDER BY nth
    RETURNING {COLUMNS}
), touched AS (
    UPDATE threads SET updated_at = now() WHERE thread_id = $1 AND EXISTS (SELECT FROM held)
)"""
STORED = "SELECT * FROM stored ORDER BY position"
ADD_FENCED = f"{FENCED} {STORED}"
ADD_CHARGED = f"{FENCED}, {reserves.settled(11)} {STORED}"

# As ADD_FENCED, for a message each of many runs; a run whose row is locked is left out.
ADD_FREE = f"""
WITH free AS (
    SELECT id AS run_id FROM agent_runs WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED
), given AS (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::uuid[], $5::text[], $6::bool[], $7::text[], $8::text[])
        AS given (run_id, fence, thread_id, message_id, type, is_llm_message, content, metadata)
), held AS (
    UPDATE agent_runs AS run SET crashes = 0, updated_at = now()
    FROM given JOIN free USING (run_id)
    WHERE run.id = run_id AND run.attempt = fence AND run.status = 'running'
    RETURNING run.id AS run_id, run.agent_id, run.agent_version_id
), stored AS (
    INSERT INTO messages (message_id, thread_id, agent_run_id, type, is_llm_message, content, metadata,
        agent_id, agent_version_id)
    SELECT message_id, thread_id, run_id, type, is_llm_message, content::jsonb, metadata::jsonb,
        agent_id, agent_version_id
    FROM given JOIN held USING (run_id)
    RETURNING {COLUMNS}
), touched AS (
    UPDATE threads SET updated_at = now()
    WHERE thread_id IN (SELECT thread_id FROM given JOIN held USING (run_id))
)
SELECT * FROM stored
"""

KEPT = f"""
WITH held AS (
    SELECT id, account_id, thread_id, project_id, agent_id, agent_version_id FROM agent_runs
    WHERE id = $4 AND attempt = $5 AND closed_at IS NULL FOR NO KEY UPDATE
), kept AS (
    INSERT INTO messages (message_id, thread_id, agent_run_id, type, content, metadata, agent_id, agent_version_id)
    SELECT $1, thread_id, id, 'assistant', $2::text::jsonb, $3::text::jsonb, agent_id, agent_version_id FROM held
    ON CONFLICT (message_id) DO UPDATE SET updated_at = messages.updated_at
    RETURNING {COLUMNS}
)"""
KEEP = f"{KEPT} SELECT * FROM kept"
KEEP_CHARGED = f"{KEPT}, {reserves.settled(6)} SELECT * FROM kept"


async def add(
    conn: Connection, thread_id: UUID, messages: Sequence[NewMessage], *, fence: Fence | None = None
) -> list[Message]:
    """Store messages in the given order, in one statement.

    With a fence they belong to its run and to the agent of that, which may have been deleted meanwhile; they are
    stored only while that attempt owns the run, and count as progress of it.
    Raises: FenceLost; asyncpg.UniqueViolationError when a given `message_id` is stored already.
    """
    if not messages:
        return []
    if fence is None:
        rows = await conn.fetch(ADD, thread_id, *as_columns(messages))
    else:
        statement, settling = charged(messages)
        rows = await conn.fetch(statement, thread_id, *as_columns(messages), fence.run_id, fence.attempt, *settling)
        if not rows:
            raise FenceLost
    return [Message(**row) for row in rows]


def charged(messages: Sequence[NewMessage]) -> tuple[str, tuple[Any, ...]]:
    """The statement that stores them and settles the charge of one of them, and what it takes for that."""
    found = [message for message in messages if message.charge]
    if not found:
        return ADD_FENCED, ()
    [message] = found
    assert message.charge
    return ADD_CHARGED, reserves.settling(message.charge, message.message_id)


async def add_free(conn: Executor, given: Sequence[FencedMessage]) -> list[Message | None]:
    """As `add` with a fence, a message each of many runs in one statement.

    None for a run whose row is locked or that the attempt does not own. Raises: as `add` when one of them is refused.
    """
    columns = zip(*((one.fence.run_id, one.fence.attempt, *values_of(one)) for one in given), strict=True)
    stored = {row["message_id"]: Message(**row) for row in await conn.fetch(ADD_FREE, *columns)}
    return [stored.get(one.message_id) for one in given]


def values_of(one: FencedMessage) -> tuple[Any, ...]:
    return one.thread_id, one.message_id, one.type, one.is_llm_message, one.content, one.metadata


def as_columns(messages: Sequence[NewMessage]) -> tuple[list[Any], ...]:
    """The arguments of GIVEN: one list per column."""
    return (
        [message.message_id or uuid4() for message in messages],
        [message.type for message in messages],
        [message.is_llm_message for message in messages],
        [storable(message.content) for message in messages],
        [storable(message.metadata) for message in messages],
        [message.agent_id for message in messages],
        [message.agent_version_id for message in messages],
    )


def storable(value: Any) -> str:
    """JSON that jsonb takes: it knows neither NUL nor half a surrogate pair."""
    try:
        text = dump_json(value)
    except TypeError:
        text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return ESCAPED_NUL.sub(r"\1", text) if "\\u0000" in text else text


async def page(
    conn: Connection,
    thread_id: UUID,
    *,
    limit: int,
    before: int | None = None,
    after: int | None = None,
    descending: bool = True,
    max_bytes: int = PAGE_BYTES,
    for_model: bool = False,
) -> tuple[list[Message], bool]:
    """Messages of a thread whose position lies strictly between `after` and `before`, and whether there are more.

    Up to `limit` of them, and no more once they are over `max_bytes`; one at least. `for_model`: only what a
    model is shown as conversation.
    """
    order = "position DESC" if descending else "position"
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS}, found FROM (
            SELECT *, count(*) OVER () AS found, sum(size) OVER (ORDER BY {order}) - size AS bytes_before FROM (
                SELECT *, {SIZE} AS size FROM messages
                WHERE thread_id = $1 AND position < $2 AND position > $3 {"AND is_llm_message" if for_model else ""}
                ORDER BY {order} LIMIT $4 + 1
            ) AS wanted
        ) AS summed
        WHERE bytes_before < $5 ORDER BY {order} LIMIT $4
        """,
        thread_id,
        LAST_POSITION if before is None else before,
        -1 if after is None else after,
        limit,
        max_bytes,
        timeout=LONG_SECONDS,
    )
    return [Message(*row[:WIDTH]) for row in rows], bool(rows) and rows[0]["found"] > len(rows)


async def newest_summary(conn: Connection, thread_id: UUID) -> Message | None:
    """What stands for the older part of a thread; `metadata.covers` is the last position that it covers.

    A client may post a message of this type, too; that stands for nothing.
    """
    row = await conn.fetchrow(
        f"""
        SELECT {COLUMNS} FROM messages
        WHERE thread_id = $1 AND type = 'summary' AND jsonb_typeof(metadata -> 'covers') = 'number'
        ORDER BY position DESC LIMIT 1
        """,
        thread_id,
    )
    return Message(**row) if row else None


async def newer(conn: Connection, thread_id: UUID, after: int, known: Sequence[UUID]) -> list[Message]:
    """Messages for the model behind position `after` that are not `known`, oldest first."""
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS} FROM messages
        WHERE thread_id = $1 AND is_llm_message AND position > $2 AND message_id <> ALL($3::uuid[])
        ORDER BY position LIMIT $4
        """,
        thread_id,
        after,
        known,
        NEWER_ROWS,
    )
    return [Message(**row) for row in rows]


async def of_run(conn: Connection, run_id: UUID, before: int) -> list[Message]:
    """The older messages of a run without their content: what they cost and counted for."""
    columns = COLUMNS.replace("content", "'{}'::jsonb AS content")
    rows = await conn.fetch(
        f"""
        SELECT {columns} FROM messages WHERE agent_run_id = $1 AND position < $2 AND is_llm_message
        ORDER BY position
        """,
        run_id,
        before,
    )
    return [Message(**row) for row in rows]


async def temporary(conn: Connection, thread_id: UUID, after: int) -> list[Message]:
    """The latest browser state of a thread, and the images that were put before the model since position `after`."""
    rows = await conn.fetch(
        f"""
        (SELECT {COLUMNS} FROM messages WHERE thread_id = $1 AND type = 'browser_state'
            ORDER BY position DESC LIMIT 1)
        UNION ALL
        (SELECT {COLUMNS} FROM messages WHERE thread_id = $1 AND type = 'image_context' AND position > $2
            ORDER BY position DESC LIMIT {IMAGES_AT_ONCE})
        """,
        thread_id,
        after,
    )
    return sorted((Message(**row) for row in rows), key=lambda stored: stored.position)


async def newest_of_run(conn: Executor, run_id: UUID) -> Message | None:
    """The newest assistant message that a run stored."""
    row = await conn.fetchrow(
        f"""
        SELECT {COLUMNS} FROM messages WHERE agent_run_id = $1 AND type = 'assistant'
        ORDER BY position DESC LIMIT 1
        """,
        run_id,
    )
    return Message(**row) if row else None


async def keep(
    conn: Executor,
    fence: Fence,
    message_id: UUID,
    content: Any,
    metadata: dict[str, Any],
    charge: Charge | None = None,
) -> Message:
    """Store an assistant's text for a run that is being closed under `fence`, and settle the `charge` for it.

    Repeating it changes nothing. Raises: FenceLost when the fence was raised or the run is closed.
    """
    row = await conn.fetchrow(
        KEEP_CHARGED if charge else KEEP,
        message_id,
        storable(content),
        storable(metadata),
        fence.run_id,
        fence.attempt,
        *(reserves.settling(charge, message_id) if charge else ()),
    )
    if row is None:
        raise FenceLost
    return Message(**row)


async def get(conn: Connection, thread_id: UUID, message_id: UUID) -> Message | None:
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM messages WHERE thread_id = $1 AND message_id = $2", thread_id, message_id
    )
    return Message(**row) if row else None


async def delete(conn: Connection, thread_id: UUID, message_id: UUID) -> bool:
    """Delete one message of a thread; False when there is none."""
    deleted = await conn.fetchval(
        "DELETE FROM messages WHERE thread_id = $1 AND message_id = $2 RETURNING true", thread_id, message_id
    )
    return deleted is not None


QUIET_THREADS = """
SELECT thread_id FROM threads AS thread WHERE thread_id = ANY($1) AND NOT EXISTS (
    SELECT FROM agent_runs AS run
    WHERE run.project_id = thread.project_id AND run.thread_id = thread.thread_id
      AND run.status IN ('queued', 'running')
) AND NOT EXISTS (
    SELECT FROM agent_runs AS run
    WHERE run.thread_id = thread.thread_id AND run.completed_at IS NOT NULL AND run.closed_at IS NULL
)
"""
"""Those of the threads in $1 that have no run which is live, waits for its time, or has not said its last words."""


async def count_old(conn: Connection, age: timedelta) -> int:
    """How many messages are older than `age`, in threads that are in use as well."""
    query = "SELECT count(*) FROM messages WHERE created_at < now() - $1::interval"
    return int(await conn.fetchval(query, age, timeout=LONG_SECONDS))


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
    quiet = {row["thread_id"] for row in await conn.fetch(QUIET_THREADS, [row["thread_id"] for row in locked])}
    old = [row["message_id"] for row in found if row["thread_id"] in quiet]
    await conn.execute("DELETE FROM messages WHERE message_id = ANY($1)", old)
    newest = found[-1]
    return len(old), (newest["created_at"], newest["position"]) if len(found) == REMOVED_AT_ONCE else None
