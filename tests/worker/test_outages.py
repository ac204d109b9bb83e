"""A store that goes away between claim and end: the run waits, goes on or is given back, which is no crash."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import asyncpg
import pytest
from redis.asyncio import Redis

from agent.context import RunContext
from services.runs import keys, lifecycle
from services.runs.event_log import EventLog
from services.runs.store import Run
from services.runs.together import Together
from services.settings import Settings
from tests.proxy import Proxy
from tests.services.runs.conftest import reaching_redis_by
from tests.services.runs.seeds import age, chunk, closed, eventually, kinds, listed, make_run, read_all, row_of
from tests.waiting import PATIENT
from tests.worker.conftest import open_process
from tests.worker.test_runner import HANDED_OVER, SLOW, drive, driven, producing, said
from worker import endings, runner
from worker.attempt import Attempt
from worker.process import Process

SHORT = "demo/lorem?chunks=40&delay_ms=5"


@dataclass
class Far:
    """A worker that reaches its stores through proxies."""

    process: Process
    redis: Proxy
    postgres: Proxy

    def store(self, name: str) -> Proxy:
        return self.redis if name == "redis" else self.postgres


@pytest.fixture
async def far(settings: Settings, redis: Redis) -> AsyncIterator[Far]:
    async with far_process(settings) as far:
        yield far


@asynccontextmanager
async def far_process(settings: Settings) -> AsyncIterator[Far]:
    url = settings.postgres.url.get_secret_value()
    async with Proxy(settings.redis.dsn) as redis_proxy, Proxy(url) as postgres_proxy:
        limits = {"DATABASE_URL": postgres_proxy.url, "acquire_timeout": "1s", "command_timeout": "1s"}
        postgres = settings.postgres.model_validate({**settings.postgres.model_dump(exclude={"url"}), **limits})
        far = reaching_redis_by(redis_proxy, settings).model_copy(update={"postgres": postgres})
        async with open_process(far) as process:
            yield Far(process, redis_proxy, postgres_proxy)
            for proxy in (redis_proxy, postgres_proxy):
                proxy.restore()


Step = Callable[..., Awaitable[Any]]


def after(step: Step, then: Callable[[], None]) -> Step:
    """`step`, and something that happens right after it, the first time."""
    happened = False

    async def both(*arguments: Any, **named: Any) -> Any:
        nonlocal happened
        result = await step(*arguments, **named)
        if not happened:
            then()
        happened = True
        return result

    return both


def before(step: Step, first: Callable[[], None]) -> Step:
    """`step`, and something that happens before it, each time."""

    async def both(*arguments: Any, **named: Any) -> Any:
        first()
        return await step(*arguments, **named)

    return both


def losing_its_answer(step: Step, proxy: Proxy) -> Step:
    """`step`, whose first answer never comes although Postgres has done it."""
    happened = False

    async def lose(*arguments: Any, **named: Any) -> Any:
        nonlocal happened
        if happened:
            return await step(*arguments, **named)
        happened = True
        proxy.lose_replies()
        asyncio.get_running_loop().call_later(0.25, cut_and_restore, proxy)
        return await step(*arguments, **named)

    return lose


def cut_and_restore(proxy: Proxy) -> None:
    proxy.cut()
    proxy.restore()


def uncounted(run: Run) -> tuple[str, int, int]:
    return run.status, run.attempt, run.crashes


@pytest.mark.parametrize(
    ("store", "how"),
    [("redis", Proxy.refuse), ("redis", Proxy.stall), ("postgres", Proxy.refuse)],
    ids=["redis refuses", "redis stalls", "postgres refuses"],
)
async def test_a_store_that_goes_away_right_after_the_claim_is_waited_for(
    far: Far, process: Process, store: str, how: Callable[[Proxy], None]
) -> None:
    run, proxy = await make_run(process.stores.pool, model=SHORT), far.store(store)
    with patch.object(lifecycle, "claim", after(lifecycle.claim, partial(how, proxy))):
        async with driven(far.process, run.id) as task:
            await asyncio.wait([task], timeout=2 * far.process.settings.runs.dead_after.total_seconds())
            assert not task.done()
            proxy.restore()
            async with asyncio.timeout(PATIENT):
                await task
    assert uncounted(await closed(process.stores.pool, run.id)) == ("completed", 1, 0)
    log = await listed(process.stores, run.id)
    assert kinds(log).count("last:completed") == 1
    assert "run_resumed" not in kinds(log)


async def test_a_claim_whose_answer_is_lost_is_found_to_be_ours(far: Far, process: Process) -> None:
    run = await make_run(process.stores.pool, model=SHORT)
    with patch.object(lifecycle, "claim", losing_its_answer(lifecycle.claim, far.postgres)):
        assert uncounted(await drive(far.process, run)) == ("completed", 1, 0)
    assert "run_resumed" not in kinds(await listed(process.stores, run.id))


async def test_an_end_whose_answer_is_lost_is_found_to_be_ours_and_told(far: Far, process: Process) -> None:
    run = await make_run(process.stores.pool, model=SHORT)
    ends = far.process.stores.together.ends
    with patch.object(ends, "answer", losing_its_answer(ends.answer, far.postgres)):
        assert uncounted(await drive(far.process, run)) == ("completed", 1, 0)
    assert kinds(await listed(process.stores, run.id))[-1] == "last:completed"


async def test_a_status_that_a_full_disk_refuses_is_written_at_the_fourth_try(process: Process) -> None:
    pool = process.stores.pool
    await pool.execute(
        """
        CREATE SEQUENCE tries;
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') <= 3 THEN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER full_disk BEFORE UPDATE OF completed_at ON agent_runs
            FOR EACH ROW WHEN (NEW.completed_at IS NOT NULL) EXECUTE FUNCTION full_disk();
        """
    )
    assert uncounted(await drive(process, await make_run(pool), within=60)) == ("completed", 1, 0)
    assert await pool.fetchval("SELECT last_value FROM tries") == 4


async def test_a_drain_while_postgres_is_away_gives_the_run_back_when_it_is_there_again(
    far: Far, process: Process
) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    with patch.object(endings, "ARCHIVE_SECONDS", 0.3):
        async with driven(far.process, run.id) as task:
            await eventually(lambda: said(process, run, 10))
            far.postgres.refuse()
            far.process.draining.set()
            await asyncio.wait([task], timeout=1.5)
            assert not task.done()
            far.postgres.restore()
            async with asyncio.timeout(HANDED_OVER):
                await task
    row = await row_of(process.stores.pool, run.id)
    assert uncounted(row) == ("queued", 1, 0)
    assert row.reserved_events >= len(await listed(process.stores, run.id)), "no id is given out twice"


async def test_what_work_still_says_while_its_log_is_archived_does_not_hold_up_its_hand_over(process: Process) -> None:
    """Work that does not let go: the log has grown beyond what is handed over."""
    archived_length = endings.archived_length

    async def archive_and_speak_on(attempt: Attempt, log: EventLog) -> int | None:
        length = await archived_length(attempt, log)
        await log.append(chunk(attempt.run, "and another thing"))
        await attempt.process.stores.writer.archiver.archive_run(log)
        await eventually(lambda: log.archived > (length or 0))
        return length

    run = await make_run(process.stores.pool, model=SLOW)
    with patch.object(endings, "archived_length", archive_and_speak_on):
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 10))
            process.draining.set()
            async with asyncio.timeout(HANDED_OVER):
                await task
    row = await row_of(process.stores.pool, run.id)
    assert uncounted(row) == ("queued", 1, 0)
    assert row.archived_events == len(await listed(process.stores, run.id))


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_drain_while_an_end_waits_for_redis_gives_the_run_back(far: Far, process: Process, status: str) -> None:
    async def end_in_the_dark(context: RunContext) -> None:
        far.redis.refuse()
        context.draft.text = "so far"
        await context.log.append(chunk(context.run, "so far"))
        if status == "failed":
            raise RuntimeError

    run = await make_run(process.stores.pool)
    with producing(end_in_the_dark):
        async with driven(far.process, run.id) as task:
            await eventually(lambda: far.redis.refusing)
            await asyncio.wait([task], timeout=0.5)
            far.process.draining.set()
            async with asyncio.timeout(HANDED_OVER):
                await task
    assert uncounted(await row_of(process.stores.pool, run.id)) == ("queued", 1, 0)


async def test_a_drain_before_the_log_could_be_opened_gives_the_run_back(far: Far, process: Process) -> None:
    run = await make_run(process.stores.pool)
    with patch.object(lifecycle, "claim", after(lifecycle.claim, far.redis.refuse)):
        async with driven(far.process, run.id) as task:
            await eventually(lambda: far.redis.refusing)
            await asyncio.wait([task], timeout=0.5)
            far.process.draining.set()
            async with asyncio.timeout(HANDED_OVER):
                await task
    assert uncounted(await row_of(process.stores.pool, run.id)) == ("queued", 1, 0)


async def test_a_drain_while_a_run_cannot_even_be_claimed_waits_for_nothing(far: Far, process: Process) -> None:
    claim_surely = runner.claim_surely

    async def claim_in_the_dark(*arguments: Any) -> Run | None:
        far.postgres.refuse()
        await eventually(lambda: far.process.stores.pool.get_size() == 0)
        return await claim_surely(*arguments)

    run = await make_run(process.stores.pool)
    with patch.object(runner, "claim_surely", claim_in_the_dark):
        async with driven(far.process, run.id) as task:
            await eventually(lambda: far.postgres.refusing)
            await asyncio.wait([task], timeout=0.5)
            assert not task.done()
            far.process.leaving.set()
            async with asyncio.timeout(HANDED_OVER):
                await task
    assert uncounted(await row_of(process.stores.pool, run.id)) == ("queued", 0, 0)


async def test_work_that_a_store_fails_is_given_back_and_not_failed(process: Process, second: Process) -> None:
    async def fails(context: RunContext) -> None:
        raise asyncpg.ConnectionDoesNotExistError("gone in the middle")

    run = await make_run(process.stores.pool, model=SHORT)
    with producing(fails):
        assert uncounted(await drive(process, run)) == ("queued", 1, 0)
    assert not await second.stores.dispatch.publisher.call(lambda broker: broker.get_declared_queues(), PATIENT)
    assert uncounted(await drive(second, run)) == ("completed", 2, 0)
    assert kinds(await listed(second.stores, run.id)).count("run_resumed") == 1


async def test_work_that_asks_postgres_what_it_cannot_be_asked_fails(process: Process) -> None:
    async def misuses(context: RunContext) -> None:
        await context.pool.fetchval("SELECT $1::int", "no number")

    with producing(misuses):
        row = await drive(process, await make_run(process.stores.pool))
    assert (row.status, row.error) == ("failed", runner.INTERNAL_ERROR)


async def test_a_driver_that_is_cancelled_gives_its_run_back_and_its_work_ends(process: Process) -> None:
    ended = asyncio.Event()

    async def silent(context: RunContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    run = await make_run(process.stores.pool)
    with producing(silent):
        async with driven(process, run.id) as task:
            await eventually(lambda: said(process, run, 1))
            task.cancel()
            async with asyncio.timeout(HANDED_OVER):
                await asyncio.wait([task])
    assert task.cancelled()
    assert ended.is_set()
    assert uncounted(await row_of(process.stores.pool, run.id)) == ("queued", 1, 0)
    assert not await process.stores.redis.exists(keys.lock(run.id))


async def test_an_end_that_is_being_written_is_written_although_its_driver_is_cancelled(process: Process) -> None:
    ending = asyncio.Event()

    async def end_late(*arguments: Any, **named: Any) -> Run | None:
        ending.set()
        await asyncio.sleep(0.3)
        return await end(*arguments, **named)

    end = Together.end
    run = await make_run(process.stores.pool)
    with patch.object(Together, "end", end_late):
        async with driven(process, run.id) as task:
            await ending.wait()
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.05)
            row = await closed(process.stores.pool, run.id)
    assert uncounted(row) == ("completed", 1, 0)
    assert kinds(await listed(process.stores, run.id))[-1] == "last:completed"


async def test_what_waits_for_a_store_ends_with_its_process(settings: Settings, process: Process) -> None:
    run = await make_run(process.stores.pool)
    async with asyncio.timeout(60):
        async with far_process(settings) as far:
            with patch.object(Together, "end", before(Together.end, far.postgres.refuse)):
                task = asyncio.create_task(runner.drive(far.process, run.id))
                await eventually(lambda: far.postgres.refusing)
        await asyncio.wait([task])
    assert uncounted(await row_of(process.stores.pool, run.id)) == ("running", 1, 0)


async def test_one_that_both_stores_have_left_for_too_long_writes_nothing_when_they_are_back(
    far: Far, process: Process
) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(far.process, run.id) as task:
        await eventually(lambda: said(process, run, 10))
        for proxy in (far.redis, far.postgres):
            proxy.stall()
        await eventually(partial(lock_is_gone, process, run))
        await age(process.stores.pool, run.id, "heartbeat_at")
        reading = asyncio.create_task(read_all(process.stores, run.id))
        async with driven(process, run.id) as taken_over:
            await eventually(partial(is_attempt, process, run, 2))
            for proxy in (far.redis, far.postgres):
                proxy.restore()
            async with asyncio.timeout(PATIENT):
                await task
            assert not taken_over.done()
            await lifecycle.request_stops(process.stores.pool, [run.id])
            async with asyncio.timeout(PATIENT):
                await taken_over
                seen = [event for _, event in await reading]
    row = await closed(process.stores.pool, run.id)
    assert (row.status, row.attempt) == ("stopped", 2)
    assert kinds(seen).count("run_resumed") == kinds(seen).count("last:stopped") == 1


async def lock_is_gone(process: Process, run: Run) -> bool:
    return not await process.stores.redis.exists(keys.lock(run.id))


async def is_attempt(process: Process, run: Run, attempt: int) -> bool:
    return (await row_of(process.stores.pool, run.id)).attempt == attempt
