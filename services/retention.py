"""Retention: what is older than the settings say is deleted, a small batch at a time, by one sweep at a time."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic

from services import old_messages
from services.postgres import Connection, Executor, Pool, transaction
from services.runs import archive, old_runs
from services.settings import RetentionSettings

TURN = timedelta(seconds=60)
"""Whoever has the turn and says nothing for so long has died."""
LEAST_PAUSE_SECONDS = 0.01

Behind = tuple[datetime, int] | bool | None
"""Where a rule goes on: behind a message, from the start (True), or nowhere, since there is no more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is removed when it is older than `age`. `count(conn, age, seconds)`: how much; `remove(conn, age, behind)`
    removes one batch: how many, and where to go on.
    """

    name: str
    age: timedelta
    count: Callable[[Connection, timedelta, float], Awaitable[int]]
    remove: Callable[[Connection, timedelta, Behind], Awaitable[tuple[int, Behind]]]


@dataclass(frozen=True, slots=True)
class Removed:
    """One batch."""

    rule: str
    count: int


@dataclass(frozen=True, slots=True)
class Turn:
    """The last sweep: who does or did it, and what it removed by rule. `taken` while it is under way."""

    owner: str
    taken: bool
    began_at: datetime | None
    ended_at: datetime | None
    removed: dict[str, int]
    rested: timedelta | None
    """How long ago it ended; None while it is under way, or if it never came to its end."""


class NotOurTurn(Exception):
    """Another sweep is under way."""


def rules(settings: RetentionSettings) -> list[Rule]:
    """Those that are on; events go before runs, whose rest they are."""
    each = [
        Rule("events", settings.events, archive.count_old, remove_events),
        Rule("messages", settings.messages, old_messages.count_old, remove_messages),
        Rule("runs", settings.runs, old_runs.count_old, remove_runs),
    ]
    return [rule for rule in each if rule.age]


async def remove_events(conn: Connection, age: timedelta, _behind: Behind) -> tuple[int, Behind]:
    return await archive.remove_old(conn, age)


async def remove_messages(conn: Connection, age: timedelta, behind: Behind) -> tuple[int, Behind]:
    return await old_messages.remove_old(conn, age, behind if isinstance(behind, tuple) else None)


async def remove_runs(conn: Connection, age: timedelta, _behind: Behind) -> tuple[int, Behind]:
    return await old_runs.remove_old(conn, age)


async def count(pool: Pool, chosen: Sequence[Rule], seconds: float) -> dict[str, int]:
    """How much a sweep would remove at this moment, by rule. Raises: TimeoutError; Postgres errors."""
    async with transaction(pool) as conn:
        await conn.execute("SET LOCAL statement_timeout = 0")  # of a great many it takes long
        return {rule.name: await rule.count(conn, rule.age, seconds) for rule in chosen}


async def sweep(
    pool: Pool, settings: RetentionSettings, owner: str, *, within: timedelta | None = None
) -> AsyncGenerator[Removed, None]:
    """Remove what is old until there is no more, or for `within`; each batch is committed when it is told.

    Between batches it rests for as long as they took: others and autovacuum come along. Each rule has its share of the
    time, and what those before it left of theirs. Raises: NotOurTurn; Postgres errors.
    """
    deadline = monotonic() + (within.total_seconds() if within else math.inf)
    chosen = rules(settings)
    try:
        for nth, rule in enumerate(chosen):
            until = monotonic() + (deadline - monotonic()) / (len(chosen) - nth)
            behind: Behind = True
            while behind and monotonic() < until:
                began = monotonic()
                async with transaction(pool) as conn:
                    await keep_turn(conn, owner)
                    count, behind = await rule.remove(conn, rule.age, behind)
                    await note(conn, rule, count)
                if count:
                    yield Removed(rule.name, count)
                await asyncio.sleep(max(monotonic() - began, LEAST_PAUSE_SECONDS))
    finally:
        await leave_turn(pool, owner)


async def keep_turn(conn: Connection, owner: str) -> None:
    """Raises: NotOurTurn. Whoever has it keeps its row locked during a batch: nobody waits for that."""
    kept = await conn.fetchval(
        """
        UPDATE retention_turns SET until = now() + $2::interval, owner = $1,
            began_at = CASE WHEN owner = $1 AND until > now() THEN began_at ELSE now() END,
            ended_at = CASE WHEN owner = $1 AND until > now() THEN ended_at END,
            removed = CASE WHEN owner = $1 AND until > now() THEN removed ELSE '{}' END
        WHERE singleton IN (
            SELECT singleton FROM retention_turns WHERE owner = $1 OR until < now() FOR UPDATE SKIP LOCKED
        ) RETURNING true
        """,
        owner,
        TURN,
    )
    if not kept:
        raise NotOurTurn


async def note(conn: Connection, rule: Rule, count: int) -> None:
    """How many a rule has removed in this sweep so far."""
    await conn.execute(
        """
        UPDATE retention_turns SET removed =
            removed || jsonb_build_object($1::text, coalesce((removed ->> $1)::bigint, 0) + $2::bigint)
        """,
        rule.name,
        count,
    )


async def leave_turn(pool: Pool, owner: str) -> None:
    await pool.execute(
        "UPDATE retention_turns SET until = now(), ended_at = now() WHERE owner = $1 AND until > now()", owner
    )


async def last_turn(conn: Executor) -> Turn | None:
    row = await conn.fetchrow(
        """
        SELECT owner, until > now() AS taken, began_at, ended_at, removed, now() - ended_at AS rested
        FROM retention_turns WHERE owner <> ''
        """
    )
    return Turn(**row) if row else None
