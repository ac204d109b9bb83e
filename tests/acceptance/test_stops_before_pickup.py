"""A stop of a run that no worker has begun: it ends at once, and its message, when it comes, starts nothing."""

import asyncio

import pytest

from tests.acceptance import stops
from tests.acceptance.client import check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.test_stops import DEADLINE_SECONDS
from tests.waiting import eventually

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")


async def test_a_stop_before_any_worker_is_there_ends_the_run_at_once(deploy: Deploy) -> None:
    deployment = await deploy(workers=0)
    async with deployment.client() as client:
        started = await client.initiate()
        async with client.stream(started.run_id) as stream:
            stop, events = await stops.stop_read_run(client, "queued", started.run_id, stream, [])
        check_whole_log(events, "stopped")
        assert stop.last_event < DEADLINE_SECONDS
        [worker] = await deployment.start_workers(1)
        await eventually(lambda: worker.said("run.nothing_to_do"), says="the stale message was not taken")
        assert (await client.get(started.run_id))["status"] == "stopped"


async def test_a_stop_while_every_slot_is_busy_ends_the_waiting_run_at_once(deploy: Deploy) -> None:
    deployment = await deploy(workers=1, threads=2)
    async with deployment.client() as client:
        busy = await client.initiate(stops.TEXT)
        async with client.stream(busy.run_id) as stream:
            await stream.take(3)
        waiting = await client.initiate(stops.TEXT)
        async with client.stream(waiting.run_id) as stream:
            await asyncio.sleep(0.3)
            assert (await client.get(waiting.run_id))["phase"] == "queued"
            stop, events = await stops.stop_read_run(client, "queued", waiting.run_id, stream, [])
        check_whole_log(events, "stopped")
        assert stop.last_event < DEADLINE_SECONDS
        assert (await client.get(busy.run_id))["phase"] == "running"
        assert await client.stop(busy.run_id) == "stopped"
