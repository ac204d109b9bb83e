import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from redis.asyncio import Redis

from services.postgres import transaction
from services.runs import idempotency, keys, starting
from services.runs.idempotency import RequestKey
from services.runs.starting import NewRun
from services.runs.store import Run
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.conftest import BROKER_REDIS, NO_LIMITS, named, with_path
from tests.services.runs.seeds import (
    Place,
    Statements,
    age,
    bury,
    claim,
    closed,
    die,
    driving,
    eventually,
    fence_of,
    hand_over,
    kinds,
    listed,
    make_place,
    make_run,
    row_of,
    set_columns,
    with_runs,
)
from tests.waiting import PATIENT
from worker import sweeper

SOON = timedelta(minutes=5)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The queue is looked at, nothing is taken from it; nothing is late or dead but what was made so."""
    long = timedelta(minutes=1)
    return with_runs(settings, resend_after=long, dead_after=long)


async def queued_messages() -> list[dict[str, Any]]:
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    bodies = (await client.hgetall("dramatiq:agent_runs.msgs")).values()
    await client.aclose()
    return [orjson.loads(body) for body in bodies]


async def sent() -> list[str]:
    """The runs that the broker's queue holds messages for."""
    return sorted(message["kwargs"]["agent_run_id"] for message in await queued_messages())


async def forget_messages() -> None:
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    await client.flushdb()
    await client.aclose()


async def eventually_sent(*run_ids: UUID) -> None:
    async def look() -> bool:
        return await sent() == sorted(map(str, run_ids))

    await eventually(look, says="these messages were not sent")


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
        await bury(stores, driver.run.id)
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


async def test_a_message_that_is_sent_again_keeps_its_priority(stores: Stores) -> None:
    run = await make_run(stores.pool, priority=9)
    await age(stores.pool, run.id, "created_at")
    await sweeper.sweep(stores)
    await eventually_sent(run.id)
    assert [message["options"]["broker_priority"] for message in await queued_messages()] == [9]


async def check_expired(stores: Stores, run_id: UUID) -> None:
    row = await closed(stores.pool, run_id)
    assert (row.status, row.error) == ("failed", sweeper.EXPIRED)
    log = await listed(stores, run_id)
    assert kinds(log) == ["thread_run_start", "thread_run_end", "last:failed"]
    assert orjson.loads(log[-1])["message"] == sweeper.EXPIRED


async def test_a_run_that_expired_in_the_queue_fails_with_a_sentence(stores: Stores) -> None:
    run = await age(stores.pool, (await make_run(stores.pool)).id, "expires_at")
    await sweeper.sweep(stores)
    await check_expired(stores, run.id)


async def test_a_run_that_expired_behind_another_fails_once_though_many_sweep(
    stores: Stores, settings: Settings
) -> None:
    place = await make_place(stores.pool)
    async with driving(stores, await make_run(stores.pool, place)) as driver, open_stores(settings) as other:
        waiting = await make_run(stores.pool, place)
        next_one = await make_run(stores.pool, place)
        await age(stores.pool, waiting.id, "expires_at")
        await asyncio.gather(*(sweeper.end_expired(each) for each in (stores, other) for _ in range(3)))
        await check_expired(stores, waiting.id)
        assert (await row_of(stores.pool, waiting.id)).attempt == 1, "it was ended once"
        assert (await row_of(stores.pool, next_one.id)).phase == "waiting"
        assert (await row_of(stores.pool, driver.run.id)).phase == "running"


async def test_a_run_that_was_begun_and_handed_over_never_expires(stores: Stores) -> None:
    begun = await claim(stores, await make_run(stores.pool))
    await hand_over(stores.pool, fence_of(begun))
    await age(stores.pool, begun.id, "expires_at")
    await sweeper.sweep(stores)
    waiting = await row_of(stores.pool, begun.id)
    assert (waiting.status, waiting.phase) == ("queued", "queued")
    assert (await claim(stores, waiting)).attempt == 2


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
        async with asyncio.timeout(PATIENT):
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
    row = await closed(stores.pool, well.id)
    assert row.status == "failed"
    assert (await row_of(stores.pool, ill.id)).status == "failed"


async def delayed(stores: Stores, place: Place, **options: Any) -> Run:
    """A run that stops the others when it is due, which it became a second ago."""
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", delay=SOON, **options)
    async with transaction(stores.pool) as conn:
        run = (await starting.start(conn, new, NO_LIMITS)).run
    return await set_columns(
        stores.pool, run.id, created_at=run.created_at - SOON, not_before=datetime.now(UTC) - timedelta(seconds=1)
    )


async def test_a_delayed_run_stops_the_others_when_it_is_due_and_begins_after_them(stores: Stores) -> None:
    place = await make_place(stores.pool)
    async with driving(stores, await age(stores.pool, (await make_run(stores.pool, place)).id, "created_at")) as driver:
        late = await delayed(stores, place)
        assert late.phase == "waiting"
        await sweeper.sweep(stores)
        assert (await closed(stores.pool, driver.run.id)).status == "stopped"

        async def woken() -> bool:
            return str(late.id) in await sent()

        await eventually(woken)
    assert (await claim(stores, await row_of(stores.pool, late.id))).status == "running"


async def test_a_delayed_run_that_nothing_is_in_the_way_of_is_sent_in_the_sweep_that_judges_it(stores: Stores) -> None:
    late = await delayed(stores, await make_place(stores.pool))
    await sweeper.send_unsent(stores)
    assert await nothing_sent(stores)
    await sweeper.sweep(stores)
    await eventually_sent(late.id)


async def test_sweepers_in_parallel_let_the_first_of_two_delayed_runs_stop_the_other(
    stores: Stores, settings: Settings
) -> None:
    async with open_stores(settings) as one, open_stores(settings) as two:
        for _ in range(5):
            place = await make_place(stores.pool)
            second, first = await delayed(stores, place), await delayed(stores, place)
            await set_columns(stores.pool, first.id, not_before=datetime.now(UTC) - timedelta(seconds=2))
            await asyncio.gather(*(sweeper.judge_due(each) for each in (stores, one, two) for _ in range(2)))
            assert (await row_of(stores.pool, first.id)).phase == "queued"
            assert (await closed(stores.pool, second.id)).status == "stopped"


async def test_keys_that_no_longer_count_are_swept_away(stores: Stores) -> None:
    for number in range(3):
        run = await make_run(stores.pool)
        key = RequestKey(run.account_id, "start", f"key-{number}", b"")
        async with transaction(stores.pool) as conn:
            await idempotency.claim(conn, key, run.id)
    await stores.pool.execute(
        "UPDATE idempotency_keys SET created_at = now() - $1::interval WHERE key <> 'key-1'", idempotency.KEPT
    )
    await sweeper.sweep(stores)
    assert [row["key"] for row in await stores.pool.fetch("SELECT key FROM idempotency_keys")] == ["key-1"]
