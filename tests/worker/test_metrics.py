"""What a worker counts of the runs that it drives."""

from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from redis.asyncio import Redis

from services.metrics.values import Value
from services.runs import events
from services.settings import Settings
from tests.services.metrics.reading import Counted
from tests.services.runs.seeds import bury, closed, eventually, listed, make_run, with_runs
from tests.worker.conftest import open_process
from tests.worker.test_runner import SLOW, drive, driven, said
from worker.process import Process


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_a_run_is_counted_once_at_each_of_its_stations(process: Process, counted: Counted) -> None:
    run = await make_run(process.stores.pool)
    await drive(process, run)
    await closed(process.stores.pool, run.id)
    told = await listed(process.stores, run.id)
    assert counted("run_claims_total", kind="first") == 1
    assert counted("run_queue_seconds_count") == 1
    assert counted("run_first_event_seconds_count") == 1
    assert counted("run_ends_total", status="completed") == 1
    assert counted("run_duration_seconds_count", status="completed") == 1
    assert counted("events_appended_total") == len(told)
    await eventually(lambda: counted("events_archived_total") == len(told))
    assert counted("model_first_token_seconds_count", provider="demo", model="other") == 1
    assert counted("model_call_duration_seconds_count", provider="demo", model="other", outcome="ok") == 1
    assert counted("model_tokens_total", provider="demo", model="other", kind="completion") == 5


async def test_a_handed_over_run_is_resumed(process: Process, second: Process, counted: Counted) -> None:
    run = await make_run(process.stores.pool, model=SLOW)
    async with driven(process, run.id) as task:
        await eventually(lambda: said(process, run, 5))
        process.draining.set()
        await task
    assert counted("run_handovers_total", reason="drain") == 1
    async with driven(second, run.id):
        await eventually(lambda: counted("run_claims_total", kind="resumed") == 1)
    assert counted("run_claims_total", kind="takeover") == 0
    assert counted("model_call_duration_seconds_count", provider="demo", model="other", outcome="left") >= 1


async def test_the_run_of_a_dead_worker_is_taken_over(process: Process, second: Process, counted: Counted) -> None:
    run = await make_run(process.stores.pool, model="demo/lorem?chunks=2&delay_ms=60000")
    async with driven(process, run.id):
        await eventually(lambda: said(process, run, 3))
        process.stores.leases.held.clear()
        await bury(process.stores, run.id)
        async with driven(second, run.id):
            await eventually(lambda: counted("run_claims_total", kind="takeover") == 1)
    assert counted("run_claims_total", kind="resumed") == 0


async def test_the_work_of_a_batch_does_not_grow_with_its_events(settings: Settings, redis: Redis) -> None:
    steps = 0
    step = Value.inc

    def counting(value: Value, amount: float) -> None:
        nonlocal steps
        steps += 1
        step(value, amount)

    async def work(ctx: Any) -> None:
        nonlocal steps
        await ctx.log.flush()
        before = steps
        for number in range(900):
            await ctx.log.append(events.status("said", run.id, number=number))
        await ctx.log.flush()
        steps = steps - before

    seldom, long = timedelta(seconds=5), timedelta(seconds=15)  # what beats and archives counts, too
    rare = with_runs(settings, archive_interval=seldom, heartbeat_interval=seldom, lock_ttl=long, dead_after=long)
    async with open_process(rare) as process:
        run = await make_run(process.stores.pool, model="demo/echo")
        with patch.object(Value, "inc", counting), patch("agent.loop.run_agent", work):
            await drive(process, run)
    assert steps < 100
