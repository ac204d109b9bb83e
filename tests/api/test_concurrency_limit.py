"""MAX_CONCURRENT_RUNS as clients meet it."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from fastapi import FastAPI

from api.app import create_app
from services.runs import lifecycle
from services.settings import Settings
from tests.api.conftest import Person

ECHO = {"model_name": "demo/echo"}


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """Each account may have one run at a time."""
    limits = settings.limits.model_copy(update={"max_concurrent_runs": 1})
    app = create_app(settings.model_copy(update={"limits": limits}))
    async with app.router.lifespan_context(app):
        yield app


async def test_initiate_start_and_retry_are_refused_alike_and_leave_nothing_behind(ann: Person, app: FastAPI) -> None:
    (thread_id, _), (elsewhere, _) = await ann.make_thread(), await ann.make_thread()
    ended, running = await ann.make_run(elsewhere), thread_id
    await ann.post(f"/agent-run/{ended}/stop")
    await ann.make_run(running)
    threads = (await ann.get("/threads")).json()["pagination"]["total"]
    for refused in (
        await ann.post("/agent/initiate", data={"prompt": "Hello", **ECHO}),
        await ann.post(f"/thread/{elsewhere}/agent/start", json=ECHO),
        await ann.post(f"/agent-run/{ended}/retry"),
    ):
        assert refused.status_code == 429
        detail = refused.json()["detail"]
        assert detail.pop("message")
        assert detail == {"running_thread_ids": [running], "running_count": 1, "limit": 1}
        assert int(refused.headers["Retry-After"]) > 0
    assert (await ann.get("/threads")).json()["pagination"]["total"] == threads
    assert len((await ann.get("/agent-runs?status=running")).json()["agent_runs"]) == 1
    assert (await ann.post(f"/thread/{running}/agent/start", json=ECHO)).status_code == 200  # in its place


async def test_a_repeat_is_answered_and_a_refusal_leaves_its_key_free(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    elsewhere, _ = await ann.make_thread()

    async def start(thread_id: str, key: str) -> tuple[int, str | None]:
        answer = await ann.post(f"/thread/{thread_id}/agent/start", json=ECHO, headers={"Idempotency-Key": key})
        return answer.status_code, answer.json().get("agent_run_id")

    status, run_id = await start(thread_id, "one")
    assert status == 200
    assert await start(thread_id, "one") == (200, run_id)
    assert (await start(elsewhere, "two"))[0] == 429
    await ann.post(f"/agent-run/{run_id}/stop")
    status, second = await start(elsewhere, "two")
    assert (status, await start(thread_id, "one")) == (200, (200, run_id))
    assert await start(elsewhere, "two") == (200, second)


async def test_what_is_delayed_or_queues_is_accepted_beside_a_run(ann: Person, app: FastAPI) -> None:
    thread_id, _ = await ann.make_thread()
    elsewhere, _ = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    path = "/thread/{}/agent/start"
    queued = await ann.post(path.format(thread_id), json={**ECHO, "on_active": "queue"})
    delayed = await ann.post(path.format(elsewhere), json={**ECHO, "delay_seconds": 300})
    assert [answer.json()["phase"] for answer in (queued, delayed)] == ["waiting", "waiting"]
    await lifecycle.request_stops(app.state.resources.pool, [UUID(run_id)])
    assert (await ann.get(f"/agent-run/{queued.json()['agent_run_id']}")).json()["phase"] == "queued"
    assert (await ann.post(path.format(elsewhere), json=ECHO)).status_code == 429
