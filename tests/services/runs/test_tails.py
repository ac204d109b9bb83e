import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from datetime import timedelta
from random import Random
from typing import Any, TypeVar
from unittest.mock import AsyncMock, patch
from uuid import UUID, uuid4

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from services.channels import Listener
from services.runs import archive, events, keys, lifecycle, tails
from services.runs.batches import Batch, make_batch
from services.runs.stores import Stores, open_stores
from services.runs.tail import Reader
from services.runs.tails import Tails
from services.settings import Settings
from tests.proxy import Proxy
from tests.services.runs.conftest import reaching_redis_by
from tests.services.runs.seeds import Driver, closed, driving, end, eventually, listed, make_run, read_all, row_of
from tests.waiting import PATIENT

Seen = list[tuple[int, bytes]]
T = TypeVar("T")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    streams = settings.streams.model_copy(update={"silence": timedelta(seconds=0.3)})
    return settings.model_copy(update={"streams": streams})


@pytest.fixture
async def narrow(settings: Settings, redis: Any) -> AsyncIterator[Stores]:
    """A process whose tails hold hardly anything."""
    streams = settings.streams.model_copy(update={"window_bytes": 1024})
    async with open_stores(settings.model_copy(update={"streams": streams})) as stores:
        yield stores


async def finish(driver: Driver, status: str = "completed") -> None:
    row = await end(driver, status)
    await driver.log.close(events.last_event(row.status, row.error), events.status("thread_run_end", row.id))


async def ended_run(stores: Stores, chunks: int) -> UUID:
    async with driving(stores) as driver:
        await driver.say(*map(str, range(chunks)))
        await finish(driver)
        await closed(stores.pool, driver.run.id)
    return driver.run.id


