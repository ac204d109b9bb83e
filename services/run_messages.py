"""Messages that runs store: under their fence, and with what the model call that they came of costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from services.billing import reserves
from services.billing.calls import Charge
from services.messages import COLUMNS, GIVEN, Message, NewMessage, as_columns, storable
from services.postgres import Connection, Executor
from services.runs.fence import Fence, FenceLost


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


async def add(conn: Connection, fence: Fence, thread_id: UUID, messages: Sequence[NewMessage]) -> list[Message]:
    """Store messages of a run in the given order, in one statement, while the attempt owns it: they are its progress.

    They belong to the agent of the run, which may have been deleted meanwhile.
    Raises: FenceLost; asyncpg.UniqueViolationError when a given `message_id` is stored already.
    """
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
    """As `add`, a message each of many runs in one statement.

    None for a run whose row is locked or that the attempt does not own. Raises: as `add` when one of them is refused.
    """
    columns = zip(*((one.fence.run_id, one.fence.attempt, *values_of(one)) for one in given), strict=True)
    stored = {row["message_id"]: Message(**row) for row in await conn.fetch(ADD_FREE, *columns)}
    return [stored.get(one.message_id) for one in given]


def values_of(one: FencedMessage) -> tuple[Any, ...]:
    return one.thread_id, one.message_id, one.type, one.is_llm_message, one.content, one.metadata


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
