import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services import run_messages
from services.messages import Message, NewMessage
from services.postgres import Pool, transaction
from services.run_messages import FencedMessage
from services.runs import lifecycle, stopping
from services.runs.fence import FenceLost
from services.runs.store import Run
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.services.runs.seeds import (
    Driver,
    Statements,
    assistant_texts,
    closed,
    driving,
    eventually,
    kinds,
    listed,
    make_run,
    row_of,
    waiting_for_locks,
    with_runs,
)
from tests.waiting import PATIENT


@asynccontextmanager
async def driving_many(stores: Stores, count: int) -> AsyncIterator[list[Driver]]:
    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(driving(stores)) for _ in range(count)]
        await eventually(lambda: all(driver.log.reserved for driver in drivers))
        yield drivers


@pytest.fixture
async def quiet(settings: Settings, redis: Redis) -> AsyncIterator[Stores]:
    """Stores whose beats and archive are an hour away: nobody else locks a row, which would then be asked alone."""
    hour = timedelta(hours=1)
    rare = with_runs(settings, heartbeat_interval=hour, lock_ttl=3 * hour, dead_after=3 * hour, archive_interval=hour)
    async with open_stores(rare) as stores:
        yield stores


async def end(driver: Driver, status: str = "completed", error: str | None = None, **usage: object) -> Run | None:
    return await driver.stores.together.end(driver.held.fence, status, error=error, usage=usage)


async def keep(driver: Driver, text: str, message_id: UUID | None = None) -> Message:
    new = NewMessage("assistant", {"role": "assistant", "content": text}, message_id=message_id or uuid4())
    assert new.message_id
    draft = FencedMessage.of(driver.held.fence, driver.run.thread_id, new.message_id, new)

    async def alone() -> Message:
        async with driver.stores.pool.acquire() as conn:
            return (await run_messages.add(conn, driver.held.fence, driver.run.thread_id, [new]))[0]

    return await driver.stores.together.add(draft, alone)


@asynccontextmanager
async def locked(pool: Pool, run: Run) -> AsyncIterator[None]:
    async with transaction(pool) as conn:
        await conn.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", run.id)
        yield


async def test_runs_that_end_at_once_end_each_in_its_own_way(stores: Stores) -> None:
    async with driving_many(stores, 4) as (one, other, failing, stopped):
        await lifecycle.request_stops(stores.pool, [stopped.run.id])
        rows = await asyncio.gather(
            end(one, n=1), end(other, n=2), end(failing, "failed", "It broke."), end(stopped, "failed", "Never said.")
        )
        ended = [(row.status, row.error, row.usage) for row in rows if row]
        assert ended == [
            ("completed", None, {"n": 1}),
            ("completed", None, {"n": 2}),
            ("failed", "It broke.", {}),
            ("stopped", None, {}),
        ]
        assert [*await asyncio.gather(end(one), end(other))] == [None, None]
        assert (await row_of(stores.pool, one.run.id)).usage == {"n": 1}


async def test_runs_that_end_at_once_take_one_statement(quiet: Stores) -> None:
    async with driving_many(quiet, 8) as drivers:
        statements = await Statements.naming(quiet.pool, "completed_at")
        await asyncio.gather(*map(end, drivers))
        assert await statements.count() == 1


async def test_a_row_that_is_locked_holds_up_no_other_end(stores: Stores) -> None:
    async with driving_many(stores, 2) as (held, free):
        async with locked(stores.pool, held.run), asyncio.timeout(PATIENT):
            late = asyncio.create_task(end(held))
            row = await end(free)
            assert row
            assert row.status == "completed"
            assert not late.done()
        row = await late
        assert row
        assert row.status == "completed"


async def test_an_end_that_postgres_refuses_spoils_no_other(stores: Stores) -> None:
    async with driving_many(stores, 2) as (odd, sound):
        refused, row = await asyncio.gather(end(odd, words="\0"), end(sound), return_exceptions=True)
        assert isinstance(refused, Exception)
        assert isinstance(row, Run)
        assert row.status == "completed"


async def test_drafts_that_are_kept_at_once_are_stored_each_in_its_thread(quiet: Stores) -> None:
    async with driving_many(quiet, 3) as drivers:
        statements = await Statements.naming(quiet.pool, "crashes")
        await asyncio.gather(*(keep(driver, f"text {number}") for number, driver in enumerate(drivers)))
        assert await statements.count() == 1
        for number, driver in enumerate(drivers):
            assert await assistant_texts(quiet.pool, driver.run) == [f"text {number}"]


async def test_a_draft_of_a_lost_fence_is_refused_and_the_others_are_stored(stores: Stores) -> None:
    async with driving_many(stores, 2) as (lost, sound):
        await stores.pool.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", lost.run.id)
        refused, kept = await asyncio.gather(keep(lost, "no"), keep(sound, "yes"), return_exceptions=True)
        assert isinstance(refused, FenceLost)
        assert isinstance(kept, Message)
        assert await assistant_texts(stores.pool, lost.run) == []
        assert await assistant_texts(stores.pool, sound.run) == ["yes"]


async def test_a_draft_that_was_stored_before_spoils_no_other(stores: Stores) -> None:
    async with driving_many(stores, 2) as (twice, once):
        message_id = (await keep(twice, "first")).message_id
        refused, kept = await asyncio.gather(
            keep(twice, "second", message_id), keep(once, "yes"), return_exceptions=True
        )
        assert isinstance(refused, Exception)
        assert isinstance(kept, Message)
        assert await assistant_texts(stores.pool, twice.run) == ["first"]
        assert await assistant_texts(stores.pool, once.run) == ["yes"]


@pytest.mark.parametrize("length", [10, 100_000])
async def test_a_draft_of_any_length_is_kept_whole(stores: Stores, length: int) -> None:
    async with driving(stores) as driver:
        assert (await keep(driver, "é" * length)).content["content"] == "é" * length
        assert await assistant_texts(stores.pool, driver.run) == ["é" * length]


async def test_a_row_that_is_locked_holds_up_no_other_stop(stores: Stores) -> None:
    held, free = await make_run(stores.pool), await make_run(stores.pool)
    async with locked(stores.pool, held), asyncio.timeout(PATIENT):
        late = asyncio.create_task(stopping.request_stop(stores, held.id))

        async def waits() -> bool:
            return await waiting_for_locks(stores.pool) > 0

        await eventually(waits)
        assert (await stopping.request_stop(stores, free.id)).status == "stopped"
        assert not late.done()
    assert (await late).status == "stopped"


async def test_a_run_that_is_stopped_by_many_at_once_says_its_end_once(stores: Stores) -> None:
    run = await make_run(stores.pool)
    answers = await asyncio.gather(*(stopping.request_stop(stores, run.id) for _ in range(10)))
    assert {answer.status for answer in answers} == {"stopped"}
    await closed(stores.pool, run.id)
    assert kinds(await listed(stores, run.id)) == ["thread_run_start", "thread_run_end", "last:stopped"]


async def test_the_turns_of_many_projects_are_found_at_once(stores: Stores) -> None:
    runs = [await make_run(stores.pool) for _ in range(3)]
    asked = [*(run.project_id for run in runs), uuid4()]
    found = await asyncio.gather(*map(stores.together.next_queued, asked))
    assert [run and run.id for run in found] == [*(run.id for run in runs), None]
