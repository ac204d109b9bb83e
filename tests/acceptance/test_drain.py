"""What a worker that is asked to stop does with its live runs, by policy, and when its broker is gone (promise 5)."""

import asyncio
import os
import signal
import time

import pytest

from tests.acceptance.client import check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import LASTING, START_SECONDS, Operated
from tests.acceptance.proxy import Proxy
from tests.acceptance.test_crashes import check_went_on
from tests.conftest import named
from tests.fakes import FakeModel
from tests.waiting import eventually
from worker.runtime import BOOT_SECONDS

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")

EXIT_SECONDS = 3.0
"""Dramatiq looks for signals, and at its log pipes, once a second."""
HUNG_EXIT_SECONDS = 10.0
"""Five seconds for the messages that cannot be sent, three for the connections that cannot be closed."""


def check_clean(worker: Operated) -> None:
    assert worker.said("worker.closed") == 1
    assert not worker.said(r"\[error|Traceback|CRITICAL"), worker.text


async def test_a_worker_that_finishes_begins_nothing_and_exits_when_its_runs_have_ended(
    deploy: Deploy, fake: FakeModel
) -> None:
    deployment = await deploy(workers=2, durations=LASTING, forked=False, RUN_DRAIN="finish")
    talk = fake.talk()
    async with deployment.client() as client:
        live = await client.initiate(talk.model)
        async with client.stream(live.run_id) as stream:
            seen = await stream.take(20)
            worker = await deployment.driver_of(live.run_id)
            worker.signal(signal.SIGTERM)
            await eventually(lambda: worker.said("worker.draining"), says="it did not hear the signal")
            late = [await client.initiate() for _ in range(6)]
            for run in late:
                check_whole_log(await client.read(run.run_id), "completed")
            assert worker.running, "its run has not ended yet"
            talk.enough()
            await check_went_on(client, live, seen + await stream.rest(), attempts=1)
        ended = time.monotonic()
        assert await worker.exited(5 * EXIT_SECONDS) == 0
        print(f"exited {time.monotonic() - ended:.2f} s after its run")  # noqa: T201 - the measured figure
        assert worker.said(r"run\.claimed") == 1
        check_clean(worker)
        [idle] = deployment.workers
        asked = time.monotonic()
        idle.signal(signal.SIGTERM)
        assert await idle.exited(5 * EXIT_SECONDS) == 0
        print(f"idle, exited after {time.monotonic() - asked:.2f} s")  # noqa: T201 - the measured figure
        check_clean(idle)


@pytest.mark.slow
async def test_what_has_not_finished_at_the_deadline_is_handed_over(deploy: Deploy, fake: FakeModel) -> None:
    deployment = await deploy(workers=2, durations=LASTING, RUN_DRAIN="finish", RUN_DRAIN_DEADLINE="1s")
    talk = fake.talk()
    async with deployment.client() as client:
        live = await client.initiate(talk.model)
        async with client.stream(live.run_id) as stream:
            seen = await stream.take(20)
            worker = await deployment.driver_of(live.run_id)
            asked = time.monotonic()
            worker.signal(signal.SIGTERM)
            seen += await stream.until("run_resumed")
            resumed = stream.heard_at - asked
            talk.enough()
            print(f"handed over {resumed:.2f} s after the signal")  # noqa: T201 - the measured figure
            assert 0.9 < resumed < 1.0 + 5 * 2.0
            assert await worker.exited(5 * EXIT_SECONDS) == 0
            check_clean(worker)
            await check_went_on(client, live, seen + await stream.rest())


@pytest.mark.parametrize("how", ["refuses", pytest.param("hangs", marks=pytest.mark.slow)])
async def test_a_worker_whose_broker_is_gone_closes_its_stores_and_exits(
    deploy: Deploy, fake: FakeModel, how: str
) -> None:
    with Proxy(named("RABBITMQ_URL")) as rabbitmq:
        deployment = await deploy(workers=1, durations=LASTING, RABBITMQ_URL=rabbitmq.url)
        talk = fake.talk()
        async with deployment.client() as client:
            live = await client.initiate(talk.model)
            async with client.stream(live.run_id) as stream:
                seen = await stream.take(20)
                [worker] = deployment.workers
                rabbitmq.hang() if how == "hangs" else rabbitmq.down()
                asked = time.monotonic()
                worker.signal(signal.SIGTERM)
                assert await worker.exited(5 * HUNG_EXIT_SECONDS) == 0
                print(f"{how}: exited after {time.monotonic() - asked:.2f} s")  # noqa: T201 - the measured figure
                assert worker.said("worker.closed") == 1
                assert worker.said(r"run\.handed_over") == 1
                rabbitmq.flow() if how == "hangs" else rabbitmq.up()
                talk.enough()
                _, events = await asyncio.gather(deployment.start_workers(1), stream.rest())
            await check_went_on(client, live, seen + events)


@pytest.mark.slow
async def test_a_worker_that_is_asked_to_stop_while_it_boots_without_its_stores_exits(
    deploy: Deploy, database_url: str
) -> None:
    with Proxy(database_url) as postgres:
        deployment = await deploy(workers=0)
        async with deployment.client() as client:
            waiting = await client.initiate()
            deployment.environment["DATABASE_URL"] = postgres.url
            postgres.down()
            worker = deployment.launch_worker()
            await eventually(lambda: worker.said("worker.boot_retried"), within=START_SECONDS)
            [child] = worker.children
            os.kill(child, signal.SIGTERM)  # Dramatiq's master takes signals only once its children have booted
            assert await worker.exited(10 * BOOT_SECONDS) == 0
            del deployment.environment["DATABASE_URL"]
            await deployment.start_workers(1)
            check_whole_log(await client.read(waiting.run_id), "completed")
