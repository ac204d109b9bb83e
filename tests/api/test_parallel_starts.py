"""Starts at the same instant, on two instances of the API, with runs that several workers race for."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx2 import Response
from redis.asyncio import Redis

from api.app import create_app
from services.postgres import Pool
from services.settings import Settings
from tests.api.conftest import Person
from tests.worker.conftest import open_process
from worker import runner
from worker.process import Process

AT_ONCE = 12
QUICK = "demo/lorem?chunks=3&delay_ms=1"


@pytest.fixture
async def selves(app: FastAPI, settings: Settings) -> AsyncIterator[list[Person]]:
    """One person at two instances of the API."""
    other = create_app(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(other.router.lifespan_context(other))
        here = await stack.enter_async_context(Person(app, settings))
        yield [here, await stack.enter_async_context(Person(other, settings, here.user_id))]


@pytest.fixture
async def workers(settings: Settings, redis: Redis) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_process(settings)) for _ in range(3)]


@pytest.fixture
async def moves(pool: Pool) -> None:
    """Every change of a run's status is noted in the order in which it was made."""
    await pool.execute(
        """
        CREATE TABLE moves (position bigserial, run_id uuid, status text);
        CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO moves (run_id, status) VALUES (NEW.id, NEW.status); RETURN NEW;
        END $$;
        CREATE TRIGGER moved BEFORE UPDATE OF status ON agent_runs FOR EACH ROW
            WHEN (NEW.status <> OLD.status) EXECUTE FUNCTION note_move();
        """
    )


async def at_once(selves: Sequence[Person], path: str, bodies: Sequence[dict[str, Any]], **more: Any) -> list[Response]:
    """The answers to requests that are sent together, to one instance and the other in turn."""
    asked = zip(cycle(selves), bodies, strict=False)
    return await asyncio.gather(*(self.post(path, json=body, **more) for self, body in asked))


async def thread_of(selves: Sequence[Person]) -> tuple[str, str]:
    """A new thread's id, and the path that starts its runs."""
    thread_id, _ = await selves[0].make_thread()
    await selves[0].post(f"/threads/{thread_id}/messages", json={"type": "user", "content": "Go on"})
    return thread_id, f"/thread/{thread_id}/agent/start"


async def phases(pool: Pool) -> list[str]:
    """The status of every run, in the order of their starts."""
    return [row["status"] for row in await pool.fetch("SELECT status FROM agent_runs ORDER BY created_at")]


async def work_off(workers: Sequence[Process], pool: Pool, within: float = 30.0) -> None:
    """Every worker tries every unfinished run again and again until there is none."""
    async with asyncio.timeout(within):
        while rows := await pool.fetch("SELECT id FROM agent_runs WHERE completed_at IS NULL"):
            await asyncio.gather(*(runner.drive(worker, row["id"]) for row in rows for worker in workers))


async def most_at_a_time(pool: Pool) -> int:
    """How many runs of the project were `running` at one instant."""
    running: set[UUID] = set()
    most = 0
    for row in await pool.fetch("SELECT run_id, status FROM moves ORDER BY position"):
        running = running | {row["run_id"]} if row["status"] == "running" else running - {row["run_id"]}
        most = max(most, len(running))
    return most


async def test_of_many_that_reject_one_is_accepted_and_the_others_are_told_which(selves: list[Person]) -> None:
    for _ in range(3):
        _, path = await thread_of(selves)
        answers = await at_once(selves, path, [{"on_active": "reject"}] * AT_ONCE)
        [accepted] = [answer.json()["agent_run_id"] for answer in answers if answer.status_code == 200]
        refused = [answer.json()["detail"] for answer in answers if answer.status_code == 409]
        assert [said["agent_run_id"] for said in refused] == [accepted] * (AT_ONCE - 1)
        assert all(said["message"] for said in refused)


