"""How the published design says an event: a task for its RPUSH and one for its PUBLISH, awaited when the run ends."""

import asyncio
import json
from typing import Any
from uuid import UUID

from redis.asyncio import BlockingConnectionPool, Redis

from services.runs import keys

CONNECTIONS = 128


class ReferenceWriter:
    """The writers of a process with the client they share. Its pool waits, or the first burst would break it."""

    def __init__(self, redis_url: str) -> None:
        pool = BlockingConnectionPool.from_url(redis_url, max_connections=CONNECTIONS, timeout=None, protocol=2)
        self.redis = Redis.from_pool(pool)
        self.pending: list[asyncio.Future[Any]] = []

    def say(self, run_id: UUID, event: dict[str, Any]) -> None:
        self.pending.append(asyncio.ensure_future(self.redis.rpush(keys.responses(run_id), json.dumps(event))))
        self.pending.append(asyncio.ensure_future(self.redis.publish(keys.news(run_id), "new")))

    async def settle(self) -> None:
        """Wait for all that was said, as the end of a run does."""
        await asyncio.gather(*self.pending)
        self.pending.clear()

    async def close(self) -> None:
        await self.redis.aclose()
