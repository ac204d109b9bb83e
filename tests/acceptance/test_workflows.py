"""Executions on two workers that are killed: every effect as often as its step allows, one whole stream for each."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.workflows.configs import CONFIGS
from agent.workflows.engine import CUT
from tests.acceptance.client import Client, Event, Stream, check_whole_log, follow
from tests.acceptance.conftest import Share
from tests.acceptance.operators import Deployment, Operated
from tests.acceptance.test_crashes import kill_group
from tests.acceptance.witness import ONCE, ORDER, Witness, open_witness
from tests.waiting import eventually

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")

MODEL = "demo/lorem?chunks=15&delay_ms=20"
LIVE = """
SELECT e.execution_id, extract(epoch FROM clock_timestamp() - run.started_at) AS seconds,
    ARRAY(SELECT s.step_id FROM workflow_steps s WHERE s.execution_id = e.execution_id AND s.status = 'running'
          ORDER BY s.position) AS steps
FROM agent_runs run JOIN workflow_executions e ON e.agent_run_id = run.id
WHERE run.status = 'running' AND (run.instance_id = ANY($1) OR e.execution_id = ANY($2))
"""
FOLLOWED_SECONDS = 300.0


@pytest.fixture
async def witness() -> AsyncIterator[Witness]:
    async with open_witness() as witness:
        yield witness


def step(step_id: str, kind: str, config: dict[str, Any], *next_steps: str) -> dict[str, Any]:
    return {"id": step_id, "type": kind, "config": config, "next_steps": list(next_steps)}


def steps_of(witness: Witness) -> list[dict[str, Any]]:
    """A step of every type, those that act in the order of `witness.ORDER`."""
    url, whose = witness.site.url, {"execution": "{{ execution.id }}"}
    put = {"method": "PUT", "url": url("/put"), "body": {"n": "{{ item }}"}, "repeatable": True}
    read = {"tool": "scrape_webpage", "arguments": {"urls": url("/read?{{ execution.id }}")}}
    mcp = {"server": "witness", "arguments": whose}
    return [
        step("given", "INPUT", {"variables": [{"name": "items", "type": "array", "default": [1, 2]}]}, "each"),
        step("each", "LOOP", {"body": "put", "over": "variables.items"}, "sides"),
        step("put", "WEBHOOK", put, "sum"),
        step("sum", "TRANSFORM", {"set": {"sum": "add(variables.sum || `0`, item)"}}, "each"),
        step("sides", "PARALLEL", {"branches": ["side", "ask"]}, "act"),
        step("side", "WEBHOOK", {"url": url("/side"), "retries": 0}),
        step("ask", "AGENT", {"prompt": "Sum: {{ variables.sum }}"}),
        step("act", "MCP_TOOL", {**mcp, "tool": "act", "retries": 0}, "pause"),
        step("pause", "WAIT", {"seconds": 0.3}, "if"),
        step("if", "CONDITION", {"expression": "variables.sum == `3`"}, "read", "never"),
        step("never", "TRANSFORM", {"expression": "`0`"}),
        step("read", "TOOL", read, "look"),
        step("look", "MCP_TOOL", {**mcp, "tool": "look", "repeatable": True}, "pay"),
        step("pay", "WEBHOOK", {"url": url("/pay"), "body": "{{ steps.ask.output.text }}", "retries": 0}),
    ]


async def make_workflow(client: Client, witness: Witness) -> str:
    server = {"name": "witness", "type": "http", "config": {"url": witness.mcp_url}}
    agent = {"name": "Witnessed", "agentpress_tools": {"web_search_tool": True}, "custom_mcps": [server]}
    agent_id = (await client.http.post("/agents", json=agent)).raise_for_status().json()["agent_id"]
    steps = steps_of(witness)
    assert {each["type"] for each in steps} == CONFIGS.keys()
    asked = {"name": "Everything", "state": "ACTIVE", "entry_point": "given", "steps": steps, "agent_id": agent_id}
    made: str = (await client.http.post("/workflows", json=asked)).raise_for_status().json()["id"]
    return made


async def execute(client: Client, workflow_id: str) -> dict[str, str]:
    answer = await client.http.post(f"/workflows/{workflow_id}/execute", json={"model_name": MODEL})
    started: dict[str, str] = answer.raise_for_status().json()
    return started


async def shown(client: Client, execution_id: str) -> dict[str, Any]:
    execution: dict[str, Any] = (await client.http.get(f"/workflows/executions/{execution_id}")).json()
    return execution


@dataclass
class Storm:
    """Executions, several at a time, under workers that are killed at random moments until enough of them were hit."""

    system: Deployment
    client: Client
    witness: Witness
    wanted: int
    at_once: int
    luck: random.Random = field(default_factory=lambda: random.Random(7))
    begun: int = 0
    logs: list[tuple[dict[str, str], list[Event]]] = field(default_factory=list)
    hits: dict[str, list[str]] = field(default_factory=dict)
    """Executions that a worker was driving when it was killed: after how long, and with which steps under way."""

    @property
    def over(self) -> bool:
        return len(self.hits) >= self.wanted or self.begun >= 4 * self.wanted + 2 * self.at_once

    async def rage(self) -> None:
        workflow_id = await make_workflow(self.client, self.witness)
        await asyncio.gather(self.kill(), *(self.execute_on_and_on(workflow_id) for _ in range(self.at_once)))

    async def execute_on_and_on(self, workflow_id: str) -> None:
        while not self.over:
            self.begun += 1
            await asyncio.sleep(self.luck.uniform(0, 1))  # the moment is what is random here; nothing is waited for
            started = await execute(self.client, workflow_id)
            self.logs.append((started, await follow(self.client, started["agent_run_id"], FOLLOWED_SECONDS)))

    async def kill(self) -> None:
        while not self.over:
            await asyncio.sleep(self.luck.uniform(0.3, 1.3))
            await self.strike(self.luck.choice(self.system.workers))
            await self.system.start_workers(1)

    async def strike(self, worker: Operated) -> None:
        """What it had just before, or has in the rows afterwards, was live, unless it ended in between."""
        instances = worker.instances
        live = [row["execution_id"] for row in await self.system.rows(LIVE, instances, [])]
        kill_group(worker)
        for row in await self.system.rows(LIVE, instances, live):
            moment = f"{row['seconds']:.2f} s, {'+'.join(row['steps']) or 'between steps'}"
            self.hits.setdefault(str(row["execution_id"]), []).append(moment)

    async def check(self) -> Counter[str]:
        """Every execution against its stream, its row and what was seen of it; how they ended."""
        endings = Counter([await self.check_one(started, events) for started, events in self.logs])
        assert len(self.hits) >= self.wanted, f"{len(self.hits)} of {self.begun} were hit while they were live"
        assert self.hits.keys() <= {started["execution_id"] for started, _ in self.logs}
        return endings

    async def check_one(self, started: dict[str, str], events: list[Event]) -> str:
        execution = await shown(self.client, started["execution_id"])
        status: str = execution["status"]
        check_whole_log(events, status)
        assert await self.client.read(started["agent_run_id"]) == events
        seen = self.witness.seen_of(started["execution_id"])
        said = f"{execution['error']} {seen} {self.hits.get(started['execution_id'])}"
        assert all(seen[effect] <= 1 for effect in ONCE), said
        if status == "completed":
            assert seen.keys() == set(ORDER), said
        else:
            assert status == "failed", said
            self.check_cut(execution, seen, said)
        for effect in ORDER:
            assert len(self.witness.bodies_of(started["execution_id"], effect)) <= 1, "a key stood for two requests"
        return status

    def check_cut(self, execution: dict[str, Any], seen: Counter[str], said: str) -> None:
        """It names a step that was under way when its worker died: all before it happened, nothing behind it."""
        assert execution["execution_id"] in self.hits, said
        [cut] = [effect for effect in ONCE if execution["error"] == CUT.format(title=effect.partition(":")[0])]
        assert cut.partition(":")[0] in {each["step_id"] for each in execution["steps"] if each["status"] == "stopped"}
        place = ORDER.index(cut)
        assert set(ORDER[:place]) <= seen.keys() <= set(ORDER[: place + 1]), said

    def __str__(self) -> str:
        moments = Counter(moment.partition(", ")[2] for hit in self.hits.values() for moment in hit)
        hits = sum(map(len, self.hits.values()))
        return f"{len(self.hits)} of {self.begun} executions hit, {hits} hits, under way then: {dict(moments)}"


async def rage(share: Share, witness: Witness, wanted: int, at_once: int, **names: str) -> Counter[str]:
    system = await share(OUTGOING_ALLOW_PRIVATE="true", **names)
    async with system.client() as client:
        storm = Storm(system, client, witness, wanted, at_once)
        await storm.rage()
        endings = await storm.check()
        print(storm, dict(endings))  # noqa: T201 - the measured figures
        return endings


async def test_executions_of_killed_workers_end_and_nothing_happens_more_often_than_it_may(
    share: Share, witness: Witness
) -> None:
    assert (await rage(share, witness, 1, 3)).total() >= 1


@pytest.mark.slow
async def test_fifty_executions_of_killed_workers(share: Share, witness: Witness) -> None:
    """However often one is hit: it is not given up for that."""
    endings = await rage(share, witness, 50, 10, RUN_MAX_CRASHES="100")
    assert endings["completed"] >= 10


async def test_the_client_of_agent_runs_reads_an_execution_as_it_is(share: Share, witness: Witness) -> None:
    """It knows nothing of workflows: what it checks holds, a break costs nothing, the agent's words come as always."""
    system = await share(OUTGOING_ALLOW_PRIVATE="true")
    async with system.client() as client:
        started = await execute(client, await make_workflow(client, witness))
        run_id, execution_id = started["agent_run_id"], started["execution_id"]
        async with client.stream(run_id) as stream:
            seen = await stream.until("assistant_response_start")
            assert (await shown(client, execution_id))["status"] == "running"
        async with client.stream(run_id, seen[-1].id) as stream:
            seen += await stream.take(9)
        events = seen + await client.read(run_id, seen[-1].id)
        check_whole_log(events, "completed")
        assert await client.read(run_id) == events
        assert await client.read(run_id, events[-1].id) == []
        assert (await client.get(run_id))["status"] == "completed"
        chunks = [event for event in events if event.stream_status == "chunk"]
        assert len(chunks) == 15
        assert [each["type"] for each in await client.messages(started["thread_id"])] == ["user", "assistant"]
        await eventually(lambda: witness.seen_of(execution_id) == Counter(ORDER))
        assert await read_by_execution(client, execution_id, 7) == events[8:]


async def read_by_execution(client: Client, execution_id: str, after: int) -> list[Event]:
    """The same stream by its other name."""
    path, headers = f"/workflows/executions/{execution_id}/stream", {"Last-Event-ID": str(after)}
    async with client.http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        return await Stream(response).rest()
