"""A list costs what it shows, however much there is: no statement reads a big table from end to end."""

import io
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI

from services.postgres import Pool
from services.runs.stores import Stores
from services.settings import Settings
from tests.api.conftest import Person
from tests.benchmarks import filling, looks, plans
from tests.benchmarks.filling import Sizes
from tests.benchmarks.plans import Statement
from tests.benchmarks.progress import Progress
from worker import sweeper

SIZES = Sizes(accounts=50, runs=20_000, messages=60_000)


@pytest.fixture
async def filled(database_url: str) -> Sizes:
    await filling.fill(database_url, SIZES, Progress(io.StringIO()))
    return SIZES


@pytest.fixture
async def owner(filled: Sizes, app: FastAPI, settings: Settings) -> AsyncIterator[Person]:
    """Who has the most."""
    async with Person(app, settings, looks.largest_account()) as owner:
        yield owner


async def assert_none_scans(pool: Pool, statements: list[Statement]) -> None:
    assert statements
    async with pool.acquire() as conn:
        found = await plans.scans(conn, statements, filling.BIG)
    assert not found, "\n".join(map(str, found))


async def test_no_list_reads_a_whole_table(owner: Person, app: FastAPI, pool: Pool, filled: Sizes) -> None:
    async with plans.recorded(app.state.resources.pool) as said:
        for look in await looks.looks(pool, filled):
            answer = await owner.get(look.path, params=look.asked)
            assert answer.status_code == 200, (look.name, answer.text)
    await assert_none_scans(pool, said)


async def test_no_start_and_no_stop_reads_a_whole_table(owner: Person, app: FastAPI, pool: Pool) -> None:
    async with plans.recorded(app.state.resources.pool) as said:
        for on_active in ("stop", "queue"):
            run_id = await owner.make_run(str(looks.id_of("thread")), on_active=on_active)
        assert (await owner.post(f"/agent-run/{run_id}/stop")).status_code == 200
        thread_id, project_id = await owner.make_thread()
        run_id = await owner.make_run(thread_id, delay_seconds=60)
        assert (await owner.delete(f"/projects/{project_id}")).status_code == 200
    await assert_none_scans(pool, said)


async def test_no_upkeep_reads_a_whole_table(filled: Sizes, stores: Stores, pool: Pool) -> None:
    await pool.execute("UPDATE agent_runs SET heartbeat_at = now() - interval '1 hour' WHERE status = 'running'")
    async with plans.recorded(stores.pool) as said:
        await sweeper.sweep(stores)
    assert len({one.query for one in said}) >= len(sweeper.STEPS)
    await assert_none_scans(pool, said)


async def test_a_scan_is_found(pool: Pool) -> None:
    run_ids: list[UUID] = [uuid4()]
    looked_up = Statement("SELECT FROM agent_runs WHERE id = ANY($1)", (run_ids,))
    searched = Statement("SELECT FROM agent_runs WHERE model_name = $1", ("demo/echo",))
    walked = Statement("SELECT FROM agent_runs ORDER BY id", ())
    async with pool.acquire() as conn:
        await conn.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        found = await plans.scans(conn, [looked_up, searched, walked], filling.BIG)
        await conn.execute("RESET enable_seqscan; RESET enable_bitmapscan")
    assert {scan.query for scan in found} == {searched.query, walked.query}
