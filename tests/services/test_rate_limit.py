"""The rate limit on a real Redis; time passes for it when the entries grow older."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services import account_limits
from services.account_limits import AccountLimits
from services.errors import TooManyRequests, Unavailable
from services.postgres import Pool
from services.rate_limit import WINDOW_SECONDS, RateLimit
from services.redis import open_redis
from services.settings import LimitSettings, Settings
from tests.proxy import Proxy

TEN = LimitSettings(rate_limit_per_minute=10, rate_limit_timeout=timedelta(seconds=5))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def limits(settings: Settings, pool: Pool, redis: Redis) -> AsyncIterator[list[RateLimit]]:
    """Those of two processes."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_redis(settings.redis)) for _ in range(2)]
        yield [RateLimit(TEN, pool, client, Clock()) for client in clients]


async def taken(limit: RateLimit, user_id: UUID, *, account_id: UUID | None = None, to_start: bool = False) -> float:
    """0 when a request was let through, else the seconds that it is to wait."""
    try:
        await limit.take(user_id, account_id or user_id, to_start=to_start)
    except TooManyRequests as refused:
        return float(refused.headers["Retry-After"])
    return 0


async def grow_older(redis: Redis, user_id: UUID, seconds: float, count: int | None = None) -> None:
    """As if the first `count` requests, or all, had come earlier."""
    key = f"rate_limit:{user_id}:requests"
    for number in range(count or await redis.llen(key)):
        came = int(await redis.lindex(key, number) or 0)
        await redis.lset(key, number, str(came - int(seconds * 1_000_000)))


async def test_many_at_once_in_two_processes_are_let_through_exactly_as_often_as_the_limit_says(
    limits: list[RateLimit],
) -> None:
    ann, bob = uuid4(), uuid4()
    waits = await asyncio.gather(*(taken(limits[n % 2], user) for n in range(40) for user in (ann, bob)))
    assert [sum(wait == 0 for wait in waits[who::2]) for who in (0, 1)] == [10, 10]
    assert all(0 < wait <= WINDOW_SECONDS for wait in waits if wait)


async def test_what_is_a_minute_old_does_not_count_and_what_is_younger_does(
    limits: list[RateLimit], redis: Redis
) -> None:
    ann = uuid4()
    assert [await taken(limits[0], ann) for _ in range(10)] == [0] * 10
    await grow_older(redis, ann, 30)
    assert 15 <= await taken(limits[1], ann) <= 30
    await grow_older(redis, ann, 30, count=4)
    assert [await taken(limits[0], ann) for _ in range(4)] == [0] * 4
    assert await taken(limits[0], ann) > 0


@pytest.mark.parametrize("before", [10, 6])
async def test_a_clock_that_is_set_back_locks_nobody_out_for_longer_than_a_minute(
    limits: list[RateLimit], redis: Redis, before: int
) -> None:
    ann, clock = uuid4(), Clock()
    limits[0].clock = clock
    assert [await taken(limits[0], ann) for _ in range(before)] == [0] * before
    await grow_older(redis, ann, -3600)
    assert [await taken(limits[0], ann) for _ in range(10 - before)] == [0] * (10 - before)
    assert 0 < await taken(limits[0], ann) <= WINDOW_SECONDS, "what came before still counts"
    clock.now += WINDOW_SECONDS
    await grow_older(redis, ann, WINDOW_SECONDS)
    assert [await taken(limits[0], ann) for _ in range(10)] == [0] * 10
    assert 0 < await redis.pttl(f"rate_limit:{ann}:requests") <= WINDOW_SECONDS * 1000


async def test_no_user_has_more_entries_than_the_limit_and_all_are_gone_after_a_minute(
    limits: list[RateLimit], redis: Redis
) -> None:
    ann = uuid4()
    for _ in range(5):
        await asyncio.gather(*(taken(limits[0], ann) for _ in range(12)))
        await grow_older(redis, ann, WINDOW_SECONDS)
        limits[0].refused.clear()
    [key] = [key async for key in redis.scan_iter()]
    assert await redis.llen(key) == 10
    assert 0 < await redis.pttl(key) <= WINDOW_SECONDS * 1000


async def test_a_refusal_says_what_the_limit_is_and_when_to_come_again(limits: list[RateLimit]) -> None:
    ann = uuid4()
    for _ in range(10):
        await taken(limits[0], ann)
    with pytest.raises(TooManyRequests) as refused:
        await limits[0].take(ann, ann, to_start=False)
    assert isinstance(refused.value.detail, dict)
    assert "10 requests" in refused.value.detail["message"]
    assert refused.value.detail["limit"] == 10
    assert refused.value.headers["Retry-After"] == str(refused.value.detail["retry_after"])


async def test_nobody_is_asked_about_a_user_who_was_refused_until_the_time_is_over(
    limits: list[RateLimit], redis: Redis
) -> None:
    ann, clock = uuid4(), Clock()
    limit = limits[0]
    limit.clock = clock
    for _ in range(10):
        await taken(limit, ann)
    wait = await taken(limit, ann)
    await redis.flushdb()
    clock.now += wait - 2
    assert 1 <= await taken(limit, ann) <= 2
    clock.now += 2
    assert await taken(limit, ann) == 0


async def test_an_account_with_a_rate_of_its_own_is_counted_by_itself(limits: list[RateLimit], pool: Pool) -> None:
    ann, garden = uuid4(), uuid4()
    await pool.execute("INSERT INTO accounts (account_id, name) VALUES ($1, 'garden')", garden)
    async with pool.acquire() as conn:
        await account_limits.keep(conn, garden, AccountLimits(rate_limit_per_minute=2))
    await limits[0].refresh()
    assert [await taken(limits[0], ann, account_id=garden) > 0 for _ in range(3)] == [False, False, True]
    assert await taken(limits[0], ann) == 0
    assert await taken(limits[0], uuid4(), account_id=garden) == 0  # it is each user's
    async with pool.acquire() as conn:
        await account_limits.keep(conn, garden, AccountLimits(rate_limit_per_minute=0))
    await limits[0].refresh()
    assert [await taken(limits[0], ann, account_id=garden) for _ in range(20)] == [0] * 20
    async with pool.acquire() as conn:
        await account_limits.keep(conn, garden, AccountLimits())
    assert await account_limits.rates(pool) == {}


@pytest.mark.parametrize(
    ("policy", "refused"), [("closed_for_starts", [True, False]), ("closed", [True, True]), ("open", [False, False])]
)
async def test_without_redis_the_setting_says_who_is_let_through_and_it_is_asked_once_in_a_while(
    settings: Settings, pool: Pool, redis: Redis, policy: str, refused: list[bool]
) -> None:
    clock = Clock()
    async with Proxy(settings.redis.dsn) as proxy:
        near = settings.redis.model_validate({**settings.redis.model_dump(), "url": proxy.url})
        async with open_redis(near) as client:
            limit = RateLimit(TEN.model_copy(update={"rate_limit_without_redis": policy}), pool, client, clock)
            ann = uuid4()
            assert await taken(limit, ann) == 0
            proxy.refuse()

            async def is_refused(to_start: bool) -> bool:
                try:
                    return await taken(limit, ann, to_start=to_start) > 0
                except Unavailable as error:
                    return bool(error.headers["Retry-After"])

            assert [await is_refused(True), await is_refused(False)] == refused
            proxy.restore()
            assert [await is_refused(True), await is_refused(False)] == refused, "it was asked again at once"
            clock.now += 1.5
            assert [await taken(limit, ann) for _ in range(9)] == [0] * 9
            assert await taken(limit, ann, to_start=True) > 0
