"""What a request is told while Postgres or Redis is sick: 503 and when to come again, in time; then all is well."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest
from fastapi import FastAPI
from httpx2 import Response
from redis.asyncio import Redis

from services.postgres import Pool
from services.runs.stores import Stores
from services.settings import Settings
from tests.api.conftest import Person
from tests.services.runs.seeds import driving, eventually, listed
from tests.waiting import PATIENT

PATIENCE = 1.0
LONGEST = 10 * PATIENCE
"""A route asks a few times at most, and each time waits for a connection, the answer and the cancellation."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    patience = timedelta(seconds=PATIENCE)
    limits = {"pool_max": 3, "acquire_timeout": patience, "command_timeout": patience}
    return settings.model_copy(update={"postgres": settings.postgres.model_copy(update=limits)})


@pytest.fixture
def opened(app: FastAPI) -> Stores:
    stores: Stores = app.state.resources.stores
    return stores


def requests(ann: Person, thread_id: str, run_id: str) -> list[Callable[[], Awaitable[Response]]]:
    """One of each kind: a list, a look, a start in one transaction, a stop, a message."""
    return [
        lambda: ann.get("/threads"),
        lambda: ann.get(f"/agent-run/{run_id}"),
        lambda: ann.post("/agent/initiate", files={"prompt": (None, "Hello"), "model_name": (None, "demo/echo")}),
        lambda: ann.post(f"/agent-run/{run_id}/stop"),
        lambda: ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"}),
    ]


async def check_unavailable(ask: Callable[[], Awaitable[Response]]) -> None:
    began = time.monotonic()
    answer = await ask()
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert time.monotonic() - began < LONGEST


@asynccontextmanager
async def exhausted(pool: Pool) -> AsyncIterator[None]:
    """Every connection is taken by somebody else."""
    async with AsyncExitStack() as stack:
        for _ in range(pool.get_max_size()):
            await stack.enter_async_context(pool.acquire())
        yield


async def test_an_exhausted_pool_is_503_in_time_and_readers_and_leases_go_on(
    ann: Person, opened: Stores, redis: Redis
) -> None:
    thread_id, _ = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    async with driving(opened) as driver:
        await driver.say("archived ")
        await driver.archived()
        async with exhausted(opened.pool):
            await asyncio.gather(*map(check_unavailable, requests(ann, thread_id, run_id)))
            before = await heartbeat(opened.upkeep, driver.run.id)
            await eventually(lambda: has_moved(opened.upkeep, driver.run.id, before))
            await redis.flushdb()
            reading = asyncio.create_task(read_three(opened, driver.run.id))
            await driver.say("live ", "on")
            async with asyncio.timeout(PATIENT):
                assert await reading == await listed(opened, driver.run.id)
            assert not driver.held.lost.is_set()
    for ask in requests(ann, thread_id, run_id):
        assert (await ask()).status_code == 200


async def heartbeat(pool: Pool, run_id: object) -> object:
    return await pool.fetchval("SELECT heartbeat_at FROM agent_runs WHERE id = $1", run_id)


async def has_moved(pool: Pool, run_id: object, before: object) -> bool:
    return await heartbeat(pool, run_id) != before


async def read_three(stores: Stores, run_id: object) -> list[bytes]:
    found: list[bytes] = []
    async with stores.tails.follow(run_id) as reader:  # type: ignore[arg-type]
        while len(found) < 3:
            batch = await reader.next()
            found += batch.events if batch else []
    return found


async def test_a_statement_that_hangs_is_503_in_time(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("LOCK TABLE threads, agent_runs IN ACCESS EXCLUSIVE MODE")
        await asyncio.gather(*map(check_unavailable, requests(ann, thread_id, run_id)))
    for ask in requests(ann, thread_id, run_id):
        assert (await ask()).status_code == 200


async def test_deleting_what_is_large_may_take_longer_than_other_statements(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    await pool.execute(
        f"""
        CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({2 * PATIENCE}); RETURN OLD; END $$;
        CREATE TRIGGER slowly BEFORE DELETE ON threads FOR EACH ROW EXECUTE FUNCTION slowly();
        """
    )
    assert (await ann.delete(f"/threads/{thread_id}")).is_success
    (await ann.post("/threads", data={"name": "Another"})).raise_for_status()
    assert (await ann.delete(f"/projects/{project_id}")).is_success


@pytest.mark.parametrize("when", ["at once", "at the commit"])
async def test_a_full_disk_is_503_and_nothing_is_stored(ann: Person, pool: Pool, when: str) -> None:
    thread_id, _ = await ann.make_thread()
    deferred = "DEFERRABLE INITIALLY DEFERRED" if when == "at the commit" else "NOT DEFERRABLE"
    await pool.execute(
        f"""
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
        CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT ON messages
            {deferred} FOR EACH ROW EXECUTE FUNCTION full_disk();
        """
    )
    writes = requests(ann, thread_id, "")
    await asyncio.gather(*(check_unavailable(writes[number]) for number in (2, 4)))
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 0
    assert (await ann.get("/threads")).json()["pagination"]["total"] == 1
    await pool.execute("DROP TRIGGER full_disk ON messages")
    for number in (2, 4):
        assert (await writes[number]()).status_code == 200


async def test_a_full_redis_holds_up_no_request(ann: Person, redis: Redis) -> None:
    thread_id, _ = await ann.make_thread()
    await redis.config_set("maxmemory", "1")
    try:
        run_id = await ann.make_run(thread_id)
        for ask in requests(ann, thread_id, run_id):
            assert (await ask()).status_code == 200
    finally:
        await redis.config_set("maxmemory", "0")
