"""Which of the runs that wait for a worker goes first."""

import asyncio
from datetime import datetime
from uuid import UUID

import pytest

from tests.acceptance import stops
from tests.acceptance.client import Client, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import Deployment


async def confirmed(deployment: Deployment, run_ids: list[str]) -> bool:
    """Whether the broker has a message for each of the runs."""
    [row] = await deployment.rows(
        "SELECT bool_and(message_sent_at IS NOT NULL) AS sent FROM agent_runs WHERE id = ANY($1)",
        [UUID(run_id) for run_id in run_ids],
    )
    return bool(row["sent"])


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_of_the_runs_that_wait_for_a_slot_the_highest_priority_goes_first(deploy: Deploy) -> None:
    deployment = await deploy(workers=1, threads=2)
    async with deployment.client() as client:
        busy = await client.initiate(stops.TEXT)
        async with client.stream(busy.run_id) as stream:
            await stream.take(3)
        asked = [5, 0, 9, 5, 1, 9]
        runs = [(await client.initiate(prompt=f"{number}", priority=number)).run_id for number in asked]
        await until(lambda: confirmed(deployment, runs), says="not every message was confirmed")
        await client.stop(busy.run_id)
        ended = await asyncio.gather(*(client.get(run_id, wait_seconds=30) for run_id in runs))
        assert [run["status"] for run in ended] == ["completed"] * len(runs)
        begun = sorted(range(len(runs)), key=lambda number: datetime.fromisoformat(ended[number]["startedAt"]))
        assert begun == [2, 5, 0, 3, 4, 1]


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_a_priority_is_accepted_where_the_broker_has_none(system: Deployment, client: Client) -> None:
    runs = [(await client.initiate(prompt=f"{number}", priority=number)).run_id for number in (0, 9)]
    ended = [await client.get(run_id, wait_seconds=30) for run_id in runs]
    assert [run["status"] for run in ended] == ["completed"] * 2
