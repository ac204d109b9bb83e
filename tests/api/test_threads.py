import asyncio
import json
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services.postgres import Pool, transaction
from services.runs import keys, lifecycle, starting
from services.runs.starting import NewRun
from tests.api.conftest import Person
from tests.services.runs.seeds import eventually, waiting_for_locks
from tests.waiting import PATIENT


async def test_a_new_thread_comes_with_a_project_of_its_name(ann: Person) -> None:
    thread_id, project_id = await ann.make_thread("Tulips")
    thread = (await ann.get(f"/threads/{thread_id}")).json()
    assert thread["project"]["project_id"] == thread["project_id"] == project_id
    assert thread["project"]["name"] == "Tulips"
    assert thread["message_count"] == 0
    assert thread["recent_agent_runs"] == []


async def test_a_thread_is_opened_with_its_newest_messages(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    for text in ("one", "two", "three"):
        await ann.post(f"/threads/{thread_id}/messages/add", json={"message": text})
    opened = (await ann.get(f"/threads/{thread_id}", params={"messages": 2})).json()
    listed = (await ann.get(f"/threads/{thread_id}/messages", params={"limit": 2})).json()
    assert opened.pop("messages") == listed["messages"]
    assert [message["content"]["content"] for message in listed["messages"]] == ["three", "two"]
    assert opened == (await ann.get(f"/threads/{thread_id}")).json()
    assert (await ann.get(f"/threads/{thread_id}", params={"messages": 101})).status_code == 422


async def test_a_thread_may_be_made_by_a_multipart_form_too(ann: Person) -> None:
    answer = await ann.post("/threads", files={"name": (None, "Tulips")})
    assert answer.status_code == 200


@pytest.mark.parametrize("name", [None, "", "   ", "x" * 501, "a\x00b"])
async def test_a_bad_name_is_named(ann: Person, name: str | None) -> None:
    answer = await ann.post("/threads", data={"name": name} if name is not None else {})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "name"]


async def test_threads_come_in_pages_newest_first(ann: Person) -> None:
    made = [(await ann.make_thread(f"No. {number}"))[0] for number in range(5)]
    pages = [(await ann.get("/threads", params={"page": page, "limit": 2})).json() for page in (1, 2, 3, 4)]
    assert [thread["thread_id"] for page in pages for thread in page["threads"]] == made[::-1]
    assert pages[1]["pagination"] == {"page": 2, "limit": 2, "total": 5, "pages": 3}
    assert pages[0]["threads"][0]["project"]["name"] == "No. 4"


async def test_no_threads_are_no_pages(ann: Person) -> None:
    assert (await ann.get("/threads")).json()["pagination"] == {"page": 1, "limit": 1000, "total": 0, "pages": 0}


@pytest.mark.parametrize("query", [{"page": 0}, {"page": "x"}, {"page": 10**30}, {"limit": 0}, {"limit": 1001}])
async def test_a_bad_page_is_named(ann: Person, query: dict[str, str | int]) -> None:
    answer = await ann.get("/threads", params=query)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", *query]


