"""What Prometheus is told of 2 API and 3 worker processes, one of which is killed: the truth of the database."""

import asyncio
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from httpx2 import AsyncClient

from services.embedded import ports
from tests.acceptance.client import Client, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import Deployment
from tests.acceptance.test_api_processes import start_two
from tests.fakes import FakeModel
from tests.services.metrics.reading import Told

LIVE_RUNS = 12
MODELS = ("demo/lorem?chunks=20&delay_ms=10", "demo/echo", "demo/lorem?chunks=50&delay_ms=20")
ANSWER_SECONDS = 30.0


async def told(port: int) -> Told:
    async with AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as http:
        return Told((await http.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status().text)


async def refuses_proxies(port: int) -> bool:
    """uvicorn trusts a proxy on this machine by default, and would say that its client is on it as well."""
    async with AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as http:
        asked = await http.get(f"http://127.0.0.1:{port}/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
        return asked.status_code == 404


async def ends(deployment: Deployment) -> Counter[str]:
    rows = await deployment.rows("SELECT status, count(*) FROM agent_runs WHERE completed_at IS NOT NULL GROUP BY 1")
    return Counter({row["status"]: row["count"] for row in rows})


async def start_many(client: Client, count: int) -> list[str]:
    gate = asyncio.Semaphore(20)

    async def start(number: int) -> str:
        async with gate:
            return (await client.initiate(MODELS[number % len(MODELS)])).run_id

    return list(await asyncio.gather(*map(start, range(count))))


async def all_running(deployment: Deployment, run_ids: list[str]) -> bool:
    query = "SELECT FROM agent_runs WHERE status = 'running' AND id = ANY($1)"
    return len(await deployment.rows(query, list(map(UUID, run_ids)))) == len(run_ids)


async def check_after_a_kill(deploy: Deploy, fake: FakeModel, folder: Path, runs: int) -> None:
    port = ports.pick(set())
    deployment = await deploy(workers=3, METRICS_DIR=str(folder), METRICS_PORT=str(port))
    other = await deployment.start_api(ports.pick(set()))
    async with deployment.client() as client:
        await start_many(client, runs - LIVE_RUNS)
        talk = fake.talk()
        long_ones = [(await client.initiate(talk.model)).run_id for _ in range(LIVE_RUNS)]
        await until(lambda: all_running(deployment, long_ones), within=200.0, every=0.2, says="they do not begin")
        killed = await deployment.driver_of(long_ones[-1])
        live = await deployment.rows(
            "SELECT FROM agent_runs WHERE status = 'running' AND instance_id = ANY($1)", killed.instances
        )
        killed.signal_group(signal.SIGKILL)
        assert live
        await asyncio.gather(*map(client.stop, long_ones[: LIVE_RUNS // 2]))
        talk.enough()
        await until(lambda: all_ended(deployment, runs), within=200.0, every=0.2, says="not every run ended")
        await until(deployment.all_closed, within=60.0, says="not every run was closed")
    expected = await ends(deployment)
    assert expected.total() == runs
    assert len(expected) > 1
    for api in deployment.apis:
        answer = await until(partial(tells_the_truth, api.port, expected), within=60.0, every=0.5, says="another truth")
        assert answer
        assert answer.value("longrun_runs_unfinished") == 0
    assert all([await refuses_proxies(each) for each in (port, other.port)])
    counted = [await told(port) for _ in range(3)]
    by_api = await told(other.port)
    for answer in counted:
        said = answer.value("longrun_run_ends_total") + by_api.value("longrun_run_ends_total")
        assert abs(said - runs) <= len(live), (
            f"{said} of {runs} were counted, {len(live)} were live where it was killed"
        )
        assert answer.value("longrun_processes") == 2
        assert answer.value("longrun_run_claims_total", kind="takeover") >= 1
        assert answer.value("longrun_events_appended_total") > runs


async def all_ended(deployment: Deployment, runs: int) -> bool:
    return (await ends(deployment)).total() == runs


async def tells_the_truth(port: int, expected: Counter[str]) -> Told | None:
    """What was read some seconds ago is told again; then it is what the database says, exactly."""
    answer = await told(port)
    said = {
        status: int(answer.value("longrun_runs_ended", status=status)) for status in ("completed", "failed", "stopped")
    }
    return answer if +Counter(said) == expected else None


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_ends_are_those_of_the_database_after_a_kill(deploy: Deploy, fake: FakeModel, tmp_path: Path) -> None:
    await check_after_a_kill(deploy, fake, tmp_path / "metrics", 40)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_ends_are_those_of_the_database_after_five_hundred_runs_and_a_kill(
    deploy: Deploy, fake: FakeModel, tmp_path: Path
) -> None:
    await check_after_a_kill(deploy, fake, tmp_path / "metrics", 500)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_processes_of_one_command_answer_for_each_other_without_being_told(deploy: Deploy) -> None:
    port = ports.pick(set())
    deployment = await deploy(workers=0, METRICS_PORT=str(port))
    api = await start_two(deployment)
    [worker] = await deployment.start_workers(1, processes=2)
    async with deployment.client() as client:
        runs = [(await client.initiate("demo/echo")).run_id for _ in range(8)]
        for run_id in runs:
            await client.read(run_id)

    async def tell_of_both(port: int, name: str, least: int) -> bool:
        answers = [await told(port) for _ in range(6)]
        return all(each.value("longrun_processes") == 2 and each.value(name) >= least for each in answers)

    await until(lambda: tell_of_both(port, "longrun_run_ends_total", len(runs)), within=60.0, every=0.5)
    await until(
        lambda: tell_of_both(api.port, "longrun_http_request_duration_seconds_count", 0), within=60.0, every=0.5
    )
    assert [listens(pid, port) for pid in worker.children].count(True) == 1


def listens(pid: int, port: int) -> bool:
    return any(each.laddr.port == port and each.status == "LISTEN" for each in psutil.Process(pid).net_connections())
