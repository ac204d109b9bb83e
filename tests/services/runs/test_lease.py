import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from redis.asyncio import Redis

from services.postgres import Pool
from services.redis import Unreachable
from services.runs import control, keys, lifecycle
from services.runs.fence import Fence
from services.runs.lease import Leases
from services.runs.store import Run
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.proxy import Proxy
from tests.services.runs.conftest import reaching_postgres_by
from tests.services.runs.seeds import (
    age,
    beat,
    claim,
    driving,
    eventually,
    fence_of,
    hand_over,
    make_run,
    row_of,
    set_columns,
    with_runs,
)
from tests.waiting import PATIENT

LONG = timedelta(seconds=30)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Beats as usual, and locks that outlast a pause of this process."""
    return with_runs(settings, lock_ttl=LONG, dead_after=LONG)


async def test_only_one_of_two_processes_gets_the_lock(stores: Stores, settings: Settings) -> None:
    run = await make_run(stores.pool)
    async with open_stores(settings) as other, AsyncExitStack() as stack:
        found = [await stack.enter_async_context(each.leases.hold(run.id, 1)) for each in (stores, other)]
        assert found[0]
        assert found[1] is None
        assert await stores.redis.get(keys.lock(run.id)) == f"{stores.instance_id}:1".encode()


async def test_a_second_message_in_the_same_process_takes_nothing_though_redis_has_forgotten_the_lock(
    stores: Stores,
) -> None:
    run = await make_run(stores.pool)
    async with stores.leases.hold(run.id, 1) as first:
        await stores.redis.flushdb()
        async with stores.leases.hold(run.id, 1) as second:
            assert second is None
        assert first
        assert stores.leases.held == {first.fence: first}
        assert await stores.redis.get(keys.lock(run.id)) == first.fence.lock_value.encode()


async def test_the_lock_has_a_ttl_and_is_renewed_while_held(stores: Stores) -> None:
    async with driving(stores) as driver:
        lock = keys.lock(driver.run.id)
        assert 0 < await stores.redis.pttl(lock) <= LONG.total_seconds() * 1000
        await stores.redis.pexpire(lock, 700)
        await eventually(lambda: above(stores.redis, lock, 1000))
        assert await stores.redis.exists(lock)
        assert not driver.held.lost.is_set()


async def above(redis: Redis, key: str, limit: int) -> bool:
    return bool(await redis.pttl(key) > limit)


async def test_a_driven_run_is_marked_active_at_once_and_no_longer_afterwards(stores: Stores) -> None:
    async with driving(stores) as driver:
        active = keys.active(stores.instance_id, driver.run.id)
        assert await stores.redis.get(active) == b"running"
        assert await stores.redis.pttl(active) > 0
    assert not await stores.redis.exists(active)


async def test_a_driven_run_is_marked_active_after_a_beat(stores: Stores) -> None:
    async with driving(stores) as driver:
        await beat(stores)
        active = keys.active(stores.instance_id, driver.run.id)
        assert await stores.redis.get(active) == b"running"
        assert await stores.redis.pttl(active) > 0


async def test_the_lock_is_released_only_by_its_owner(stores: Stores) -> None:
    async with driving(stores) as driver:
        run = driver.run
        await stores.leases.release(fence_of(run, "stranger"))
        await stores.leases.release(Fence(run.id, run.attempt - 1, stores.instance_id))
        assert await stores.redis.exists(keys.lock(run.id))
        await stores.redis.set(keys.lock(run.id), "stranger:7", px=60_000)
    assert await stores.redis.get(keys.lock(run.id)) == b"stranger:7"


async def test_the_lock_is_free_after_the_block(stores: Stores) -> None:
    async with driving(stores) as driver:
        pass
    assert not await stores.redis.exists(keys.lock(driver.run.id))


async def test_a_lock_in_other_hands_is_noticed(stores: Stores) -> None:
    async with driving(stores) as driver:
        await stores.redis.set(keys.lock(driver.run.id), "stranger:2", px=60_000)
        await eventually(driver.held.lost.is_set)


async def test_a_lock_that_an_old_message_took_is_no_loss(stores: Stores) -> None:
    async with driving(stores) as driver:
        lock = keys.lock(driver.run.id)
        await stores.redis.set(lock, f"stranger:{driver.run.attempt}", px=60_000)
        await beat(stores)
        assert not driver.held.lost.is_set()
        await stores.redis.delete(lock)
        await beat(stores)
        assert not driver.held.lost.is_set()
        assert await stores.redis.get(lock) == driver.held.fence.lock_value.encode()


async def test_a_raised_fence_is_noticed(stores: Stores) -> None:
    async with driving(stores) as driver:
        assert await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
        await eventually(driver.held.lost.is_set)


async def test_a_deleted_run_is_noticed(stores: Stores) -> None:
    async with driving(stores) as driver:
        await stores.pool.execute("DELETE FROM threads WHERE thread_id = $1", driver.run.thread_id)
        await eventually(driver.held.lost.is_set)


async def test_an_end_of_our_own_is_no_loss(stores: Stores) -> None:
    async with driving(stores) as driver:
        await lifecycle.end(stores.pool, driver.held.fence, "completed", error=None, usage={})
        await beat(stores)
        assert not driver.held.lost.is_set()


async def test_a_beat_before_the_claim_is_no_loss(stores: Stores) -> None:
    run = await make_run(stores.pool)
    async with stores.leases.hold(run.id, 1) as held:
        assert held
        await beat(stores)
        assert not held.lost.is_set()


async def test_a_stop_in_the_row_is_noticed_without_any_announcement(stores: Stores) -> None:
    async with driving(stores) as driver:
        await lifecycle.request_stops(stores.pool, [driver.run.id])
        await eventually(driver.held.stop_asked.is_set)


async def test_beats_that_the_network_cuts_off_use_up_no_connections(far: Stores, redis_proxy: Proxy) -> None:
    async with driving(far) as driver:
        for _ in range(2 * far.settings.redis.pool_size):
            await eventually(lambda: answers(far.redis))
            redis_proxy.cut_after(1)
            await far.leases.renew_locks([driver.held])
        assert await eventually(lambda: answers(far.redis))


async def answers(redis: Redis) -> bool:
    with suppress(*Unreachable):
        return bool(await redis.ping())
    return False


async def test_a_missing_lock_is_taken_again(stores: Stores) -> None:
    async with driving(stores) as driver:
        await stores.redis.flushdb()
        await beat(stores)
        assert not driver.held.lost.is_set()
        assert await stores.redis.get(keys.lock(driver.run.id)) == driver.held.fence.lock_value.encode()
        assert await stores.redis.pttl(keys.lock(driver.run.id)) > 0


async def test_a_missing_lock_is_not_taken_again_once_the_fence_was_raised(stores: Stores) -> None:
    async with driving(stores) as driver:
        await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
        await stores.redis.flushdb()
        assert not await stores.leases.retake(driver.held.fence)
        assert not await stores.redis.exists(keys.lock(driver.run.id))


async def test_the_lock_of_a_run_that_was_given_back_is_not_taken_again(stores: Stores) -> None:
    """The row shows the attempt until the next claim, which the lock would hold up."""
    async with driving(stores) as driver:
        assert await hand_over(stores.pool, driver.held.fence)
        await stores.redis.flushdb()
        assert not await stores.leases.retake(driver.held.fence)
        assert not await stores.redis.exists(keys.lock(driver.run.id))


async def test_a_fence_raised_while_the_lock_is_taken_again_gives_it_back(stores: Stores) -> None:
    async with driving(stores) as driver:
        run = driver.run
        await stores.redis.flushdb()
        answers = []
        is_mine = Leases.is_mine

        async def raised_after_the_first_look(leases: Leases, fence: Fence) -> bool:
            answers.append(await is_mine(leases, fence))
            if len(answers) == 1:
                await lifecycle.end_from_outside(stores.pool, run.id, run.attempt, "stopped")
            return answers[-1]

        with patch.object(Leases, "is_mine", raised_after_the_first_look):
            assert not await stores.leases.retake(driver.held.fence)
        assert answers == [True, False]
        assert not await stores.redis.exists(keys.lock(run.id))


async def test_a_lock_is_seized_for_a_higher_attempt_only(stores: Stores) -> None:
    async with driving(stores) as driver:
        run = driver.run
        assert not await stores.leases.seize(Fence(run.id, run.attempt - 1, "stranger"))
        assert await stores.redis.get(keys.lock(run.id)) == driver.held.fence.lock_value.encode()
        assert await stores.leases.seize(Fence(run.id, run.attempt + 1, "stranger"))
        assert await stores.redis.get(keys.lock(run.id)) == f"stranger:{run.attempt + 1}".encode()
        assert await stores.redis.pttl(keys.lock(run.id)) > 0


async def test_attempts_are_compared_as_numbers_when_a_lock_is_seized(stores: Stores) -> None:
    run = await make_run(stores.pool)
    assert await stores.leases.seize(Fence(run.id, 9, "nine"))
    assert await stores.leases.seize(Fence(run.id, 10, "ten"))
    assert not await stores.leases.seize(Fence(run.id, 9, "nine"))


async def test_one_that_was_overtaken_in_its_own_process_is_told(settings: Settings, redis: Redis) -> None:
    """A process that was frozen finds its own run to be rescued, and claims it beside the old driver."""
    rare = timedelta(minutes=10)  # no beat comes between what makes the run look dead and its claim
    settings = with_runs(settings, heartbeat_interval=rare, lock_ttl=3 * rare, dead_after=3 * rare)
    async with open_stores(settings) as stores, driving(stores) as old:
        await redis.delete(keys.lock(old.run.id))
        async with driving(stores, await age(stores.pool, old.run.id, "heartbeat_at")) as new:
            await beat(stores)
            await eventually(old.held.lost.is_set, says="the old driver was not told")
            assert not new.held.lost.is_set()


async def test_the_beat_goes_on_while_redis_refuses_to_write(stores: Stores, redis: Redis) -> None:
    async with driving(stores) as driver:
        await redis.config_set("maxmemory", "1")
        try:
            for _ in range(3):
                before = await stores.pool.fetchval("SELECT clock_timestamp()")
                await eventually(partial(beaten_since, stores.pool, driver.run, before))
            assert not driver.held.lost.is_set()
        finally:
            await redis.config_set("maxmemory", "0")


async def beaten_since(pool: Pool, run: Run, moment: Any) -> bool:
    return bool(await pool.fetchval("SELECT heartbeat_at > $2 FROM agent_runs WHERE id = $1", run.id, moment))


async def test_whoever_uses_up_the_pool_stops_no_heartbeat_and_no_archive(stores: Stores) -> None:
    async with driving(stores) as driver, AsyncExitStack() as users:
        await driver.say("first")
        for _ in range(stores.pool.get_max_size()):
            await users.enter_async_context(stores.pool.acquire())
        before = await age(stores.upkeep, driver.run.id, "heartbeat_at")
        assert before.heartbeat_at
        async with asyncio.timeout(PATIENT):
            await beat(stores)
            await driver.archived()
        after = await row_of(stores.upkeep, driver.run.id)
        assert after.heartbeat_at
        assert after.heartbeat_at > before.heartbeat_at


async def test_a_row_that_somebody_has_locked_holds_up_no_other_beat(stores: Stores) -> None:
    async with driving(stores) as one, driving(stores) as two:
        async with stores.pool.acquire() as conn, conn.transaction():
            await conn.fetch("SELECT 1 FROM agent_runs WHERE id = $1 FOR UPDATE", one.run.id)
            before = await stores.pool.fetchval("SELECT clock_timestamp()")
            await eventually(lambda: beaten_since(stores.pool, two.run, before))
        await eventually(lambda: beaten_since(stores.pool, one.run, before))
        assert not one.held.lost.is_set()


async def test_a_postgres_that_stalls_for_longer_than_the_lock_lives_costs_no_lease(
    settings: Settings, postgres_proxy: Proxy, pool: Pool, redis: Redis
) -> None:
    ttl = timedelta(seconds=4)  # eight beats
    far = with_runs(reaching_postgres_by(postgres_proxy, settings), lock_ttl=ttl, dead_after=ttl)
    async with open_stores(far) as stores, driving(stores) as driver:
        lock, loop = keys.lock(driver.run.id), asyncio.get_running_loop()
        endured = ttl.total_seconds() + 1
        postgres_proxy.stall()
        until = loop.time() + endured

        async def kept_so_far() -> bool:
            assert await redis.pttl(lock) > 0
            assert await redis.get(lock) == driver.held.fence.lock_value.encode()
            assert not driver.held.lost.is_set()
            return loop.time() > until

        try:
            await eventually(kept_so_far, within=endured + PATIENT)
        finally:
            postgres_proxy.restore()
        before = await pool.fetchval("SELECT clock_timestamp()")
        await eventually(partial(beaten_since, pool, driver.run, before), says="the beat did not go on")
        await kept_so_far()


async def test_a_lease_is_given_up_when_neither_store_answers(stores: Stores, settings: Settings) -> None:
    async with driving(stores) as driver:
        driver.held.seen_at -= settings.runs.dead_after.total_seconds() + 1
        stores.leases.give_up_unseen([driver.held])
        assert driver.held.lost.is_set()


async def test_a_stop_said_after_the_subscription_is_heard(stores: Stores) -> None:
    async with driving(stores) as driver, control.watch(stores.channels, driver.held):
        assert await control.announce_stop(stores.redis, driver.run.id) == 1
        await eventually(driver.held.stop_asked.is_set)


async def test_a_stop_said_before_the_subscription_stands_in_the_row(settings: Settings, redis: Redis) -> None:
    async with open_stores(with_runs(settings)) as stores, driving(stores) as driver:
        await lifecycle.request_stops(stores.pool, [driver.run.id])
        assert await control.announce_stop(stores.redis, driver.run.id) == 0
        async with control.watch(stores.channels, driver.held):
            await eventually(driver.held.stop_asked.is_set)


async def test_a_bare_stop_from_anybody_on_the_instance_channel_counts(stores: Stores) -> None:
    async with driving(stores) as driver, control.watch(stores.channels, driver.held):
        await stores.redis.publish(keys.instance_control(driver.run.id, stores.instance_id), "STOP")
        await eventually(driver.held.stop_asked.is_set)


async def test_other_words_and_other_runs_stop_nothing(stores: Stores) -> None:
    async with driving(stores) as driver, control.watch(stores.channels, driver.held):
        other = await set_columns(stores.pool, (await make_run(stores.pool)).id)
        await control.announce_stop(stores.redis, other.id)
        await control.announce_end(stores.redis, driver.run.id, "completed")
        await stores.redis.publish(keys.instance_control(driver.run.id, "another"), "STOP")
        await stores.redis.publish(keys.control(driver.run.id), "STOP")
        await eventually(driver.held.stop_asked.is_set)
    async with driving(stores) as driver, control.watch(stores.channels, driver.held):
        await control.announce_end(stores.redis, driver.run.id, "completed")
        await stores.redis.publish(keys.instance_control(driver.run.id, "another"), "STOP")
        await stores.redis.ping()
        assert not driver.held.stop_asked.is_set()


async def test_the_end_is_announced_with_the_word_of_its_status(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    heard: list[bytes] = []
    async with stores.channels.listen(keys.control(run.id), on_message=heard.append, on_reset=lambda: None):
        for status in ("completed", "failed", "stopped"):
            await control.announce_end(stores.redis, run.id, status)
        await eventually(lambda: heard == [b"END_STREAM", b"ERROR", b"STOP"])


async def test_a_heartbeat_writes_no_index(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    written = "SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'agent_runs'"
    async with stores.pool.acquire() as conn, conn.transaction():
        before = await conn.fetchval(written) or 0
        await conn.execute("UPDATE agent_runs SET heartbeat_at = now() WHERE id = $1", run.id)
        assert await conn.fetchval(written) == before
        await conn.execute("UPDATE agent_runs SET created_at = now() WHERE id = $1", run.id)
        assert await conn.fetchval(written) == before + 1
