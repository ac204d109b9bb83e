"""Executions over HTTP: begun once for all, shown as their runs stand, stopped, followed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
import pytest
from httpx2 import Response

from services import projects
from services.http import open_client
from services.postgres import Pool, transaction
from services.runs import starting, store
from services.runs.stores import open_stores
from services.settings import Settings
from tests.api.conftest import Person
from tests.api.world import WATERING, made
from tests.services.runs.seeds import eventually, waiting_for_locks
from worker import runner
from worker.process import Process

MODEL = {"model_name": "demo/lorem?chunks=3&delay_ms=0"}


@pytest.fixture
async def process(settings: Settings) -> AsyncIterator[Process]:
    """A worker process beside the API."""
    async with open_stores(settings) as stores, open_client(settings) as http:
        yield Process(settings, stores, http)


async def workflow_of(person: Person, **fields: Any) -> str:
    workflow = await made(person, "/workflows", {"name": "Watering", "state": "ACTIVE", **WATERING, **fields})
    return str(workflow["id"])


async def executed(person: Person, workflow_id: str, query: str = "", **asked: Any) -> dict[str, Any]:
    return await made(person, f"/workflows/{workflow_id}/execute{query}", {**MODEL, **asked})


def step_of(step_id: str, kind: str, config: dict[str, Any], *next_steps: str) -> dict[str, Any]:
    return {"id": step_id, "type": kind, "config": config, "next_steps": list(next_steps)}


ASKING = {
    "entry_point": "given",
    "steps": [
        step_of("given", "INPUT", {"variables": [{"name": "who", "type": "string"}]}, "ask"),
        step_of("ask", "AGENT", {"prompt": "Greet {{ variables.who }}"}),
    ],
}


def events_of(answer: Response) -> list[tuple[int, dict[str, Any]]]:
    """Ids and events of a stream that has ended."""
    frames = [frame.split("\n") for frame in answer.text.split("\n\n") if frame.startswith("id: ")]
    return [(int(lines[0][4:]), orjson.loads(lines[1][6:])) for lines in frames]


async def test_an_execution_is_a_run_with_a_thread_in_the_workflows_project(ann: Person, pool: Pool) -> None:
    _, project_id = await ann.make_thread()
    workflow_id = await workflow_of(ann, project_id=project_id)
    started = await executed(ann, workflow_id, variables={"a": 1}, metadata={"ours": 1}, priority=7)
    assert started["status"] == "running"
    run = await store.get(pool, UUID(started["agent_run_id"]))
    assert run
    assert (run.kind, str(run.project_id), run.metadata, run.priority) == ("workflow", project_id, {"ours": 1}, 7)
    shown = (await ann.get(f"/workflows/executions/{started['execution_id']}")).json()
    assert (shown["status"], shown["phase"], shown["workflow_version"]) == ("running", "queued", 1)
    assert (shown["variables"], shown["steps"], shown["triggered_by"]) == ({"a": 1}, [], "MANUAL")
    assert shown["thread_id"] == started["thread_id"]


async def test_without_a_project_every_execution_has_its_own_and_none_waits_for_another(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    ids = [(await executed(ann, workflow_id))["execution_id"] for _ in range(2)]
    shown = [(await ann.get(f"/workflows/executions/{each}")).json() for each in ids]
    assert shown[0]["project_id"] != shown[1]["project_id"]
    assert [each["phase"] for each in shown] == ["queued", "queued"]


async def test_in_one_project_executions_wait_for_each_other(ann: Person) -> None:
    _, project_id = await ann.make_thread()
    workflow_id = await workflow_of(ann, project_id=project_id)
    started = [await executed(ann, workflow_id) for _ in range(2)]
    shown = [(await ann.get(f"/workflows/executions/{each['execution_id']}")).json() for each in started]
    assert [each["phase"] for each in shown] == ["queued", "waiting"]
    answer = await ann.post(f"/workflows/{workflow_id}/execute", json={**MODEL, "on_active": "reject"})
    assert answer.status_code == 409
    assert answer.json()["detail"]["agent_run_id"] == started[0]["agent_run_id"]


async def test_an_execution_that_begins_while_its_project_is_deleted_and_the_deletion_do_not_wait_for_each_other(
    ann: Person, pool: Pool
) -> None:
    _, project_id = await ann.make_thread()
    workflow_id = await workflow_of(ann, project_id=project_id)
    async with transaction(pool) as conn:
        await starting.take_turns(conn, UUID(project_id))
        executing = asyncio.create_task(ann.post(f"/workflows/{workflow_id}/execute", json=MODEL))
        await eventually(lambda: waiting_for_locks(pool))
        await projects.delete(conn, ann.user_id, UUID(project_id))
    assert (await executing).status_code == 404
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 0


async def test_an_execution_with_a_key_happens_once(ann: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann)
    key = {"Idempotency-Key": "k1"}
    path = f"/workflows/{workflow_id}/execute"
    answers = [await ann.post(path, json={**MODEL, "variables": {"a": 1}}, headers=key) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    other = await ann.post(path, json={**MODEL, "variables": {"a": 2}}, headers=key)
    assert other.status_code == 409
    assert await pool.fetchval("SELECT count(*) FROM workflow_executions") == 1


async def test_variables_are_checked_before_anything_is_begun(ann: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    for given, words in (({}, "who is required"), ({"who": 7}, "who must be of type string")):
        answer = await ann.post(f"/workflows/{workflow_id}/execute", json={**MODEL, "variables": given})
        assert answer.status_code == 422
        (said,) = answer.json()["detail"]
        assert (said["loc"], said["msg"]) == (["body", "variables.who"], words)
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 0


async def test_a_whole_number_that_the_stores_cannot_keep_as_one_is_refused_by_name(ann: Person, pool: Pool) -> None:
    asking = {"variables": [{"name": "times", "type": "integer"}]}
    workflow_id = await workflow_of(ann, entry_point="given", steps=[step_of("given", "INPUT", asking)])
    for times in (1e30, -(2.0**63), 2.0**63):
        answer = await ann.post(f"/workflows/{workflow_id}/execute", json={**MODEL, "variables": {"times": times}})
        assert answer.status_code == 422
        assert "times must have at most 64 bits" in answer.json()["detail"][0]["msg"]
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 0
    assert (await executed(ann, workflow_id, variables={"times": 2.0**62}))["status"] == "running"


async def test_a_paused_workflow_and_one_without_steps_are_not_executed(ann: Person) -> None:
    paused = await workflow_of(ann, state="PAUSED")
    empty = (await made(ann, "/workflows", {"name": "Empty"}))["id"]
    for workflow_id, words in ((paused, "This workflow is paused."), (empty, "This workflow has no steps yet.")):
        answer = await ann.post(f"/workflows/{workflow_id}/execute", json=MODEL)
        assert (answer.status_code, answer.json()["detail"]) == (409, words)


async def test_an_execution_is_driven_and_followed_by_its_run_and_by_itself(ann: Person, process: Process) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    started = await executed(ann, workflow_id, variables={"who": "Ann"})
    await runner.drive(process, UUID(started["agent_run_id"]))
    shown = (await ann.get(f"/workflows/executions/{started['execution_id']}")).json()
    assert (shown["status"], shown["phase"], shown["error"]) == ("completed", "completed", None)
    assert [(each["step_id"], each["status"]) for each in shown["steps"]] == [
        ("given", "completed"),
        ("ask", "completed"),
    ]
    assert shown["steps"][1]["inputs"] == {"prompt": "Greet Ann"}
    assert shown["usage"] == shown["steps"][1]["usage"]
    by_run = await ann.get(f"/agent-run/{started['agent_run_id']}/stream")
    by_execution = await ann.get(f"/workflows/executions/{started['execution_id']}/stream")
    assert events_of(by_run) == events_of(by_execution)
    events = [event for _, event in events_of(by_run)]
    assert [number for number, _ in events_of(by_run)] == list(range(len(events)))
    assert events[-1]["status"] == "completed"
    told = [orjson.loads(each["content"]) for each in events if each["type"] == "workflow_status"]
    assert [(each["status_type"], each.get("step_id")) for each in told] == [
        ("workflow_started", None),
        ("step_started", "given"),
        ("step_completed", "given"),
        ("step_started", "ask"),
        ("step_completed", "ask"),
        ("workflow_completed", None),
    ]
    assert {each["execution_id"] for each in told} == {started["execution_id"]}
    said = [each["type"] for each in events if each["type"] in ("assistant", "user")]
    assert said == ["user", *["assistant"] * 4]


async def test_a_stream_token_of_the_run_opens_the_stream_of_its_execution_and_of_no_other(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    started = [await executed(ann, workflow_id) for _ in range(2)]
    for each in started:
        await ann.post(f"/workflows/executions/{each['execution_id']}/cancel")
    token = (await ann.post(f"/agent-run/{started[0]['agent_run_id']}/stream-token")).json()["token"]
    del ann.headers["Authorization"]
    paths = [f"/workflows/executions/{each['execution_id']}/stream" for each in started]
    assert [(await ann.get(path, params={"token": token})).status_code for path in paths] == [200, 401]
    assert (await ann.get(paths[0])).status_code == 401


async def test_an_execution_that_is_cancelled_ends_stopped(ann: Person, pool: Pool) -> None:
    started = await executed(ann, await workflow_of(ann))
    path = f"/workflows/executions/{started['execution_id']}"
    for _ in range(2):
        assert (await ann.post(f"{path}/cancel")).json() == {
            "execution_id": started["execution_id"],
            "status": "stopped",
        }
    assert (await ann.get(path)).json()["status"] == "stopped"


async def test_an_execution_that_is_not_deterministic_gives_the_agent_the_workflow_as_its_brief(
    ann: Person, process: Process
) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    started = await executed(ann, workflow_id, "?deterministic=false", variables={"who": "Ann"})
    await runner.drive(process, UUID(started["agent_run_id"]))
    shown = (await ann.get(f"/workflows/executions/{started['execution_id']}")).json()
    assert (shown["status"], shown["deterministic"], shown["steps"]) == ("completed", False, [])
    told = (await ann.get(f"/threads/{started['thread_id']}/messages", params={"order": "asc"})).json()["messages"]
    assert [each["type"] for each in told] == ["user", "assistant"]
    assert "Carry out this workflow: Watering" in told[0]["content"]["content"]
    assert "ask (AGENT)" in told[0]["content"]["content"]


async def test_a_retry_of_a_workflows_run_is_an_execution_of_the_same_version(ann: Person, process: Process) -> None:
    workflow_id = await workflow_of(ann)
    started = await executed(ann, workflow_id, variables={"a": 1})
    await runner.drive(process, UUID(started["agent_run_id"]))
    steps = [{"id": "water", "type": "TRANSFORM", "config": {"expression": "`2`"}}]
    await ann.put(f"/workflows/{workflow_id}", json={"steps": steps})
    again = (await ann.post(f"/agent-run/{started['agent_run_id']}/retry")).raise_for_status().json()
    await runner.drive(process, UUID(again["agent_run_id"]))
    page = (await ann.get(f"/workflows/{workflow_id}/executions")).json()["executions"]
    assert [(each["workflow_version"], each["status"], each["variables"]) for each in page] == [
        (1, "completed", {"a": 1})
    ] * 2
    assert page[0]["agent_run_id"] == again["agent_run_id"]
    newest = (await ann.get(f"/workflows/executions/{page[0]['execution_id']}")).json()
    assert newest["steps"][0]["output"] == {"a": 1}


async def test_executions_and_their_steps_come_in_pages(ann: Person, process: Process) -> None:
    names = [f"s{n}" for n in range(5)]
    follow = [*names[1:], None]
    steps = [
        step_of(name, "TRANSFORM", {"expression": "`1`"}, *([then] if then else []))
        for name, then in zip(names, follow, strict=True)
    ]
    workflow_id = await workflow_of(ann, steps=steps, entry_point="s0")
    started = [await executed(ann, workflow_id) for _ in range(3)]
    first = (await ann.get(f"/workflows/{workflow_id}/executions", params={"limit": 2})).json()
    rest = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await ann.get(f"/workflows/{workflow_id}/executions", params=rest)).json()
    shown = [each["execution_id"] for page in (first, second) for each in page["executions"]]
    assert shown == [each["execution_id"] for each in reversed(started)]
    assert second["next_cursor"] is None
    await runner.drive(process, UUID(started[0]["agent_run_id"]))
    path, seen, cursor = f"/workflows/executions/{started[0]['execution_id']}", list[str](), dict[str, str]()
    for _ in range(3):
        page = (await ann.get(path, params={"limit": 2, **cursor})).json()
        seen += [each["step_id"] for each in page["steps"]]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == names
    assert page["next_cursor"] is None


async def test_deleting_a_workflow_stops_its_executions_and_keeps_their_threads(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    started = await executed(ann, workflow_id)
    assert (await ann.delete(f"/workflows/{workflow_id}")).status_code == 200
    assert (await ann.get(f"/agent-run/{started['agent_run_id']}")).json()["status"] == "stopped"
    assert (await ann.get(f"/threads/{started['thread_id']}")).status_code == 200
    assert (await ann.get(f"/workflows/executions/{started['execution_id']}")).status_code == 404
