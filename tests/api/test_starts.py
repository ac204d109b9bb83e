import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from api.app import create_app
from services.postgres import Pool
from services.runs import store
from services.settings import Settings
from tests.api.conftest import Person
from tests.conftest import BROKER_REDIS, named, with_path
from tests.proxy import Proxy
from tests.services.runs.seeds import eventually, kinds, listed, row_of
from worker import sweeper


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
    assert run.settings.pop("origin")
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


@pytest.mark.parametrize(("delay", "expires"), [(5, 5), (5, 4.999), (0.001, 0.0005), (2592000, 1)])
async def test_a_run_that_would_expire_before_it_may_start_is_refused(
    ann: Person, delay: float, expires: float
) -> None:
    thread_id, _ = await ann.make_thread()
    body = {"delay_seconds": delay, "expires_in": expires}
    answer = await ann.post(f"/thread/{thread_id}/agent/start", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "expires_in"]


async def test_a_run_may_expire_after_its_delay(ann: Person, pool: Pool) -> None:
    run = await store.get(pool, UUID(await ann.make_run(delay_seconds=5, expires_in=6)))
    assert run
    assert run.not_before
    assert run.expires_at == run.not_before + timedelta(seconds=1)


async def test_a_run_that_no_broker_hears_of_expires(settings: Settings, redis: Redis) -> None:
    async with Proxy(with_path(named("REDIS_URL"), str(BROKER_REDIS))) as proxy:
        proxy.refuse()
        broker = settings.broker.model_copy(update={"redis_url": SecretStr(proxy.url)})
        app = create_app(settings.model_copy(update={"broker": broker}))
        async with app.router.lifespan_context(app), Person(app, settings) as ann:
            run_id = await ann.make_run(expires_in=0.05)
            stores = app.state.resources.stores

            async def look() -> bool:
                await sweeper.sweep(stores)
                return bool((await row_of(stores.pool, UUID(run_id))).closed_at)

            await eventually(look)
            run = (await ann.get(f"/agent-run/{run_id}")).json()
            assert (run["status"], run["error"]) == ("failed", sweeper.EXPIRED)
            assert kinds(await listed(stores, UUID(run_id)))[-2:] == ["thread_run_end", "last:failed"]


async def test_a_delayed_run_waits(ann: Person) -> None:
    run_id = await ann.make_run(delay_seconds=3600)
    assert (await ann.get(f"/agent-run/{run_id}")).json()["phase"] == "waiting"


