import asyncio
from uuid import uuid4

import pytest

from services import run_messages
from services.messages import NewMessage
from services.postgres import Pool
from services.runs.fence import Fence, FenceLost
from tests.agent.seeds import fence_of, make_run, make_thread

SAID = NewMessage("assistant", {"role": "assistant", "content": "a"})


async def test_a_fenced_message_belongs_to_its_run_and_counts_as_progress(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        run = await make_run(conn, thread_id)
        stored = await run_messages.add(conn, fence_of(run), thread_id, [SAID, SAID])
        assert [message.agent_run_id for message in stored] == [run.id, run.id]
        assert await conn.fetchval("SELECT crashes FROM agent_runs WHERE id = $1", run.id) == 0


@pytest.mark.parametrize(
    "loss", ["attempt = attempt + 1", "status = 'stopped', completed_at = now()", "status = 'queued'"]
)
async def test_an_attempt_that_lost_its_run_cannot_store_any_more(pool: Pool, loss: str) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        run = await make_run(conn, thread_id)
        await conn.execute(f"UPDATE agent_runs SET {loss} WHERE id = $1", run.id)
        with pytest.raises(FenceLost):
            await run_messages.add(conn, fence_of(run), thread_id, [SAID])
        assert not await conn.fetchval("SELECT count(*) FROM messages WHERE thread_id = $1", thread_id)
        assert await conn.fetchval("SELECT crashes FROM agent_runs WHERE id = $1", run.id) == 3


@pytest.mark.parametrize(
    "loss", ["attempt = attempt + 1", "status = 'stopped', completed_at = now(), closed_at = now()"]
)
async def test_what_was_streamed_is_kept_by_nobody_who_lost_the_run_or_after_its_end_was_told(
    pool: Pool, loss: str
) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        run = await make_run(conn, thread_id)
        await conn.execute(f"UPDATE agent_runs SET {loss} WHERE id = $1", run.id)
        with pytest.raises(FenceLost):
            await run_messages.keep(conn, fence_of(run), uuid4(), SAID.content, {})
        assert not await conn.fetchval("SELECT count(*) FROM messages WHERE thread_id = $1", thread_id)


async def test_a_message_that_races_a_take_over_waits_for_it_and_is_refused(pool: Pool) -> None:
    async with pool.acquire() as conn, pool.acquire() as other:
        thread_id = await make_thread(conn)
        run = await make_run(conn, thread_id)
        async with other.transaction():
            await other.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", run.id)
            adding = asyncio.create_task(run_messages.add(conn, fence_of(run), thread_id, [SAID]))
            done, _ = await asyncio.wait({adding}, timeout=0.2)
            assert not done
        with pytest.raises(FenceLost):
            await adding


async def test_a_fence_of_an_unknown_run_is_lost(pool: Pool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(FenceLost):
            await run_messages.add(conn, Fence(uuid4(), 1, "worker"), await make_thread(conn), [SAID])
