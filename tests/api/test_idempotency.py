from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import Response
from redis.asyncio import Redis

from services.postgres import Pool
from tests.api.conftest import Person
from tests.conftest import BROKER_REDIS, named, with_path

KEY = {"Idempotency-Key": "4f0c-the-first"}
ECHO = {"prompt": "Look at these", "model_name": "demo/echo"}


async def start(person: Person, thread_id: str, headers: dict[str, str] = KEY, **body: Any) -> Response:
    return await person.post(f"/thread/{thread_id}/agent/start", json=body, headers=headers)


async def initiate(
    person: Person, *files: tuple[str, bytes], headers: dict[str, str] = KEY, more: Mapping[str, str] | None = None
) -> Response:
    parts = [("files", (name, data, "text/plain")) for name, data in files]
    fields = [(name, (None, value)) for name, value in {**ECHO, **(more or {})}.items()]
    return await person.post("/agent/initiate", files=[*fields, *parts], headers=headers)


async def count(pool: Pool, table: str) -> int:
    number: int = await pool.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def test_a_repeated_start_answers_with_its_run_as_it_is_now(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    first = await start(ann, thread_id, model_name="demo/echo", priority=5)
    again = await start(ann, thread_id, priority=5.0, model_name="demo/echo", on_active="stop", something_new=1)
    assert first.json() == again.json()
    await ann.post(f"/agent-run/{first.json()['agent_run_id']}/stop")
    ended = await start(ann, thread_id, model_name="demo/echo")
    assert ended.json() == {**first.json(), "status": "stopped", "phase": "stopped"}
    assert await count(pool, "agent_runs") == 1


async def test_a_repeat_stops_nothing_and_sends_nothing(ann: Person) -> None:
    broker: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    await broker.flushdb()
    thread_id, _ = await ann.make_thread()
    first = await start(ann, thread_id)
    second = await start(ann, thread_id, {}, on_active="queue")
    again = await start(ann, thread_id)
    assert again.json()["agent_run_id"] == first.json()["agent_run_id"]
    assert (await ann.get(f"/agent-run/{second.json()['agent_run_id']}")).json()["phase"] == "waiting"
    assert (await ann.get("/health/ready")).status_code == 200, "what was handed to the publisher is sent"
    assert await broker.llen("dramatiq:agent_runs") == 2
    await broker.flushdb()
    await broker.aclose()


async def test_a_repeat_of_a_start_that_would_now_be_rejected_answers_with_its_run(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    first = await start(ann, thread_id, on_active="reject")
    again = await start(ann, thread_id, on_active="reject")
    assert (again.status_code, again.json()) == (200, first.json())


async def test_a_repeat_answers_although_the_request_would_now_be_refused(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    agent_id = await pool.fetchval(
        "INSERT INTO agents (account_id, name) VALUES ($1, 'A') RETURNING agent_id", ann.user_id
    )
    first = await start(ann, thread_id, agent_id=str(agent_id))
    await pool.execute("DELETE FROM agents")
    again = await start(ann, thread_id, agent_id=str(agent_id))
    assert (again.status_code, again.json()) == (200, first.json())


@pytest.mark.parametrize("body", [{"priority": 6}, {"metadata": {"a": 1}}, {"on_active": "queue"}, {"expires_in": 9}])
async def test_a_key_with_another_body_is_409_naming_the_run(ann: Person, pool: Pool, body: dict[str, Any]) -> None:
    thread_id, _ = await ann.make_thread()
    first = await start(ann, thread_id)
    answer = await start(ann, thread_id, **body)
    assert answer.status_code == 409
    assert answer.json()["detail"]["agent_run_id"] == first.json()["agent_run_id"]
    assert "Idempotency-Key" in answer.json()["detail"]["message"]
    assert await count(pool, "agent_runs") == 1


async def test_a_key_with_another_thread_is_409(ann: Person) -> None:
    for status in (200, 409):
        thread_id, _ = await ann.make_thread()
        assert (await start(ann, thread_id)).status_code == status


async def test_a_key_is_the_accounts_own(ann: Person, bob: Person) -> None:
    answers = []
    for person in (ann, bob):
        thread_id, _ = await person.make_thread()
        answers.append(await start(person, thread_id, metadata={"of": str(person.user_id)}))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["agent_run_id"] != answers[1].json()["agent_run_id"]


async def test_a_key_counts_per_route(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    assert (await start(ann, thread_id)).status_code == (await initiate(ann)).status_code == 200


async def test_a_request_without_a_key_is_a_new_one(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    await start(ann, thread_id, {})
    await start(ann, thread_id, {})
    assert (await count(pool, "agent_runs"), await count(pool, "idempotency_keys")) == (2, 0)


async def test_a_failed_start_leaves_its_key_free(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    failures = [
        (404, await start(ann, str(uuid4()))),
        (404, await start(ann, thread_id, agent_id=str(uuid4()))),
        (422, await start(ann, thread_id, model_name="nosuch/model")),
        (422, await start(ann, thread_id, priority=10)),
    ]
    assert [answer.status_code for _, answer in failures] == [status for status, _ in failures]
    assert await count(pool, "idempotency_keys") == 0
    assert (await start(ann, thread_id, model_name="demo/echo")).status_code == 200


async def test_a_repeated_initiate_answers_with_what_it_made(ann: Person, pool: Pool) -> None:
    first = await initiate(ann, ("a.txt", b"one"), ("b.txt", b"two"))
    again = await initiate(ann, ("a.txt", b"one"), ("b.txt", b"two"), more={"agent_id": ""})
    assert (again.status_code, again.json()) == (200, first.json())
    for table, rows in {"projects": 1, "threads": 1, "messages": 1, "agent_runs": 1, "uploads": 2}.items():
        assert await count(pool, table) == rows


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ([("a.txt", b"two")], {}),
        ([("b.txt", b"one")], {}),
        ([], {}),
        ([("a.txt", b"one"), ("b.txt", b"")], {}),
        ([("a.txt", b"one")], {"prompt": "Look at this"}),
        ([("a.txt", b"one")], {"priority": "9"}),
    ],
    ids=["content", "name", "none", "one more", "prompt", "priority"],
)
async def test_an_initiate_with_other_files_or_fields_is_409(
    ann: Person, pool: Pool, files: list[tuple[str, bytes]], more: dict[str, str]
) -> None:
    first = await initiate(ann, ("a.txt", b"one"))
    answer = await initiate(ann, *files, more=more)
    assert answer.status_code == 409
    assert answer.json()["detail"]["agent_run_id"] == first.json()["agent_run_id"]
    assert await count(pool, "projects") == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\there", b"\xc3\xa9", b"\x7f"])
async def test_a_bad_key_is_named(ann: Person, pool: Pool, key: str | bytes) -> None:
    thread_id, _ = await ann.make_thread()
    headers: Any = {"Idempotency-Key": key}
    for answer in (await start(ann, thread_id, headers), await initiate(ann, headers=headers)):
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]
    assert await count(pool, "agent_runs") == 0


@pytest.mark.parametrize("key", ["k", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "!~"])
async def test_a_key_is_any_visible_ascii(ann: Person, key: str) -> None:
    thread_id, _ = await ann.make_thread()
    assert (await start(ann, thread_id, {"Idempotency-Key": key})).status_code == 200
