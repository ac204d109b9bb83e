"""A worker whose event loop is blocked or dead ends itself, and says where it stood; its runs go on elsewhere."""

import asyncio
import signal
import time

import dramatiq
import pytest
from pydantic import SecretStr

from services.broker import make_broker
from services.settings import BrokerSettings, Settings
from tests.acceptance.client import Client, Started, check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import Deployment, Operated
from tests.acceptance.test_crashes import check_went_on
from tests.fakes import FakeModel
from tests.waiting import eventually

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")

PATIENCE_SECONDS = 3.0
NAMES = {"RUN_WATCHDOG_TIMEOUT": f"{PATIENCE_SECONDS}s"}
ENDED_SECONDS = 60.0
"""Until a blocked worker has ended; one that keeps the interpreter is given its patience in processor time."""
SLOW_TEXT = "demo/lorem?chunks=75&delay_ms=200"
"""Goes on for longer than it takes to have its worker stopped."""


async def start_blockable(deployment: Deployment, queue: str) -> Operated:
    """A worker whose loop can be blocked by a message to its own queue."""
    deployment.environment["BLOCKING_QUEUE"] = queue
    size = ["--processes", "1", "--threads", "4"]
    blockable = deployment.launch(queue, "dramatiq", "tests.acceptance.blocking_worker", *size)
    await deployment.ready(blockable)
    return blockable


def block(deployment: Deployment, queue: str, way: str) -> None:
    url = SecretStr(deployment.settings["BROKER_REDIS_URL"])
    broker = make_broker(Settings(broker=BrokerSettings(kind="redis", redis_url=url)))
    broker.enqueue(dramatiq.Message(queue_name=queue, actor_name="block", args=(way,), kwargs={}, options={}))
    broker.close()


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("sleep", "time.sleep(3600)  # where the sleeper stands"),
        pytest.param("interpreter", "in keep_the_interpreter", marks=pytest.mark.slow),
        pytest.param("exit", "worker.loop_died", marks=pytest.mark.slow),
    ],
)
async def test_a_worker_whose_loop_is_blocked_says_where_and_ends(
    deploy: Deploy, fake: FakeModel, way: str, line: str
) -> None:
    deployment, talk = await deploy(workers=0, **NAMES), fake.talk()
    workers = {(await start_blockable(deployment, queue)).name: queue for queue in ("worker_a", "worker_b")}
    async with deployment.client() as client:
        started = await client.initiate(talk.model)
        async with client.stream(started.run_id) as stream:
            seen = await stream.take(10)
            blockable = await deployment.driver_of(started.run_id)
            block(deployment, workers[blockable.name], way)
            ended, more = await asyncio.gather(ended_after(blockable), stream.until("run_resumed"))
            print(f"{way}: ended after {ended:.2f} s")  # noqa: T201 - the measured figure
            assert line in blockable.text
            assert "watchdog.py" in blockable.text, "the other threads are there too"
            talk.enough()
            events = seen + more + await stream.rest()
        await check_went_on(client, started, events)


async def ended_after(blocked: Operated) -> float:
    """Seconds until it has ended itself, and not as if all were well."""
    began = time.monotonic()
    assert await blocked.exited(ENDED_SECONDS) != 0
    return time.monotonic() - began


@pytest.mark.slow
async def test_a_worker_that_was_stopped_longer_than_the_watchdogs_patience_lives_on(deploy: Deploy) -> None:
    deployment = await deploy(workers=2, **NAMES)
    async with deployment.client() as client:
        started = await client.initiate(SLOW_TEXT)
        async with client.stream(started.run_id) as stream:
            seen = await stream.take(5)
            frozen = await deployment.driver_of(started.run_id)
            frozen.signal_group(signal.SIGSTOP)
            await asyncio.sleep(2 * PATIENCE_SECONDS)
            frozen.signal_group(signal.SIGCONT)
            events = seen + await stream.rest()
        await check_went_on(client, started, events)
        await eventually(lambda: frozen.said(r"lease\.lost"), within=5 * PATIENCE_SECONDS)
        await asyncio.sleep(1.5 * PATIENCE_SECONDS)
        assert frozen.running
        assert not frozen.said(r"loop_blocked|worker\.stack")
        await check_works(deployment, client, frozen)


async def check_works(deployment: Deployment, client: Client, only: Operated) -> None:
    for other in deployment.workers:
        if other is not only:
            other.end()
    again: Started = await client.initiate()
    check_whole_log(await client.read(again.run_id), "completed")
    assert only.said(again.run_id)
