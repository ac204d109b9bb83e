"""A stop counts at once, wherever the run stands, and keeps what was said (promise 4)."""

import asyncio
import random

import pytest

from tests.acceptance import stops
from tests.acceptance.client import Client, check_whole_log
from tests.acceptance.operators import Deployment
from tests.fakes import FakeModel
from tests.figures import percentile
from tests.waiting import eventually

AIM_SECONDS = 0.2
DEADLINE_SECONDS = 5 * AIM_SECONDS

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")


async def test_a_stop_of_a_delayed_run_ends_it_at_once(client: Client) -> None:
    assert (await stops.stop_waiting(client)).last_event < DEADLINE_SECONDS


async def test_a_stop_in_mid_text_keeps_the_text_that_readers_saw(client: Client) -> None:
    for seed in range(5):
        stop = await stops.stop_in_text(client, random.Random(seed))
        assert stop.last_event < DEADLINE_SECONDS


async def test_a_stop_in_mid_text_hangs_up_on_the_model(client: Client, fake: FakeModel) -> None:
    talk = fake.talk()
    await stops.stop_in_text(client, random.Random(1), talk.model)
    [asked] = [asked for asked in fake.requests if asked.model == talk.model.removeprefix("openai/")]
    await asked.until_over()
    assert asked.hung_up_at
    assert not asked.answered


async def test_a_stop_during_a_silent_model_call_closes_its_connection(client: Client, fake: FakeModel) -> None:
    asked_before = len(fake.requests)

    async def is_asked() -> None:
        await eventually(lambda: len(fake.requests) > asked_before)

    stop = await stops.stop_in_silence(client, random.Random(1), "openai/script-silent", is_asked)
    [asked] = fake.requests[asked_before:]
    await asked.until_over()
    assert asked.hung_up_at
    assert stop.last_event < DEADLINE_SECONDS


async def test_a_stop_of_a_stopped_run_says_stopped_again(client: Client) -> None:
    started = await client.initiate(stops.TEXT)
    assert await asyncio.gather(*(client.stop(started.run_id) for _ in range(3))) == ["stopped"] * 3
    events = await client.read(started.run_id)
    assert await client.stop(started.run_id) == "stopped"
    check_whole_log(events, "stopped")
    assert await client.read(started.run_id) == events


async def test_a_stop_of_an_ended_run_says_how_it_ended(client: Client) -> None:
    completed = await client.initiate("demo/echo")
    failed = await client.initiate("openai/script-401")
    assert (await client.read(completed.run_id))[-1].final == "completed"
    assert (await client.read(failed.run_id))[-1].final == "failed"
    assert await client.stop(completed.run_id) == "completed"
    assert await client.stop(failed.run_id) == "failed"


async def test_a_new_run_of_the_project_stops_the_one_before(client: Client) -> None:
    first = await client.initiate(stops.TEXT)
    async with client.stream(first.run_id) as stream:
        seen = await stream.take(5)
        second = await client.start(first.thread_id)
        check_whole_log(seen + await stream.rest(), "stopped")
    check_whole_log(await client.read(second), "completed")


async def test_stops_reach_readers_in_time(client: Client) -> None:
    measured = await stops.measure(client, 30, "openai/script-silent")
    assert percentile(stops.last_events(measured), 0.99) < DEADLINE_SECONDS


@pytest.mark.slow
async def test_three_hundred_stops(system: Deployment, client: Client, fake: FakeModel) -> None:
    asked_before = len(fake.requests)
    measured = await stops.measure(client, 300, "openai/script-silent")
    assert percentile(stops.last_events(measured), 0.99) < DEADLINE_SECONDS
    for asked in fake.requests[asked_before:]:
        await asked.until_over()
        assert asked.hung_up_at
