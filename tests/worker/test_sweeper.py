import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from redis.asyncio import Redis

from services.runs import keys
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.conftest import BROKER_REDIS, named, with_path
from tests.services.runs.seeds import (
    Statements,
    age,
    claim,
    closed,
    die,
    driving,
    eventually,
    kinds,
    listed,
    make_place,
    make_run,
    row_of,
    set_columns,
    with_runs,
)
from worker import sweeper


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The queue is looked at, nothing is taken from it."""
    return with_runs(settings, resend_after=timedelta(seconds=2))


async def sent() -> list[str]:
    """The runs that the broker's queue holds messages for."""
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    bodies = (await client.hgetall("dramatiq:agent_runs.msgs")).values()
    await client.aclose()
    return sorted(orjson.loads(body)["kwargs"]["agent_run_id"] for body in bodies)


async def forget_messages() -> None:
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    await client.flushdb()
    await client.aclose()


async def eventually_sent(*run_ids: UUID) -> None:
    async def look() -> bool:
        return await sent() == sorted(map(str, run_ids))

    await eventually(look, within=2.5, says="these messages were not sent")


async def nothing_sent(stores: Stores) -> bool:
    """Whether nothing was sent; what was handed over to the publisher is waited for."""
    await stores.dispatch.queue_is_empty()
    return not await sent()


async def test_a_message_that_was_never_confirmed_is_sent_again_after_a_while(stores: Stores) -> None:
    run = await make_run(stores.pool)
    await sweeper.sweep(stores)
    assert await nothing_sent(stores)
    await age(stores.pool, run.id, "created_at")
    await sweeper.sweep(stores)
    await eventually_sent(run.id)
    await eventually(lambda: stores.pool.fetchval("SELECT message_sent_at FROM agent_runs WHERE id = $1", run.id))
    await sweeper.sweep(stores)
    assert len(await sent()) == 1


async def test_a_confirmed_message_that_is_lost_is_sent_again_once_the_queue_is_empty(stores: Stores) -> None:
    run = await make_run(stores.pool)
    stores.dispatch.send_run(await make_run(stores.pool))
    await eventually(sent)
    await age(stores.pool, run.id, "created_at", "message_sent_at")
    await sweeper.sweep(stores)
    await stores.dispatch.queue_is_empty()
    assert str(run.id) not in await sent()
    await forget_messages()
    await sweeper.sweep(stores)
    await eventually_sent(run.id)


async def test_a_run_that_waits_behind_another_of_its_project_is_not_sent(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await claim(stores, await make_run(stores.pool, place))
    waiting = await make_run(stores.pool, place)
    for names in (("message_sent_at",), ("created_at",)):
        await age(stores.pool, waiting.id, *names)
        if names == ("created_at",):
            await set_columns(stores.pool, waiting.id, message_sent_at=None, created_at=datetime.now(UTC))
        await sweeper.sweep(stores)
        assert await nothing_sent(stores)


async def test_a_delayed_run_is_sent_at_once_when_it_is_due_and_not_before(stores: Stores) -> None:
    run = await make_run(stores.pool, not_before=datetime.now(UTC) + timedelta(minutes=5))
    await age(stores.pool, run.id, "created_at")
    await sweeper.sweep(stores)
    assert await nothing_sent(stores)
    await set_columns(stores.pool, run.id, not_before=datetime.now(UTC), created_at=datetime.now(UTC))
    await sweeper.sweep(stores)
    await eventually_sent(run.id)


async def test_the_run_of_a_dead_driver_is_sent_only_when_its_lock_is_gone(stores: Stores) -> None:
    async with driving(stores) as driver:
        die(driver)
        await sweeper.sweep(stores)
        assert await nothing_sent(stores), "its heartbeat is young"
        await age(stores.pool, driver.run.id, "heartbeat_at")
        await stores.redis.set(keys.lock(driver.run.id), "somebody:1", px=60_000)
        await sweeper.sweep(stores)
        assert await nothing_sent(stores), "its lock is there"
        await stores.redis.delete(keys.lock(driver.run.id))
        await sweeper.sweep(stores)
        await sweeper.sweep(stores)
        await eventually_sent(driver.run.id)


async def test_a_live_driver_is_left_alone(stores: Stores) -> None:
    async with driving(stores) as driver:
        await stores.redis.delete(keys.lock(driver.run.id))
        await sweeper.sweep(stores)
        assert await nothing_sent(stores)


async def test_a_run_that_expired_in_the_queue_fails_with_a_sentence(stores: Stores) -> None:
    run = await age(stores.pool, (await make_run(stores.pool)).id, "expires_at")
    await sweeper.sweep(stores)
    row = await closed(stores.pool, run.id)
    assert (row.status, row.error) == ("failed", sweeper.EXPIRED)
    log = await listed(stores, run.id)
    assert kinds(log) == ["thread_run_start", "thread_run_end", "last:failed"]
    assert orjson.loads(log[-1])["message"] == sweeper.EXPIRED


async def test_sweepers_in_parallel_send_each_message_once(stores: Stores, settings: Settings) -> None:
    runs = [await make_run(stores.pool) for _ in range(60)]
    for run in runs:
        await age(stores.pool, run.id, "created_at")
    async with open_stores(settings) as one, open_stores(settings) as two:
        await asyncio.gather(*(sweeper.send_unsent(each) for each in (stores, one, two) for _ in range(3)))
        await eventually_sent(*(run.id for run in runs))


async def test_many_ends_and_closings_are_one_statement_each(stores: Stores) -> None:
    runs = [await make_run(stores.pool) for _ in range(10)]
    await stores.pool.execute("UPDATE agent_runs SET expires_at = now()")
    ends = await Statements.naming(stores.pool, "completed_at")
    await sweeper.end_expired(stores)
    assert await ends.count() == 1
    for run in runs:
        assert (await closed(stores.pool, run.id)).status == "failed"
    await stores.pool.execute("DROP TRIGGER count_statement ON agent_runs; DROP SEQUENCE statements")
    await stores.pool.execute("DROP FUNCTION count_statement; UPDATE agent_runs SET closed_at = NULL")
    await stores.pool.execute("UPDATE agent_runs SET updated_at = now() - interval '1 hour'")
    closings = await Statements.naming(stores.pool, "attempt")
    await sweeper.close_cut(stores)
    assert await closings.count() == 1
    for run in runs:
        await closed(stores.pool, run.id)


async def test_a_row_that_somebody_has_locked_holds_up_no_other_end(stores: Stores) -> None:
    locked, free = await make_run(stores.pool), await make_run(stores.pool)
    await stores.pool.execute("UPDATE agent_runs SET expires_at = now()")
    async with stores.pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", locked.id)
        async with asyncio.timeout(2.5):
            await sweeper.end_expired(stores)
        assert (await closed(stores.pool, free.id)).status == "failed"
    await sweeper.end_expired(stores)
    assert (await closed(stores.pool, locked.id)).status == "failed"


async def test_one_end_that_fails_does_not_hold_up_the_others(stores: Stores) -> None:
    """Whatever is wrong with one run, the sweep goes on with the next."""
    ill, well = await make_run(stores.pool), await make_run(stores.pool)
    for run in (ill, well):
        await age(stores.pool, run.id, "expires_at")
    await stores.redis.set(keys.responses(ill.id), "no list at all", ex=60)
    await sweeper.sweep(stores)
    row = await closed(stores.pool, well.id, within=2.5)
    assert row.status == "failed"
    assert (await row_of(stores.pool, ill.id)).status == "failed"
