"""Whether a worker is well, as those who look after it ask."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.client import until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import CHECKOUT, Deployment
from tests.waiting import eventually

TEXT = "demo/lorem?chunks=100000&delay_ms=25"
THREADS = 4


async def ask(deployment: Deployment, *arguments: str) -> tuple[int, str]:
    """The status and the words of a command of ours."""
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments,
        cwd=CHECKOUT, env={**os.environ, **deployment.settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asking.communicate()
    assert asking.returncode is not None
    return asking.returncode, said.decode()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_a_worker_answers_while_every_slot_is_busy_and_none_answers_when_none_is_there(
    deploy: Deploy, tmp_path: Path
) -> None:
    folder = tmp_path / "alive"
    deployment = await deploy(workers=1, threads=THREADS, WORKER_LIVENESS_DIR=str(folder))
    [worker] = deployment.workers
    async with deployment.client() as client:
        runs = [(await client.initiate(TEXT)).run_id for _ in range(THREADS + 1)]

        async def all_slots_are_busy() -> bool:
            running = await deployment.rows("SELECT FROM agent_runs WHERE status = 'running'")
            return len(running) == THREADS - 1

        await until(all_slots_are_busy, says="a slot is free")
        code, said = await ask(deployment, "worker.health")
        assert code == 0, said
        assert said.startswith("Healthy: a worker answered after")
        assert await ask(deployment, "services.liveness") == (0, "1 worker process alive.\n")
        await asyncio.gather(*map(client.stop, runs))
    worker.signal(signal.SIGTERM)
    assert await worker.exited() == 0
    assert not list(folder.iterdir())
    code, said = await ask(deployment, "worker.health", "--within", "5")
    assert (code, said) == (
        1, "Not healthy. No worker answered within 5 s: none is running, or none takes messages.\n"
    )  # fmt: skip
    assert (await ask(deployment, "worker.health", "--within", "-1"))[0] == 2
    assert (await ask(deployment, "services.liveness"))[0] == 1
    deployment.environment["RABBITMQ_URL"] = "amqp://guest:guest@127.0.0.1:1/%2F?connection_attempts=1"
    code, said = await ask(deployment, "worker.health", "--within", "30")
    assert code == 1
    assert said.startswith("Not healthy. The message broker cannot be reached")


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_a_worker_that_is_stopped_has_no_sign_of_life(deploy: Deploy, tmp_path: Path) -> None:
    folder = tmp_path / "alive"
    deployment = await deploy(workers=1, WORKER_LIVENESS_DIR=str(folder))
    [worker] = deployment.workers
    [child] = worker.children
    sign = folder / str(child)
    await eventually(sign.exists)
    os.kill(child, signal.SIGSTOP)
    try:
        os.utime(sign, (sign.stat().st_atime - 60, sign.stat().st_mtime - 60))
        code, said = await ask(deployment, "services.liveness")
        assert code == 1
        assert f"process {child} has not turned" in said
    finally:
        os.kill(child, signal.SIGCONT)

    async def turns_again() -> bool:
        return (await ask(deployment, "services.liveness"))[0] == 0

    await until(turns_again, says="it goes on, and shows no sign of life")
