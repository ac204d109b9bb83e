import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import AsyncMock, patch
from uuid import UUID

import orjson
import pytest
from redis.asyncio import Redis

from agent import loop as agent_loop
from agent.context import RunContext, RunFailed
from services.broker import RUN_QUEUE, queue_length
from services.runs import events, keys, lifecycle, stopping, store
from services.runs.fence import FenceLost
from services.runs.lifecycle import HandOver
from services.runs.log_archiver import LogArchiver
from services.runs.log_writer import Listed, LogWriter
from services.runs.store import Run
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import model_settings
from tests.fakes import FakeModel
from tests.proxy import Proxy
from tests.services.runs.conftest import reaching_redis_by
from tests.services.runs.seeds import (
    Statements,
    age,
    archived,
    assistant_texts,
    bury,
    chunk,
    closed,
    die,
    driving,
    eventually,
    kinds,
    listed,
    make_run,
    place_of,
    read_all,
    row_of,
    set_columns,
    text_of,
    with_runs,
)
from tests.waiting import PATIENT
from tests.worker.conftest import open_process
from worker import runner, sweeper
from worker.process import Process

Producer = Callable[[RunContext], Awaitable[None]]
SLOW = "demo/lorem?chunks=20000&delay_ms=5"
HANDED_OVER = 5 * 2.0
"""A worker hands its runs over within two seconds."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A driver that was paused for a moment is not dead."""
    return with_runs(settings, dead_after=timedelta(seconds=30))


@asynccontextmanager
async def driven(process: Process, run_id: UUID) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(runner.drive(process, run_id))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def producing(producer: Producer) -> Any:
    return patch.object(agent_loop, "run_agent", producer)


async def drive(process: Process, run: Run, within: float = PATIENT) -> Run:
    """Drive a run to wherever it goes; its row afterwards."""
    async with asyncio.timeout(within):
        await runner.drive(process, run.id)
    return await row_of(process.stores.pool, run.id)


async def log_of(process: Process, run: Run) -> list[bytes]:
    return await listed(process.stores, run.id)


async def said(process: Process, run: Run, count: int) -> bool:
    return len(await log_of(process, run)) >= count


def message_of(last: bytes) -> str:
    return str(orjson.loads(last)["message"])


async def test_a_run_completes(process: Process) -> None:
    run = await make_run(process.stores.pool)
    assert (await drive(process, run)).status == "completed"
    row = await closed(process.stores.pool, run.id)
    log = await log_of(process, run)
    words = kinds(log)
    assert words[:2] == ["thread_run_start", "assistant_response_start"]
    assert words[-4:] == ["complete", "finish", "thread_run_end", "last:completed"]
    assert words.count("chunk") == 5
    assert await archived(process.stores.pool, run.id) == log
    assert await assistant_texts(process.stores.pool, row) == [text_of(log)]
    assert row.usage["completion_tokens"] == 5
    assert row.event_count == len(log)
    assert not await process.stores.redis.exists(keys.lock(run.id))


async def test_a_run_of_a_provider_completes(settings: Settings, redis: Redis) -> None:
    with FakeModel() as fake:
        models = model_settings(fake).models
        async with open_process(settings.model_copy(update={"models": models})) as process:
            run = await make_run(process.stores.pool, model="openai/script-text")
            row = await drive(process, run)
            assert row.status == "completed"
            assert await assistant_texts(process.stores.pool, row) == ["".join(fakes.WORDS)]


async def test_a_run_of_a_provider_that_refuses_fails_with_a_sentence(settings: Settings, redis: Redis) -> None:
    with FakeModel() as fake:
        models = model_settings(fake).models
        async with open_process(settings.model_copy(update={"models": models})) as process:
            row = await drive(process, await make_run(process.stores.pool, model="openai/script-401"))
            assert row.status == "failed"
            assert row.error
            assert message_of((await log_of(process, row))[-1]) == row.error


async def test_a_stop_in_the_middle_of_a_text_keeps_the_text(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 20))
        await stopping.request_stop(second.stores, run.id)
        async with asyncio.timeout(PATIENT):
            await task
    row = await closed(process.stores.pool, run.id)
    log = await log_of(process, run)
    assert row.status == "stopped"
    assert kinds(log)[-3:] == ["complete", "thread_run_end", "last:stopped"]
    assert await assistant_texts(process.stores.pool, row) == [text_of(log)]


