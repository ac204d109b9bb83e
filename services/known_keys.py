"""API keys that were found a moment ago: known for at most API_KEY_CACHE_TTL, forgotten at once when one is revoked."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

from redis.asyncio import Redis

from services import api_keys
from services.api_keys import Holder
from services.background import repeat, stop
from services.channels import Channels
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.settings import ApiKeySettings

CHANGED = "api_keys:changed"
"""Channel: an account's id, whose keys or members are others now."""
MAX_KNOWN = 10_000
LISTEN_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    holder: Holder
    until: float


class KnownKeys:
    """The keys of one process. Whoever changes keys or members of an account says so by `announce`."""

    def __init__(
        self,
        settings: ApiKeySettings,
        pool: Pool,
        redis: Redis,
        channels: Channels,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.settings, self.pool, self.redis, self.channels, self.clock = settings, pool, redis, channels, clock
        self.found: OrderedDict[tuple[str, bytes], Known] = OrderedDict()
        self.used: dict[UUID, datetime] = {}
        self.changes = 0
        self.tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        ticks = (self.listen, self.keep_use_later)
        self.tasks = [asyncio.create_task(repeat(tick), name=f"known_keys.{tick.__name__}") for tick in ticks]

    async def close(self) -> None:
        await stop(self.tasks)
        await self.keep_use()

    async def holder(self, said: str) -> Holder:
        """Whom an X-API-Key header stands for. Raises: Unauthenticated."""
        public_key, secret = api_keys.halves(said)
        name = (public_key, api_keys.hashed(self.settings, secret))
        known = self.found.get(name)
        holder = known.holder if known and self.clock() < known.until else await self.look_up(name, secret)
        if len(self.used) < MAX_KNOWN:
            self.used[holder.key_id] = datetime.now(UTC)
        return holder

    async def look_up(self, name: tuple[str, bytes], secret: str) -> Holder:
        before, asked_at = self.changes, self.clock()
        self.found.pop(name, None)
        holder = await api_keys.holder_of(self.pool, self.settings, name[0], secret)
        if self.changes == before:  # else what was read may be of before a change
            self.keep(name, holder, asked_at)
        return holder

    def keep(self, name: tuple[str, bytes], holder: Holder, asked_at: float) -> None:
        span = self.settings.cache_ttl.total_seconds()
        left = span if holder.seconds_left is None else min(span, holder.seconds_left)
        self.found[name] = Known(holder, asked_at + left)
        if len(self.found) > MAX_KNOWN:
            self.found.popitem(last=False)

    async def announce(self, account_id: UUID) -> None:
        """Keys or members of an account changed, as is committed: here and in every other process it counts now.

        While Redis is away, others go on with what they know for the rest of API_KEY_CACHE_TTL.
        """
        self.forget(account_id)
        try:
            await self.redis.publish(CHANGED, str(account_id))
        except RedisUnreachable as error:
            logger.warning("api_keys.change_not_announced", account_id=str(account_id), error=repr(error))

    def forget(self, account_id: UUID) -> None:
        self.changes += 1
        for name in [name for name, known in self.found.items() if known.holder.account_id == account_id]:
            del self.found[name]

    def forget_all(self) -> None:
        self.changes += 1
        self.found.clear()

    async def listen(self) -> None:
        """Hear of changes for ever; what may have been said while we could not hear counts as said."""
        try:
            async with self.channels.listen(CHANGED, on_message=self.heard, on_reset=self.forget_all):
                self.forget_all()
                await asyncio.Event().wait()
        except RedisUnreachable as error:
            logger.warning("api_keys.changes_unheard", error=repr(error))
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def heard(self, message: bytes) -> None:
        self.forget(UUID(message.decode()))

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
