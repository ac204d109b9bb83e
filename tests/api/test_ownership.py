"""Two accounts at every route: somebody else's thing answers like one that is not there."""

from uuid import UUID, uuid4

import pytest
from httpx2 import Response

from tests.api.conftest import Person

ABSENT = UUID(int=1)
THREAD_ROUTES = [
    ("GET", "/threads/{}", None),
    ("PATCH", "/threads/{}", {"title": "Mine"}),
    ("DELETE", "/threads/{}", None),
    ("GET", "/threads/{}/messages", None),
    ("POST", "/threads/{}/messages", {"type": "user", "content": "hi"}),
    ("POST", "/threads/{}/messages/add", {"message": "hi"}),
    ("DELETE", f"/threads/{{}}/messages/{ABSENT}", None),
    ("GET", "/thread/{}/agent-runs", None),
    ("POST", "/thread/{}/agent/start", {}),
]
PROJECT_ROUTES = [
    ("GET", "/projects/{}", None),
    ("PATCH", "/projects/{}", {"name": "Mine"}),
    ("DELETE", "/projects/{}", None),
]
FILE_ROUTES = [
    ("GET", "/sandboxes/{}/files", None),
    ("GET", "/sandboxes/{}/files/content?path=notes.txt", None),
    ("POST", "/sandboxes/{}/files", None),
    ("DELETE", "/sandboxes/{}/files?path=notes.txt", None),
]
RUN_ROUTES = [
    ("GET", "/agent-run/{}", None),
    ("GET", "/agent-run/{}?wait_seconds=5", None),
    ("POST", "/agent-run/{}/stop", None),
    ("POST", "/agent-run/{}/retry", None),
]


async def ask(person: Person, route: tuple[str, str, object], thing: object) -> Response:
    method, path, body = route
    return await person.request(method, path.format(thing), json=body)


def same(foreign: Response, absent: Response) -> bool:
    return foreign.status_code == absent.status_code == 404 and foreign.content == absent.content


@pytest.mark.parametrize("route", THREAD_ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_foreign_thread_is_not_there(ann: Person, bob: Person, route: tuple[str, str, object]) -> None:
    thread_id, _ = await ann.make_thread()
    assert same(await ask(bob, route, thread_id), await ask(bob, route, uuid4()))


@pytest.mark.parametrize("route", [*PROJECT_ROUTES, *FILE_ROUTES], ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_foreign_project_is_not_there(ann: Person, bob: Person, route: tuple[str, str, object]) -> None:
    _, project_id = await ann.make_thread()
    assert same(await ask(bob, route, project_id), await ask(bob, route, uuid4()))


@pytest.mark.parametrize("route", RUN_ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_foreign_run_is_not_there(ann: Person, bob: Person, route: tuple[str, str, object]) -> None:
    run_id = await ann.make_run()
    assert same(await ask(bob, route, run_id), await ask(bob, route, uuid4()))


@pytest.mark.parametrize("route", THREAD_ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_thread_of_a_public_project_may_be_read_but_not_changed(
    ann: Person, bob: Person, route: tuple[str, str, object]
) -> None:
    thread_id, project_id = await ann.make_thread()
    await ann.patch(f"/projects/{project_id}", json={"is_public": True})
    assert (await ask(bob, route, thread_id)).status_code == (200 if route[0] == "GET" else 403)


@pytest.mark.parametrize("route", PROJECT_ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_public_project_may_be_read_but_not_changed(
    ann: Person, bob: Person, route: tuple[str, str, object]
) -> None:
    _, project_id = await ann.make_thread()
    await ann.patch(f"/projects/{project_id}", json={"is_public": True})
    assert (await ask(bob, route, project_id)).status_code == (200 if route[0] == "GET" else 403)
    assert (await ann.get(f"/projects/{project_id}")).json()["name"] == "Garden"


@pytest.mark.parametrize("route", [RUN_ROUTES[0], *RUN_ROUTES[2:]], ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_run_of_a_public_thread_may_be_read_but_not_changed(
    ann: Person, bob: Person, route: tuple[str, str, object]
) -> None:
    thread_id, _ = await ann.make_thread()
    await ann.patch(f"/threads/{thread_id}", json={"is_public": True})
    run_id = await ann.make_run(thread_id)
    assert (await ask(bob, route, run_id)).status_code == (200 if route[0] == "GET" else 403)
    assert (await ann.get(f"/agent-run/{run_id}")).json()["phase"] == "queued"


async def test_one_foreign_run_among_many_stops_none(ann: Person, bob: Person) -> None:
    mine, theirs = await bob.make_run(), await ann.make_run()
    assert (await bob.post("/agent-runs/stop", json={"ids": [mine, theirs]})).status_code == 404
    assert (await bob.get(f"/agent-run/{mine}")).json()["phase"] == "queued"


async def test_lists_show_only_the_callers_own(ann: Person, bob: Person) -> None:
    thread_id, project_id = await ann.make_thread()
    await ann.patch(f"/projects/{project_id}", json={"is_public": True})
    await ann.make_run(thread_id)
    assert (await bob.get("/threads")).json()["threads"] == []
    assert (await bob.get("/projects")).json()["projects"] == []
    assert (await bob.get("/agent-runs", params={"thread_id": thread_id})).json()["agent_runs"] == []
    assert (await bob.get("/agent-runs/active")).json() == {"active_runs": []}


async def test_a_foreign_agent_is_not_there(ann: Person, bob: Person) -> None:
    thread_id, _ = await bob.make_thread()
    answer = await bob.post(f"/thread/{thread_id}/agent/start", json={"agent_id": str(uuid4())})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Agent not found."}