async def test_a_stop_during_a_silent_call_counts(process: Process, second: Process) -> None:
    async def silent(context: RunContext) -> None:
        await asyncio.Event().wait()

    with producing(silent):
        run = await make_run(process.stores.pool)
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 1))
            await stopping.request_stop(second.stores, run.id)
            async with asyncio.timeout(PATIENT):
                await task
    assert kinds(await log_of(process, run)) == ["thread_run_start", "thread_run_end", "last:stopped"]


async def test_work_that_does_not_let_go_is_ended_from_outside(process: Process, second: Process) -> None:
    async def stubborn(context: RunContext) -> None:
        for _ in range(40):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    with producing(stubborn):
        run = await make_run(process.stores.pool)
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 1))
            await stopping.request_stop(second.stores, run.id)
            await closed(process.stores.pool, run.id)
            async with asyncio.timeout(PATIENT):
                await task
    assert kinds(await log_of(process, run)) == ["thread_run_start", "thread_run_end", "last:stopped"]


async def test_a_run_that_is_handed_over_goes_on_elsewhere(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    reading = asyncio.create_task(read_all(second.stores, run.id))
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 10))
        process.draining.set()
        async with asyncio.timeout(HANDED_OVER):
            await task
    queued = await set_columns(process.stores.pool, run.id, model_name="demo/lorem?chunks=20&delay_ms=1")
    assert (queued.status, queued.crashes, queued.reserved_events) == ("queued", 0, queued.archived_events)
    await eventually(lambda: is_sent(second))
    assert (await drive(second, queued)).status == "completed"
    await closed(second.stores.pool, run.id)
    log = await log_of(second, run)
    words = kinds(log)
    assert words.count("thread_run_start") == words.count("run_resumed") == words.count("thread_run_end") == 1
    assert words.count("last:completed") == 1
    assert "void" not in words
    assert [orjson.loads(event)["sequence"] for event in log[:-1]] == list(range(len(log) - 1))
    async with asyncio.timeout(PATIENT):
        assert await reading == list(enumerate(log))
    assert len(await assistant_texts(second.stores.pool, run)) == 1


async def test_work_that_outlives_its_hand_over_is_not_heard(process: Process) -> None:
    begun: list[RunContext] = []

    async def linger(context: RunContext) -> None:
        begun.append(context)
        await asyncio.Event().wait()

    with producing(linger):
        run = await make_run(process.stores.pool)
        async with driven(process, run.id) as task:
            await eventually(lambda: begun)
            process.draining.set()
            async with asyncio.timeout(PATIENT):
                await task
    assert (await row_of(process.stores.pool, run.id)).status == "queued"
    with pytest.raises(FenceLost):
        await begun[0].log.append(events.status("finish", run.id))


async def test_a_drain_hands_many_runs_over_in_a_few_statements(process: Process) -> None:
    runs = [await make_run(process.stores.pool, model=SLOW) for _ in range(12)]
    async with AsyncExitStack() as stack:
        tasks = [await stack.enter_async_context(driven(process, run.id)) for run in runs]
        for run in runs:
            await eventually(partial(said, process, run, 3))
        hand_overs = await Statements.naming(process.stores.pool, "message_tried_at")
        process.draining.set()
        async with asyncio.timeout(PATIENT):
            await asyncio.gather(*tasks)
        assert await hand_overs.count() < len(runs), "those that come during a statement go into the next"
    rows = [await row_of(process.stores.pool, run.id) for run in runs]
    assert {(row.status, row.crashes) for row in rows} == {("queued", 0)}


async def is_sent(process: Process) -> bool:
    """Whether the broker's queue holds one message."""
    return await process.stores.dispatch.publisher.call(lambda broker: queue_length(broker, RUN_QUEUE), PATIENT) == 1


@pytest.mark.parametrize("policy", ["leaving", "draining"])
async def test_a_process_that_was_asked_to_stop_begins_no_run_and_wakes_another(process: Process, policy: str) -> None:
    getattr(process, policy).set()
    run = await make_run(process.stores.pool)
    assert (await drive(process, run)).status == "queued"
    await eventually(lambda: is_sent(process))


async def test_a_stop_during_a_hand_over_ends_the_run(process: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 10))
        await lifecycle.request_stops(process.stores.pool, [run.id])
        process.draining.set()
        async with asyncio.timeout(PATIENT):
            await task
    row = await closed(process.stores.pool, run.id)
    assert row.status == "stopped"
    assert len(await assistant_texts(process.stores.pool, run)) == 1