async def test_a_title_is_kept_in_the_metadata_beside_what_was_there(ann: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    await pool.execute("""UPDATE threads SET metadata = '{"colour": "red"}' WHERE thread_id = $1""", thread_id)
    changed = await ann.patch(f"/threads/{thread_id}", json={"title": "Roses", "unknown": 1})
    assert changed.json()["metadata"] == {"colour": "red", "title": "Roses"}
    assert (await ann.get(f"/threads/{thread_id}")).json()["metadata"]["title"] == "Roses"
    assert (await ann.patch(f"/threads/{thread_id}", json={})).json()["metadata"]["title"] == "Roses"


async def test_a_malformed_id_is_named(ann: Person) -> None:
    answer = await ann.get("/threads/seven")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["path", "thread_id"]


async def test_messages_are_rows(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    row = (await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})).json()
    assert row["content"] == {"role": "user", "content": "hello"}
    assert row["type"] == "user"
    assert row["is_llm_message"] is True
    assert set(row) == {
        "message_id", "thread_id", "type", "is_llm_message", "content", "metadata",
        "created_at", "updated_at", "agent_id", "agent_version_id",
    }  # fmt: skip
    assert (await ann.get(f"/threads/{thread_id}/messages")).json() == {"messages": [row], "next_cursor": None}


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ({"type": "user", "content": "a"}, {"role": "user", "content": "a"}),
        ({"type": "assistant", "content": "b"}, {"role": "assistant", "content": "b"}),
        ({"type": "tool", "content": {"any": ["thing", 1, None]}}, {"any": ["thing", 1, None]}),
    ],
)
async def test_a_text_becomes_a_role_and_content(ann: Person, said: dict[str, object], stored: object) -> None:
    thread_id, _ = await ann.make_thread()
    row = (await ann.post(f"/threads/{thread_id}/messages", json={**said, "is_llm_message": False})).json()
    assert row["content"] == stored
    assert row["is_llm_message"] is False


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_messages_are_read_page_by_page_in_either_order(ann: Person, order: str) -> None:
    thread_id, _ = await ann.make_thread()
    for number in range(5):
        await ann.post(f"/threads/{thread_id}/messages/add", json={"message": str(number)})
    seen: list[str] = []
    query: dict[str, str | int] = {"order": order, "limit": 2}
    for _ in range(3):
        page = (await ann.get(f"/threads/{thread_id}/messages", params=query)).json()
        seen += [row["content"]["content"] for row in page["messages"]]
        query["cursor"] = page["next_cursor"]
    assert seen == (list("01234") if order == "asc" else list("43210"))
    assert page["next_cursor"] is None


@pytest.mark.parametrize("cursor", ["", "-1", "x", "²", "9" * 19, "9" * 400])
async def test_a_bad_message_cursor_is_named(ann: Person, cursor: str) -> None:
    thread_id, _ = await ann.make_thread()
    answer = await ann.get(f"/threads/{thread_id}/messages", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "cursor"]


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("messages", {"content": "x"}, "type"),
        ("messages", {"type": "Two words", "content": "x"}, "type"),
        ("messages", {"type": "user"}, "content"),
        ("messages", {"type": "user", "content": nested(300)}, "content"),
        ("messages", {"type": "user", "content": {"a": [float("nan")], "b": 10**30}}, "content"),
        ("messages", {"type": "user", "content": {"a": 10**400}}, "content"),
        ("messages", {"type": "user", "content": "x", "is_llm_message": "maybe"}, "is_llm_message"),
        ("messages/add", {"message": "  "}, "message"),
        ("messages/add", {"message": "a\x00b"}, "message"),
        ("messages/add", {"message": "\ud800"}, "message"),
        ("messages/add", {"message": 7}, "message"),
    ],
)
async def test_a_bad_field_of_a_message_is_named(ann: Person, path: str, body: object, field: str) -> None:
    thread_id, _ = await ann.make_thread()
    answer = await ann.post(
        f"/threads/{thread_id}/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


async def test_odd_characters_inside_json_content_do_no_harm(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    content = rb'{"type": "tool", "content": {"a": "x\u0000y", "b": "\ud800", "c": 123456789012345678901234567890}}'
    answer = await ann.post(
        f"/threads/{thread_id}/messages", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200
    assert (await ann.get(f"/threads/{thread_id}/messages")).status_code == 200


async def test_a_message_is_deleted_once(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    row = (await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})).json()
    path = f"/threads/{thread_id}/messages/{row['message_id']}"
    assert [(await ann.delete(path)).status_code for _ in range(2)] == [200, 404]
    assert (await ann.get(f"/threads/{thread_id}")).json()["message_count"] == 0


async def test_a_message_of_another_thread_is_not_deleted(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    other_id, _ = await ann.make_thread()
    row = (await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})).json()
    assert (await ann.delete(f"/threads/{other_id}/messages/{row['message_id']}")).status_code == 404


async def test_a_deleted_thread_takes_its_messages_and_runs_along(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})
    run_id = await ann.make_run(thread_id)
    assert (await ann.delete(f"/threads/{thread_id}")).status_code == 200
    assert (await ann.get(f"/threads/{thread_id}")).status_code == 404
    assert (await ann.get(f"/agent-run/{run_id}")).status_code == 404
    assert await pool.fetchval("SELECT count(*) FROM messages") == 0
    assert (await ann.get(f"/projects/{project_id}")).status_code == 200


