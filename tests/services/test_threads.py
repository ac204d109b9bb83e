from uuid import UUID, uuid4

import pytest

from services import accounts, projects, threads
from services.errors import Forbidden, NotFound
from services.postgres import Connection, Pool
from services.runs import starting
from services.runs.starting import NewRun
from services.threads import Thread
from tests.conftest import NO_LIMITS


async def make_thread(conn: Connection) -> Thread:
    account = await accounts.ensure_personal(conn, uuid4())
    project = await projects.create(conn, account.account_id, "Garden")
    return await threads.create(conn, account.account_id, project.project_id)


async def make_run(conn: Connection, thread: Thread) -> UUID:
    new = NewRun(thread.account_id, thread.project_id, thread.thread_id, "demo/echo")
    return (await starting.start(conn, new, NO_LIMITS)).run.id


async def test_only_the_owner_reads_a_private_thread(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread = await make_thread(conn)
        assert await threads.writable(conn, thread.account_id, thread.thread_id) == thread
        for thread_id in (thread.thread_id, uuid4()):
            with pytest.raises(NotFound, match="Thread not found"):
                await threads.readable(conn, uuid4(), thread_id)


@pytest.mark.parametrize("table", ["threads", "projects"])
async def test_a_public_thread_or_project_opens_the_thread_for_reading(pool: Pool, table: str) -> None:
    async with pool.acquire() as conn:
        thread = await make_thread(conn)
        await conn.execute(f"UPDATE {table} SET is_public = true")
        assert (await threads.readable(conn, uuid4(), thread.thread_id)).thread_id == thread.thread_id
        with pytest.raises(Forbidden):
            await threads.writable(conn, uuid4(), thread.thread_id)


async def test_runs_are_judged_by_their_threads(pool: Pool) -> None:
    async with pool.acquire() as conn:
        mine, theirs = await make_thread(conn), await make_thread(conn)
        my_run, their_run = await make_run(conn, mine), await make_run(conn, theirs)
        me = mine.account_id
        assert await threads.readable_by_run(conn, me, my_run) == mine
        await threads.writable_by_runs(conn, me, [my_run, my_run])
        for run_ids in ([their_run], [uuid4()], [my_run, their_run]):
            with pytest.raises(NotFound, match="Run not found"):
                await threads.writable_by_runs(conn, me, run_ids)
        await threads.update(conn, theirs.account_id, theirs.thread_id, is_public=True)
        assert (await threads.readable_by_run(conn, me, their_run)).thread_id == theirs.thread_id
        with pytest.raises(Forbidden):
            await threads.writable_by_runs(conn, me, [my_run, their_run])


async def test_deleting_somebody_elses_thread_does_nothing(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread = await make_thread(conn)
        await threads.delete(conn, uuid4(), thread.thread_id)
        assert await threads.readable(conn, thread.account_id, thread.thread_id)