async def within(seconds: float, reading: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await reading


def assert_each_once(seen: Seen, log: list[bytes], after: int = -1) -> None:
    assert [number for number, _ in seen] == list(range(after + 1, len(log)))
    assert [event for _, event in seen] == log[after + 1 :]
    assert events.final_status(seen[-1][1])


async def test_a_follower_that_joins_at_any_point_sees_each_event_once(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        readers = [asyncio.create_task(read_all(other, driver.run.id))]
        for number in range(30):
            await driver.say(*(f"{number}.{part} " for part in range(3)))
            readers.append(asyncio.create_task(read_all(other, driver.run.id)))
        await finish(driver)
        readers.append(asyncio.create_task(read_all(other, driver.run.id)))
        log = await listed(stores, driver.run.id)
        for seen in await within(PATIENT, asyncio.gather(*readers)):
            assert_each_once(seen, log)


async def test_a_short_log_is_read_in_the_round_trip_that_asks_how_long_it_is(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("one", "two")
        with patch.object(other.redis, "ask", AsyncMock(wraps=other.redis.ask)) as asked:
            async with other.tails.follow(driver.run.id) as reader:
                batch = await within(PATIENT, reader.next()) or await within(PATIENT, reader.next())
        assert batch
        assert batch.events == await listed(stores, driver.run.id)
        first, *later = [call.args[0] for call in asked.await_args_list]
        assert [command[0] for command in first] == ["LLEN", "LRANGE"]
        assert all(command[2] == 2 for commands in later for command in commands)


async def test_appends_that_race_with_joining_and_resuming_are_neither_lost_nor_doubled(
    stores: Stores, other: Stores
) -> None:
    random = Random(11)

    async def wander(run_id: UUID) -> Seen:
        """Read, drop at a random moment, resume after the last id seen."""
        seen: Seen = []
        while not seen or not events.final_status(seen[-1][1]):
            async with other.tails.follow(run_id, after=len(seen) - 1) as reader:
                for _ in range(random.randint(1, 4)):
                    batch = None if reader.over else await reader.next()
                    seen += enumerate(batch.events, batch.first_id) if batch else ()
        return seen

    for _ in range(10):
        async with driving(stores) as driver:
            readers = [asyncio.create_task(wander(driver.run.id)) for _ in range(20)]
            for _ in range(20):
                await driver.say(*"x" * random.randint(1, 40))
                await asyncio.sleep(random.choice((0, 0, 0.005)))
            await finish(driver)
            log = await listed(stores, driver.run.id)
            for seen in await within(PATIENT, asyncio.gather(*readers)):
                assert_each_once(seen, log)


async def test_the_last_word_said_while_a_reader_subscribes_is_heard_at_once(
    stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stores(never_looking(settings)) as other, driving(stores) as driver:
        await driver.say("first")
        add = other.channels.add

        async def add_late(name: str, listener: Listener) -> None:
            await finish(driver)
            await add(name, listener)

        monkeypatch.setattr(other.channels, "add", add_late)
        seen = await within(PATIENT, read_all(other, driver.run.id))
        assert_each_once(seen, await listed(stores, driver.run.id))


async def test_a_reader_may_resume_after_any_id(stores: Stores) -> None:
    run_id = await ended_run(stores, 1200)
    log = await listed(stores, run_id)
    for after in (-1, 0, 1, 498, 499, 500, 701, 702, 703, 1199, 1200):
        assert_each_once(await within(PATIENT, read_all(stores, run_id, after=after)), log, after)


async def test_a_log_that_redis_no_longer_has_comes_from_postgres_with_the_same_ids_and_bytes(stores: Stores) -> None:
    run_id = await ended_run(stores, 1200)
    log = await listed(stores, run_id)
    await stores.redis.flushdb()
    for after in (-1, 0, 499, 700, 702, 1199, 1200):
        assert_each_once(await within(PATIENT, read_all(stores, run_id, after=after)), log, after)


async def test_after_retention_only_the_last_event_is_left_with_its_id(stores: Stores) -> None:
    run_id = await ended_run(stores, 700)
    last = (await listed(stores, run_id))[-1]
    await stores.redis.flushdb()
    await stores.pool.execute("DELETE FROM agent_run_event_blocks WHERE agent_run_id = $1", run_id)
    for after in (-1, 0, 300, 700):
        assert await within(PATIENT, read_all(stores, run_id, after=after)) == [(701, last)]


async def test_the_last_event_follows_from_the_row_alone(stores: Stores) -> None:
    for status, error in (("completed", None), ("failed", "It broke."), ("stopped", None)):
        async with driving(stores) as driver:
            row = await lifecycle.end(stores.pool, driver.held.fence, status, error=error, usage={})
            assert row
            await driver.log.close(events.last_event(row.status, row.error))
            [event] = await listed(stores, row.id)
            assert event == events.last_event(status, error)
            assert events.final_status(event) == status


async def test_a_flush_of_redis_while_following_loses_nothing(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        reading = asyncio.create_task(read_all(other, driver.run.id))
        for number in range(6):
            await driver.say(*map(str, range(number * 100)), "x")
            await stores.redis.flushdb()
        await finish(driver)
        seen = await within(PATIENT, reading)
        assert_each_once(seen, await listed(stores, driver.run.id))


def never_looking(settings: Settings) -> Settings:
    """What nobody announces is not found by chance."""
    streams = settings.streams.model_copy(update={"silence": timedelta(minutes=1)})
    return settings.model_copy(update={"streams": streams})


async def test_what_nobody_announced_is_found_when_the_subscription_comes_back(
    stores: Stores, settings: Settings, redis_proxy: Proxy
) -> None:
    """Said while the connection was gone, to a reader that had everything and waits for no read of its own."""
    async with open_stores(reaching_redis_by(redis_proxy, never_looking(settings))) as far, driving(stores) as driver:
        await driver.say("first")
        known = await stores.redis.llen(keys.responses(driver.run.id))
        async with far.tails.follow(driver.run.id, after=known - 1) as reader:
            await eventually(lambda: reader.tail.end == known)
            await stores.redis.rpush(keys.responses(driver.run.id), b"unannounced")
            redis_proxy.cut()
            batch = await within(PATIENT, reader.next())
        assert batch
        assert batch.events == [b"unannounced"]


async def test_a_cut_of_the_readers_connections_loses_nothing(
    stores: Stores, settings: Settings, redis_proxy: Proxy
) -> None:
    trusting = reaching_redis_by(redis_proxy, never_looking(settings))
    async with open_stores(trusting) as far, driving(stores) as driver:
        await driver.say("first")
        readers = [asyncio.create_task(read_all(far, driver.run.id)) for _ in range(5)]
        for number in range(10):
            await driver.say(str(number))
            if number % 3 == 0:
                redis_proxy.cut()
            await driver.say("right after")
        redis_proxy.refuse()
        await finish(driver)
        redis_proxy.restore()
        log = await listed(stores, driver.run.id)
        for seen in await within(PATIENT, asyncio.gather(*readers)):
            assert_each_once(seen, log)


async def test_a_reader_is_served_from_postgres_while_redis_is_away(
    stores: Stores, far: Stores, redis_proxy: Proxy
) -> None:
    async with driving(stores) as driver:
        reading = asyncio.create_task(read_all(far, driver.run.id))
        await driver.say("a")
        await eventually(lambda: far.tails.tails and far.tails.tails[driver.run.id].end)
        redis_proxy.refuse()
        await driver.say("b")
        await finish(driver)
        assert_each_once(await within(PATIENT, reading), await listed(stores, driver.run.id))


async def test_a_list_that_somebody_has_put_something_else_for_costs_the_other_readers_nothing(
    stores: Stores, settings: Settings
) -> None:
    async with open_stores(never_looking(settings)) as other, driving(stores) as driver, driving(stores) as broken:
        await other.redis.set(keys.responses(broken.run.id), "no list", ex=60)
        await driver.say("a")
        known = await stores.redis.llen(keys.responses(driver.run.id))
        async with other.tails.follow(broken.run.id), other.tails.follow(driver.run.id, after=known - 1) as reader:
            await eventually(lambda: reader.tail.end == known)
            await stores.redis.rpush(keys.responses(driver.run.id), b"more")
            for tail in other.tails.tails.values():
                other.tails.mark(tail)
            batch = await within(PATIENT, reader.next())
        assert batch
        assert batch.events == [b"more"]
        await other.redis.delete(keys.responses(broken.run.id))


async def reading(tails: Tails, run_id: UUID, seen: list[bytes]) -> Reader:
    """One that takes its news at once, as a stream does."""

    def take() -> None:
        while batch := reader.held():
            seen.extend(batch.events)
            reader.take(batch)

    reader = await tails.join(run_id, on_news=take)
    return reader


async def test_what_the_only_reader_has_taken_is_held_no_longer_and_two_readers_share(stores: Stores) -> None:
    first_saw: list[bytes] = []
    async with driving(stores) as driver:
        tails = stores.of(driver.run.id).tails
        first = await reading(tails, driver.run.id, first_saw)
        await driver.say("one", "two")
        await eventually(lambda: b"two" in first_saw[-1] if first_saw else False)
        assert first.tail.window == []
        second = await reading(tails, driver.run.id, [])
        caught_up = await within(PATIENT, second.fetch())
        assert caught_up
        assert caught_up.events == first_saw
        await driver.say("three")
        await eventually(lambda: first.cursor == second.cursor == first.tail.end == len(caught_up.events) + 1)
        assert first.tail.window
        tails.leave(first)
        tails.leave(second)


async def test_a_slow_reader_far_behind_the_window_sees_everything(stores: Stores, narrow: Stores) -> None:
    async with driving(stores) as driver, narrow.tails.follow(driver.run.id) as slow:
        fast = asyncio.create_task(read_all(narrow, driver.run.id))
        for _ in range(30):
            await driver.say(*("y" * 100 for _ in range(50)))
        await finish(driver)
        log = await listed(stores, driver.run.id)
        assert_each_once(await within(PATIENT, fast), log)
        assert narrow.tails.tails[driver.run.id].window[0].first_id > 500
        seen: Seen = []
        while not slow.over:
            batch = await slow.next()
            seen += enumerate(batch.events, batch.first_id) if batch else ()
        assert_each_once(seen, log)


@pytest.mark.parametrize("back", ["archive", "list"])
async def test_a_reader_far_behind_waits_for_events_that_neither_store_has_yet(
    stores: Stores, narrow: Stores, back: str
) -> None:
    async with driving(stores) as driver, narrow.tails.follow(driver.run.id) as slow:
        fast = asyncio.create_task(read_all(narrow, driver.run.id))
        await driver.say(*("y" * 100 for _ in range(100)))
        await driver.archived()
        stores.writer.logs.discard(driver.log)  # archiving is held back
        await driver.say(*("z" * 100 for _ in range(100)))
        await finish(driver)
        key, log = keys.responses(driver.run.id), await listed(stores, driver.run.id)
        assert_each_once(await within(PATIENT, fast), log)
        await stores.redis.delete(key)

        seen: Seen = []
        async with asyncio.timeout(PATIENT):
            while batch := await slow.next():
                seen += enumerate(batch.events, batch.first_id)
        assert seen == list(enumerate(log[:100])), "what is archived, and nothing else"
        assert await within(PATIENT, slow.next()) is None, "it waits"
        assert not slow.over

        if back == "archive":
            stores.writer.logs.add(driver.log)
            await closed(stores.pool, driver.run.id)
        else:
            await stores.redis.rpush(key, *log)
            await stores.redis.expire(key, 60)
        async with asyncio.timeout(PATIENT):
            while not slow.over:
                found = await slow.next()
                seen += enumerate(found.events, found.first_id) if found else ()
        assert_each_once(seen, log)


async def test_a_reader_that_asked_for_more_than_a_live_log_has_is_told_of_the_end(stores: Stores) -> None:
    async with driving(stores) as driver, stores.tails.follow(driver.run.id, after=1000) as reader:
        await driver.say("a")
        await finish(driver)

        async def until_over() -> None:
            while not reader.over:
                await reader.next()

        async with asyncio.timeout(PATIENT):
            await until_over()


async def test_a_reader_of_an_ended_log_past_its_end_does_not_wait_for_ever(stores: Stores) -> None:
    run_id = await ended_run(stores, 3)
    assert await within(PATIENT, read_all(stores, run_id, after=99)) == []


@pytest.mark.parametrize("said", [0, 3])
async def test_a_reader_of_a_run_that_is_deleted_does_not_wait_for_ever(stores: Stores, said: int) -> None:
    async with driving(stores) as driver:
        await driver.say(*map(str, range(said)))
        reading = asyncio.create_task(read_all(stores, driver.run.id))
        late = asyncio.create_task(read_all(stores, driver.run.id, after=99))
        await eventually(lambda: stores.tails.tails)
        await stores.pool.execute("DELETE FROM threads WHERE thread_id = $1", driver.run.thread_id)
        assert [number for number, _ in await within(PATIENT, reading)] == list(range(said))
        assert await within(PATIENT, late) == []


async def test_a_reader_of_a_deleted_run_that_redis_has_forgotten_too_does_not_wait_for_ever(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a", "b")
        async with stores.tails.follow(driver.run.id) as reader:
            await eventually(lambda: reader.behind)
            await stores.pool.execute("DELETE FROM threads WHERE thread_id = $1", driver.run.thread_id)
            await stores.redis.delete(keys.responses(driver.run.id))

            async def until_over() -> None:
                while not reader.over:
                    await reader.next()

            await within(PATIENT, until_over())


async def test_tails_outlive_a_postgres_that_is_away(
    stores: Stores, far_from_postgres: Stores, postgres_proxy: Proxy
) -> None:
    run = await make_run(stores.pool)
    postgres_proxy.stall()
    reading = asyncio.create_task(read_all(far_from_postgres, run.id))
    await eventually(lambda: far_from_postgres.tails.tails)
    await asyncio.wait([reading], timeout=0.3)
    postgres_proxy.refuse()  # in the middle of a query
    await asyncio.wait([reading], timeout=0.3)
    assert not any(task.done() for task in far_from_postgres.tails.tasks), "nobody reads any more"
    postgres_proxy.restore()
    async with driving(stores, run) as driver:
        await driver.say("a", "b")
        await finish(driver)
        assert_each_once(await within(PATIENT, reading), await listed(stores, run.id))


async def test_a_reader_that_comes_while_postgres_says_nothing_holds_up_no_other(
    stores: Stores, far_from_postgres: Stores, postgres_proxy: Proxy
) -> None:
    silent = await make_run(stores.pool)
    async with driving(stores) as driver, far_from_postgres.tails.follow(driver.run.id) as reader:
        await driver.say("a")
        assert await within(PATIENT, reader.next())
        postgres_proxy.stall()
        async with far_from_postgres.tails.follow(silent.id):
            await asyncio.sleep(0.1)
            await driver.say("b")
            assert await within(PATIENT, reader.next())
        postgres_proxy.cut()
        postgres_proxy.restore()


async def test_news_that_nobody_announced_are_found_all_the_same(stores: Stores) -> None:
    async with driving(stores) as driver, stores.tails.follow(driver.run.id) as reader:
        await driver.say("a")
        async with asyncio.timeout(PATIENT):
            while not await reader.next():
                pass
        await stores.redis.rpush(keys.responses(driver.run.id), b'{"foreign": true}')
        async with asyncio.timeout(PATIENT):
            while not (batch := await reader.next()):
                pass
        assert batch.events == [b'{"foreign": true}']


async def test_what_a_faster_look_at_the_archive_did_not_see_yet_is_not_lost(
    stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stores(never_looking(settings)) as other, driving(stores) as driver:
        await driver.say("a")
        known = await stores.redis.llen(keys.responses(driver.run.id))
        async with other.tails.follow(driver.run.id, after=known - 1) as reader:
            await eventually(lambda: reader.tail.end == known)
            ask = other.tails.ask

            async def answer_late(commands: Any, nothing: Any) -> list[Any]:
                answers = await ask(commands, nothing)
                if reader.tail.end == known and answers[0]:
                    other.tails.extend(reader.tail, known, answers[0][:1])
                return answers

            monkeypatch.setattr(other.tails, "ask", answer_late)
            await driver.say("b", "c")
            seen = 0
            async with asyncio.timeout(PATIENT):
                while seen < 2:
                    batch = await reader.next()
                    seen += len(batch.events) if batch else 0


@pytest.mark.parametrize("retention_is_over", [False, True])
async def test_a_look_at_the_archive_ends_when_its_last_reader_has_left(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, retention_is_over: bool
) -> None:
    run_id = await ended_run(stores, 3)
    await stores.redis.delete(keys.responses(run_id))
    if retention_is_over:
        await stores.pool.execute("DELETE FROM agent_run_event_blocks WHERE agent_run_id = $1", run_id)
    reader = await stores.tails.join(run_id)
    read = archive.read

    async def read_as_it_leaves(*which: Any, **how: Any) -> list[bytes]:
        stores.tails.leave(reader)
        return await read(*which, **how)

    monkeypatch.setattr(archive, "read", read_as_it_leaves)
    await eventually(lambda: not stores.tails.tails)
    await eventually(lambda: not stores.tails.looks.tasks, says="nobody reads, and Postgres is asked for ever")


async def test_a_reader_far_behind_is_served_from_postgres_when_somebody_has_put_something_else_for_the_list(
    stores: Stores,
) -> None:
    run_id = await ended_run(stores, 600)
    log = await listed(stores, run_id)
    await stores.redis.set(keys.responses(run_id), "no list", ex=60)
    assert_each_once(await within(PATIENT, read_all(stores, run_id)), log)


async def test_readers_that_come_in_vain_while_redis_is_away_leave_nothing_behind(
    far: Stores, redis_proxy: Proxy
) -> None:
    redis_proxy.refuse()
    await eventually(lambda: far.channels.pubsub is None)
    for coming in [far.tails.join(uuid4()) for _ in range(3)]:
        with pytest.raises(RedisConnectionError):
            await coming
    assert not of_runs(far.channels.waiting)
    assert not of_runs(far.channels.listeners)


def of_runs(channels: Iterable[str]) -> list[str]:
    """The process itself listens, too."""
    return [name for name in channels if name.startswith("agent_run:")]


async def test_nothing_is_kept_of_a_run_that_nobody_follows(stores: Stores) -> None:
    run_id = await ended_run(stores, 5)
    await within(PATIENT, read_all(stores, run_id))
    assert not stores.tails.tails
    assert not of_runs(stores.channels.listeners)


def test_an_event_with_a_newline_inside_is_framed_as_one_event() -> None:
    batch = Batch(7, [b'{\n "a": 1\n}', b"plain", b"win\r\ndows", b"mac\rold", b"end\n"], False)
    frames = batch.frames.split(b"\n\n")[:-1]
    assert [frame.split(b"\n")[0] for frame in frames] == [b"id: %d" % number for number in range(7, 12)]
    for frame in frames:
        assert b"\r" not in frame
        assert all(line.startswith(b"data: ") for line in frame.split(b"\n")[1:])
    assert frames[0] == b'id: 7\ndata: {\ndata:  "a": 1\ndata: }'


def test_nothing_after_the_last_event_is_told() -> None:
    batch = make_batch(3, [b"a", events.last_event("completed", None), b"b"])
    assert batch.last
    assert batch.end == 5


async def test_the_last_id_is_known_only_once_the_run_has_said_its_end(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        assert await tails.last_id(stores.redis, await row_of(stores.pool, driver.run.id)) is None
        row = await end(driver)
        assert await tails.last_id(stores.redis, row) is None, "final, and not said yet"
        await driver.log.close(events.last_event(row.status, row.error))
        assert await tails.last_id(stores.redis, row) == 1
        assert await tails.last_id(stores.redis, await closed(stores.pool, row.id)) == 1
        await stores.redis.flushdb()
        assert await tails.last_id(stores.redis, await row_of(stores.pool, row.id)) == 1
