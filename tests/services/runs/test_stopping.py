import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import orjson
import pytest
from redis.asyncio import Redis

from services import run_messages
from services.broker import RUN_QUEUE
from services.broker import queue_length as broker_queue_length
from services.errors import NotFound
from services.messages import NewMessage
from services.postgres import transaction
from services.runs import closing, control, events, keys, lifecycle, stopping, store
from services.runs.fence import FenceLost
from services.runs.lifecycle import Overdue
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.proxy import Proxy
from tests.services.runs.conftest import reaching_redis_by
from tests.services.runs.seeds import (
    Statements,
    age,
    archived,
    assistant_texts,
    claim,
    closed,
    die,
    driving,
    end,
    eventually,
    kinds,
    listed,
    make_place,
    make_run,
    place_of,
    read_all,
    row_of,
    take_up,
    with_runs,
)
from tests.waiting import PATIENT
from worker import sweeper


async def queue_length(stores: Stores) -> int:
    return await stores.dispatch.publisher.call(lambda broker: broker_queue_length(broker, RUN_QUEUE), PATIENT)


async def ends_with(stores: Stores, run_id: object, status: str) -> bool:
    assert isinstance(run_id, UUID)
    return kinds(await listed(stores, run_id))[-1:] == [f"last:{status}"]


async def test_a_queued_run_that_is_stopped_says_start_and_end_once(stores: Stores) -> None:
    run = await make_run(stores.pool)
    reading = asyncio.create_task(read_all(stores, run.id))
    stopped = await stopping.request_stop(stores, run.id)
    assert stopped.status == "stopped"
    async with asyncio.timeout(PATIENT):
        seen = await reading
    assert kinds([event for _, event in seen]) == ["thread_run_start", "thread_run_end", "last:stopped"]
    assert (await closed(stores.pool, run.id)).event_count == 3
    assert (await stopping.request_stop(stores, run.id)).status == "stopped"
    assert len(await listed(stores, run.id)) == 3


async def test_stopping_an_unknown_run_is_not_found(stores: Stores) -> None:
    with pytest.raises(NotFound):
        await stopping.request_stop(stores, uuid4())


async def test_an_ended_run_keeps_its_own_status(stores: Stores) -> None:
    async with driving(stores) as driver:
        row = await end(driver)
        await closing.say_last(stores, driver.log, row)
    assert (await stopping.request_stop(stores, row.id)).status == "completed"


