"""Lists as the design is published: a thread's parts asked for one by one, at once; pages by how many to skip."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from services.postgres import LONG_SECONDS, Pool
from tests.benchmarks.looks import Look, id_of

PARTS = (
    "SELECT * FROM threads WHERE thread_id = $1",
    "SELECT * FROM messages WHERE thread_id = $1 ORDER BY created_at",
    "SELECT * FROM projects WHERE project_id = (SELECT project_id FROM threads WHERE thread_id = $1)",
    "SELECT * FROM agent_runs WHERE thread_id = $1 ORDER BY created_at DESC LIMIT 1",
)
SKIPPING = "SELECT * FROM messages WHERE thread_id = $1 ORDER BY created_at {order} LIMIT $2 OFFSET $3"


async def thread_data(pool: Pool, thread_id: UUID) -> list[Any]:
    """Its row, messages, project and newest run: four statements at once, each on a connection of its own."""
    return await asyncio.gather(*(pool.fetch(part, thread_id) for part in PARTS))


def way_of(look: Look, pool: Pool) -> Callable[[], Awaitable[object]] | None:
    """How the design would answer that; None where it does not say, or says the same."""
    if "cursor" not in look.asked or not look.path.endswith("/messages"):
        return None
    order = "ASC" if look.asked.get("order") == "asc" else "DESC"
    thread_id, limit = id_of("thread"), look.asked["limit"]
    skipped = int(look.asked["cursor"]) // 100  # one message of a hundred is in that thread
    return lambda: pool.fetch(SKIPPING.format(order=order), thread_id, limit, skipped, timeout=LONG_SECONDS)
