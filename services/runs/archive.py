"""The archive: the log of a run in Postgres, in blocks, while it grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from struct import Struct
from uuid import UUID

from services.postgres import Connection, Executor
from services.runs.fence import Fence

LENGTH = Struct(">I")
FIRST_EVENTS = 256
"""How many ids are reserved beyond a log's end at least."""
BLOCK_BYTES = 1024 * 1024
"""A block is closed at this size, so that a reader of one event never loads much more."""
RUNS_AT_ONCE = 50
BLOCKS_AT_ONCE = 200
"""Of a deletion: a statement of at most 200 MiB, which is half a second's work."""
OLD = "closed_at IS NOT NULL AND events_removed_at IS NULL AND completed_at < now() - $1::interval"
"""Of runs: that nobody appends to their logs any more, which have not been removed and ended so long ago."""


@dataclass(frozen=True, slots=True)
class Block:
    """What one statement stores of one run: events from `first_id` on, and the ids reserved beyond them.

    `closes` says that the log ends with this block.
    """

    fence: Fence
    first_id: int
    events: Sequence[bytes]
    reserved: int
    epoch: str
    closes: bool = False


def pack(events: Sequence[bytes]) -> bytes:
    """Events as one value: each with its length before it, four bytes, big-endian."""
    return b"".join(chain.from_iterable(zip(map(LENGTH.pack, map(len, events)), events, strict=True)))


def unpack(packed: bytes) -> list[bytes]:
    events, position = [], 0
    while position < len(packed):
        start = position + LENGTH.size
        position = start + int.from_bytes(packed[position:start], "big")
        events.append(packed[start:position])
    return events


async def store(conn: Executor, blocks: Sequence[Block]) -> set[tuple[UUID, int]]:
    """Store the blocks of many runs in one statement, each under its fence. A locked row holds up nobody else.

    Returns (run, attempt) of those that were taken; one is missing when its row is locked, its fence was raised, or
    the block is stored already.
    """
    rows = await conn.fetch(
        """
        WITH block AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::int[], $5::bytea[], $6::bigint[],
                                 $7::text[], $8::boolean[])
                AS block (run_id, fence, first_id, event_count, events, reserved, epoch, closes)
        ), free AS (
            SELECT id FROM agent_runs WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED
        ), fenced AS (
            UPDATE agent_runs AS run SET
                archived_events = block.first_id + block.event_count,
                reserved_events = greatest(run.reserved_events, block.reserved),
                log_epoch = block.epoch,
                closed_at = CASE WHEN block.closes THEN now() END,
                event_count = CASE WHEN block.closes THEN block.first_id + block.event_count END
            FROM block JOIN free ON free.id = block.run_id
            WHERE run.id = block.run_id AND run.attempt = block.fence AND run.archived_events = block.first_id
              AND run.closed_at IS NULL
            RETURNING run.id, run.attempt, block.first_id, block.event_count, block.events
        ), stored AS (
            INSERT INTO agent_run_event_blocks (agent_run_id, first_id, event_count, events)
            SELECT id, first_id, event_count, events FROM fenced WHERE event_count > 0
        )
        SELECT id, attempt FROM fenced
        """,
        [block.fence.run_id for block in blocks],
        [block.fence.attempt for block in blocks],
        [block.first_id for block in blocks],
        [len(block.events) for block in blocks],
        [pack(block.events) for block in blocks],
        [block.reserved for block in blocks],
        [block.epoch for block in blocks],
        [block.closes for block in blocks],
    )
    return {(row["id"], row["attempt"]) for row in rows}


async def read(conn: Executor, run_id: UUID, first_id: int, *, blocks: int = 4) -> list[bytes]:
    """Archived events from `first_id` on: what is left of the block it is in, and up to `blocks` in all."""
    rows = await conn.fetch(
        """
        SELECT first_id, events FROM agent_run_event_blocks
        WHERE agent_run_id = $1 AND first_id + event_count > $2
          AND first_id >= coalesce((
            SELECT max(first_id) FROM agent_run_event_blocks WHERE agent_run_id = $1 AND first_id <= $2), 0)
        ORDER BY first_id LIMIT $3
        """,
        run_id,
        first_id,
        blocks,
    )
    if not rows or rows[0]["first_id"] > first_id:
        return []
    events = [event for row in rows for event in unpack(row["events"])]
    return events[first_id - rows[0]["first_id"] :]


async def size(conn: Executor, run_id: UUID) -> int:
    """Bytes of a run's archived events."""
    total = await conn.fetchval(
        "SELECT sum(octet_length(events)) FROM agent_run_event_blocks WHERE agent_run_id = $1", run_id
    )
    return int(total or 0)


async def count_old(conn: Connection, age: timedelta, seconds: float) -> int:
    """How many blocks belong to runs that ended longer than `age` ago. Raises: TimeoutError."""
    query = f"SELECT count(*) FROM agent_run_event_blocks JOIN agent_runs ON id = agent_run_id WHERE {OLD}"
    return int(await conn.fetchval(query, age, timeout=seconds))


async def remove_old(conn: Connection, age: timedelta) -> tuple[int, bool]:
    """Remove some blocks of runs that ended longer than `age` ago, the longest ago first; to be committed.

    How many, and whether there may be more. A run that is locked is left for the next time.
    """
    rows = await conn.fetch(
        f"""
        SELECT id FROM agent_runs WHERE {OLD} ORDER BY completed_at LIMIT {RUNS_AT_ONCE}
        FOR NO KEY UPDATE SKIP LOCKED
        """,
        age,
    )
    run_ids = [row["id"] for row in rows]
    removed = await remove_blocks(conn, run_ids)
    await conn.execute(
        """
        UPDATE agent_runs SET events_removed_at = now()
        WHERE id = ANY($1) AND NOT EXISTS (SELECT FROM agent_run_event_blocks WHERE agent_run_id = id)
        """,
        run_ids,
    )
    return removed, len(rows) == RUNS_AT_ONCE or removed == BLOCKS_AT_ONCE


async def remove_blocks(conn: Connection, run_ids: Sequence[UUID]) -> int:
    """Remove up to BLOCKS_AT_ONCE blocks of runs that are closed; how many they were."""
    rows = await conn.fetch(
        """
        DELETE FROM agent_run_event_blocks AS block USING (
            SELECT agent_run_id, first_id FROM agent_run_event_blocks WHERE agent_run_id = ANY($1)
            ORDER BY agent_run_id, first_id LIMIT $2
        ) AS old
        WHERE block.agent_run_id = old.agent_run_id AND block.first_id = old.first_id RETURNING true
        """,
        run_ids,
        BLOCKS_AT_ONCE,
    )
    return len(rows)


def reserve(length: int, reserved: int, appended: int) -> int:
    """How far to reserve ids beyond `length`, after `appended` events in the last interval: twice that, bounded."""
    return max(reserved, length + min(max(FIRST_EVENTS, 2 * appended), 16_384))