async def say_stop(process: Process, run: Run) -> None:
    """A bare STOP from anybody, heard by the driver."""
    [held] = process.stores.leases.held.values()
    assert await process.stores.redis.publish(keys.control(run.id), keys.STOP) == 1
    await eventually(held.stop_asked.is_set, every=0)


async def test_a_bare_stop_is_written_into_the_row(process: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 10))
        await say_stop(process, run)
        async with asyncio.timeout(PATIENT):
            await task
    row = await closed(process.stores.pool, run.id)
    assert row.status == "stopped"
    assert row.stop_requested_at
    assert await assistant_texts(process.stores.pool, run) == [text_of(await log_of(process, run))]


@pytest.mark.parametrize("moment", ["at once", "archiving", "writing the row"])
async def test_a_bare_stop_that_comes_with_a_hand_over_ends_the_run(process: Process, moment: str) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    archive_run, hand_over_all = LogArchiver.archive_run, process.stores.hand_overs.answer

    async def archive_late(archiver: LogArchiver, log: Any) -> bool:
        if moment == "archiving":
            await say_stop(process, run)
        return await archive_run(archiver, log)

    async def hand_over_late(handed: Sequence[HandOver]) -> Sequence[Run | None]:
        if moment == "writing the row":
            await say_stop(process, run)
        return await hand_over_all(handed)

    with (
        patch.object(LogArchiver, "archive_run", archive_late),
        patch.object(process.stores.hand_overs, "answer", hand_over_late),
    ):
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 10))
            process.draining.set()
            if moment == "at once":
                await say_stop(process, run)
            async with asyncio.timeout(PATIENT):
                await task
    row = await closed(process.stores.pool, run.id)
    assert row.status == "stopped"
    assert row.stop_requested_at
    log = await log_of(process, run)
    assert kinds(log)[-3:] == ["complete", "thread_run_end", "last:stopped"]
    assert await assistant_texts(process.stores.pool, run) == [text_of(log)]


@pytest.mark.parametrize("fault", [Proxy.stall, Proxy.lose_replies], ids=["stalled", "answers lost"])
async def test_ids_that_redis_may_have_told_before_a_hand_over_are_not_given_out_again(
    settings: Settings, second: Process, fault: Callable[[Proxy], None]
) -> None:
    saying, said_all = asyncio.Event(), asyncio.Event()

    async def talk(context: RunContext) -> None:
        await context.log.append(*(chunk(context.run, f"{number} ") for number in range(10)))
        await saying.wait()
        await context.log.append(*(chunk(context.run, f"{number} ") for number in range(10, 20)))
        said_all.set()
        await asyncio.Event().wait()

    run = await make_run(second.stores.pool)
    async with Proxy(settings.redis.dsn) as proxy, open_process(reaching_redis_by(proxy, settings)) as first:
        with producing(talk):
            async with driven(first, run.id) as task:
                await eventually(partial(is_archived, second, run, 11))
                before = await row_of(second.stores.pool, run.id)
                fault(proxy)
                saying.set()
                async with asyncio.timeout(PATIENT):
                    await said_all.wait()
                    if fault is Proxy.lose_replies:
                        await eventually(partial(said, second, run, 21))
                    first.draining.set()
                    await task
    queued = await row_of(second.stores.pool, run.id)
    assert (queued.status, queued.archived_events) == ("queued", 11)
    assert queued.reserved_events >= before.reserved_events > 21
    told = await log_of(second, run)
    await second.stores.redis.flushdb()
    assert (await drive(second, queued)).status == "completed"
    await closed(second.stores.pool, run.id)
    log = await log_of(second, run)
    assert log[:11] == told[:11]
    assert set(kinds(log[11 : queued.reserved_events])) == {"void"}
    assert kinds(log[queued.reserved_events :])[0] == "run_resumed"


async def is_archived(process: Process, run: Run, count: int) -> bool:
    return (await row_of(process.stores.pool, run.id)).archived_events == count


async def test_a_dead_workers_run_is_taken_over(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool)
    async with driving(process.stores, run) as driver:
        await driver.say("half an ans")
        die(driver)
        assert (await drive(second, await bury(process.stores, run.id))).status == "completed"
    row = await closed(second.stores.pool, run.id)
    assert (row.attempt, row.crashes) == (2, 0)
    words = kinds(await log_of(second, run))
    assert words[:2] == ["chunk", "run_resumed"]
    assert words[-1] == "last:completed"
    assert words.count("last:completed") == 1


