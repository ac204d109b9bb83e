"""Every request has an id and one line; what it starts knows it."""

import logging
from typing import Any
from uuid import UUID

import pytest

from services import origin
from services.postgres import Pool
from services.runs import dispatch, store
from tests.api.conftest import Person

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What was logged so far at info, as fields."""
    caplog.set_level(logging.INFO)

    def lines(event: str = "") -> list[dict[str, Any]]:
        said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
        return [line for line in said if event in line["event"]]

    return lines


async def test_the_id_of_a_request_is_taken_or_made_and_told_by_every_answer(ann: Person) -> None:
    assert (await ann.get("/threads", headers={"X-Request-ID": "req.1:a/b"})).headers["X-Request-ID"] == "req.1:a/b"
    made = {(await ann.get(path)).headers["X-Request-ID"] for path in ("/threads", "/no-such-route", "/threads")}
    assert len(made) == 3
    assert all(len(request_id) == 32 for request_id in made)


@pytest.mark.parametrize("said", ["", "a b", "x" * 129, 'a"b', "<script>", "\xff", "-rf", "a\tb"])
async def test_an_id_that_could_be_anything_is_replaced(ann: Person, said: str) -> None:
    answer = await ann.get("/threads", headers={b"X-Request-ID": said.encode("latin-1")})
    assert answer.headers["X-Request-ID"] != said
    assert len(answer.headers["X-Request-ID"]) == 32


async def test_a_request_is_one_line_with_the_template_of_its_route(ann: Person, lines: Any) -> None:
    thread_id, _ = await ann.make_thread()
    before = len(lines())
    await ann.get(f"/threads/{thread_id}/messages?limit=5&token=hush", headers={"X-Request-ID": "one"})
    await ann.get(f"/{thread_id}/hush-hush")
    await ann.get("/health")
    line, other = lines()[before:]
    assert (line["event"], line["method"], line["status"]) == ("request.answered", "GET", 200)
    assert (line["route"], line["thread_id"]) == ("/api/threads/{thread_id}/messages", thread_id)
    assert (line["request_id"], line["account_id"]) == ("one", str(ann.user_id))
    assert 0 < line["seconds"] < 60
    assert (other["status"], other["route"], other.get("account_id")) == (404, "", None)
    assert "hush" not in str(line) + str(other)


async def test_a_run_keeps_the_id_of_the_request_that_started_it(ann: Person, pool: Pool, lines: Any) -> None:
    headers = {"X-Request-ID": "first", "traceparent": TRACEPARENT}
    thread_id, _ = await ann.make_thread()
    start = f"/thread/{thread_id}/agent/start"
    run_id = (await ann.post(start, json={"model_name": "demo/echo"}, headers=headers)).json()["agent_run_id"]
    (line,) = [line for line in lines("run.queued") if line["agent_run_id"] == run_id]
    assert (line["request_id"], line["thread_id"], line["account_id"]) == ("first", thread_id, str(ann.user_id))
    run = await store.get(pool, UUID(run_id))
    assert run
    assert origin.of_row(run.settings).words == {"request_id": "first", "traceparent": TRACEPARENT}
    resent = dispatch.message_of(run, origin.of_row(run.settings))
    assert (resent.kwargs["request_id"], resent.kwargs["traceparent"]) == ("first", TRACEPARENT)


async def test_a_run_that_is_started_again_has_the_id_of_the_request_that_did(ann: Person, pool: Pool) -> None:
    run_id = await ann.make_run()
    await ann.post(f"/agent-run/{run_id}/stop")
    retried = await ann.post(f"/agent-run/{run_id}/retry", headers={"X-Request-ID": "again"})
    run = await store.get(pool, UUID(retried.raise_for_status().json()["agent_run_id"]))
    assert run
    assert origin.of_row(run.settings).words == {"request_id": "again"}


async def test_a_stop_is_told_with_the_ids_of_both_requests(ann: Person, lines: Any) -> None:
    thread_id, _ = await ann.make_thread()
    start = f"/thread/{thread_id}/agent/start"
    await ann.post(start, json={"model_name": "demo/echo"}, headers={"X-Request-ID": "start"})
    run_id = (await ann.get(f"/thread/{thread_id}/agent-runs")).json()["agent_runs"][0]["id"]
    await ann.post(f"/agent-run/{run_id}/stop", headers={"X-Request-ID": "stop"})
    (asked,) = lines("run.stop_asked")
    assert (asked["agent_run_id"], asked["request_id"], asked["asked_by"]) == (run_id, "start", "stop")
    (answered,) = [line for line in lines("request.answered") if line["request_id"] == "stop"]
    assert answered["agent_run_id"] == run_id


@pytest.mark.parametrize(
    "said", [None, "x", [], {"request_id": 5, "traceparent": "00-zz"}, {"request_id": "a b"}, {"request_id": {"a": 1}}]
)
async def test_what_a_row_or_a_message_says_of_its_origin_may_be_anything(said: Any) -> None:
    assert origin.read(said) == origin.NOWHERE
    assert origin.of_row({"origin": said}) == origin.NOWHERE
