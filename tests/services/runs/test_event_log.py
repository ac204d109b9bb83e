import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import orjson
import pytest
from redis.asyncio import Redis

from services.postgres import transaction
from services.runs import archive, events, keys, lifecycle, log_writer
from services.runs.event_log import EventLog, LogRefused
from services.runs.events import Event
from services.runs.fence import Fence, FenceLost
from services.runs.log_script import Batches
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.proxy import Proxy
from tests.services.runs.seeds import (
    Driver,
    Statements,
    archived,
    bury,
    chunk,
    claim,
    die,
    driving,
    end,
    eventually,
    hand_over,
    kinds,
    listed,
    make_run,
    row_of,
    text_of,
    with_runs,
)
from tests.waiting import PATIENT
from worker import runner


@asynccontextmanager
async def driving_with(settings: Settings, **runs: Any) -> AsyncIterator[Driver]:
    async with open_stores(with_runs(settings, **runs)) as stores, driving(stores) as driver:
        yield driver


def numbered(log: list[bytes]) -> list[int]:
    return [orjson.loads(event)["sequence"] for event in log]


async def script_calls(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


async def test_what_many_producers_say_is_ordered_and_gapless(stores: Stores) -> None:
    async with driving(stores) as driver:

        async def produce(name: str) -> None:
            for number in range(200):
                await driver.log.append(chunk(driver.run, f"{name}{number} "))
                if number % 7 == 0:
                    await asyncio.sleep(0)

        await asyncio.gather(*(produce(name) for name in "abcde"))
        await driver.log.flush()
        log = await listed(stores, driver.run.id)
        assert numbered(log) == list(range(1000))
        words = text_of(log).split()
        for name in "abcde":
            assert [word for word in words if word[0] == name] == [f"{name}{number}" for number in range(200)]


async def test_an_event_of_an_idle_log_is_there_at_once(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("warm")
        took = list[float]()
        for number in range(9):
            began = asyncio.get_running_loop().time()
            await driver.log.append(chunk(driver.run, str(number)))
            await eventually(partial(length_is, driver, number + 2), every=0.002)
            took.append(asyncio.get_running_loop().time() - began)
        assert sorted(took)[len(took) // 2] < 0.1


async def length_is(driver: Driver, count: int) -> bool:
    return int(await driver.stores.redis.llen(keys.responses(driver.run.id))) == count


async def test_an_append_that_somebody_waits_for_leaves_at_once(settings: Settings, redis: Redis) -> None:
    async with driving_with(settings, append_interval=timedelta(hours=1)) as driver, asyncio.timeout(PATIENT):
        for text in ("first", "second", "third"):
            await driver.say(text)
        row = await end(driver)
        await driver.log.append(chunk(driver.run, "fourth"))
        await driver.log.close(events.last_event(row.status, row.error))
        assert text_of(await listed(driver.stores, driver.run.id)) == "firstsecondthirdfourth"


async def test_a_burst_takes_few_round_trips(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say("warm")
        before = await script_calls(redis)
        for number in range(1000):
            await driver.log.append(chunk(driver.run, str(number)))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await driver.log.flush()
        assert await script_calls(redis) - before <= 100
        assert len(await listed(stores, driver.run.id)) == 1001


async def test_what_does_not_fit_into_one_round_trip_comes_with_the_next(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "ROUND_TRIP_BYTES", 20_000)
    sent, append = list[int](), stores.writer.script.append

    async def count(batches: Batches) -> list[Any]:
        sent.append(len(batches))
        return await append(batches)

    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(driving(stores)) for _ in range(5)]
        await asyncio.gather(*(driver.archived() for driver in drivers))
        monkeypatch.setattr(stores.writer.script, "append", count)
        for driver in drivers:
            await driver.log.append(*(chunk(driver.run, f"{number} {'x' * 10_000}") for number in range(3)))
        for driver in drivers:
            await driver.log.flush()
            assert numbered(await listed(stores, driver.run.id)) == [0, 1, 2]
    assert max(sent) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_logs_stay_gapless_however_speech_loss_and_archive_interleave(
    stores: Stores, redis: Redis, seed: int
) -> None:
    random = Random(seed)
    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(driving(stores)) for _ in range(3)]
        said: dict[UUID, list[str]] = {driver.run.id: [] for driver in drivers}
        for step in range(60):
            driver = random.choice(drivers)
            texts = [f"<{step}.{number}>" for number in range(random.choice((1, 1, 2, 30, 1200)))]
            said[driver.run.id] += texts
            await driver.log.append(*(chunk(driver.run, text) for text in texts))
            match random.randrange(8):
                case 0:
                    await driver.log.flush()
                    await redis.ltrim(keys.responses(driver.run.id), 0, random.randrange(driver.log.length))
                case 1:
                    await redis.delete(keys.responses(driver.run.id), keys.lock(driver.run.id))
                case 2:
                    await driver.archived()
                case 3:
                    await redis.script_flush()
                case _:
                    await asyncio.sleep(random.choice((0.0, 0.005)))
        for driver in drivers:
            await driver.say("end")
            await driver.archived()
            log = await listed(stores, driver.run.id)
            assert text_of(log) == "".join([*said[driver.run.id], "end"])
            assert numbered(log) == list(range(len(log)))
            assert await archived(stores.pool, driver.run.id) == log


async def test_every_append_is_announced_and_keeps_a_ttl(stores: Stores) -> None:
    async with driving(stores) as driver:
        heard: list[bytes] = []
        news = keys.news(driver.run.id)
        async with stores.channels.listen(news, on_message=heard.append, on_reset=lambda: None):
            await driver.say("a")
            await eventually(lambda: heard == [b"new"])
        assert await stores.redis.ttl(keys.responses(driver.run.id)) > 80_000


async def test_nothing_is_appended_once_the_lock_is_in_other_hands(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("mine")
        await stores.redis.set(keys.lock(driver.run.id), f"stranger:{driver.run.attempt + 1}", px=60_000)
        with pytest.raises(FenceLost):
            await driver.say("too late")
        with pytest.raises(FenceLost):
            await driver.log.append(chunk(driver.run, "later still"))
        assert text_of(await listed(stores, driver.run.id)) == "mine"


async def test_a_lock_that_an_old_message_took_is_waited_for(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await stores.redis.set(keys.lock(driver.run.id), f"stranger:{driver.run.attempt}", px=300)
        async with asyncio.timeout(PATIENT):
            await driver.say("b")
        assert text_of(await listed(stores, driver.run.id)) == "ab"
        assert await stores.redis.get(keys.lock(driver.run.id)) == driver.held.fence.lock_value.encode()


async def test_a_missing_lock_is_taken_again_by_an_append(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await stores.redis.delete(keys.lock(driver.run.id))
        await driver.say("b")
        assert text_of(await listed(stores, driver.run.id)) == "ab"
        assert await stores.redis.pttl(keys.lock(driver.run.id)) > 0


async def test_a_missing_lock_refuses_an_append_once_the_fence_was_raised(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
        await stores.redis.delete(keys.lock(driver.run.id))
        with pytest.raises(FenceLost):
            await driver.say("b")
        assert text_of(await listed(stores, driver.run.id)) == "a"


async def test_a_flush_of_redis_between_two_appends_changes_no_id_and_no_byte(stores: Stores, redis: Redis) -> None:
    random = Random(3)
    async with driving(stores) as driver:
        before: list[bytes] = []
        for _ in range(8):
            await driver.say(*(f"{number} " for number in range(random.randint(1, 1500))))
            if random.random() < 0.5:
                await driver.archived()
            assert (await listed(stores, driver.run.id))[: len(before)] == before
            before = await listed(stores, driver.run.id)
            await redis.flushdb()
        await driver.say("end")
        after = await listed(stores, driver.run.id)
        assert after[:-1] == before
        assert numbered(after) == list(range(len(after)))
        assert await redis.ttl(keys.responses(driver.run.id)) > 0


async def test_a_list_that_lost_its_end_is_repaired(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say(*map(str, range(50)))
        await driver.archived()
        await driver.say(*map(str, range(50)))
        whole = await listed(stores, driver.run.id)
        for kept in (99, 70, 50, 20, 1):
            await redis.ltrim(keys.responses(driver.run.id), 0, kept - 1)
            await driver.say("x")
            assert (await listed(stores, driver.run.id))[:100] == whole
        assert numbered(await listed(stores, driver.run.id)) == list(range(105))


async def test_an_append_whose_answer_was_lost_is_not_doubled(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await driver.log.append(*(chunk(driver.run, text) for text in "bcd"))
        arrived = list(driver.log.pending)[:2]
        assert len(arrived) == 2
        await redis.rpush(keys.responses(driver.run.id), *arrived)
        await driver.say("e")
        log = await listed(stores, driver.run.id)
        assert text_of(log) == "abcde"
        assert numbered(log) == list(range(5))


async def test_appends_whose_answers_the_network_loses_are_not_doubled(far: Stores, redis_proxy: Proxy) -> None:
    async with driving(far) as driver:
        await driver.say("warm ")
        for number in range(3):
            redis_proxy.lose_replies()
            await driver.log.append(chunk(driver.run, f"{number} "))
            await asyncio.sleep(0.05)  # the request is on its way; its answer is what gets lost
            redis_proxy.cut()
            redis_proxy.restore()
            await driver.log.flush()
        log = await listed(far, driver.run.id)
        assert text_of(log) == "warm 0 1 2 "
        assert numbered(log) == [0, 1, 2, 3]


async def test_a_connection_reset_in_mid_pipeline_loses_and_doubles_nothing(
    stores: Stores, far: Stores, redis_proxy: Proxy
) -> None:
    """Cut after ever more bytes of the answers to the appends of two logs: some are known to be done, others not."""
    async with driving(far) as one, driving(far) as other:
        counts = range(1, 100, 7)
        for count in counts:
            redis_proxy.cut_after(count)
            for driver in (one, other):
                await driver.log.append(chunk(driver.run, f"{count} "))
            await asyncio.gather(one.log.flush(), other.log.flush())
        for driver in (one, other):
            log = await listed(stores, driver.run.id)
            assert text_of(log) == "".join(f"{count} " for count in counts)
            assert numbered(log) == list(range(len(counts)))


async def test_what_was_pending_when_an_append_failed_unexpectedly_is_appended(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        with patch.object(stores.writer.script, "appends_of", side_effect=ValueError("a bug")):
            await driver.log.append(chunk(driver.run, "b"))
            flushing = asyncio.create_task(driver.log.flush())
            await asyncio.sleep(0.5)
        async with asyncio.timeout(PATIENT):
            await flushing
        assert text_of(await listed(stores, driver.run.id)) == "ab"


async def test_a_foreign_producer_keeps_ids_consistent_and_is_archived(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await redis.rpush(keys.responses(driver.run.id), b'{"foreign": 1}')
        await driver.say("b", "c")
        await redis.rpush(keys.responses(driver.run.id), b'{"foreign": 2}', b'{"foreign": 3}')
        await driver.say("d")
        await driver.archived()
        log = await listed(stores, driver.run.id)
        assert kinds(log) == ["chunk", "foreign", "chunk", "chunk", "foreign", "foreign", "chunk"]
        assert await archived(stores.pool, driver.run.id) == log
        await redis.flushdb()
        await driver.say("e")
        assert (await listed(stores, driver.run.id))[:-1] == log


async def test_ids_are_given_out_only_within_what_the_row_reserves(stores: Stores) -> None:
    async with driving(stores) as driver:
        said = driver.log.append(*(chunk(driver.run, "x" * 10) for _ in range(5000)))
        work = asyncio.create_task(said)
        while not work.done() or driver.log.pending:
            length = await stores.redis.llen(keys.responses(driver.run.id))
            reserved = (await row_of(stores.pool, driver.run.id)).reserved_events
            assert length <= reserved
        assert len(await listed(stores, driver.run.id)) == 5000


async def test_a_log_waits_for_reserved_ids_while_postgres_is_away(
    far_from_postgres: Stores, postgres_proxy: Proxy
) -> None:
    async with driving(far_from_postgres) as driver:
        await eventually(lambda: driver.log.reserved)
        postgres_proxy.refuse()
        await driver.log.append(*(chunk(driver.run, str(number)) for number in range(600)))
        await eventually(lambda: driver.log.length == driver.log.reserved)
        assert len(await listed(far_from_postgres, driver.run.id)) == driver.log.reserved
        postgres_proxy.restore()
        async with asyncio.timeout(PATIENT):
            await driver.log.flush()
        assert len(await listed(far_from_postgres, driver.run.id)) == 600


async def test_an_event_over_a_mebibyte_is_shortened_and_says_so(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("ä" * 1_000_000)
        [event] = await listed(stores, driver.run.id)
        assert len(event) <= 1024 * 1024
        said = orjson.loads(event)
        assert orjson.loads(said["metadata"])["truncated"] is True
        assert orjson.loads(said["content"])["truncated"] is True
        assert orjson.loads(said["content"])["content"].startswith("ää")


@pytest.mark.parametrize(
    "content",
    [
        {"content": '"\\\n' * 700_000},
        {"content": "\x00" * 1_100_000},
        {"items": ["x" * 5000] * 5000},
        {f"key{number}": "y" * 200 for number in range(20_000)},
        {"deep": {"deeper": {"deepest": ["z" * 2_000_000]}}},
        {"k" * 2_000_000: "v"},
        {"numbers": [[1.5] * 100] * 10_000},
    ],
    ids=["quotes", "nul", "list", "keys", "deep", "long key", "numbers"],
)
def test_whatever_is_too_large_fits_after_shortening(content: dict[str, Any]) -> None:
    event = Event("tool", content)
    encoded = events.encode(event, 0, str(uuid4()), 1024 * 1024)
    assert len(encoded) <= 1024 * 1024
    assert orjson.loads(orjson.loads(encoded)["metadata"])["truncated"] is True


async def test_large_metadata_is_shortened_too(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.log.append(Event("tool", {"a": 1}, {"stream_status": "chunk", "result": "x" * 2_000_000}))
        await driver.log.flush()
        [event] = await listed(stores, driver.run.id)
        assert len(event) <= 1024 * 1024


async def test_a_log_that_reached_its_bound_takes_no_more(settings: Settings, redis: Redis) -> None:
    async with driving_with(settings, max_events=20) as driver:
        await driver.say(*map(str, range(20)))
        with pytest.raises(LogRefused, match="its log reached 20 events"):
            await driver.say("one too many")
        row = await end(driver, "failed")
        await driver.log.close(events.last_event(row.status, row.error))
        assert kinds(await listed(driver.stores, driver.run.id))[-1] == "last:failed"


async def test_the_bytes_of_a_log_are_bounded_over_all_attempts(settings: Settings, redis: Redis) -> None:
    async with driving_with(settings, max_log_bytes=20_000) as driver:
        await driver.say("x" * 15_000)
        await driver.archived()
        die(driver)
        async with driving(driver.stores, await bury(driver.stores, driver.run.id)) as second:
            await second.say("x" * 6_000)
            with pytest.raises(LogRefused, match="its log reached 20000 bytes"):
                await second.say("y")


async def test_appends_pause_while_redis_is_away_and_go_on_afterwards(far: Stores, redis_proxy: Proxy) -> None:
    async with driving(far) as driver:
        await driver.say("a")
        redis_proxy.refuse()
        await driver.log.append(chunk(driver.run, "b"))
        flushed = asyncio.create_task(driver.log.flush())
        done, _ = await asyncio.wait([flushed], timeout=0.5)
        assert not done
        redis_proxy.restore()
        async with asyncio.timeout(PATIENT):
            await flushed
        assert text_of(await listed(far, driver.run.id)) == "ab"
        assert not driver.held.lost.is_set()


async def test_appends_go_on_after_redis_stalled(far: Stores, redis_proxy: Proxy) -> None:
    async with driving(far) as driver:
        await driver.say("a")
        redis_proxy.stall()
        await driver.log.append(*(chunk(driver.run, text) for text in "bc"))
        done, _ = await asyncio.wait([asyncio.create_task(driver.log.flush())], timeout=1.5)
        assert not done
        redis_proxy.restore()
        await driver.say("d")
        assert text_of(await listed(far, driver.run.id)) == "abcd"


async def test_appends_wait_for_a_paused_server(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await redis.client_pause(300)
        await driver.say("b")
        assert text_of(await listed(stores, driver.run.id)) == "ab"


async def test_a_pending_backlog_holds_its_producer_back(far: Stores, redis_proxy: Proxy) -> None:
    async with driving(far) as driver:
        await driver.say("a")
        redis_proxy.refuse()

        async def produce() -> None:
            for _ in range(400):
                await driver.log.append(chunk(driver.run, "x" * 10_000))

        producing = asyncio.create_task(produce())
        done, _ = await asyncio.wait([producing], timeout=0.5)
        assert not done
        assert driver.log.pending_bytes < 2 * 1024 * 1024
        redis_proxy.restore()
        async with asyncio.timeout(PATIENT):
            await producing


async def test_a_log_that_redis_takes_nothing_of_ends_after_a_while(settings: Settings, redis: Redis) -> None:
    async with driving_with(settings, append_timeout=timedelta(seconds=0.5)) as driver:
        await redis.set(keys.responses(driver.run.id), "no list at all", ex=60)
        with pytest.raises(LogRefused, match=r"could not be written for 0\.5 seconds"):
            async with asyncio.timeout(PATIENT):
                await driver.say("b")


async def test_a_log_that_redis_refuses_holds_up_none_of_those_that_share_its_call(
    settings: Settings, redis: Redis
) -> None:
    async with (
        open_stores(with_runs(settings, append_interval=timedelta(hours=1))) as stores,
        AsyncExitStack() as stack,
    ):
        drivers = [await stack.enter_async_context(driving(stores)) for _ in range(5)]
        await asyncio.gather(*(driver.say("a") for driver in drivers))
        sick, well = drivers[2], [*drivers[:2], *drivers[3:]]
        log = await listed(stores, sick.run.id)
        await redis.set(keys.responses(sick.run.id), "no list at all", ex=60)
        for driver in drivers:
            await driver.log.append(chunk(driver.run, "b"))
        async with asyncio.timeout(PATIENT):
            await asyncio.gather(*(driver.log.flush() for driver in well))
        for driver in well:
            assert text_of(await listed(stores, driver.run.id)) == "ab"
        assert sick.log.pending
        await redis.delete(keys.responses(sick.run.id))
        await redis.rpush(keys.responses(sick.run.id), *log)
        async with asyncio.timeout(PATIENT):
            await sick.log.flush()
        assert numbered(await listed(stores, sick.run.id)) == [0, 1]


def nobody_beats(settings: Settings) -> Settings:
    """A beat would take the lock that is gone, or notice that another has it."""
    long = timedelta(hours=1)
    return with_runs(settings, heartbeat_interval=long, lock_ttl=3 * long, dead_after=3 * long)


async def test_each_log_of_a_call_gets_a_verdict_of_its_own(settings: Settings, redis: Redis) -> None:
    """Another has the lock of one; the lock of one is gone, a list is gone, a list is longer, and one is well."""
    async with open_stores(nobody_beats(settings)) as stores, AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(driving(stores)) for _ in range(5)]
        await asyncio.gather(*(driver.say("a") for driver in drivers))
        robbed, unlocked, emptied, overtaken, _ = drivers
        await redis.set(keys.lock(robbed.run.id), "stranger:2", px=60_000)
        await redis.delete(keys.lock(unlocked.run.id), keys.responses(emptied.run.id))
        await redis.rpush(keys.responses(overtaken.run.id), b'{"type": "foreign"}')
        batches = [(driver.log, [b"b", b"c"]) for driver in drivers]
        assert await stores.writer.script.append(batches) == [b"lost", b"missing", b"short", b"longer", b"ok"]
        lengths = [await redis.llen(keys.responses(driver.run.id)) for driver in drivers]
        assert lengths == [1, 1, 0, 2, 3]


async def test_a_list_that_is_named_twice_in_a_call_is_appended_to_once(settings: Settings, redis: Redis) -> None:
    """As two calls of the same owner would be: the second one finds the list longer than it knew."""
    async with (
        open_stores(nobody_beats(settings)) as stores,
        driving(stores) as driver,
        driving(stores) as other,
    ):
        await asyncio.gather(driver.say("a"), other.say("a"))
        batches = [(each.log, [b"b"]) for each in (driver, other, driver)]
        assert await stores.writer.script.append(batches) == [b"ok", b"ok", b"longer"]
        assert len(await listed(stores, driver.run.id)) == 2


async def test_a_full_redis_is_waited_out_however_long_it_takes(settings: Settings, redis: Redis) -> None:
    async with driving_with(settings, append_timeout=timedelta(seconds=0.2)) as driver, driving_with(settings) as other:
        await asyncio.gather(driver.say("a"), other.say("a"))
        await redis.config_set("maxmemory", "1")
        try:
            await asyncio.gather(driver.log.append(chunk(driver.run, "b")), other.log.append(chunk(other.run, "b")))
            flushed = asyncio.create_task(driver.log.flush())
            await asyncio.wait([flushed], timeout=2 * settings.runs.lock_ttl.total_seconds())
            assert not flushed.done()
            assert not driver.held.lost.is_set()
        finally:
            await redis.config_set("maxmemory", "0")
        await asyncio.gather(driver.say("c"), other.say("c"))
        for each in (driver, other):
            log = await listed(each.stores, each.run.id)
            assert text_of(log) == "abc"
            assert numbered(log) == [0, 1, 2]


async def test_a_server_that_forgot_its_scripts_is_taught_again(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await redis.script_flush()
        await driver.say("b")
        assert text_of(await listed(stores, driver.run.id)) == "ab"


async def test_nothing_is_void_after_a_proper_hand_over(stores: Stores, other: Stores) -> None:
    async with driving(stores) as first:
        await first.say("a", "b")
        await first.archived()
        assert await hand_over(stores.pool, first.held.fence, length=first.log.length)
        first.stores.writer.forget(first.log)
    await stores.redis.flushdb()
    async with driving(other, await row_of(stores.pool, first.run.id)) as second:
        await second.say("c")
        await second.archived()
        log = await listed(other, second.run.id)
        assert kinds(log) == ["chunk"] * 3
        assert numbered(log) == [0, 1, 2]


async def test_a_log_is_continued_from_redis_when_only_the_worker_died(stores: Stores, other: Stores) -> None:
    async with driving(stores) as first:
        await first.say("a", "b")
        await first.archived()
        await first.say("c")
        die(first)
        async with driving(other, await bury(stores, first.run.id)) as second:
            await second.say("d")
            log = await listed(other, second.run.id)
            assert text_of(log) == "abcd"
            assert numbered(log) == [0, 1, 2, 3]


@pytest.mark.parametrize("archive_first", [True, False], ids=["partly archived", "nothing archived"])
async def test_ids_that_nobody_remembers_become_void(stores: Stores, other: Stores, archive_first: bool) -> None:
    async with driving(stores) as first:
        await first.log.append(runner.opening(first.run, first.log))
        await first.say("a", "b")
        if archive_first:
            await first.archived()
        stores.writer.logs.discard(first.log)
        await first.say("c", "d")
        lost = await listed(stores, first.run.id)
        die(first)
        await stores.redis.flushdb()
        row = await bury(stores, first.run.id)
        async with driving(other, row) as second:
            await second.say("e")
            log = await listed(other, second.run.id)
            known = row.archived_events or 1  # how it began is known without any store
            assert log[:known] == lost[:known]
            assert set(kinds(log[known : row.reserved_events])) == {"void"}
            assert kinds(log[row.reserved_events :]) == ["chunk"]
            assert numbered(log) == list(range(len(log)))
            await second.archived()
            assert await archived(stores.pool, row.id) == log


@pytest.mark.parametrize("said", [True, False], ids=["a flush", "silence"])
async def test_an_empty_log_with_reserved_ids_begins_as_it_did_and_goes_on_with_void_ids(
    settings: Settings, other: Stores, said: bool
) -> None:
    """A flush cannot be told from a worker that died before its first word: what that was is known all the same."""
    async with driving_with(settings, archive_interval=timedelta(hours=1)) as first:
        stores = first.stores
        await eventually(lambda: first.log.reserved and not stores.writer.archiver.starving.is_set())
        if said:
            await first.log.append(runner.opening(first.run, first.log))
            await first.say("lost")
        told = await listed(stores, first.run.id)
        die(first)
        await stores.redis.delete(keys.responses(first.run.id))
        row = await bury(stores, first.run.id)
        assert row.reserved_events > 0, "ids are reserved before the first is given out"
        async with driving(other, row) as second:
            await second.log.append(runner.opening(second.run, second.log))
            await second.log.flush()
            log = await listed(other, second.run.id)
            voids = ["void"] * (row.reserved_events - 1)
            assert kinds(log) == ["thread_run_start", *voids, "run_resumed"]
            assert log[0] == told[0] if said else not told


async def test_a_run_that_two_workers_left_before_they_spoke_begins_once(stores: Stores, other: Stores) -> None:
    async with driving(stores) as first:
        await eventually(lambda: first.log.reserved)
        die(first)
        async with driving(other, await bury(stores, first.run.id)) as second:
            await second.archived()
            die(second)
            async with driving(stores, await bury(stores, first.run.id)) as third:
                await third.log.append(runner.opening(third.run, third.log))
                await third.log.flush()
                log = await listed(stores, first.run.id)
                assert kinds(log)[:2] == ["thread_run_start", "void"]
                assert [word for word in kinds(log) if word != "void"] == ["thread_run_start", "run_resumed"]


async def test_a_refill_never_leaves_the_end_of_the_archive_without_the_tail(stores: Stores) -> None:
    """Such a list would look whole to the next attempt, if this one dies now."""
    async with driving(stores) as driver:
        await driver.say("a", "b")
        await driver.archived()
        stores.writer.logs.discard(driver.log)
        await driver.say("c", "d")
        log = await listed(stores, driver.run.id)
        assert driver.log.archived == 2
        for first_id in range(4):
            assert await stores.writer.mender.lost_events(driver.log, first_id) == log[first_id:]


async def test_a_worker_that_died_before_it_reserved_ids_leaves_nothing_void(stores: Stores, other: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    async with driving(other, await bury(stores, run.id)) as second:
        await second.say("a")
        assert kinds(await listed(other, second.run.id)) == ["chunk"]


async def test_ids_that_the_claim_reserved_need_no_statement_and_leave_nothing_void_at_a_take_over(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores):
        """The process has seen Redis now."""
    await eventually(lambda: not stores.writer.archiver.starving.is_set())
    async with driving(stores) as first:
        assert first.log.reserved == archive.FIRST_EVENTS
        assert not stores.writer.archiver.starving.is_set(), "the first event waits for no archive"
        await first.say("a")
        die(first)
        async with driving(other, await bury(stores, first.run.id)) as second:
            await second.say("b")
            log = await listed(other, second.run.id)
            assert kinds(log) == ["chunk", "chunk"]
            assert text_of(log) == "ab"


async def test_a_claim_that_knew_another_redis_waits_for_the_archive_and_leaves_nothing_void_at_a_take_over(
    stores: Stores, other: Stores
) -> None:
    stores.writer.archiver.epoch = "of the server before its restart"
    async with driving(stores) as first:
        await first.say("a")
        die(first)
        async with driving(other, await bury(stores, first.run.id)) as second:
            await second.say("b")
            assert kinds(await listed(other, second.run.id)) == ["chunk", "chunk"]


async def test_a_tail_that_a_restart_of_redis_truncated_is_void_up_to_the_reserve(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as first:
        await first.say("a", "b", "c")
        await first.archived()
        await stores.pool.execute("UPDATE agent_runs SET log_epoch = 'before' WHERE id = $1", first.run.id)
        die(first)
        row = await bury(stores, first.run.id)
        async with driving(other, row) as second:
            await second.say("d")
            log = await listed(other, second.run.id)
            assert text_of(log) == "abcd"
            assert len(log) == row.reserved_events + 1


async def test_two_logs_of_one_run_in_one_process_do_not_mix(stores: Stores) -> None:
    """The process of a stuck driver may be asked to end its run: the old log must not take the new one's blocks."""
    async with driving(stores) as driver:
        await driver.say("a")
        await driver.archived()
        ended = await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
        assert ended
        fence = Fence(ended.id, ended.attempt, stores.instance_id)
        await stores.leases.seize(fence)
        fresh = await stores.writer.open_log(ended, fence)
        driver.log.extend([b"never appended"])
        await fresh.close(events.last_event("stopped", None))
        async with asyncio.timeout(PATIENT):
            await fresh.closed.wait()
        assert await archive.read(stores.pool, ended.id, 0) == await listed(stores, ended.id)
        assert not driver.log.closed.is_set()
        await eventually(lambda: driver.log.failure, says="the old log was not told")


async def test_nothing_comes_after_the_last_event_whoever_still_tries(stores: Stores) -> None:
    async with driving(stores) as driver:

        async def talk() -> None:
            while True:
                await driver.log.append(chunk(driver.run, "x"))
                await asyncio.sleep(0.001)

        async def stubborn() -> None:
            with suppress(asyncio.CancelledError):
                await talk()
            await talk()

        working = asyncio.create_task(stubborn())
        await eventually(partial(length_is_over, driver, 5))
        working.cancel()
        row = await end(driver)
        async with asyncio.timeout(PATIENT):
            await driver.log.close(
                events.last_event(row.status, row.error), events.status("thread_run_end", driver.run.id)
            )
            with pytest.raises(FenceLost):
                await working
        with pytest.raises(FenceLost):
            await driver.say("later still")
        await eventually(driver.log.closed.is_set)
        log = await listed(stores, driver.run.id)
        assert kinds(log)[-3:] == ["chunk", "thread_run_end", "last:completed"]
        assert numbered(log[:-1]) == list(range(len(log) - 1))
        assert await archived(stores.pool, driver.run.id) == log


async def length_is_over(driver: Driver, count: int) -> bool:
    return int(await driver.stores.redis.llen(keys.responses(driver.run.id))) > count


async def test_a_log_whose_archive_is_gone_is_lost_and_does_not_spin(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await driver.say(*map(str, range(50)))
        await driver.archived()
        await stores.pool.execute("DELETE FROM agent_run_event_blocks WHERE agent_run_id = $1", driver.run.id)
        await redis.delete(keys.responses(driver.run.id))
        before = await script_calls(redis)
        with pytest.raises(FenceLost):
            async with asyncio.timeout(PATIENT):
                await driver.say("x")
        assert await script_calls(redis) - before <= 50
        assert await listed(stores, driver.run.id) == []


async def test_a_row_that_somebody_has_locked_is_looked_at_now_and_then_however_much_waits_for_it(
    settings: Settings, redis: Redis
) -> None:
    async with driving_with(settings, archive_interval=timedelta(milliseconds=100)) as driver:
        await driver.say("a")
        await driver.archived()
        statements = await Statements.naming(driver.stores.pool, "archived_events")
        async with transaction(driver.stores.pool) as conn:
            await conn.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", driver.run.id)
            await driver.say(*("x" * 500_000 for _ in range(6)))
            before, began = await statements.count(), asyncio.get_running_loop().time()
            await asyncio.sleep(1.0)
            looks = await statements.count() - before
            assert looks < 2 * (asyncio.get_running_loop().time() - began) / 0.1
        async with asyncio.timeout(PATIENT):
            await driver.archived()


async def test_the_archive_keeps_its_pace_however_long_a_statement_takes(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, store = list[float](), archive.store

    async def take_long(*arguments: Any) -> Any:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.45)
        return await store(*arguments)

    async with driving_with(settings, archive_interval=timedelta(seconds=0.5)) as driver:
        await driver.archived()
        monkeypatch.setattr(archive, "store", take_long)
        while len(began) < 5:
            await driver.say("x")
            await asyncio.sleep(0.05)
    assert min(later - earlier for earlier, later in pairwise(began)) < 0.8


async def test_closing_beside_the_archives_own_look_counts_every_block_once(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between a statement of the archive, for two logs, and its answer."""
    async with open_stores(with_runs(settings, archive_interval=timedelta(minutes=1))) as stores:
        archiver, store, sent, answer = stores.writer.archiver, archive.store, asyncio.Event(), asyncio.Event()
        check_refusal, archived_block, counted = archiver.check_refusal, EventLog.archived_block, list[EventLog]()

        async def answer_late(*arguments: Any) -> Any:
            taken = await store(*arguments)
            if not sent.is_set():
                sent.set()
                await answer.wait()
            return taken

        async def check_and_give_way(log: EventLog) -> None:
            await check_refusal(log)
            answer.set()
            await asyncio.sleep(0.01)

        def count(log: EventLog, block: archive.Block) -> None:
            counted.append(log)
            archived_block(log, block)

        async with driving(stores) as one, driving(stores) as other:
            for driver in (one, other):
                await driver.say("first")
                await driver.archived()  # which reserves ids: nothing but us has the loop look from now on
            await eventually(lambda: not archiver.starving.is_set())
            for driver in (one, other):
                await driver.say(*map(str, range(50)))
            monkeypatch.setattr(archive, "store", answer_late)
            monkeypatch.setattr(archiver, "check_refusal", check_and_give_way)
            monkeypatch.setattr(EventLog, "archived_block", count)
            archiver.starving.set()
            await sent.wait()
            await stores.writer.close()
            assert len(counted) == 2
            for driver in (one, other):
                assert driver.log.archived == driver.log.length
                assert await archived(stores.pool, driver.run.id) == await listed(stores, driver.run.id)