async def test_a_run_whose_workers_died_too_often_is_given_up(process: Process, settings: Settings) -> None:
    limit = settings.runs.max_crashes
    run = await make_run(process.stores.pool, status="running", attempt=7, crashes=limit - 1)
    row = await drive(process, await age(process.stores.pool, run.id, "heartbeat_at", "started_at"))
    assert row.status == "failed"
    assert row.error == f"The run was given up: its worker died {limit} times."
    assert kinds(await log_of(process, run))[-1] == "last:failed"


async def test_a_run_may_take_only_so_long(settings: Settings, redis: Redis) -> None:
    async with open_process(with_runs(settings, timeout=timedelta(seconds=1.5))) as process:
        run = await make_run(process.stores.pool, model=SLOW)
        row = await drive(process, run)
        assert (row.status, row.error) == ("failed", "The run was ended: it took longer than 1.5 seconds.")
        text = text_of(await log_of(process, run))
        assert await assistant_texts(process.stores.pool, run) == ([text] if text else [])


async def test_the_time_of_earlier_attempts_counts(process: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    await process.stores.pool.execute("UPDATE agent_runs SET started_at = now() - interval '7 hours'")
    assert (await drive(process, await row_of(process.stores.pool, run.id))).status == "failed"


@pytest.mark.parametrize(
    "failure",
    [ValueError("secret details"), SystemExit(3), asyncio.CancelledError(), ExceptionGroup("many", [KeyError("x")])],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_the_work_raises_the_run_ends_and_the_loop_lives(
    process: Process, failure: BaseException
) -> None:
    async def breaks(context: RunContext) -> None:
        await context.log.append(chunk(context.run, "so far"))
        raise failure

    with producing(breaks):
        run = await make_run(process.stores.pool)
        row = await drive(process, run)
    assert (row.status, row.error) == ("failed", runner.INTERNAL_ERROR)
    assert kinds(await log_of(process, run)) == ["thread_run_start", "chunk", "thread_run_end", "last:failed"]
    assert (await drive(process, await make_run(process.stores.pool))).status == "completed"


async def test_a_failure_of_the_run_is_told_in_its_own_words(process: Process) -> None:
    async def fails(context: RunContext) -> None:
        raise RunFailed("The model is on holiday.")

    with producing(fails):
        row = await drive(process, await make_run(process.stores.pool))
    assert (row.status, row.error) == ("failed", "The model is on holiday.")


@pytest.mark.parametrize("text", ["nul \x00 here", "half a pair \ud83d here"], ids=["nul", "surrogate"])
async def test_a_sentence_that_postgres_does_not_take_as_it_is_ends_the_run_all_the_same(
    process: Process, text: str
) -> None:
    async def fails(context: RunContext) -> None:
        raise RunFailed(text)

    with producing(fails):
        row = await drive(process, await make_run(process.stores.pool))
    assert row.status == "failed"
    assert row.error
    assert row.error.endswith("here")
    assert message_of((await log_of(process, row))[-1]) == row.error


async def test_a_log_that_is_full_ends_the_run_with_a_sentence(settings: Settings, redis: Redis) -> None:
    async with open_process(with_runs(settings, max_events=50)) as process:
        run = await make_run(process.stores.pool, model="demo/lorem?chunks=500&delay_ms=0")
        row = await drive(process, run)
        assert (row.status, row.error) == ("failed", "The run was ended: its log reached 50 events.")
        await closed(process.stores.pool, run.id)
        assert kinds(await log_of(process, run))[-1] == "last:failed"


async def test_a_log_that_redis_takes_nothing_of_ends_the_run_with_a_sentence(settings: Settings, redis: Redis) -> None:
    changed = with_runs(settings, append_timeout=timedelta(seconds=0.5))
    async with open_process(changed) as process:
        run = await make_run(process.stores.pool, model=SLOW)
        async with driven(process, run.id):
            await eventually(lambda: said(process, run, 5))
            await redis.delete(keys.responses(run.id))
            await redis.set(keys.responses(run.id), "no list at all", ex=60)
            await eventually(lambda: is_final(process, run), says="the run did not end")
        row = await row_of(process.stores.pool, run.id)
        assert row.status == "failed"
        assert row.error
        assert "could not be written" in row.error
        await redis.delete(keys.responses(run.id))
        await age(process.stores.pool, run.id, "updated_at")
        await sweeper.close_cut(process.stores)
        await closed(process.stores.pool, run.id)


async def test_a_full_redis_holds_a_run_up_and_does_not_end_it(settings: Settings, redis: Redis) -> None:
    changed = with_runs(settings, append_timeout=timedelta(seconds=0.2))
    async with open_process(changed) as process, open_process(changed) as second:
        run = await make_run(process.stores.pool, model="demo/lorem?chunks=40&delay_ms=5")
        reading = asyncio.create_task(read_all(second.stores, run.id))
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 5))
            await redis.config_set("maxmemory", "1")
            try:
                await asyncio.wait([task], timeout=2 * settings.runs.lock_ttl.total_seconds())
                assert not task.done()
                await drive(second, await make_run(second.stores.pool))
            finally:
                await redis.config_set("maxmemory", "0")
            async with asyncio.timeout(PATIENT):
                await task
                assert await reading == list(enumerate(await log_of(process, run)))
        row = await closed(process.stores.pool, run.id)
        assert (row.status, row.attempt, row.crashes) == ("completed", 1, 0)


