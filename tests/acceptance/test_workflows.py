"""Executions on two workers that are killed: every effect as often as its step allows, one whole stream for each."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.workflows.engine import CUT
from tests.acceptance.client import Client, check_whole_log, follow
from tests.acceptance.conftest import Share
from tests.acceptance.operators import Deployment
from tests.acceptance.test_crashes import kill_group
from tests.sites import Page, Site, site
from tests.waiting import eventually

SLOW = Page(b"............", content_type="text/plain", drip=0.02)
"""A quarter of a second: something to be killed in."""
MODEL = "demo/lorem?chunks=15&delay_ms=20"


@pytest.fixture
async def witness() -> AsyncIterator[Site]:
    """What the world outside sees."""
    async with site(dict.fromkeys(("/put", "/pay", "/side", "/page"), SLOW)) as serving:
        yield serving


def step(step_id: str, kind: str, config: dict[str, Any], *next_steps: str) -> dict[str, Any]:
    return {"id": step_id, "type": kind, "config": config, "next_steps": list(next_steps)}


def steps_of(witness: Site) -> list[dict[str, Any]]:
    put = {"method": "PUT", "url": witness.url("/put"), "body": {"n": "{{ item }}"}, "repeatable": True}
    return [
        step("given", "INPUT", {"variables": [{"name": "items", "type": "array", "default": [1, 2]}]}, "each"),
        step("each", "LOOP", {"body": "put", "over": "variables.items"}, "sides"),
        step("put", "WEBHOOK", put, "sum"),
        step("sum", "TRANSFORM", {"set": {"sum": "add(variables.sum || `0`, item)"}}, "each"),
        step("sides", "PARALLEL", {"branches": ["side", "ask"]}, "pause"),
        step("side", "WEBHOOK", {"url": witness.url("/side"), "retries": 0}),
        step("ask", "AGENT", {"prompt": "Sum: {{ variables.sum }}"}),
        step("pause", "WAIT", {"seconds": 0.5}, "if"),
        step("if", "CONDITION", {"expression": "variables.sum == `3`"}, "read", "never"),
        step("never", "TRANSFORM", {"expression": "`0`"}),
        step("read", "TOOL", {"tool": "scrape_webpage", "arguments": {"urls": witness.url("/page")}}, "pay"),
        step("pay", "WEBHOOK", {"url": witness.url("/pay"), "body": "{{ steps.ask.output.text }}", "retries": 0}),
    ]


async def make_workflow(client: Client, witness: Site) -> str:
    asked = {"name": "Everything", "state": "ACTIVE", "entry_point": "given", "steps": steps_of(witness)}
    made: str = (await client.http.post("/workflows", json=asked)).raise_for_status().json()["id"]
    return made


async def execute(client: Client, workflow_id: str) -> dict[str, str]:
    answer = await client.http.post(f"/workflows/{workflow_id}/execute", json={"model_name": MODEL})
    started: dict[str, str] = answer.raise_for_status().json()
    return started


async def shown(client: Client, execution_id: str) -> dict[str, Any]:
    execution: dict[str, Any] = (await client.http.get(f"/workflows/executions/{execution_id}")).json()
    return execution


async def is_heard(client: Client, run_id: str) -> None:
    """Until a run has said its first word: the log of one whose worker died before begins with void ids."""
    async with client.stream(run_id) as stream:
        await stream.take(1)


async def kill_both_in_turn(system: Deployment, luck: random.Random) -> None:
    """Each at a random moment, and each followed by another worker."""
    for worker in list(system.workers):
        await asyncio.sleep(luck.uniform(0.1, 1.5))  # the moment is what is random here; nothing is waited for
        kill_group(worker)
        await system.start_workers(1)


async def check_execution(client: Client, started: dict[str, str], sent: Counter[tuple[str, str]]) -> str:
    """One execution against what the witness saw of it; how it ended."""
    execution_id = started["execution_id"]
    execution = await shown(client, execution_id)
    events = await client.read(started["agent_run_id"])
    check_whole_log(events, execution["status"])
    seen = {key.removeprefix(f"{execution_id}:"): count for (_, key), count in sent.items() if execution_id in key}
    assert seen.keys() <= {"put:0", "put:1", "side:0", "pay:0"}, seen
    assert max(seen.get("side:0", 0), seen.get("pay:0", 0)) <= 1, seen
    if execution["status"] == "completed":
        assert seen.keys() == {"put:0", "put:1", "side:0", "pay:0"}
        assert events[-2].status_type == "thread_run_end"
    else:
        assert execution["error"] in {CUT.format(title=title) for title in ("side", "pay")}
    status: str = execution["status"]
    return status


async def kill_rounds(system: Deployment, witness: Site, rounds: int, at_once: int) -> Counter[str]:
    luck, endings = random.Random(7), Counter[str]()
    async with system.client() as client:
        workflow_id = await make_workflow(client, witness)
        for _ in range(rounds):
            begun = await asyncio.gather(*(execute(client, workflow_id) for _ in range(at_once)))
            reading = [asyncio.create_task(follow(client, each["agent_run_id"])) for each in begun]
            await asyncio.gather(*(is_heard(client, each["agent_run_id"]) for each in begun))
            await kill_both_in_turn(system, luck)
            logs = await asyncio.gather(*reading)
            sent = Counter(
                (each.path, each.headers["idempotency-key"]) for each in witness.asked if each.path != "/page"
            )
            for started, events in zip(begun, logs, strict=True):
                assert await client.read(started["agent_run_id"]) == events
                endings[await check_execution(client, started, sent)] += 1
    return endings


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_executions_of_killed_workers_end_and_nothing_happens_more_often_than_it_may(
    share: Share, witness: Site
) -> None:
    system = await share(OUTGOING_ALLOW_PRIVATE="true")
    endings = await kill_rounds(system, witness, 1, 4)
    assert sum(endings.values()) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_fifty_executions_of_killed_workers(share: Share, witness: Site) -> None:
    system = await share(OUTGOING_ALLOW_PRIVATE="true")
    endings = await kill_rounds(system, witness, 5, 10)
    print(dict(endings))  # noqa: T201 - the measured figure
    assert endings["completed"] > 0
    assert sum(endings.values()) == 50


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_the_client_of_agent_runs_reads_an_execution_as_it_is(share: Share, witness: Site) -> None:
    """It knows nothing of workflows: what it checks holds, and the agent's words come as always."""
    system = await share(OUTGOING_ALLOW_PRIVATE="true")
    async with system.client() as client:
        started = await execute(client, await make_workflow(client, witness))
        async with client.stream(started["agent_run_id"]) as stream:
            seen = await stream.until("assistant_response_start")
            assert (await shown(client, started["execution_id"]))["status"] == "running"
            events = seen + await stream.rest()
        check_whole_log(events, "completed")
        assert (await client.get(started["agent_run_id"]))["status"] == "completed"
        chunks = [event for event in events if event.stream_status == "chunk"]
        assert len(chunks) == 15
        assert [each["type"] for each in await client.messages(started["thread_id"])] == ["user", "assistant"]
        await eventually(lambda: len(witness.asked) == 5)
