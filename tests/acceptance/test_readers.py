"""Readers that come at any time, drop and resume see every event of a run once, and all the same (promise 2)."""

import asyncio

import pytest

from tests.acceptance import readers
from tests.acceptance.client import Client, check_whole_log
from tests.acceptance.operators import Deployment


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_readers_that_join_drop_and_resume_see_the_same_log(system: Deployment, client: Client) -> None:
    await watch(client, readers.Plan(runs=30, at_once=10))


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_the_first_requests_of_a_new_user_may_come_together(system: Deployment) -> None:
    for _ in range(10):
        async with system.client() as newcomer:
            started = await asyncio.gather(*(newcomer.initiate() for _ in range(8)))
            for run in started:
                check_whole_log(await newcomer.read(run.run_id), "completed")


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_two_hundred_runs_forty_at_a_time(system: Deployment, client: Client) -> None:
    await watch(client, readers.Plan(runs=200, at_once=40))


async def watch(client: Client, plan: readers.Plan) -> None:
    outcomes = await readers.watch_all(client, plan)
    assert not sum(reading.cut_by_server for outcome in outcomes for reading in outcome.readings)
