"""A thousand schedules due in the same second, four processes that fire them, one of which is killed."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from services.postgres import Pool
from services.schedules.config import Config
from services.settings import Settings
from tests.conftest import BROKER_REDIS, named, with_path
from tests.services.runs.seeds import eventually
from tests.worker.test_scheduler import make_schedule

SCHEDULES = 1_000
YEARLY = Config.model_validate({"type": "cron", "cron": {"cron_expression": "0 0 1 1 *"}})
"""Whatever else they are due at, they are not while the test goes on."""
PATIENT = 240
"""Seconds; beside the other lanes four more processes get a fraction of two cores."""


@pytest.fixture
def workers(settings: Settings) -> Iterator[list[subprocess.Popen[bytes]]]:
    told = {
        "DATABASE_URL": settings.postgres.url.get_secret_value(),
        "REDIS_URL": settings.redis.dsn,
        "BROKER": "redis",
        "BROKER_REDIS_URL": with_path(named("REDIS_URL"), str(BROKER_REDIS)),
        "MAX_CONCURRENT_RUNS": "0",
        "SCHEDULE_CLAIM": "2s",
        "LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "tests.worker.scheduling"]
    started = [subprocess.Popen(command, env={**os.environ, **told}) for _ in range(4)]
    yield started
    for worker in started:
        worker.kill()
        worker.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [False, True])
async def test_a_thousand_schedules_of_one_second_fire_once_each(
    killed: bool, pool: Pool, workers: list[subprocess.Popen[bytes]]
) -> None:
    for _ in range(SCHEDULES):
        await make_schedule(pool, config=YEARLY)
    await pool.execute("UPDATE schedules SET next_fire_at = date_trunc('second', clock_timestamp()) + interval '3 s'")
    count = "SELECT count(*) FROM schedule_firings WHERE status = 'started'"
    if killed:
        await eventually(lambda: pool.fetchval(f"SELECT ({count}) > 100"), within=PATIENT)
        workers[0].kill()
    await eventually(lambda: pool.fetchval(f"SELECT ({count}) >= {SCHEDULES}"), within=PATIENT)
    each = "SELECT count(*) FROM (SELECT schedule_id FROM schedule_firings GROUP BY 1 HAVING count(*) = 1) AS once"
    assert await pool.fetchval(each) == SCHEDULES
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == SCHEDULES
    late = await pool.fetchrow(
        """
        SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM created_at - fire_time))
        FROM schedule_firings
        """
    )
    assert late
    print(f"\nlateness p50, p99, most (killed: {killed}):", [round(float(seconds), 3) for seconds in late[0]])  # noqa: T201 - the figure
