import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.postgres import Pool
from services.runs import store
from tests.api.conftest import Person


async def test_a_started_run_reads_as_running_from_the_first_moment(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    started = (await ann.post(f"/thread/{thread_id}/agent/start", json={"model_name": "demo/echo"})).json()
    assert (started["status"], started["phase"]) == ("running", "queued")
    run = (await ann.get(f"/agent-run/{started['agent_run_id']}")).json()
    assert set(run) == {
        "id", "threadId", "status", "startedAt", "completedAt", "error",
        "phase", "model_name", "attempt", "usage", "metadata",
    }  # fmt: skip
    assert (run["status"], run["phase"], run["threadId"]) == ("running", "queued", thread_id)
    assert run["startedAt"]
    assert run["completedAt"] is None


async def test_a_start_needs_no_body(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    assert (await ann.post(f"/thread/{thread_id}/agent/start")).status_code == 200


async def test_what_was_asked_for_is_in_the_row(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    run_id = await ann.make_run(
        thread_id,
        enable_thinking=True,
        reasoning_effort="high",
        priority=9,
        metadata={"ticket": 7},
        webhook_url="https://example.com/hook",
        expires_in=60,
        stream=None,
        something_new=1,
    )
    run = await store.get(pool, UUID(run_id))
    assert run
    assert run.settings == {
        "enable_thinking": True,
        "reasoning_effort": "high",
        "stream": True,
        "enable_context_manager": False,
    }
    assert (run.priority, run.metadata, run.webhook_url) == (9, {"ticket": 7}, "https://example.com/hook")
    assert run.created_by == ann.user_id
    assert run.expires_at
    assert abs(run.expires_at - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delay_seconds", -1),
        ("delay_seconds", 30 * 86400 + 1),
        ("delay_seconds", "soon"),
        ("expires_in", 0),
        ("expires_in", 1e18),
        ("priority", 10),
        ("priority", -1),
        ("reasoning_effort", "extreme"),
        ("on_active", "ignore"),
        ("metadata", []),
        ("metadata", {"a": "x" * 17_000}),
        ("metadata", {"a": ["\x00"]}),
        ("metadata", {"a": "\ud800"}),
        ("metadata", {"a": 2**70}),
        ("webhook_url", "ftp://example.com"),
        ("webhook_url", "example"),
        ("agent_id", "seven"),
        ("model_name", "nosuch/model"),
        ("model_name", "demo/nosuch"),
        ("enable_thinking", "maybe"),
    ],
)
async def test_a_bad_field_of_a_start_is_named(ann: Person, field: str, value: object) -> None:
    thread_id, _ = await ann.make_thread()
    answer = await ann.post(
        f"/thread/{thread_id}/agent/start",
        content=json.dumps({field: value}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


async def test_reject_answers_409_with_the_run_in_the_way(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    first = await ann.make_run(thread_id)
    answer = await ann.post(f"/thread/{thread_id}/agent/start", json={"on_active": "reject"})
    assert answer.status_code == 409
    assert answer.json()["detail"]["agent_run_id"] == first
    assert answer.json()["detail"]["message"]


async def test_reject_with_a_delay_is_refused(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    body = {"on_active": "reject", "delay_seconds": 5}
    assert (await ann.post(f"/thread/{thread_id}/agent/start", json=body)).status_code == 422


async def test_a_delayed_run_waits(ann: Person) -> None:
    run_id = await ann.make_run(delay_seconds=3600)
    assert (await ann.get(f"/agent-run/{run_id}")).json()["phase"] == "waiting"


async def test_a_new_run_stops_the_one_before_unless_it_queues(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    first = await ann.make_run(thread_id)
    await ann.make_run(thread_id, on_active="queue")
    assert (await ann.get(f"/agent-run/{first}")).json()["phase"] == "queued"
    await ann.make_run(thread_id)
    assert (await ann.get(f"/agent-run/{first}", params={"wait_seconds": 5})).json()["status"] == "stopped"


async def test_an_agent_pins_its_current_version(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    agent_id = await pool.fetchval(
        "INSERT INTO agents (account_id, name) VALUES ($1, 'A') RETURNING agent_id", ann.user_id
    )
    version_id = await pool.fetchval(
        "INSERT INTO agent_versions (agent_id, version_number, version_name) VALUES ($1, 1, 'v1') RETURNING version_id",
        agent_id,
    )
    await pool.execute("UPDATE agents SET current_version_id = $2 WHERE agent_id = $1", agent_id, version_id)
    run = await store.get(pool, UUID(await ann.make_run(thread_id, agent_id=str(agent_id))))
    assert run
    assert (run.agent_id, run.agent_version_id) == (agent_id, version_id)


async def test_a_start_is_handed_to_the_broker_after_the_commit(ann: Person, pool: Pool) -> None:
    run_id = await ann.make_run()
    for _ in range(100):
        if await pool.fetchval("SELECT message_sent_at FROM agent_runs WHERE id = $1", UUID(run_id)):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the message was never confirmed")