async def is_final(process: Process, run: Run) -> bool:
    return (await row_of(process.stores.pool, run.id)).final


async def test_a_second_message_for_a_live_run_is_harmless(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool, model="demo/lorem?chunks=60&delay_ms=5")
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 5))
        await asyncio.gather(*(drive(each, run) for each in (second, process, second)))
        async with asyncio.timeout(PATIENT):
            await task
    row = await closed(process.stores.pool, run.id)
    assert (row.status, row.attempt) == ("completed", 1)
    words = kinds(await log_of(process, run))
    assert words.count("thread_run_start") == words.count("last:completed") == 1
    assert "run_resumed" not in words


async def test_a_second_message_right_after_the_lock_was_lost_does_not_take_a_live_run(
    process: Process, second: Process
) -> None:
    run = await make_run(process.stores.pool, model="demo/lorem?chunks=200&delay_ms=5")
    async with driven(process, run.id) as task:

        async def locked() -> bool:
            return task.done() or bool(await process.stores.redis.exists(keys.lock(run.id)))

        robbed = 0
        while not task.done():
            await eventually(locked)
            await process.stores.redis.delete(keys.lock(run.id))
            await drive(second, run)
            robbed += 1
        await task
    assert robbed > 5
    row = await closed(process.stores.pool, run.id)
    assert (row.status, row.attempt, row.crashes) == ("completed", 1, 0)
    log = await log_of(process, run)
    words = kinds(log)
    assert words.count("thread_run_start") == words.count("complete") == words.count("last:completed") == 1
    assert "run_resumed" not in words
    assert await assistant_texts(process.stores.pool, run) == [text_of(log)]


async def test_a_message_for_an_ended_or_unknown_run_is_harmless(process: Process) -> None:
    run = await make_run(process.stores.pool)
    await drive(process, run)
    log = await log_of(process, run)
    await drive(process, run)
    assert await log_of(process, run) == log
    await runner.drive(process, UUID(int=1))


async def test_a_run_that_nobody_has_claimed_is_claimed_without_a_look_at_its_row(process: Process) -> None:
    run = await make_run(process.stores.pool)
    with patch.object(store, "get", AsyncMock(side_effect=AssertionError("looked at"))):
        await runner.drive(process, run.id, unclaimed=True)
    assert (await closed(process.stores.pool, run.id)).status == "completed"
    log = await log_of(process, run)
    assert kinds(log)[0] == "thread_run_start"
    await runner.drive(process, run.id, unclaimed=True)  # its message comes once more
    assert await log_of(process, run) == log


async def test_an_old_message_of_a_run_that_has_ended_reads_none_of_its_log(process: Process) -> None:
    run = await make_run(process.stores.pool)
    await drive(process, run)
    looked, look = list[Listed](), LogWriter.look

    async def note(writer: LogWriter, *arguments: Any, **named: Any) -> Listed:
        looked.append(await look(writer, *arguments, **named))
        return looked[-1]

    with patch.object(LogWriter, "look", note):
        await runner.drive(process, run.id, unclaimed=True)
    assert [(each.length > 3, len(each.tail)) for each in looked] == [(True, 1)]


async def test_events_that_somebody_pushed_before_the_claim_stand_before_ours(process: Process, redis: Redis) -> None:
    run = await make_run(process.stores.pool)
    await redis.rpush(keys.responses(run.id), b'{"type": "foreign"}', b'{"type": "more"}')
    await runner.drive(process, run.id, unclaimed=True)
    row = await closed(process.stores.pool, run.id)
    log = await log_of(process, run)
    assert row.status == "completed"
    assert log[:2] == [b'{"type": "foreign"}', b'{"type": "more"}']
    assert row.event_count == len(log)