async def test_of_many_that_stop_the_last_goes_on_and_completes(
    selves: list[Person], workers: list[Process], pool: Pool, moves: None
) -> None:
    _, path = await thread_of(selves)
    starting = asyncio.create_task(at_once(selves, path, [{"model_name": QUICK}] * AT_ONCE))
    while not starting.done():
        await work_off(workers, pool)
    assert [answer.status_code for answer in await starting] == [200] * AT_ONCE
    await work_off(workers, pool)
    ends = await phases(pool)
    assert ends[-1] == "completed"
    assert set(ends[:-1]) <= {"stopped", "completed"}
    assert await most_at_a_time(pool) == 1


async def test_of_many_that_stop_before_a_worker_comes_one_is_not_stopped(
    selves: list[Person], workers: list[Process], pool: Pool
) -> None:
    _, path = await thread_of(selves)
    await at_once(selves, path, [{"model_name": QUICK}] * AT_ONCE)
    assert await phases(pool) == ["stopped"] * (AT_ONCE - 1) + ["queued"]
    await work_off(workers, pool)
    assert await phases(pool) == ["stopped"] * (AT_ONCE - 1) + ["completed"]


async def test_many_that_queue_run_one_after_the_other_first_in_first_out(
    selves: list[Person], workers: list[Process], pool: Pool, moves: None
) -> None:
    _, path = await thread_of(selves)
    answers = await at_once(selves, path, [{"on_active": "queue", "model_name": QUICK}] * AT_ONCE)
    assert [answer.status_code for answer in answers] == [200] * AT_ONCE
    await work_off(workers, pool)
    assert await phases(pool) == ["completed"] * AT_ONCE
    assert await most_at_a_time(pool) == 1
    begun = [
        row["run_id"] for row in await pool.fetch("SELECT * FROM moves ORDER BY position") if row["status"] == "running"
    ]
    assert begun == [row["id"] for row in await pool.fetch("SELECT id FROM agent_runs ORDER BY created_at")]


async def test_many_with_one_key_are_one_run(selves: list[Person], pool: Pool) -> None:
    _, path = await thread_of(selves)
    for number in range(3):
        headers = {"Idempotency-Key": f"key-{number}"}
        answers = await at_once(selves, path, [{"on_active": "queue"}] * AT_ONCE, headers=headers)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["agent_run_id"] for answer in answers}) == 1
        assert len(await phases(pool)) == number + 1


async def test_many_with_one_key_and_different_bodies_are_one_run_and_the_others_are_told_which(
    selves: list[Person], pool: Pool
) -> None:
    _, path = await thread_of(selves)
    bodies = [{"metadata": {"number": number}} for number in range(AT_ONCE)]
    answers = await at_once(selves, path, bodies, headers={"Idempotency-Key": "k"})
    [accepted] = [answer.json()["agent_run_id"] for answer in answers if answer.status_code == 200]
    refused = [answer.json()["detail"]["agent_run_id"] for answer in answers if answer.status_code == 409]
    assert refused == [accepted] * (AT_ONCE - 1)
    assert len(await phases(pool)) == 1


async def test_many_initiates_with_one_key_are_one_project_with_one_set_of_files(
    selves: list[Person], pool: Pool
) -> None:
    answers = await asyncio.gather(
        *(
            self.post(
                "/agent/initiate",
                data={"prompt": "Hello", "model_name": "demo/echo"},
                files=[("files", ("a.txt", b"x" * 100_000, "text/plain"))],
                headers={"Idempotency-Key": "once"},
            )
            for self in selves * (AT_ONCE // 2)
        )
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    tables = ("projects", "threads", "messages", "agent_runs", "uploads", "idempotency_keys")
    assert [await pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables] == [1] * len(tables)


async def test_many_with_one_key_that_are_all_refused_leave_the_key_free(selves: list[Person], pool: Pool) -> None:
    _, path = await thread_of(selves)
    headers = {"Idempotency-Key": "k"}
    in_the_way = await selves[0].post(path)
    answers = await at_once(selves, path, [{"on_active": "reject"}] * AT_ONCE, headers=headers)
    assert {answer.status_code for answer in answers} == {409}
    assert await pool.fetchval("SELECT count(*) FROM idempotency_keys") == 0
    await selves[0].post(f"/agent-run/{in_the_way.json()['agent_run_id']}/stop")
    assert (await selves[1].post(path, json={"on_active": "reject"}, headers=headers)).status_code == 200