async def test_a_new_run_stops_the_one_before_unless_it_queues(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    first = await ann.make_run(thread_id)
    await ann.make_run(thread_id, on_active="queue")
    assert (await ann.get(f"/agent-run/{first}")).json()["phase"] == "queued"
    await ann.make_run(thread_id)
    assert (await ann.get(f"/agent-run/{first}", params={"wait_seconds": 30})).json()["status"] == "stopped"


async def make_agent(pool: Pool, owner: Person) -> UUID:
    """An agent with one version."""
    agent_id: UUID = await pool.fetchval(
        "INSERT INTO agents (account_id, name) VALUES ($1, 'A') RETURNING agent_id", owner.user_id
    )
    await add_version(pool, agent_id, 1)
    return agent_id


async def add_version(pool: Pool, agent_id: UUID, number: int) -> UUID:
    """A new version, which is the current one from now on."""
    version_id: UUID = await pool.fetchval(
        "INSERT INTO agent_versions (agent_id, version_number, version_name) VALUES ($1, $2, 'v') RETURNING version_id",
        agent_id,
        number,
    )
    await pool.execute("UPDATE agents SET current_version_id = $2 WHERE agent_id = $1", agent_id, version_id)
    return version_id


async def test_an_agent_pins_its_current_version(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    agent_id = await make_agent(pool, ann)
    version_id = await pool.fetchval("SELECT current_version_id FROM agents")
    run = await store.get(pool, UUID(await ann.make_run(thread_id, agent_id=str(agent_id))))
    assert run
    assert (run.agent_id, run.agent_version_id) == (agent_id, version_id)


async def end(pool: Pool, run_id: str, status: str = "completed") -> None:
    await pool.execute("UPDATE agent_runs SET status = $2, completed_at = now() WHERE id = $1", UUID(run_id), status)


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
async def test_a_run_that_has_ended_is_tried_again_with_its_settings(ann: Person, pool: Pool, status: str) -> None:
    options = {
        "enable_thinking": True,
        "reasoning_effort": "high",
        "priority": 8,
        "metadata": {"ticket": 7},
        "webhook_url": "https://example.com/hook",
        "on_active": "queue",
    }
    thread_id, _ = await ann.make_thread()
    first = await ann.make_run(thread_id, model_name="demo/lorem?chunks=3", expires_in=60, delay_seconds=5, **options)
    await end(pool, first, status)
    answer = (await ann.post(f"/agent-run/{first}/retry")).raise_for_status().json()
    assert set(answer) == {"agent_run_id", "status", "phase"}
    assert (answer["status"], answer["phase"]) == ("running", "queued")
    old, new = await row_of(pool, UUID(first)), await row_of(pool, UUID(answer["agent_run_id"]))
    assert old.settings.pop("origin") != new.settings.pop("origin")
    kept = (
        "kind", "account_id", "project_id", "thread_id", "model_name", "created_by", "agent_id", "settings",
        "metadata", "webhook_url", "priority", "on_active",
    )  # fmt: skip
    assert {name: getattr(new, name) for name in kept} == {name: getattr(old, name) for name in kept}
    assert (new.not_before, new.expires_at, new.attempt, new.usage, new.error) == (None, None, 0, {}, None)
    await eventually(lambda: pool.fetchval("SELECT message_sent_at FROM agent_runs WHERE id = $1", new.id))


async def test_a_run_that_has_not_ended_is_not_tried_again(ann: Person) -> None:
    run_id = await ann.make_run()
    answer = await ann.post(f"/agent-run/{run_id}/retry")
    assert answer.status_code == 409
    assert answer.json()["detail"]["agent_run_id"] == run_id
    assert answer.json()["detail"]["message"]


async def test_a_retry_pins_the_version_that_its_agent_has_now(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    agent_id = await make_agent(pool, ann)
    first = await ann.make_run(thread_id, agent_id=str(agent_id))
    await end(pool, first)
    now = await add_version(pool, agent_id, 2)
    answer = await ann.post(f"/agent-run/{first}/retry")
    run = await row_of(pool, UUID(answer.json()["agent_run_id"]))
    assert (run.agent_id, run.agent_version_id) == (agent_id, now)


async def test_a_retry_minds_the_other_runs_of_the_project_like_any_start(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    rejects, stops = [await ann.make_run(thread_id, on_active=on_active) for on_active in ("reject", "queue")]
    await end(pool, rejects)
    refused = await ann.post(f"/agent-run/{rejects}/retry")
    assert refused.status_code == 409
    assert refused.json()["detail"]["agent_run_id"] == stops
    await pool.execute("UPDATE agent_runs SET on_active = 'stop' WHERE id = $1", UUID(rejects))
    assert (await ann.post(f"/agent-run/{rejects}/retry")).status_code == 200
    assert (await ann.get(f"/agent-run/{stops}", params={"wait_seconds": 30})).json()["status"] == "stopped"


async def test_a_retry_with_a_model_that_is_no_longer_offered_names_it(ann: Person, pool: Pool) -> None:
    run_id = await ann.make_run()
    await end(pool, run_id)
    await pool.execute("UPDATE agent_runs SET model_name = 'gone/model'")
    answer = await ann.post(f"/agent-run/{run_id}/retry")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "model_name"]


async def test_a_start_is_handed_to_the_broker_after_the_commit(ann: Person, pool: Pool) -> None:
    run_id = UUID(await ann.make_run())
    await eventually(lambda: pool.fetchval("SELECT message_sent_at FROM agent_runs WHERE id = $1", run_id))
