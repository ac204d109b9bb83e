"""Limits over several API processes, with workers that are killed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

import pytest
from httpx2 import AsyncHTTPTransport, Limits

from services.embedded import ports
from services.postgres import Pool
from services.runs.store import PHASE
from tests.acceptance.client import Client, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import SECRET, Deployment

PROCESSES, STARTS, ROUNDS, MOST, RATE = 4, 200, 50, 3, 100
TEXT = "demo/lorem?chunks=100000&delay_ms=50"
PATIENT_WITH_STORES = {
    "RATE_LIMIT_TIMEOUT": "30s",
    "REDIS_SOCKET_TIMEOUT": "30s",
    "POSTGRES_ACQUIRE_TIMEOUT": "30s",
    "POSTGRES_COMMAND_TIMEOUT": "30s",
}
"""Hundreds of requests at once may take seconds here, and a store that is thought to be away lets requests through."""
HOLDING = f"SELECT count(*) FROM agent_runs AS run WHERE completed_at IS NULL AND {PHASE} <> 'waiting'"


async def start_apis(deployment: Deployment) -> list[str]:
    """The URLs of all API processes."""
    taken = {deployment.port}
    while len(taken) < PROCESSES:
        taken.add(ports.pick(taken))
    others = taken - {deployment.port}
    await asyncio.gather(*(deployment.start_api(port) for port in others))
    return [deployment.url, *(f"http://127.0.0.1:{port}" for port in others)]


def transport() -> AsyncHTTPTransport:
    """A connection for each request: a server closes one that was idle while another round was slow."""
    return AsyncHTTPTransport(limits=Limits(max_connections=None, max_keepalive_connections=0), verify=False)


@asynccontextmanager
async def at_all(urls: Sequence[str], user_id: UUID) -> AsyncIterator[list[Client]]:
    """One user at each of the processes."""
    async with AsyncExitStack() as stack:
        clients = [Client.signed_in(url, SECRET, user_id, transport()) for url in urls]
        yield [await stack.enter_async_context(client) for client in clients]


async def settle(pool: Pool, user_id: UUID) -> None:
    """A user with many projects, whose requests are not counted."""
    await pool.execute(
        f"""
        INSERT INTO accounts (account_id, name) VALUES ('{user_id}', '{user_id}');
        INSERT INTO account_members (account_id, user_id, role) VALUES ('{user_id}', '{user_id}', 'owner');
        INSERT INTO account_limits (account_id, rate_limit_per_minute) VALUES ('{user_id}', 0);
        INSERT INTO projects (project_id, account_id, name)
            SELECT gen_random_uuid(), '{user_id}', 'p' FROM generate_series(1, {STARTS});
        INSERT INTO threads (account_id, project_id) SELECT account_id, project_id FROM projects;
        INSERT INTO messages (thread_id, type, content)
            SELECT thread_id, 'user', '{{"role": "user", "content": "Go on"}}' FROM threads;
        """
    )


class Watch:
    """The most runs that held a slot at one moment, of all moments that were looked at."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.most = pool, 0

    async def look(self) -> None:
        while True:
            self.most = max(self.most, await self.pool.fetchval(HOLDING))
            await asyncio.sleep(0.02)


async def round_of_starts(clients: Sequence[Client], threads: Sequence[str]) -> list[str]:
    """The ids of the runs that were accepted, of one start on each thread at once."""
    answers = await asyncio.gather(
        *(
            clients[number % len(clients)].http.post(f"/thread/{thread_id}/agent/start", json={"model_name": TEXT})
            for number, thread_id in enumerate(threads)
        )
    )
    refused = [answer.json()["detail"] for answer in answers if answer.status_code == 429]
    assert all((said["running_count"], said["limit"]) == (MOST, MOST) for said in refused)
    accepted = [answer.json()["agent_run_id"] for answer in answers if answer.status_code == 200]
    assert len(accepted) + len(refused) == len(threads)
    return accepted


async def stop_all(client: Client, pool: Pool, run_ids: Sequence[str]) -> None:
    (await client.http.post("/agent-runs/stop", json={"ids": list(run_ids)})).raise_for_status()

    async def none_left() -> bool:
        return not await pool.fetchval(HOLDING)

    await until(none_left, within=60.0, says="a slot is still held")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_limits_are_exact_over_four_processes_and_no_slot_goes_with_a_worker(deploy: Deploy, pool: Pool) -> None:
    ann = uuid4()
    await settle(pool, ann)
    deployment = await deploy(
        workers=2, MAX_CONCURRENT_RUNS=str(MOST), RATE_LIMIT_PER_MINUTE=str(RATE), **PATIENT_WITH_STORES
    )
    urls = await start_apis(deployment)
    for count in (1, PROCESSES):
        async with at_all(urls[:count], uuid4()) as clients:
            asked = (clients[number % count].http.get("/threads") for number in range(3 * RATE))
            statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
            assert [statuses.count(status) for status in (200, 429)] == [RATE, 2 * RATE]
    threads = [str(row["thread_id"]) for row in await pool.fetch("SELECT thread_id FROM threads")]
    watch = Watch(pool)
    watching = asyncio.create_task(watch.look())
    async with at_all(urls, ann) as clients:
        for number in range(ROUNDS):
            accepted = await round_of_starts(clients, threads)
            assert len(accepted) == MOST, f"round {number}"
            if number % 10 == 5:
                victim = await deployment.driver_of(accepted[0])
                victim.signal_group(signal.SIGKILL)
                rows = await pool.fetch("SELECT thread_id FROM agent_runs WHERE completed_at IS NULL")
                others = set(threads) - {str(row["thread_id"]) for row in rows}
                assert await round_of_starts(clients, list(others)[:MOST]) == [], "a dead worker's run holds its slot"
                await deployment.refill(workers=2)
            await stop_all(clients[0], pool, accepted)
    watching.cancel()
    assert watch.most == MOST
