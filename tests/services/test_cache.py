"""The cache, over two processes that share a Redis; the database is a table of the test."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services import cache
from services.cache import Cache
from services.channels import Channels
from services.redis import open_redis
from services.settings import RedisSettings, Settings
from tests.waiting import eventually

GROUP = "an account"
SECRET = "the secret of these tests"


@dataclass(frozen=True)
class Limit:
    account_id: UUID
    most: int
    names: list[str] = field(default_factory=list)


@dataclass
class Table:
    """`held`: a look-up that has read its row waits until it is set."""

    rows: dict[str, Limit] = field(default_factory=dict)
    asked: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    async def load(self, key: str = "limit") -> Limit | None:
        self.asked += 1
        row = self.rows.get(key)
        await self.held.wait()
        if self.error:
            raise self.error
        return row


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def process(settings: RedisSettings, clock: Clock, **options: Any) -> AsyncIterator[Cache[Limit]]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        channels = Channels(settings)
        channels.open()
        stack.push_async_callback(channels.close)
        opened = Cache("limits", Limit, redis, channels, SECRET, clock=clock, **options)
        opened.open()
        stack.push_async_callback(opened.close)
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    table = Table({"limit": Limit(uuid4(), 3, ["a", "b"])})
    table.held.set()
    return table


@pytest.fixture
async def caches(settings: Settings, redis: Redis, clock: Clock) -> AsyncIterator[list[Cache[Limit]]]:
    async with process(settings.redis, clock) as one, process(settings.redis, clock) as other:
        await eventually(lambda: one.known.changes and other.known.changes, says="both listen")
        yield [one, other]


async def test_what_one_process_asked_the_database_no_process_asks_again(
    caches: Sequence[Cache[Limit]], table: Table
) -> None:
    for known in (*caches, *caches):
        assert await known.get(GROUP, "limit", table.load) == table.rows["limit"]
    assert table.asked == 1
    assert [(known.counts.hits, known.counts.misses, known.counts.shared) for known in caches] == [(1, 1, 0), (1, 1, 1)]


async def test_those_who_miss_it_together_share_one_look_up(caches: Sequence[Cache[Limit]], table: Table) -> None:
    table.held.clear()
    asking = [asyncio.create_task(caches[0].get(GROUP, "limit", table.load)) for _ in range(50)]
    await eventually(lambda: table.asked)
    asking.pop(0).cancel()  # whoever came first does not wait for it; the others get it all the same
    await asyncio.sleep(0)
    table.held.set()
    assert set(map(repr, await asyncio.gather(*asking))) == {repr(table.rows["limit"])}
    assert (table.asked, caches[0].counts.joined) == (1, 49)


async def test_a_change_counts_at_once_here_and_soon_everywhere(caches: Sequence[Cache[Limit]], table: Table) -> None:
    for known in caches:
        await known.get(GROUP, "limit", table.load)
    table.rows["limit"] = Limit(uuid4(), 99)
    before = caches[1].known.changes
    await caches[0].forget(GROUP)
    assert await caches[0].get(GROUP, "limit", table.load) == table.rows["limit"]
    await eventually(lambda: caches[1].known.changes > before)
    assert await caches[1].get(GROUP, "limit", table.load) == table.rows["limit"]
    assert table.asked == 2, "the second process had it from Redis"


async def test_a_change_of_one_group_leaves_others_known(caches: Sequence[Cache[Limit]], table: Table) -> None:
    await caches[0].get(GROUP, "limit", table.load)
    await caches[0].get("another", "limit", table.load)
    await caches[0].forget(GROUP)
    await caches[0].get("another", "limit", table.load)
    assert table.asked == 2


@pytest.mark.parametrize("changes_in", [0, 1])
async def test_what_was_looked_up_during_a_change_is_kept_nowhere(
    caches: Sequence[Cache[Limit]], table: Table, changes_in: int
) -> None:
    stale, fresh = table.rows["limit"], Limit(uuid4(), 1)
    table.held.clear()
    looking = asyncio.create_task(caches[0].get(GROUP, "limit", table.load))
    await eventually(lambda: table.asked)
    table.rows["limit"], before = fresh, caches[0].known.changes
    await caches[changes_in].forget(GROUP)
    await eventually(lambda: caches[0].known.changes > before)
    after = asyncio.create_task(caches[0].get(GROUP, "limit", table.load))
    await eventually(lambda: table.asked == 2, says="whoever asks after the change waits for no look-up of before")
    table.held.set()
    assert await looking == stale
    assert await after == fresh
    for known in (*caches, *caches):
        assert await known.get(GROUP, "limit", table.load) == fresh
    assert caches[0].counts.unkept == 1


async def test_a_look_up_that_missed_the_word_of_a_change_does_not_reach_redis(
    caches: Sequence[Cache[Limit]], table: Table, redis: Redis
) -> None:
    """Its own process may hear too late; the mark in Redis says it in the same step as the store."""
    stale = table.rows["limit"]
    table.held.clear()
    looking = asyncio.create_task(caches[0].get(GROUP, "limit", table.load))
    await eventually(lambda: table.asked)
    await redis.hset(f"cache:limits:{GROUP}", "", "another mark")
    await redis.expire(f"cache:limits:{GROUP}", 60)
    table.held.set()
    assert await looking == stale
    assert await redis.hkeys(f"cache:limits:{GROUP}") == [b""]


async def test_what_is_known_grows_old_and_no_older_through_redis(
    caches: Sequence[Cache[Limit]], table: Table, clock: Clock, redis: Redis
) -> None:
    await caches[0].get(GROUP, "limit", table.load)
    await redis.pexpire(f"cache:limits:{GROUP}", 20_000)  # as if it had been stored 280 s ago
    await caches[1].get(GROUP, "limit", table.load)
    assert await redis.delete(f"cache:limits:{GROUP}")
    clock.now += 21
    await caches[1].get(GROUP, "limit", table.load)
    await caches[0].get(GROUP, "limit", table.load)
    assert table.asked == 2
    await redis.delete(f"cache:limits:{GROUP}")
    clock.now += 280
    await caches[0].get(GROUP, "limit", table.load)
    assert table.asked == 3
    assert 290 < await redis.ttl(f"cache:limits:{GROUP}") <= 300


async def test_what_is_not_there_is_known_only_where_that_was_asked_for(
    settings: Settings, redis: Redis, clock: Clock, table: Table
) -> None:
    table.rows.clear()
    async with process(settings.redis, clock, absent=timedelta(seconds=10)) as known:
        await eventually(lambda: known.known.changes)
        assert [await known.get(GROUP, "limit", table.load) for _ in range(3)] == [None] * 3
        assert table.asked == 1
        clock.now += 11
        assert await known.get(GROUP, "limit", table.load) is None
        assert table.asked == 2
    async with process(settings.redis, clock) as known:
        assert [await known.get(GROUP, "limit", table.load) for _ in range(3)] == [None] * 3
        assert table.asked == 5
    assert not await redis.exists(f"cache:limits:{GROUP}")


async def test_an_error_of_a_look_up_goes_to_all_who_wait_and_is_not_kept(
    caches: Sequence[Cache[Limit]], table: Table
) -> None:
    table.error = ConnectionError("away")
    asked = await asyncio.gather(*(caches[0].get(GROUP, "limit", table.load) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in asked] == [ConnectionError] * 3
    table.error = None
    assert await caches[0].get(GROUP, "limit", table.load)


async def test_without_redis_the_process_knows_what_it_asked(clock: Clock, table: Table) -> None:
    nowhere = RedisSettings.model_validate({"url": "redis://127.0.0.1:9/0"})
    async with process(nowhere, clock) as known:
        for _ in range(3):
            assert await known.get(GROUP, "limit", table.load) == table.rows["limit"]
        assert table.asked == 1
        await known.forget(GROUP)
        await known.get(GROUP, "limit", table.load)
        assert table.asked == 2


async def test_after_a_lost_connection_nothing_counts_as_known(
    caches: Sequence[Cache[Limit]], table: Table, redis: Redis
) -> None:
    await caches[0].get(GROUP, "limit", table.load)
    await redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: not caches[0].known.found)


async def test_what_another_version_of_us_stored_is_looked_up_anew(
    caches: Sequence[Cache[Limit]], table: Table, redis: Redis
) -> None:
    old = b'{"account": 1}'
    await redis.hset(f"cache:limits:{GROUP}", "limit", caches[0].signature(GROUP, "limit", old) + old)
    await redis.expire(f"cache:limits:{GROUP}", 60)
    for known in caches:
        assert await known.get(GROUP, "limit", table.load) == table.rows["limit"]
    assert table.asked == 1


async def test_whoever_writes_to_redis_does_not_say_what_a_value_is(
    caches: Sequence[Cache[Limit]], table: Table, redis: Redis
) -> None:
    table.rows["other"] = Limit(uuid4(), 99)
    for key in ("limit", "other"):
        await caches[0].get(GROUP, key, partial(table.load, key))
    stored: Any = await redis.hget(f"cache:limits:{GROUP}", "limit")
    swapped: Any = await redis.hget(f"cache:limits:{GROUP}", "other")
    assert b'"most":3' in stored
    for written in (stored.replace(b'"most":3', b'"most":9'), stored[32:], swapped, b"", b"x" * 40):
        await redis.hset(f"cache:limits:{GROUP}", "limit", written)
        caches[1].known.forget_all()
        assert await caches[1].get(GROUP, "limit", table.load) == table.rows["limit"]
    caches[1].known.forget_all()
    assert await caches[1].get("another", "limit", table.load)
    assert caches[1].counts.shared == 0


async def test_what_a_process_and_redis_keep_is_bounded(
    settings: Settings, redis: Redis, clock: Clock, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_OF_GROUP", 3)
    async with process(settings.redis, clock, most=2) as known:
        for number in range(9):
            await known.get(GROUP, str(number), table.load)
        assert len(known.known.found) == 2
        assert await redis.hlen(f"cache:limits:{GROUP}") <= 4
        table.rows["limit"] = Limit(uuid4(), 1, ["x" * cache.MAX_BYTES])
        asked = table.asked
        for _ in range(2):
            assert await known.get("large", "limit", table.load) == table.rows["limit"]
        assert table.asked == asked + 2
        assert not await redis.exists("cache:limits:large")
