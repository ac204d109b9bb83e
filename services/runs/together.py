"""What many runs of a process ask of Postgres in the same moments: one statement for all, each alone when need be.

A statement of many never waits for a row: one that another has locked is left out, and so is everything when one of
them is refused. What was left out is then asked alone, as it would have been at first.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from services import run_messages
from services.joining import Joined
from services.log import logger
from services.messages import Message
from services.postgres import Pool, Unreachable, dump_json
from services.run_messages import FencedMessage
from services.runs import lifecycle, store
from services.runs.fence import Fence
from services.runs.lifecycle import End, Overdue
from services.runs.store import Run

Q = TypeVar("Q")
A = TypeVar("A")

JOINED_CHARS = 64 * 1024
"""A longer text is stored alone: a statement holds as many as the process has runs."""


class Together:
    """The joined statements of one process."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.ends = Joined[End, Run | None](partial(lifecycle.end_free, pool))
        self.stops = Joined[UUID, Run | None](partial(lifecycle.request_free_stops, pool))
        self.committed = Joined[UUID, bool](partial(lifecycle.are_stops_committed, pool))
        self.acknowledgements = Joined[Fence, None](partial(lifecycle.acknowledge_stops, pool))
        self.overdue = Joined[Overdue, Run | None](partial(lifecycle.end_overdue, pool))
        self.turns = Joined[UUID, Run | None](partial(store.next_queued_of, pool))
        self.drafts = Joined[FencedMessage, Message | None](partial(run_messages.add_free, pool))

    async def end(self, fence: Fence, status: str, *, error: str | None, usage: dict[str, Any]) -> Run | None:
        """`lifecycle.end`."""
        ended = await unless_refused(self.ends, End(fence, status, error, dump_json(usage)))
        return ended or await lifecycle.end(self.pool, fence, status, error=error, usage=usage)

    async def request_stop(self, run_id: UUID) -> Run | None:
        """`lifecycle.request_stops` of one run."""
        stopped = await unless_refused(self.stops, run_id)
        return stopped or next(iter(await lifecycle.request_stops(self.pool, [run_id])), None)

    async def is_stop_committed(self, run_id: UUID) -> bool:
        return await self.committed.ask(run_id)

    async def acknowledge_stop(self, fence: Fence) -> None:
        """`lifecycle.acknowledge_stops` of one run."""
        await self.acknowledgements.ask(fence)

    async def end_overdue(self, run: Overdue) -> Run | None:
        """`lifecycle.end_overdue` of one run."""
        return await self.overdue.ask(run)

    async def next_queued(self, project_id: UUID) -> Run | None:
        """`store.next_queued`."""
        return await self.turns.ask(project_id)

    async def add(self, draft: FencedMessage, alone: Callable[[], Awaitable[Message]]) -> Message:
        """Store a message under its fence; `alone` when it is long, or could not be stored with others."""
        stored = None
        if len(draft.content) <= JOINED_CHARS:
            with suppress(*Unreachable):  # `alone` knows how long to wait
                stored = await unless_refused(self.drafts, draft)
        return stored or await alone()


async def unless_refused(joined: Joined[Q, A | None], question: Q) -> A | None:
    """None when Postgres refused the statement, perhaps for the sake of another question.

    Raises: what `services.postgres.Unreachable` names.
    """
    try:
        return await joined.ask(question)
    except Unreachable:
        raise
    except asyncpg.PostgresError as error:
        logger.info("together.refused", error=repr(error))
        return None