async def test_recent_runs_are_shown_with_the_thread(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    (run,) = (await ann.get(f"/threads/{thread_id}")).json()["recent_agent_runs"]
    assert run["id"] == run_id
    assert run["status"] == "running"
    assert (await ann.get(f"/threads/{uuid4()}")).status_code == 404


@pytest.mark.parametrize("what", ["threads", "projects"])
async def test_what_is_deleted_while_its_run_stores_a_message_waits_for_that(
    ann: Person, pool: Pool, what: str
) -> None:
    thread_id, project_id = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    await ann.post(f"/agent-run/{run_id}/stop")
    doomed = {"threads": thread_id, "projects": project_id}[what]
    async with transaction(pool) as conn:
        # A driver's statement locks the row of its run, then looks at the thread.
        await conn.execute("SELECT FROM agent_runs WHERE id = $1 FOR NO KEY UPDATE", UUID(run_id))
        deleting = asyncio.create_task(ann.delete(f"/{what}/{doomed}"))
        await eventually(lambda: waiting_for_locks(pool))
        statement = "INSERT INTO messages (thread_id, type, content) VALUES ($1, 'assistant', '{}')"
        await conn.execute(statement, UUID(thread_id))
    assert (await deleting).status_code == 200
    assert (await ann.get(f"/{what}/{doomed}")).status_code == 404


async def test_a_start_on_a_thread_that_is_being_deleted_and_the_deletion_do_not_wait_for_each_other(
    ann: Person, pool: Pool
) -> None:
    thread_id, project_id = await ann.make_thread()
    running = UUID(await ann.make_run(thread_id))
    await pool.execute("UPDATE agent_runs SET status = 'running', attempt = 1")
    async with transaction(pool) as conn:
        await starting.take_turns(conn, UUID(project_id))
        await starting.insert(conn, NewRun(ann.user_id, UUID(project_id), UUID(thread_id), "demo/echo"))
        deleting = asyncio.create_task(ann.delete(f"/threads/{thread_id}"))
        await eventually(lambda: waiting_for_locks(pool))
        await lifecycle.request_stops(conn, [running])
    assert (await deleting).status_code == 200
    assert not await pool.fetchval("SELECT count(*) FROM agent_runs")


@pytest.mark.parametrize("what", ["threads", "projects"])
async def test_a_run_that_began_while_what_it_is_in_was_being_deleted_is_stopped_first(
    ann: Person, pool: Pool, redis: Redis, what: str
) -> None:
    thread_id, project_id = await ann.make_thread()
    doomed = {"threads": thread_id, "projects": project_id}[what]
    new = NewRun(ann.user_id, UUID(project_id), UUID(thread_id), "demo/echo")
    async with redis.pubsub() as heard:
        await heard.subscribe(keys.control(new.run_id))
        async with transaction(pool) as conn:
            await starting.take_turns(conn, UUID(project_id))
            deleting = asyncio.create_task(ann.delete(f"/{what}/{doomed}"))
            await eventually(lambda: waiting_for_locks(pool), says="the deletion has stopped all that it saw")
            await starting.insert(conn, new)
            await conn.execute("UPDATE agent_runs SET status = 'running', attempt = 1, started_at = now()")
        assert (await deleting).status_code == 200
        said = [await heard.get_message(timeout=PATIENT) for _ in range(2)]
    assert [each and each["data"] for each in said] == [1, keys.STOP]
    assert (await ann.get(f"/{what}/{doomed}")).status_code == 404
