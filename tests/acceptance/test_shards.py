"""Runs over two Redis servers, as operators start API and workers; one server is killed under them."""

import asyncio
from functools import partial
from uuid import UUID

import pytest
from redis.asyncio import Redis

from services.runs import keys
from services.runs.placement import choose
from tests.acceptance.client import Client, Started, check_whole_log, follow, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import Deployment
from tests.acceptance.test_crashes import check_went_on
from tests.benchmarks.processes import connections
from tests.conftest import keys_without_ttl
from tests.fakes import FakeModel
from tests.private import Valkey, address, private_valkey

NAMES = ("north", "south")
MOST_CONNECTIONS = 8
BACK_SECONDS = 20.0


def place(started: Started) -> str:
    return choose(NAMES, UUID(started.run_id))


async def on_each(client: Client, model: str) -> dict[str, Started]:
    """A run on each server; what falls on one that has its run already is left to itself."""
    found: dict[str, Started] = {}
    while len(found) < len(NAMES):
        started = await client.initiate(model)
        found.setdefault(place(started), started)
    return found


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_a_server_that_is_killed_holds_up_its_own_runs_only(deploy: Deploy, fake: FakeModel) -> None:
    async with private_valkey() as north, private_valkey() as south:
        urls = ",".join(f"{server.url}#{name}" for name, server in zip(NAMES, (north, south), strict=True))
        deployment = await deploy(workers=2, REDIS_URLS=urls, REDIS_SOCKET_TIMEOUT="1s", MAX_CONCURRENT_RUNS="100")
        talk = fake.talk()
        deployment.flushed = True  # the logs are at our servers, not where its check looks
        async with deployment.client() as client:
            live = await on_each(client, talk.model)
            reading = {name: asyncio.ensure_future(follow(client, run.run_id)) for name, run in live.items()}
            await check_begun(client, live)
            check_connections(deployment, (north, south))
            await north.kill()
            await until(lambda: says(client, "degraded"), within=5 * BACK_SECONDS)
            stopped = await on_each(client, talk.model)
            async with client.stream(stopped["south"].run_id) as stream:
                await stream.take(3)
            assert await client.stop(stopped["south"].run_id) == "stopped"
            check_whole_log(await follow(client, stopped["south"].run_id), "stopped")
            talk.enough()
            await check_went_on(client, live["south"], await reading["south"], attempts=1)
            assert not reading["north"].done()
            await north.start_again()
            await check_went_on(client, live["north"], await reading["north"], attempts=1)
            check_whole_log(await follow(client, stopped["north"].run_id), "completed")
            await until(lambda: says(client, "ok"), within=5 * BACK_SECONDS)
            await deployment.check_settled()
            for name, server in zip(NAMES, (north, south), strict=True):
                await check_whole(server.admin, live[name], deployment)


async def check_begun(client: Client, live: dict[str, Started]) -> None:
    async def flows(run: Started) -> bool:
        async with client.stream(run.run_id) as stream:
            return len(await stream.take(10)) == 10

    for run in live.values():
        await until(partial(flows, run))


def check_connections(deployment: Deployment, servers: tuple[Valkey, Valkey]) -> None:
    """A process has a bounded number of connections to each server, whatever its runs and readers."""
    for process in (*deployment.apis, *deployment.workers):
        for server in servers:
            port = address(server.url)[1]
            assert 0 < connections(process.process.pid, port) <= MOST_CONNECTIONS, process.name


async def says(client: Client, status: str) -> bool:
    answer = await client.http.get("/health/ready")
    dependencies = answer.json()["dependencies"]
    assert answer.status_code == 200
    assert {"redis north", "redis south"} < set(dependencies)
    return bool(answer.json()["status"] == status)


async def check_whole(redis: Redis, run: Started, deployment: Deployment) -> None:
    [row] = await deployment.rows("SELECT event_count FROM agent_runs WHERE id = $1", UUID(run.run_id))
    assert await redis.llen(keys.responses(UUID(run.run_id))) == row["event_count"]
    assert not await keys_without_ttl(redis)
