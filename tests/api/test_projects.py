from dataclasses import replace
from uuid import UUID

import pytest
from fastapi import FastAPI

from services.postgres import Pool
from services.projects import wants_network
from tests.api.conftest import Person


async def test_projects_come_in_pages_newest_first(ann: Person) -> None:
    made = [(await ann.make_thread(f"No. {number}"))[1] for number in range(3)]
    pages = [(await ann.get("/projects", params={"page": page, "limit": 2})).json() for page in (1, 2)]
    assert [project["project_id"] for page in pages for project in page["projects"]] == made[::-1]
    assert pages[1]["pagination"] == {"page": 2, "limit": 2, "total": 3, "pages": 2}


async def test_a_project_is_changed_field_by_field(ann: Person) -> None:
    _, project_id = await ann.make_thread("Tulips")
    await ann.patch(f"/projects/{project_id}", json={"description": "red ones"})
    changed = (await ann.patch(f"/projects/{project_id}", json={"name": "Roses"})).json()
    assert (changed["name"], changed["description"], changed["is_public"]) == ("Roses", "red ones", False)


@pytest.mark.parametrize(
    "patch",
    [{"name": ""}, {"name": "\x00"}, {"description": 1}, {"description": "x" * 5_001}, {"is_public": "perhaps"}],
)
async def test_a_bad_field_of_a_project_is_named(ann: Person, patch: dict[str, object]) -> None:
    _, project_id = await ann.make_thread()
    answer = await ann.patch(f"/projects/{project_id}", json=patch)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *patch]


async def test_the_network_of_a_sandbox_is_opened_where_the_operator_allows_and_closed_always(
    ann: Person, app: FastAPI, pool: Pool
) -> None:
    _, project_id = await ann.make_thread()
    path, known = f"/projects/{project_id}", app.state.resources
    await pool.execute("UPDATE projects SET sandbox = $2 WHERE project_id = $1", project_id, {"pass": "p"})
    refused = await ann.patch(path, json={"sandbox": {"network": True}})
    assert (refused.status_code, "sandbox.network" in refused.json()["detail"]) == (403, True)
    assert await wants_network(pool, UUID(project_id)) is None
    allowing = known.settings.sandbox.model_copy(update={"network_allowed": True})
    app.state.resources = replace(known, settings=known.settings.model_copy(update={"sandbox": allowing}))
    assert (await ann.patch(path, json={"sandbox": {"network": True}})).json()["sandbox"] == {"network": True}
    assert await wants_network(pool, UUID(project_id)) is True
    assert (await ann.patch(path, json={"name": "Roses"})).json()["sandbox"] == {"network": True}
    app.state.resources = known
    assert (await ann.patch(path, json={"sandbox": {"network": False}})).json()["sandbox"] == {"network": False}
    assert await pool.fetchval("SELECT sandbox FROM projects WHERE project_id = $1", project_id) == {
        "pass": "p",
        "network": False,
    }


async def test_the_secrets_of_a_sandbox_are_never_shown(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    sandbox = {"id": "s1", "sandbox_url": "http://s", "pass": "hunter2", "token": "t0ken", "new_secret": "x"}
    await pool.execute("UPDATE projects SET sandbox = $2 WHERE project_id = $1", project_id, sandbox)
    shown = {"id": "s1", "sandbox_url": "http://s"}
    assert (await ann.get(f"/projects/{project_id}")).json()["sandbox"] == shown
    assert (await ann.get("/projects")).json()["projects"][0]["sandbox"] == shown
    assert (await ann.get("/threads")).json()["threads"][0]["project"]["sandbox"] == shown
    assert (await ann.get(f"/threads/{thread_id}")).json()["project"]["sandbox"] == shown
    assert (await ann.patch(f"/projects/{project_id}", json={"name": "x"})).json()["sandbox"] == shown


async def test_a_deleted_project_takes_everything_along(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})
    run_id = await ann.make_run(thread_id)
    assert (await ann.delete(f"/projects/{project_id}")).status_code == 200
    for path in (f"/projects/{project_id}", f"/threads/{thread_id}", f"/agent-run/{run_id}"):
        assert (await ann.get(path)).status_code == 404
    for table in ("threads", "messages", "agent_runs"):
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0
