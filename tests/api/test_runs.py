import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from api.paging import decode_moment, encode_moment
from services.postgres import Pool
from tests.api.conftest import Person
from tests.waiting import PATIENT


async def test_a_stop_before_the_start_ends_the_run_and_may_be_repeated(ann: Person) -> None:
    run_id = await ann.make_run()
    answers = [(await ann.post(f"/agent-run/{run_id}/stop")).json() for _ in range(2)]
    assert answers == [{"status": "stopped"}, {"status": "stopped"}]
    run = (await ann.get(f"/agent-run/{run_id}", params={"wait_seconds": 30})).json()
    assert (run["status"], run["phase"]) == ("stopped", "stopped")
    assert run["completedAt"]


async def test_a_run_that_had_ended_answers_its_own_status(ann: Person, pool: Pool) -> None:
    run_id = await ann.make_run()
    await pool.execute("UPDATE agent_runs SET status = 'completed', completed_at = now() WHERE id = $1", UUID(run_id))
    assert (await ann.post(f"/agent-run/{run_id}/stop")).json() == {"status": "completed"}


async def test_many_runs_are_stopped_at_once(ann: Person, pool: Pool) -> None:
    runs = [await ann.make_run() for _ in range(3)]
    await pool.execute("UPDATE agent_runs SET status = 'failed', completed_at = now() WHERE id = $1", UUID(runs[2]))
    answer = (await ann.post("/agent-runs/stop", json={"ids": [*runs, runs[0]]})).json()
    assert answer["status"] == "stopped"
    assert [(run["id"], run["status"]) for run in answer["agent_runs"]] == [
        (runs[0], "stopped"), (runs[1], "stopped"), (runs[2], "failed"),
    ]  # fmt: skip


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["x"]}, {"ids": [str(UUID(int=0))] * 1001}])
async def test_bad_ids_to_stop_are_named(ann: Person, body: dict[str, object]) -> None:
    answer = await ann.post("/agent-runs/stop", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "ids"]


async def test_waiting_answers_at_the_end_or_when_the_time_is_over(ann: Person) -> None:
    run_id = await ann.make_run()
    assert (await ann.get(f"/agent-run/{run_id}", params={"wait_seconds": 0.1})).json()["status"] == "running"
    waiting = asyncio.create_task(ann.get(f"/agent-run/{run_id}", params={"wait_seconds": 30}))
    await ann.post(f"/agent-run/{run_id}/stop")
    async with asyncio.timeout(PATIENT):
        assert (await waiting).json()["status"] == "stopped"


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "x"])
async def test_a_bad_wait_is_named(ann: Person, seconds: str) -> None:
    answer = await ann.get(f"/agent-run/{uuid4()}", params={"wait_seconds": seconds})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait_seconds"]


async def test_runs_are_listed_newest_first_page_by_page(ann: Person) -> None:
    made = [await ann.make_run() for _ in range(5)]
    seen: list[str] = []
    query: dict[str, str | int] = {"limit": 2}
    for _ in range(3):
        page = (await ann.get("/agent-runs", params=query)).json()
        seen += [run["id"] for run in page["agent_runs"]]
        query["cursor"] = page["next_cursor"]
    assert seen == made[::-1]
    assert page["next_cursor"] is None


async def test_lists_are_filtered(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    done, live, waiting = await ann.make_run(thread_id), await ann.make_run(), await ann.make_run(delay_seconds=60)
    await pool.execute("UPDATE agent_runs SET status = 'completed', completed_at = now() WHERE id = $1", UUID(done))

    async def ids(**query: str) -> set[str]:
        return {run["id"] for run in (await ann.get("/agent-runs", params=query)).json()["agent_runs"]}

    assert await ids(status="running") == {live, waiting}
    assert await ids(status="completed") == await ids(thread_id=thread_id) == await ids(project_id=project_id) == {done}
    assert await ids(phase="waiting") == {waiting}
    assert await ids(phase="queued") == {live}
    assert await ids(phase="completed") == await ids(phase="completed", status="completed") == {done}
    assert await ids(phase="completed", status="failed") == await ids(phase="stopping") == set()
    of_thread = (await ann.get(f"/thread/{thread_id}/agent-runs")).json()["agent_runs"]
    assert [(run["id"], run["status"]) for run in of_thread] == [(done, "completed")]
    active = (await ann.get("/agent-runs/active")).json()["active_runs"]
    assert [run["id"] for run in active] == [waiting, live]
    assert set(active[0]) == {"id", "thread_id", "status", "phase", "started_at"}


@pytest.mark.parametrize(
    "query",
    [{"status": "error"}, {"phase": "done"}, {"thread_id": "x"}, {"project_id": "x"}, {"limit": "0"}]
    + [{"cursor": cursor} for cursor in ("", "x", "ä", "AAAA", encode_moment(datetime.now(UTC), uuid4())[:-4], "OTk5")],
)  # fmt: skip
async def test_a_bad_filter_is_named(ann: Person, query: dict[str, str]) -> None:
    answer = await ann.get("/agent-runs", params=query)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", *query]


def test_a_cursor_says_the_row_to_the_microsecond() -> None:
    moment, row_id = datetime(2026, 7, 1, 12, 30, 59, 999_999, tzinfo=UTC), uuid4()
    assert decode_moment(encode_moment(moment, row_id)) == (moment, row_id)