async def test_a_message_that_is_older_than_a_hand_over_or_a_stop_is_harmless(
    process: Process, second: Process
) -> None:
    handed, stopped = await make_run(process.stores.pool, model=SLOW), await make_run(process.stores.pool)
    async with driven(process, handed.id) as task:
        await eventually(lambda: said(process, handed, 3))
        process.draining.set()
        await task
    await stopping.request_stop(process.stores, stopped.id)
    stop_it = asyncio.create_task(stop_later(second, handed.id))
    await asyncio.gather(*(runner.drive(second, run.id, unclaimed=True) for run in (handed, stopped)), stop_it)
    ends = [await closed(process.stores.pool, run.id) for run in (handed, stopped)]
    assert [(row.status, row.attempt) for row in ends] == [("stopped", 2), ("stopped", 1)]


async def stop_later(process: Process, run_id: UUID) -> None:
    """Once it is driven here."""
    await eventually(lambda: is_driven(process, run_id))
    await stopping.request_stop(process.stores, run_id)


async def is_driven(process: Process, run_id: UUID) -> bool:
    return (await row_of(process.stores.pool, run_id)).instance_id == process.stores.instance_id


async def test_two_messages_at_once_start_one_attempt(process: Process, second: Process) -> None:
    for _ in range(5):
        run = await make_run(process.stores.pool)
        await asyncio.gather(*(runner.drive(each, run.id) for each in (process, second) * 2))
        row = await closed(process.stores.pool, run.id)
        assert (row.status, row.attempt) == ("completed", 1)


async def test_a_run_that_lost_its_lease_stops_and_writes_no_more(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 5))
        ended = await lifecycle.end_from_outside(second.stores.pool, run.id, 1, "failed", error="Taken away.")
        assert ended
        async with asyncio.timeout(PATIENT):
            await task
    assert await assistant_texts(process.stores.pool, run) == []
    assert (await row_of(process.stores.pool, run.id)).error == "Taken away."


async def test_the_next_run_of_the_project_is_woken_at_the_end(process: Process) -> None:
    run = await make_run(process.stores.pool)
    await make_run(process.stores.pool, await place_of(process.stores.pool, run))
    await drive(process, run)
    await eventually(lambda: is_sent(process))


async def test_a_run_that_waits_behind_another_is_not_begun(process: Process) -> None:
    run = await make_run(process.stores.pool)
    after = await make_run(process.stores.pool, await place_of(process.stores.pool, run))
    assert (await drive(process, after)).status == "queued"
    assert (await drive(process, run)).status == "completed"
    assert (await drive(process, after)).status == "completed"


async def test_a_flush_of_redis_in_the_middle_of_a_run_changes_nothing(process: Process, second: Process) -> None:
    run = await make_run(process.stores.pool, model="demo/lorem?chunks=150&delay_ms=5")
    reading = asyncio.create_task(read_all(second.stores, run.id))
    async with driven(process, run.id) as task:
        for count in (10, 60, 110):
            await eventually(partial(said, process, run, count))
            await process.stores.redis.flushdb()
        async with asyncio.timeout(PATIENT):
            await task
    row = await closed(process.stores.pool, run.id)
    assert (row.status, row.attempt) == ("completed", 1)
    log = await log_of(process, run)
    async with asyncio.timeout(PATIENT):
        assert await reading == list(enumerate(log))
    assert "void" not in kinds(log)


async def test_every_key_has_a_ttl_while_a_run_is_driven(process: Process) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id):
        await eventually(lambda: said(process, run, 5))
        found = await eventually(lambda: all_keys(process))
        for key in found:
            assert await process.stores.redis.ttl(key) != -1


async def all_keys(process: Process) -> list[bytes]:
    """The list, the lock and the mark of a run that is driven; nothing while one of them is missing."""
    found = [key async for key in process.stores.redis.scan_iter()]
    assert len(found) <= 3
    return found if len(found) == 3 else []


async def test_a_bug_before_the_claim_costs_the_message_and_not_the_run(process: Process) -> None:
    run = await make_run(process.stores.pool)
    await process.stores.pool.execute("UPDATE agent_runs SET message_sent_at = now() WHERE id = $1", run.id)
    with patch.object(lifecycle, "claim", side_effect=KeyError("a bug")):
        row = await drive(process, run)
    assert (row.status, row.message_sent_at) == ("queued", None), "the sweeper sends another"
    assert (await drive(process, row)).status == "completed"
