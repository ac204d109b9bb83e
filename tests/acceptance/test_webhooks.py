"""Webhooks of a whole system: one starts a workflow, whose end is told, also when workers are killed meanwhile."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from services.webhooks import signatures
from tests.acceptance.client import Client, until
from tests.acceptance.conftest import Deploy, Share
from tests.acceptance.test_crashes import kill_group
from tests.acceptance.test_workflows import step
from tests.sites import Page, site
from tests.waiting import eventually

OK = Page(b"thanks")
INPUT = {"variables": [{"name": "who", "type": "string"}]}


async def secret_of(client: Client) -> str:
    account_id = (await client.http.get("/accounts")).raise_for_status().json()["accounts"][0]["account_id"]
    kept = (await client.http.get(f"/accounts/{account_id}/webhook-secret")).raise_for_status().json()
    return str(kept["secret"])


async def attempts_of(client: Client, run_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = (await client.http.get(f"/agent-run/{run_id}/webhook-attempts")).raise_for_status().json()
    return shown


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_a_webhook_starts_a_workflow_and_another_tells_of_the_end_of_a_run(share: Share) -> None:
    system = await share(OUTGOING_ALLOW_PRIVATE="true")
    async with system.client() as client, site({"/hook": OK}) as receiver:
        ask = {"url": receiver.url("/hook"), "body": "{{ variables.who }}"}
        steps = [step("given", "INPUT", INPUT, "tell"), step("tell", "WEBHOOK", ask)]
        workflow = {"name": "W", "state": "ACTIVE", "entry_point": "given", "steps": steps}
        workflow_id = (await client.http.post("/workflows", json=workflow)).raise_for_status().json()["id"]
        kept = (await client.http.put(f"/workflows/{workflow_id}/webhook", json={})).raise_for_status().json()
        body = orjson.dumps({"who": "Ann"})
        signed = signatures.headers([kept["secret"]], f"msg_{uuid4()}", datetime.now(UTC), body)
        headers = {"Content-Type": "application/json", **signed}
        answer = await client.http.post(f"/webhooks/trigger/{workflow_id}", content=body, headers=headers)
        assert answer.status_code == 202
        assert (await client.get(answer.json()["agent_run_id"], wait_seconds=60))["status"] == "completed"
        assert [asked.body for asked in receiver.asked] == [b"Ann"]

        thread_id = (await client.initiate("demo/echo")).thread_id
        run_id = await client.start(thread_id, webhook_url=receiver.url("/hook"), on_active="queue")
        await eventually(lambda: len(receiver.asked) == 2)
        told = receiver.asked[1]
        window = timedelta(minutes=5)
        said = signatures.verify([await secret_of(client)], told.headers, told.body, datetime.now(UTC), window)
        assert said == f"run_{run_id}"
        assert orjson.loads(told.body)["status"] == "completed"

        async def is_delivered() -> bool:
            return bool((await attempts_of(client, run_id))["state"] == "delivered")

        await until(is_delivered)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_every_end_is_told_though_workers_are_killed_while_they_tell_it(deploy: Deploy) -> None:
    system = await deploy(OUTGOING_ALLOW_PRIVATE="true", WEBHOOK_TIMEOUT="2s", WEBHOOK_FIRST_DELAY="100ms")
    async with system.client() as client, site({"/hook": Page(hangs=True)}) as receiver:
        url = receiver.url("/hook")
        threads = [(await client.initiate("demo/echo")).thread_id for _ in range(20)]
        runs = [await client.start(thread, webhook_url=url, on_active="queue") for thread in threads]
        await eventually(lambda: len(receiver.asked) >= 8, within=60, says="each worker tells four at once")
        for worker in list(system.workers):
            kill_group(worker)
        receiver.pages["/hook"] = OK
        await system.start_workers(2)

        async def all_told() -> bool:
            shown = await asyncio.gather(*(attempts_of(client, run_id) for run_id in runs))
            return all(each["state"] == "delivered" for each in shown)

        await until(all_told, within=200, every=0.2)
        shown = [await attempts_of(client, run_id) for run_id in runs]
        lost = [each for told in shown for each in told["attempts"] if each["error"] and "lost" in each["error"]]
        assert lost, "nobody was killed while it told"
        assert {asked.headers["webhook-id"] for asked in receiver.asked} == {f"run_{run_id}" for run_id in runs}
