"""A store or broker that is away for a while: what can be answered is, runs wait, nobody is restarted (promise 8)."""

import asyncio
import time
from statistics import median

import pytest
from httpx2 import Response

from tests.acceptance.client import Client, check_whole_log, follow, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import LASTING, Deployment
from tests.acceptance.proxy import Proxy
from tests.acceptance.test_crashes import check_went_on
from tests.conftest import DEPLOYED_REDIS, named, with_path
from tests.fakes import FakeModel
from tests.private import private_valkey
from tests.proxy import Proxy as Switch

OUTAGE_SECONDS = 3.0
"""Twice the scaled lock TTL and the scaled patience with a dead driver."""
FAST_SECONDS = 1.0
BACK_SECONDS = 20.0


def away(proxy: Proxy, how: str) -> None:
    proxy.hang() if how == "hangs" else proxy.down()


def back(proxy: Proxy, how: str) -> None:
    proxy.flow() if how == "hangs" else proxy.up()


async def is_ready(client: Client) -> bool:
    return (await client.http.get("/health/ready")).status_code == 200


async def check_unavailable(answer: Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
@pytest.mark.parametrize("how", [pytest.param("refuses", marks=pytest.mark.slow), "hangs"])
async def test_a_run_started_while_rabbitmq_is_away_begins_when_it_is_back(
    deploy: Deploy, fake: FakeModel, how: str
) -> None:
    with Proxy(named("RABBITMQ_URL")) as rabbitmq:
        deployment = await deploy(workers=1, durations=LASTING, RABBITMQ_URL=rabbitmq.url, RABBITMQ_HEARTBEAT="2s")
        talk = fake.talk()
        async with deployment.client() as client:
            live = await client.initiate(talk.model)
            async with client.stream(live.run_id) as stream:
                seen = await stream.take(10)
                away(rabbitmq, how)
                waiting, took = [], []
                for _ in range(5):
                    began = time.monotonic()
                    waiting.append(await client.initiate())
                    took.append(time.monotonic() - began)
                assert median(took) < FAST_SECONDS, took
                await check_unavailable(await client.http.get("/health/ready"))
                talk.enough()
                await check_went_on(client, live, seen + await stream.rest(), attempts=1)
            assert [(await client.get(run.run_id))["phase"] for run in waiting] == ["queued"] * 5
            back(rabbitmq, how)
            began = time.monotonic()
            for run in waiting:
                check_whole_log(await follow(client, run.run_id, 5 * BACK_SECONDS), "completed")
            print(f"completed {time.monotonic() - began:.2f} s after RabbitMQ was back")  # noqa: T201 - measured
            await until(lambda: is_ready(client), within=5 * BACK_SECONDS)


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
@pytest.mark.parametrize("how", [pytest.param("refuses", marks=pytest.mark.slow), "hangs"])
async def test_a_live_run_waits_for_redis_and_keeps_its_claim(deploy: Deploy, fake: FakeModel, how: str) -> None:
    with Proxy(with_path(named("REDIS_URL"), str(DEPLOYED_REDIS))) as redis:
        deployment = await deploy(workers=2, REDIS_URL=redis.url, REDIS_SOCKET_TIMEOUT="1s")
        talk = fake.talk()
        async with deployment.client() as client:
            live = await client.initiate(talk.model)
            reading = asyncio.ensure_future(follow(client, live.run_id))
            async with client.stream(live.run_id) as stream:
                await stream.take(10)
            stopped = await client.initiate(talk.model)
            async with client.stream(stopped.run_id) as stream:
                await stream.take(10)
            away(redis, how)
            ended = time.monotonic() + OUTAGE_SECONDS
            await check_unavailable(await client.http.get("/health/ready"))
            assert (await client.get(live.run_id))["phase"] == "running"
            async with client.stream(live.run_id) as stream:
                assert stream.status == 200
                early = await stream.rest() if how == "refuses" else []
                assert early == []
            late = await client.initiate()
            assert await client.stop(stopped.run_id) == "stopped"
            await asyncio.sleep(max(ended - time.monotonic(), 0))
            back(redis, how)
            talk.enough()
            await check_went_on(client, live, await reading, attempts=1)
            check_whole_log(await follow(client, late.run_id), "completed")
            check_whole_log(await follow(client, stopped.run_id), "stopped")
            await until(lambda: is_ready(client), within=5 * BACK_SECONDS)
            await deployment.check_settled()  # while the way to Redis is there


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
@pytest.mark.parametrize("how", [pytest.param("refuses", marks=pytest.mark.slow), "hangs"])
async def test_ordinary_routes_say_503_while_postgres_is_away_and_live_runs_go_on(
    deploy: Deploy, fake: FakeModel, database_url: str, how: str
) -> None:
    with Proxy(database_url) as postgres:
        deployment: Deployment = await deploy(
            workers=2, DATABASE_URL=postgres.url, POSTGRES_COMMAND_TIMEOUT="2s", POSTGRES_CONNECT_TIMEOUT="2s"
        )
        talk = fake.talk()
        async with deployment.client() as client:
            live = await client.initiate(talk.model)
            reading = asyncio.ensure_future(follow(client, live.run_id))
            async with client.stream(live.run_id) as stream:
                await stream.take(10)
                away(postgres, how)
                ended = time.monotonic() + OUTAGE_SECONDS
                paths = ("/health/ready", f"/agent-run/{live.run_id}", "/threads", "/agent-runs/active")
                form = {"prompt": "Hello", "model_name": "demo/echo"}
                refused = await asyncio.gather(
                    *(client.http.get(path) for path in paths),
                    client.http.post("/agent/initiate", data=form),
                    client.http.post(f"/agent-run/{live.run_id}/stop"),
                )
                for answer in refused:
                    await check_unavailable(answer)
                assert len(await stream.take(10)) == 10, "what Redis holds is still told"
            async with client.stream(live.run_id) as stream:
                assert await stream.rest() == []
                assert stream.status == 200
                assert "a store is away, reconnect" in stream.comments
            await asyncio.sleep(max(ended - time.monotonic(), 0))
            back(postgres, how)
            talk.enough()
            await check_went_on(client, live, await reading, attempts=1)
            await until(lambda: is_ready(client), within=5 * BACK_SECONDS)
            again = await client.initiate()
            check_whole_log(await follow(client, again.run_id), "completed")
            await deployment.check_settled()  # while the way to Postgres is there


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
@pytest.mark.parametrize("replica", ["in step", pytest.param("behind", marks=pytest.mark.slow)])
async def test_runs_and_readers_go_on_at_the_redis_that_takes_over(
    deploy: Deploy, fake: FakeModel, replica: str
) -> None:
    """The address leads to what was a replica; one that is behind lacks what the old server had taken last."""
    async with private_valkey() as old, private_valkey() as new, Switch(old.url) as redis:
        await new.replicate(old)
        await until(new.in_step)
        deployment = await deploy(workers=2, durations=LASTING, REDIS_URL=redis.url)
        shared, talk = deployment.redis_url, fake.talk()
        async with deployment.client() as client:
            live = await client.initiate(talk.model)
            reading = asyncio.ensure_future(follow(client, live.run_id))
            async with client.stream(live.run_id) as stream:
                await stream.take(10)
                if replica == "behind":
                    await new.promote()
                    await stream.take(10)
            if replica == "in step":
                await new.promote()
            redis.lead_to(new.url)
            await old.child.stop()
            deployment.redis_url = new.url
            again = await client.initiate()
            check_whole_log(await follow(client, again.run_id), "completed")
            talk.enough()
            await check_went_on(client, live, await reading, attempts=1)
            await deployment.check_settled()
            deployment.redis_url, deployment.flushed = shared, True
