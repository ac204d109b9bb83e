"""The messages table: what a thread's people and agents said, in order."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from services.billing.calls import Charge
from services.postgres import LONG_SECONDS, Connection, dump_json

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


NAMES = tuple(f.name for f in fields(Message))
COLUMNS = ", ".join(NAMES)
WIDTH = len(NAMES)
LAST_POSITION = 2**63 - 1
NEWER_ROWS = 1000
IMAGES_AT_ONCE = 5
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


async def add(conn: Connection, thread_id: UUID, messages: Sequence[NewMessage]) -> list[Message]:
    """Store messages in the given order, in one statement.

    Raises: asyncpg.UniqueViolationError when a given `message_id` is stored already.
    """
    if not messages:
        return []
    return [Message(**row) for row in await conn.fetch(ADD, thread_id, *as_columns(messages))]


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
