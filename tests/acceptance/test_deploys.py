"""Workers and APIs that are asked to stop: runs are handed over, readers come back, nothing is lost (promise 5)."""

import asyncio
import signal
import time

import pytest

from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment, Operated
from tests.acceptance.test_crashes import check_went_on
from tests.fakes import FakeModel

HAND_OVER_SECONDS = 2.0


async def hand_over(
    deployment: Deployment, client: Client, fake: FakeModel, *signals: tuple[str, int]
) -> tuple[Operated, float]:
    """Ask the worker of a run that is being read to stop; the worker, and seconds until another goes on."""
    talk = fake.talk()
    started = await client.initiate(talk.model)
    async with client.stream(started.run_id) as stream:
        seen = await stream.take(20)
        worker = await deployment.driver_of(started.run_id)
        asked = time.monotonic()
        for target, number in signals:
            worker.signal_group(number) if target == "group" else worker.signal(number)
            await asyncio.sleep(0.1)
        seen += await stream.until("run_resumed")
        resumed = stream.heard_at - asked
        talk.enough()
        events = seen + await stream.rest()
    await check_went_on(client, started, events)
    return worker, resumed


TWICE = [("group", signal.SIGTERM), ("process", signal.SIGTERM)]
CTRL_C = [("group", signal.SIGINT)]


@pytest.mark.parametrize(
    ("broker", "signals"),
    [("redis", TWICE), ("rabbitmq", CTRL_C)],
    ids=["redis-twice", "rabbitmq-ctrl-c"],
    indirect=["broker"],
    scope="session",
)
async def test_a_worker_that_is_asked_to_stop_hands_its_run_over(
    system: Deployment, client: Client, fake: FakeModel, signals: list[tuple[str, int]]
) -> None:
    worker, resumed = await hand_over(system, client, fake, *signals)
    print(f"handed over after {resumed:.2f} s")  # noqa: T201 - the measured figure
    assert resumed < 5 * HAND_OVER_SECONDS
    assert await worker.exited() == 0
    assert not worker.said(r"\[error|Traceback|CRITICAL"), worker.text


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_readers_go_on_at_a_new_api_where_the_old_one_left_them(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    old, talk = system.api, fake.talk()
    assert old
    started = await client.initiate(talk.model)
    async with client.stream(started.run_id) as stream:
        seen = await stream.take(20)
        asked = time.monotonic()
        old.signal(signal.SIGTERM)
        seen += await stream.rest()
        assert any("restarting" in comment for comment in stream.comments), stream.comments
    assert await old.exited() == -signal.SIGTERM, "uvicorn raises the signal again when it is done"
    assert time.monotonic() - asked < 5 * HAND_OVER_SECONDS
    await system.start_api()
    talk.enough()
    events = seen + await client.read(started.run_id, seen[-1].id)
    await check_went_on(client, started, events, attempts=1)
