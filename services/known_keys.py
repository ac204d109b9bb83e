"""API keys that were found a moment ago: known for at most API_KEY_CACHE_TTL, forgotten at once when one is revoked."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf
from time import monotonic
from uuid import UUID

from redis.asyncio import Redis

from services import api_keys
from services.api_keys import Holder
from services.background import repeat, stop
from services.channels import Channels
from services.known import Found, Known
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.settings import ApiKeySettings

MAX_KNOWN = 10_000

Name = tuple[str, bytes]
"""The public half of a key, and the hash of the other: only whoever has both finds what is known."""


class KnownKeys:
    """The keys of one process. Whoever changes keys or members of an account says so by `announce`.

    They are never in Redis: whoever could write there would else make keys.
    """

    def __init__(
        self,
        settings: ApiKeySettings,
        pool: Pool,
        redis: Redis,
        channels: Channels,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.settings, self.pool = settings, pool
        self.known: Known[Name, Holder] = Known(
            "api_keys",
            redis,
            channels,
            seconds=settings.cache_ttl.total_seconds(),
            most=MAX_KNOWN,
            clock=clock,
        )
        self.used: dict[UUID, datetime] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self.known.open()
        self.tasks = [asyncio.create_task(repeat(self.keep_use_later), name="known_keys.keep_use_later")]

    async def close(self) -> None:
        await stop(self.tasks)
        await self.known.close()
        await self.keep_use()

    async def holder(self, said: str) -> Holder:
        """Whom an X-API-Key header stands for. Raises: Unauthenticated."""
        public_key, secret = api_keys.halves(said)
        name = (public_key, api_keys.hashed(self.settings, secret))
        holder = await self.known.get(name, partial(self.look_up, public_key, secret))
        if len(self.used) < MAX_KNOWN:
            self.used[holder.key_id] = datetime.now(UTC)
        return holder

    async def look_up(self, public_key: str, secret: str) -> Found[Holder]:
        holder = await api_keys.holder_of(self.pool, self.settings, public_key, secret)
        left = inf if holder.seconds_left is None else holder.seconds_left
        return Found(holder, str(holder.account_id), left)

    async def announce(self, account_id: UUID) -> None:
        """Keys or members of an account changed, as is committed: here and in every other process it counts now.

        While Redis is away, others go on with what they know for the rest of API_KEY_CACHE_TTL.
        """
        await self.known.announce(str(account_id))

    async def keep_use_later(self) -> None:
        await asyncio.sleep(self.settings.touch_interval.total_seconds())
        await self.keep_use()

    async def keep_use(self) -> None:
        """Write when keys were last used; when Postgres is away, what was noted is left out."""
        used, self.used = self.used, {}
        if not used:
            return
        try:
            await api_keys.touch(self.pool, used, self.settings)
        except PostgresUnreachable as error:
            logger.warning("api_keys.use_not_kept", keys=len(used), error=repr(error))
