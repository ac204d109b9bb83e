"""The rate limit: at most RATE_LIMIT_PER_MINUTE requests of a user in any 60 seconds, over all processes.

Redis keeps when each request that was let through came, by its own clock: exact, and never more entries than the limit.
A user who was refused is refused here until the oldest of them no longer counts; nobody is asked meanwhile.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from time import monotonic
from uuid import UUID

from services import account_limits
from services.background import repeat, stop
from services.errors import TooManyRequests, Unavailable
from services.joining import Joined
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Client
from services.redis import Unreachable as RedisUnreachable
from services.settings import LimitSettings

WINDOW_SECONDS = 60
REFRESH_SECONDS = 30.0
"""How old what is known of the rates of accounts may be."""
AWAY_SECONDS = 1.0
"""For so long a server that did not answer is not asked again."""
MAX_REFUSED = 10_000

TAKE = """
local time = redis.call('TIME')
local now, window = time[1] * 1000000 + time[2], tonumber(ARGV[2])
local newest = tonumber(redis.call('LINDEX', KEYS[1], -1) or 0)
if newest > now then
    local known = redis.call('LRANGE', KEYS[1], 0, -1)
    redis.call('DEL', KEYS[1])
    for _, came in ipairs(known) do
        redis.call('RPUSH', KEYS[1], string.format('%.0f', came - newest + now))
    end
    redis.call('PEXPIRE', KEYS[1], window / 1000)
end
local oldest = redis.call('LINDEX', KEYS[1], '-' .. ARGV[1])
local left = oldest and tonumber(oldest) + window - now or 0
if left > 0 then return math.min(left, window) end
redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
redis.call('LTRIM', KEYS[1], '-' .. ARGV[1], -1)
redis.call('PEXPIRE', KEYS[1], window / 1000)
return 0
"""
"""Let a request through, or say in how many microseconds the next one will be.

A clock that was set back (or that of a replica, which is behind) takes the entries along: they would count for as long
as it was set back, beyond their minute.
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests that are counted together, and how many of them there may be."""

    key: str
    limit: int


class RateLimit:
    """The rate limit in one process."""

    def __init__(
        self, settings: LimitSettings, pool: Pool, redis: Client, clock: Callable[[], float] = monotonic
    ) -> None:
        self.settings, self.pool, self.redis, self.clock = settings, pool, redis, clock
        self.of_accounts: dict[UUID, int] = {}
        self.asking = Joined[Rate, int](self.ask)
        self.refused: OrderedDict[Rate, float] = OrderedDict()
        """Until when a rate lets nothing through."""
        self.away_until = -1.0
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.create_task(repeat(self.tick), name="rates of accounts")

    async def close(self) -> None:
        await stop([self.task] if self.task else [])

    async def take(self, user_id: UUID, account_id: UUID, *, to_start: bool) -> None:
        """Count a request of a user by a token, or by a key of this account.

        Raises: TooManyRequests `{message, limit, retry_after}`; Unavailable when Redis cannot be asked and the
        settings do not let such requests (`to_start` a run, or others) through then.
        """
        await self.spend(self.rate_of(user_id, account_id), to_start=to_start)

    async def spend(self, rate: Rate, *, to_start: bool) -> None:
        """Count a request. Raises: as `take`."""
        if not rate.limit:
            return
        now = self.clock()
        until = self.refused.get(rate, now)
        if until > now:
            raise refusal(rate, until - now)
        left = await self.left(rate, to_start)
        if left > 0:
            self.remember(rate, self.clock() + left)
            raise refusal(rate, left)

    def rate_of(self, user_id: UUID, account_id: UUID) -> Rate:
        """An account's own rate counts by itself, so that neither uses up the other."""
        own = self.of_accounts.get(account_id)
        if own is None:
            return Rate(f"rate_limit:{user_id}:requests", self.settings.rate_limit_per_minute)
        return Rate(f"rate_limit:{user_id}:{account_id}", own)

    async def left(self, rate: Rate, to_start: bool) -> float:
        """Seconds until it lets something through; 0 when it just did."""
        try:
            if self.clock() < self.away_until:
                raise ConnectionError("Redis did not answer a moment ago")
            return await self.asking.ask(rate) / 1e6
        except RedisUnreachable as error:
            if self.clock() >= self.away_until:
                self.away_until = self.clock() + AWAY_SECONDS
                logger.warning("rate_limit.redis_unreachable", error=repr(error))
            if self.settings.closed_without_redis(to_start):
                raise Unavailable from error
            return 0

    async def ask(self, rates: Sequence[Rate]) -> list[int]:
        window = WINDOW_SECONDS * 1_000_000
        async with asyncio.timeout(self.settings.rate_limit_timeout.total_seconds()):
            answers = await self.redis.ask([("EVAL", TAKE, 1, rate.key, rate.limit, window) for rate in rates])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def remember(self, rate: Rate, until: float) -> None:
        self.refused[rate] = until
        self.refused.move_to_end(rate)
        if len(self.refused) > MAX_REFUSED:
            self.refused.popitem(last=False)

    async def tick(self) -> None:
        await self.refresh()
        await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Learn the rates of accounts; while Postgres is away, those that were known go on."""
        try:
            self.of_accounts = await account_limits.rates(self.pool)
        except PostgresUnreachable as error:
            logger.warning("rate_limit.rates_unknown", error=repr(error))


def refusal(rate: Rate, seconds: float) -> TooManyRequests:
    wait = max(ceil(seconds), 1)
    message = f"More than {rate.limit} requests in a minute; the next one will be answered in {wait} s."
    return TooManyRequests(
        {"message": message, "limit": rate.limit, "retry_after": wait}, headers={"Retry-After": str(wait)}
    )
