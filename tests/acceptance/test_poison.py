"""A run that kills whoever drives it is given up after `RUN_MAX_CRASHES` (promises 1 and 7)."""

import pytest

from tests.acceptance.client import check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.test_crashes import kill_group

CRASHES = 2
SENTENCE = f"The run was given up: its worker died {CRASHES} times."


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_a_run_whose_workers_die_too_often_fails_with_a_sentence(deploy: Deploy) -> None:
    deployment = await deploy(workers=2, RUN_MAX_CRASHES=str(CRASHES))
    async with deployment.client() as client:
        started = await client.initiate("demo/lorem?chunks=100000&delay_ms=20")
        async with client.stream(started.run_id) as stream:
            seen = await stream.take(10)
            for _ in range(CRASHES - 1):
                kill_group(await deployment.driver_of(started.run_id))
                seen += await stream.until("run_resumed")
                await deployment.start_workers(1)
            kill_group(await deployment.driver_of(started.run_id))
            events = seen + await stream.rest()
        check_whole_log(events, "failed")
        assert events[-1].said["message"] == SENTENCE
        assert [event.status_type for event in events].count("run_resumed") == CRASHES - 1
        run = await client.get(started.run_id)
        assert (run["status"], run["error"], run["attempt"]) == ("failed", SENTENCE, CRASHES + 1)
        assert await client.read(started.run_id) == events
