"""What the API's tests of agents do not reach: runs that are live while their agent changes."""

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

from services import agents, run_messages
from services.agents import Agent, Change
from services.known_versions import KnownVersions
from services.messages import NewMessage
from services.postgres import Pool, transaction
from services.runs import store
from services.runs.fence import Fence
from services.secrets import Secrets
from services.settings import Settings
from tests.agent.seeds import fence_of, make_run, make_thread


async def make_agent(pool: Pool, settings: Settings, account_id: UUID) -> Agent:
    async with transaction(pool) as conn:
        return await agents.create(conn, Secrets.of(settings.secrets), account_id, Change({}, {"name": "A"}))


async def live_run(pool: Pool, settings: Settings) -> tuple[Fence, Agent, UUID]:
    """A running run of an agent, and its thread."""
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        run = await make_run(conn, thread_id)
    agent = await make_agent(pool, settings, run.account_id)
    statement = "UPDATE agent_runs SET agent_id = $2, agent_version_id = $3 WHERE id = $1"
    await pool.execute(statement, run.id, agent.agent_id, agent.current_version_id)
    return fence_of(run), agent, thread_id


async def test_an_agent_is_deleted_while_its_runs_store_messages(pool: Pool, settings: Settings) -> None:
    runs = [await live_run(pool, settings) for _ in range(2)]
    fences = [fence for fence, _, _ in runs]
    agent = replace(runs[0][1])
    await pool.execute("UPDATE agent_runs SET agent_id = $1, agent_version_id = NULL", agent.agent_id)

    async def speak(fence: Fence, thread_id: UUID) -> None:
        for number in range(20):
            async with pool.acquire() as conn:
                await run_messages.add(conn, fence, thread_id, [NewMessage("assistant", {"n": number})])

    async def delete() -> None:
        await asyncio.sleep(0.02)
        async with transaction(pool) as conn:
            await agents.delete(conn, agent.account_id, agent.agent_id)

    await asyncio.gather(delete(), *(speak(fence, thread_id) for fence, _, thread_id in runs))
    assert await pool.fetchval("SELECT count(*) FROM messages WHERE agent_id IS NULL") == 40
    for fence in fences:
        run = await store.get(pool, fence.run_id)
        assert run
        assert (run.agent_id, run.status) == (None, "running")


async def test_what_a_run_stores_is_its_agent_s(pool: Pool, settings: Settings) -> None:
    fence, agent, thread_id = await live_run(pool, settings)
    async with pool.acquire() as conn:
        (stored,) = await run_messages.add(conn, fence, thread_id, [NewMessage("assistant", {})])
    kept = await run_messages.keep(pool, fence, uuid4(), {}, {})
    for message in (stored, kept):
        assert (message.agent_id, message.agent_version_id) == (agent.agent_id, agent.current_version_id)


async def test_a_version_that_was_deleted_loads_as_none(pool: Pool, settings: Settings) -> None:
    assert await KnownVersions(pool).opened(uuid4(), uuid4(), Secrets.of(settings.secrets)) is None
