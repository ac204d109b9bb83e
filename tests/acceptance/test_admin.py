"""What an operator does with what the README says, on a running system: each in at most two commands."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dramatiq
import pytest

from services.broker import RUN_QUEUE, make_broker
from services.settings import BrokerSettings, Settings
from tests.acceptance.client import Client, until
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import CHECKOUT, LASTING, Deployment
from tests.waiting import PATIENT

pytestmark = pytest.mark.slow
"""Each command is a process of its own, as an operator starts it."""

COMMAND_SECONDS = 120.0


@dataclass
class Console:
    """`python -m services.admin` with the environment of a worker."""

    deployment: Deployment

    async def run(self, *arguments: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
        """What it printed; the exit code must be `code`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.admin",
            *arguments,
            cwd=CHECKOUT,
            env={**os.environ, **self.deployment.settings, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
        assert process.returncode == code, (out, err)
        assert b"Traceback" not in err
        return (out if code == 0 else out + err).decode()

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(await self.run(*arguments, "--json", code=code))


@pytest.fixture(params=["rabbitmq"], scope="session")
def broker(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


async def test_the_day_of_an_operator(deploy: Deploy) -> None:
    deployment = await deploy(workers=2, durations=LASTING, BILLING_PRICES='{"*": {"input": 1, "output": 1}}')
    admin = Console(deployment)
    async with deployment.client() as client:
        await stop_a_stuck_run(admin, client)
        await find_why_a_run_failed(admin, client)
        await replay_a_dead_letter(admin, client)
        await drain_a_worker(admin, client)
        await grant_credits(admin, client)


async def stop_a_stuck_run(admin: Console, client: Client) -> None:
    started = await client.initiate("demo/lorem?chunks=100000&delay_ms=50")
    await until(lambda: is_running(client, started.run_id), within=PATIENT)
    listed = await admin.json("runs", "list", "--stuck", "--silent-for", "0s")
    assert [run["id"] for run in listed["runs"]] == [started.run_id]
    assert started.run_id in await admin.run("runs", "stop", started.run_id)
    assert (await client.get(started.run_id))["status"] == "stopped"
    assert (await client.read(started.run_id))[-1].final == "stopped"
    assert "1 stopped" in await admin.run("runs", "stop", started.run_id)


async def is_running(client: Client, run_id: str) -> bool:
    return bool((await client.get(run_id))["phase"] == "running")


async def find_why_a_run_failed(admin: Console, client: Client) -> None:
    started = await client.initiate("openai/script-401")
    assert (await client.read(started.run_id))[-1].final == "failed"
    listed = await admin.json("runs", "list", "--status", "failed")
    assert [run["id"] for run in listed["runs"]] == [started.run_id]
    shown = await admin.json("runs", "show", started.run_id)
    assert shown["run"]["error"]
    assert shown["events"][-1]["type"] == "failed"
    assert any("retry" in sentence for sentence in shown["advice"])
    assert "It failed" in await admin.run("runs", "show", started.run_id)


async def replay_a_dead_letter(admin: Console, client: Client) -> None:
    message: dramatiq.Message[Any] = dramatiq.Message(RUN_QUEUE, "nobody", (), {}, {})
    bury(admin.deployment, message)

    async def dead() -> Any:
        [queue, _] = (await admin.json("queues"))["queues"]
        return queue["dead"] == 1 and queue

    queue = await until(dead, within=PATIENT, every=0.2)
    assert queue["consumers"] >= 2
    listed = await admin.json("dead-letters", "list")
    assert [letter["id"] for letter in listed["dead_letters"]] == [message.message_id]
    replayed = await admin.json("dead-letters", "replay", message.message_id)
    assert replayed["replayed"] == 1


def bury(deployment: Deployment, message: dramatiq.Message[Any]) -> None:
    settings = Settings(
        broker=BrokerSettings.model_validate({"kind": "rabbitmq", "url": deployment.settings["RABBITMQ_URL"]})
    )
    broker = make_broker(settings)
    broker.declare_queue(RUN_QUEUE)
    broker.enqueue(message)
    broker.close()


async def drain_a_worker(admin: Console, client: Client) -> None:
    started = await client.initiate("demo/lorem?chunks=100000&delay_ms=50")
    await until(lambda: is_running(client, started.run_id), within=PATIENT)
    driver = await admin.deployment.driver_of(started.run_id)
    listed = await admin.json("workers", "list")
    [instance] = [one["instance_id"] for one in listed["workers"] if started.run_id in one["runs"]]
    assert len(listed["workers"]) == 2
    assert "has left" in await admin.run("workers", "drain", instance)
    assert await driver.exited() == 0
    other = await admin.deployment.driver_of(started.run_id)
    assert other is not driver
    assert instance not in await admin.run("workers", "list")
    assert instance in await admin.run("workers", "drain", instance, code=1)
    await requeue(admin, client, started.run_id)
    await admin.run("runs", "stop", started.run_id)


async def requeue(admin: Console, client: Client, run_id: str) -> None:
    before = (await client.get(run_id))["attempt"]
    await admin.run("runs", "requeue", run_id)

    async def goes_on() -> bool:
        run = await client.get(run_id)
        return bool(run["phase"] == "running" and run["attempt"] > before + 1)

    await until(goes_on, within=PATIENT * 5, every=0.2)


async def grant_credits(admin: Console, client: Client) -> None:
    [account] = (await admin.json("accounts", "list"))["accounts"]
    assert account["live_runs"] == 0
    granted = await admin.json("credits", "grant", account["account_id"], "5", "--note", "a gift")
    assert granted["balance"] == "5"


async def test_a_store_that_is_away_is_a_sentence_and_a_wrong_argument_is_named(deploy: Deploy) -> None:
    admin = Console(await deploy(workers=0))
    nowhere = {"DATABASE_URL": "postgresql://longrun:secret@127.0.0.1:1/longrun"}
    for command in (["runs", "list"], ["queues"], ["workers", "list"], ["accounts", "list"], ["retention", "show"]):
        said = await admin.run(*command, code=1, environment=nowhere)
        assert "Postgres at 127.0.0.1:1/longrun cannot be reached." in said
        assert "secret" not in said
    said = await admin.run("queues", code=1, environment={"RABBITMQ_URL": "amqp://longrun:secret@127.0.0.1:1/%2F"})
    assert "does not answer" in said
    assert "secret" not in said
    said = await admin.run("workers", "list", code=1, environment={"REDIS_URL": "redis://127.0.0.1:1/0"})
    assert "Redis does not answer" in said
    assert "argument RUN: 'x' is no id" in await admin.run("runs", "show", "x", code=2)
    assert "name the runs" in await admin.run("runs", "stop", code=2)
    missing = str(uuid4())
    assert missing in await admin.run("runs", "show", missing, code=1)
    assert "RETENTION_RUNS" in await admin.run("retention", "run", "--runs", "1h", code=1)
    assert "Nothing is deleted by age" in await admin.run("retention", "run", code=1)
    assert "would be removed" in await admin.run("retention", "run", "--messages", "30d", "--dry-run")
