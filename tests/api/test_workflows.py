"""Workflows over HTTP: kept as they are given, refused with the step and the field, never anybody else's."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from services import workflow_executions, workflows
from services.postgres import Pool, transaction
from services.settings import LimitSettings
from services.workflow_executions import NewExecution
from tests.api.conftest import Person
from tests.api.world import WATERING, made
from tests.services.runs.seeds import eventually, waiting_for_locks


async def test_a_workflow_is_kept_as_it_is_given(ann: Person) -> None:
    _, project_id = await ann.make_thread()
    agent = await made(ann, "/agents", {"name": "Gardener"})
    given = {
        **WATERING,
        "name": "Watering",
        "description": "Every morning.",
        "state": "ACTIVE",
        "project_id": project_id,
        "agent_id": agent["agent_id"],
        "triggers": [{"type": "WEBHOOK", "config": {"a": 1}}],
        "max_execution_time": 60,
        "max_retries": 1,
        "unknown": "ignored",
    }
    workflow = await made(ann, "/workflows", given)
    read = (await ann.get(f"/workflows/{workflow['id']}")).json()
    assert read == workflow
    assert {name: read[name] for name in given if name not in ("steps", "unknown")} == {
        name: value for name, value in given.items() if name not in ("steps", "unknown")
    }
    assert read["version"] == 1
    (step,) = read["steps"]
    assert (step["id"], step["type"], step["config"]) == ("water", "TRANSFORM", {"expression": "variables"})


async def test_other_steps_make_a_version_and_another_name_does_not(ann: Person, pool: Pool) -> None:
    workflow = await made(ann, "/workflows", {"name": "Watering", **WATERING})
    path = f"/workflows/{workflow['id']}"
    renamed = (await ann.put(path, json={"name": "Rain", "state": "PAUSED", "steps": workflow["steps"]})).json()
    assert (renamed["name"], renamed["state"], renamed["version"]) == ("Rain", "PAUSED", 1)
    steps = [{**workflow["steps"][0], "config": {"expression": "length(variables)"}}]
    changed = (await ann.put(path, json={"steps": steps})).json()
    assert (changed["name"], changed["version"], changed["entry_point"]) == ("Rain", 2, "water")
    numbers = await pool.fetch("SELECT version_number FROM workflow_versions ORDER BY 1")
    assert [row["version_number"] for row in numbers] == [1, 2]


async def test_a_whole_number_that_the_stores_cannot_keep_is_refused_wherever_it_stands(ann: Person) -> None:
    workflow = await made(ann, "/workflows", {"name": "Watering", **WATERING})
    step = {"id": "water", "type": "TRANSFORM", "config": {"expression": "variables", "note": [2**63]}}
    for answer, field in (
        (await ann.post("/workflows", json={"name": "Bad", "entry_point": "water", "steps": [step]}), "config"),
        (await ann.post(f"/workflows/{workflow['id']}/execute", json={"variables": {"a": -(2**70)}}), "variables"),
    ):
        assert answer.status_code == 422
        (said,) = answer.json()["detail"]
        assert said["loc"][-1] == field
        assert "64 bits" in said["msg"]


async def test_a_wrong_definition_is_refused_with_its_step_and_field(ann: Person) -> None:
    workflow = await made(ann, "/workflows", {"name": "Watering", **WATERING})
    steps = [{"id": "water", "type": "WEBHOOK", "config": {"url": "file:///etc/passwd"}, "next_steps": ["nowhere"]}]
    for answer in (
        await ann.post("/workflows", json={"name": "Bad", "entry_point": "water", "steps": steps}),
        await ann.put(f"/workflows/{workflow['id']}", json={"steps": steps}),
    ):
        assert answer.status_code == 422
        said = {tuple(each["loc"]): each["msg"] for each in answer.json()["detail"]}
        assert set(said) == {("body", "steps", 0, "config", "url"), ("body", "steps", 0, "next_steps")}
        assert all(words.startswith("step water: ") for words in said.values())
    assert (await ann.get(f"/workflows/{workflow['id']}")).json() == workflow


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"name": "Bad", "state": "ACTIVE"}, ["body", "steps"]),
        ({"name": "Bad", **WATERING, "entry_point": "fire"}, ["body", "entry_point"]),
        ({"name": "Bad", **WATERING, "max_execution_time": 0}, ["body", "max_execution_time"]),
        ({"name": "Bad", "steps": [{"id": "no spaces", "type": "WAIT"}]}, ["body", "steps", 0, "id"]),
        ({"name": "Bad", "steps": [{"id": "a", "type": "INPUT", "name": "\0"}]}, ["body", "steps", 0, "name"]),
        (
            {
                "name": "Bad",
                "entry_point": "a",
                "steps": [{"id": "a", "type": "AGENT", "config": {"prompt": "x", "model_name": "nobody/x"}}],
            },
            ["body", "steps", 0, "config", "model_name"],
        ),
    ],
)
async def test_a_field_that_is_wrong_is_named(ann: Person, asked: dict[str, Any], place: list[str | int]) -> None:
    answer = await ann.post("/workflows", json=asked)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == place


async def test_a_draft_may_be_without_steps_until_it_is_to_be_active(ann: Person) -> None:
    workflow = await made(ann, "/workflows", {"name": "Empty"})
    assert (workflow["state"], workflow["steps"]) == ("DRAFT", [])
    assert (await ann.put(f"/workflows/{workflow['id']}", json={"state": "ACTIVE"})).status_code == 422
    answer = await ann.put(f"/workflows/{workflow['id']}", json={"state": "ACTIVE", **WATERING})
    assert answer.json()["state"] == "ACTIVE"


async def test_a_project_or_an_agent_of_somebody_else_is_not_there(ann: Person, bob: Person) -> None:
    _, project_id = await bob.make_thread()
    agent = await made(bob, "/agents", {"name": "Gardener"})
    for named in ({"project_id": project_id}, {"agent_id": agent["agent_id"]}, {"agent_id": str(uuid4())}):
        assert (await ann.post("/workflows", json={"name": "Theft", **named})).status_code == 404


async def test_workflows_are_listed_newest_first_in_pages(ann: Person, person: Callable[[], Person]) -> None:
    await made(person(), "/workflows", {"name": "Somebody else's"})
    for number in range(3):
        await made(ann, "/workflows", {"name": f"W{number}", "state": "PAUSED" if number else "DRAFT", **WATERING})
    page = (await ann.get("/workflows", params={"limit": 2})).json()
    assert [each["name"] for each in page["workflows"]] == ["W2", "W1"]
    assert page["pagination"] == {"page": 1, "limit": 2, "total": 3, "pages": 2}
    rest = (await ann.get("/workflows", params={"limit": 2, "page": 2, "state": "PAUSED"})).json()
    assert (rest["workflows"], rest["pagination"]["total"]) == ([], 2)


async def test_a_template_can_be_posted_as_it_comes(ann: Person) -> None:
    templates = (await ann.get("/workflows/templates")).json()["templates"]
    assert len(templates) == 3
    for template in templates:
        workflow = await made(ann, "/workflows", {**template, "state": "ACTIVE"})
        assert workflow["steps"] == template["steps"]


async def test_a_workflow_goes_with_its_project_and_when_it_is_deleted(ann: Person, pool: Pool) -> None:
    _, project_id = await ann.make_thread()
    for named in ({"project_id": project_id}, {}):
        await made(ann, "/workflows", {"name": "Watering", **WATERING, **named})
    await ann.delete(f"/projects/{project_id}")
    (left,) = (await ann.get("/workflows")).json()["workflows"]
    assert (await ann.delete(f"/workflows/{left['id']}")).status_code == 200
    assert (await ann.get(f"/workflows/{left['id']}")).status_code == 404
    assert await pool.fetchval("SELECT count(*) FROM workflow_versions") == 0


async def test_what_is_begun_while_its_workflow_is_deleted_is_stopped(ann: Person, pool: Pool) -> None:
    given = await made(ann, "/workflows", {"name": "Watering", **WATERING})
    async with transaction(pool) as conn:
        workflow = await workflows.find(conn, UUID(given["id"]))
        assert workflow
        new = NewExecution(workflow, "demo/echo")
        run = (await workflow_executions.start(conn, uuid4(), new, LimitSettings())).run
        deleting = asyncio.create_task(ann.delete(f"/workflows/{workflow.workflow_id}"))
        await eventually(lambda: waiting_for_locks(pool))
    assert (await deleting).status_code == 200
    assert (await ann.get(f"/agent-run/{run.id}")).json()["status"] == "stopped"