async def test_a_run_whose_worker_is_dead_is_ended_at_once_and_its_text_kept_once(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello", " world")
        die(driver)
        await stopping.request_stop(other, driver.run.id)
        await eventually(lambda: ends_with(other, driver.run.id, "stopped"))
        for _ in range(3):
            await stopping.request_stop(other, driver.run.id)
    row = await closed(other.pool, driver.run.id)
    assert await assistant_texts(other.pool, row) == ["Hello world"]
    log = await listed(other, row.id)
    assert kinds(log) == ["chunk", "chunk", "complete", "thread_run_end", "last:stopped"]
    assert await archived(other.pool, row.id) == log
    assert not await other.redis.exists(keys.lock(row.id))


async def test_text_whose_row_was_stored_and_not_told_is_not_stored_again(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        await stores.pool.execute(
            """INSERT INTO messages (thread_id, agent_run_id, type, content)
               VALUES ($1, $2, 'assistant', '{"role": "assistant", "content": "Hello"}')""",
            driver.run.thread_id,
            driver.run.id,
        )
        die(driver)
        await stopping.request_stop(other, driver.run.id)
        row = await closed(other.pool, driver.run.id)
        assert await assistant_texts(other.pool, row) == ["Hello"]


async def test_a_message_that_was_stored_and_not_told_is_told_though_its_chunks_are_only_a_part_of_it(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello", " wor")
        content = {"role": "assistant", "content": "Hello world, and more"}
        new = NewMessage("assistant", content, {"thread_run_id": str(driver.run.id)})
        async with stores.pool.acquire() as conn:
            [stored] = await run_messages.add(conn, driver.held.fence, driver.run.thread_id, [new])
        die(driver)
        await stopping.request_stop(other, driver.run.id)
        row = await closed(other.pool, driver.run.id)
    log = await listed(other, row.id)
    assert kinds(log) == ["chunk", "chunk", "complete", "thread_run_end", "last:stopped"]
    told = orjson.loads(log[2])
    assert told["message_id"] == str(stored.message_id)
    assert orjson.loads(told["content"]) == content
    assert orjson.loads(told["metadata"])["stream_status"] == "complete"
    assert await assistant_texts(other.pool, row) == ["Hello world, and more"]


async def test_a_run_that_was_claimed_and_said_nothing_yet_says_start_and_end_when_it_is_stopped(
    stores: Stores, other: Stores
) -> None:
    run = await claim(stores, await make_run(stores.pool))
    await stopping.request_stop(other, run.id)
    row = await closed(other.pool, run.id)
    log = await listed(other, run.id)
    assert kinds(log) == ["thread_run_start", "thread_run_end", "last:stopped"]
    assert await archived(other.pool, run.id) == log
    assert (row.status, row.event_count) == ("stopped", 3)


async def test_a_driver_that_does_not_react_within_the_grace_is_fenced_off(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver, control.watch(stores.channels, driver.held):
        await driver.say("Hello")
        row = await stopping.request_stop(other, driver.run.id)
        assert row.phase == "stopping"
        await eventually(lambda: ends_with(other, driver.run.id, "stopped"))
        with pytest.raises(FenceLost):
            await driver.say("I did not listen")
        assert not await lifecycle.end(stores.pool, driver.held.fence, "completed", error=None, usage={})
        await eventually(driver.held.lost.is_set)
    row = await closed(other.pool, driver.run.id)
    assert row.attempt == driver.run.attempt + 1
    assert kinds(await listed(other, row.id)) == ["chunk", "complete", "thread_run_end", "last:stopped"]


async def test_a_driver_that_reacts_within_the_grace_ends_the_run_itself(stores: Stores, settings: Settings) -> None:
    async with (
        open_stores(with_runs(settings, stop_grace=timedelta(seconds=10))) as patient,
        driving(stores) as driver,
        control.watch(stores.channels, driver.held),
    ):
        await stopping.request_stop(patient, driver.run.id)
        await eventually(driver.held.stop_asked.is_set)
        row = await end(driver, "completed")
        assert row.status == "stopped"
        await closing.say_last(stores, driver.log, row)
        assert (await closed(patient.pool, row.id)).attempt == driver.run.attempt


async def test_a_driver_that_acknowledges_has_longer_than_the_grace_and_not_for_ever(
    stores: Stores, other: Stores
) -> None:
    waited, may_go_on = list[float](), [asyncio.Event(), asyncio.Event()]

    async def sleep(seconds: float) -> None:
        """Both waits end when the test says so."""
        waited.append(seconds)
        await may_go_on[len(waited) - 1].wait()

    async with driving(stores) as quick, driving(stores) as slow, driving(stores) as silent:
        drivers = quick, slow, silent
        async with AsyncExitStack() as stack:
            stack.enter_context(patch.object(stopping, "asyncio", SimpleNamespace(sleep=sleep, gather=asyncio.gather)))
            for driver in drivers:
                await stack.enter_async_context(control.watch(stores.channels, driver.held))
            await stopping.request_stops(other, [driver.run.id for driver in drivers])
            await asyncio.gather(*(stores.together.acknowledge_stop(driver.held.fence) for driver in (quick, slow)))
            may_go_on[0].set()
            await eventually(lambda: ends_with(other, silent.run.id, "stopped"))
            row = await end(quick, "completed")
            assert (row.status, row.attempt) == ("stopped", quick.run.attempt)
            assert not await is_final(stores, slow.run.id)
            may_go_on[1].set()
            await eventually(lambda: ends_with(other, slow.run.id, "stopped"))
    assert waited == [other.settings.runs.stop_grace.total_seconds(), stopping.ACKNOWLEDGED_SECONDS]
    assert [(await row_of(stores.pool, one.run.id)).attempt for one in drivers] == [1, 2, 2]


async def test_what_is_stopped_twice_is_acknowledged_by_nobody(stores: Stores) -> None:
    async with driving(stores) as driver:
        for _ in range(2):
            await lifecycle.request_stops(stores.pool, [driver.run.id])
        (ended,) = await lifecycle.end_overdue(stores.pool, [Overdue(driver.run.id, driver.run.attempt, spare=True)])
        assert ended
        assert (ended.status, ended.attempt) == ("stopped", driver.run.attempt + 1)


async def test_an_overdue_run_whose_row_is_locked_holds_up_no_other(stores: Stores) -> None:
    async with driving(stores) as free, driving(stores) as locked, transaction(stores.pool) as conn:
        await lifecycle.request_stops(stores.pool, [free.run.id, locked.run.id])
        await store.hold(conn, locked.held.fence)
        overdue = [Overdue(driver.run.id, driver.run.attempt, spare=False) for driver in (free, locked)]
        async with asyncio.timeout(PATIENT):
            found = await lifecycle.end_overdue(stores.upkeep, overdue)
        assert [run and run.final for run in found] == [True, False]


async def test_of_those_who_end_a_run_in_the_same_moment_one_is_told_that_it_has(stores: Stores) -> None:
    async with driving(stores) as driver, driving(stores) as spared:
        await lifecycle.request_stops(stores.pool, [driver.run.id, spared.run.id])
        await stores.together.acknowledge_stop(spared.held.fence)
        overdue = [Overdue(each.run.id, each.run.attempt, spare=True) for each in (driver, spared, driver, spared)]
        found = await lifecycle.end_overdue(stores.pool, overdue)
        assert [run and run.final for run in found] == [True, False, None, False]


async def test_a_run_that_two_requests_end_in_the_same_moment_says_its_last_words_once(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        die(driver)
    [run] = await lifecycle.request_stops(other.pool, [driver.run.id])
    await asyncio.gather(*(stopping.see_them_end(other, [run], 0.0) for _ in range(2)))
    await closed(other.pool, run.id)
    log = await listed(other, run.id)
    assert kinds(log) == ["chunk", "complete", "thread_run_end", "last:stopped"]
    assert await archived(other.pool, run.id) == log


async def test_an_end_that_was_cut_after_the_row_was_final_is_finished_by_the_sweeper(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        await end(driver)
        die(driver)
    await age(stores.pool, driver.run.id, "updated_at")
    await sweeper.close_cut(other)
    row = await closed(other.pool, driver.run.id)
    assert kinds(await listed(other, row.id))[-2:] == ["thread_run_end", "last:completed"]


async def test_an_end_that_was_cut_between_last_event_and_archive_is_finished_without_saying_more(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        row = await end(driver)
        stores.writer.logs.discard(driver.log)
        await closing.say_last(stores, driver.log, row)
        said = await listed(stores, row.id)
        await age(stores.pool, row.id, "updated_at")
        await sweeper.close_cut(other)
        done = await closed(other.pool, row.id)
        assert await listed(other, row.id) == said == await archived(other.pool, row.id)
        assert done.event_count == len(said)


async def test_two_that_close_at_once_say_one_last_event(stores: Stores, other: Stores) -> None:
    for _ in range(10):
        async with driving(stores) as driver:
            await driver.say("Hello")
            await end(driver)
            die(driver)
        await age(stores.pool, driver.run.id, "updated_at")
        await asyncio.gather(*(sweeper.close_cut(each) for each in (stores, other)))
        await closed(other.pool, driver.run.id)
        words = kinds(await listed(other, driver.run.id))
        assert words.count("last:completed") == words.count("thread_run_end") == words.count("complete") == 1


async def test_the_same_closing_twice_in_two_processes_says_one_last_event(stores: Stores, other: Stores) -> None:
    """The one whose fence was raised again while it was closing gives way."""
    for _ in range(10):
        async with driving(stores) as driver:
            await driver.say("Hello")
            die(driver)
        first = await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "failed")
        assert first
        second = await take_up(stores.pool, first)
        assert second
        await asyncio.gather(closing.close_from_outside(stores, first), closing.close_from_outside(other, second))
        await eventually(lambda: ends_with(stores, driver.run.id, "failed"))
        await closed(other.pool, driver.run.id)
        words = kinds(await listed(other, driver.run.id))
        assert words.count("last:failed") == words.count("thread_run_end") == words.count("complete") == 1
        assert len(await assistant_texts(stores.pool, driver.run)) == 1


async def test_a_stop_while_redis_is_away_counts_and_is_told_later(
    stores: Stores, far: Stores, redis_proxy: Proxy
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        die(driver)
        redis_proxy.refuse()
        await stopping.request_stop(far, driver.run.id)
        run_id = driver.run.id
        await eventually(lambda: is_final(far, run_id))
        assert not await ends_with(stores, run_id, "stopped")
        redis_proxy.restore()
    await age(stores.pool, run_id, "updated_at")
    await sweeper.close_cut(far)
    await closed(far.pool, run_id)
    assert kinds(await listed(stores, run_id)) == ["chunk", "complete", "thread_run_end", "last:stopped"]


async def is_final(stores: Stores, run_id: object) -> bool:
    return bool(await stores.pool.fetchval("SELECT completed_at IS NOT NULL FROM agent_runs WHERE id = $1", run_id))


async def test_a_flush_before_the_closing_keeps_the_text(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello", " world")
        await driver.archived()
        die(driver)
        await stores.redis.flushdb()
        await stopping.request_stop(other, driver.run.id)
        row = await closed(other.pool, driver.run.id)
        assert await assistant_texts(other.pool, row) == ["Hello world"]
        words = [word for word in kinds(await listed(other, row.id)) if word != "void"]
        assert words == ["chunk", "chunk", "complete", "thread_run_end", "last:stopped"]


async def test_a_log_at_its_bound_can_still_be_closed_from_outside(settings: Settings, redis: Redis) -> None:
    async with open_stores(with_runs(settings, max_events=20)) as stores:
        async with driving(stores) as driver:
            await driver.say(*map(str, range(20)))
            await end(driver, "failed")
            die(driver)
        await age(stores.pool, driver.run.id, "updated_at")
        await sweeper.sweep(stores)
        row = await closed(stores.pool, driver.run.id)
        assert kinds(await listed(stores, row.id))[-1] == "last:failed"


async def test_a_stop_asked_for_and_lost_is_carried_out_by_the_sweeper(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        await lifecycle.request_stops(stores.pool, [driver.run.id])
        die(driver)
        await age(stores.pool, driver.run.id, "stop_requested_at")
        await sweeper.end_stopped(other)
        assert (await closed(other.pool, driver.run.id)).status == "stopped"


async def test_the_next_run_of_the_project_is_woken_when_one_is_ended_from_outside(
    stores: Stores, other: Stores
) -> None:
    async with driving(stores) as driver:
        await make_run(stores.pool, await place_of(stores.pool, driver.run), message_sent_at=driver.run.created_at)
        die(driver)
        before = await queue_length(other)
        await stopping.request_stop(other, driver.run.id)

        async def woken() -> bool:
            return await queue_length(other) > before

        await eventually(woken)


async def test_many_runs_are_stopped_with_one_call(stores: Stores) -> None:
    place = await make_place(stores.pool)
    runs = [await make_run(stores.pool, place) for _ in range(5)]
    stopped = await stopping.request_stops(stores, [run.id for run in runs])
    assert {run.id for run in stopped} == {run.id for run in runs}
    for run in runs:
        assert (await closed(stores.pool, run.id)).status == "stopped"


async def test_a_stop_between_lock_and_claim_ends_stopped(stores: Stores, other: Stores) -> None:
    run = await make_run(stores.pool)
    async with stores.leases.hold(run.id, 1) as held:
        assert held
        await stopping.request_stop(other, run.id)
        assert not await lifecycle.claim(stores.pool, run, stores.instance_id, dead_after=timedelta(seconds=1))
        await eventually(lambda: ends_with(other, run.id, "stopped"))
    assert kinds(await listed(other, run.id)) == ["thread_run_start", "thread_run_end", "last:stopped"]


async def test_nothing_is_kept_of_a_closing_that_was_cut_and_finished_elsewhere(
    stores: Stores, settings: Settings, redis_proxy: Proxy
) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        die(driver)
    ended = await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
    assert ended
    say_last = closing.say_last

    async def say_last_to_a_stalled_server(*arguments: Any) -> None:
        redis_proxy.stall()
        await say_last(*arguments)

    impatient = with_runs(reaching_redis_by(redis_proxy, settings), close_after=timedelta(seconds=2))
    async with open_stores(impatient) as far:
        with patch.object(closing, "say_last", say_last_to_a_stalled_server):
            await closing.close_from_outside(far, ended)
        assert far.writer.logs
        await age(stores.pool, ended.id, "updated_at")
        await sweeper.close_cut(stores)
        await closed(stores.pool, ended.id)
        redis_proxy.cut()
        redis_proxy.restore()
        await eventually(lambda: not far.writer.logs, says="the log of the closing that was cut is kept")


async def test_closing_is_postponed_when_postgres_fails_in_between(stores: Stores, other: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("Hello")
        die(driver)
    ended = await lifecycle.end_from_outside(stores.pool, driver.run.id, driver.run.attempt, "stopped")
    assert ended
    with patch.object(closing, "keep_text", side_effect=ConnectionResetError):
        await closing.close_from_outside(stores, ended)
    assert not (await row_of(stores.pool, ended.id)).closed_at
    await age(stores.pool, ended.id, "updated_at")
    await sweeper.close_cut(other)
    row = await closed(other.pool, ended.id)
    assert await assistant_texts(other.pool, row) == ["Hello"]
    assert events.final_status((await listed(other, row.id))[-1]) == "stopped"


async def test_stopping_many_is_one_statement_and_ending_those_that_nobody_drives_another(stores: Stores) -> None:
    queued = [await make_run(stores.pool) for _ in range(4)]
    undriven = [await claim(stores, await make_run(stores.pool)) for _ in range(4)]
    statements = await Statements.naming(stores.pool, "completed_at")
    runs = [*queued, *undriven]
    assert len(await stopping.request_stops(stores, [run.id for run in runs])) == len(runs)
    for run in runs:
        assert (await closed(stores.pool, run.id)).status == "stopped"
    assert await statements.count() == 2
