"""Workflows under the runner: one run for each, set aside while it waits, handed over, stopped, given to messages."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import orjson
import pytest

from agent.workflows.inputs import BadInput
from services import workflow_executions, workflow_steps, workflows
from services.broker import RUN_QUEUE
from services.errors import NotFound
from services.postgres import transaction
from services.runs import starting, stopping
from services.runs.dispatch import message_of
from services.runs.starting import NewRun
from services.runs.store import Run
from services.settings import LimitSettings, OutgoingSettings, Settings
from services.workflow_executions import NewExecution
from services.workflows import Change, Workflow
from tests.services.runs.seeds import Place, eventually, kinds, listed, make_place, row_of, set_columns
from tests.sites import Page
from tests.sites import site as serve
from tests.waiting import PATIENT
from tests.worker.conftest import open_process
from tests.worker.test_runner import HANDED_OVER, SLOW, driven
from worker import executions, runner, sweeper
from worker.process import Process

MODEL = "demo/lorem?chunks=3&delay_ms=0"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"outgoing": OutgoingSettings(allow_private=True)})


def step(step_id: str, kind: str, config: dict[str, Any], *next_steps: str) -> dict[str, Any]:
    return {"id": step_id, "type": kind, "config": config, "next_steps": list(next_steps)}


NOTE = step("note", "TRANSFORM", {"expression": "variables"})


async def make_workflow(process: Process, *steps: dict[str, Any], place: Place | None = None) -> Workflow:
    place = place or await make_place(process.stores.pool)
    definition = {"steps": list(steps), "entry_point": steps[0]["id"], "max_execution_time": 60, "max_retries": 0}
    details = {"name": "Garden", "state": "ACTIVE", "project_id": place.project_id}
    async with transaction(process.stores.pool) as conn:
        return await workflows.create(conn, place.account_id, Change(details, definition))


async def begin(process: Process, workflow: Workflow, model: str = MODEL, **variables: Any) -> Run:
    async with transaction(process.stores.pool) as conn:
        new = NewExecution(workflow, model, variables)
        return (await workflow_executions.start(conn, uuid4(), new, process.settings.limits)).run


async def visits_of(process: Process, run: Run) -> dict[str, str]:
    found = await workflow_steps.load(process.stores.pool, UUID(run.settings["execution_id"]))
    return {visit.step_id: visit.status for visit in found}


async def an_hour_passes(process: Process) -> None:
    """For everything that has a time in it."""
    for table, names in (
        ("agent_runs", ("not_before", "parked_at", "started_at", "created_at")),
        ("workflow_steps", ("wake_at",)),
    ):
        moved = ", ".join(f"{name} = {name} - interval '1 hour'" for name in names)
        await process.stores.pool.execute(f"UPDATE {table} SET {moved}")


async def test_a_wait_of_an_hour_holds_no_worker_and_survives_a_restart_of_everything(
    settings: Settings, process: Process
) -> None:
    pool = process.stores.pool
    workflow = await make_workflow(process, step("wait", "WAIT", {"seconds": 3600}, "note"), NOTE)
    run = await begin(process, workflow)
    async with asyncio.timeout(PATIENT):
        await runner.drive(process, run.id)
    parked = await row_of(pool, run.id)
    assert (parked.status, parked.phase, parked.instance_id, parked.crashes) == ("queued", "waiting", None, 0)
    await process.stores.redis.flushdb()
    async with open_process(settings) as another:
        await runner.drive(another, run.id)
        await sweeper.sweep(another.stores)
        assert (await row_of(pool, run.id)).phase == "waiting"
        await an_hour_passes(another)
        await sweeper.sweep(another.stores)
        assert (await row_of(pool, run.id)).phase == "queued"
        await runner.drive(another, run.id)
    ended = await row_of(pool, run.id)
    assert ended.status == "completed"
    assert 3590 < ended.waited.total_seconds() < 3700
    assert ended.worked.total_seconds() < 60
    assert await visits_of(process, run) == {"wait": "completed", "note": "completed"}
    words = kinds(await listed(process.stores, run.id))
    assert words.count("run_resumed") == words.count("thread_run_end") == words.count("last:completed") == 1


async def test_a_run_that_waits_leaves_its_slot_and_stands_in_line_for_one_again(settings: Settings) -> None:
    limited = settings.model_copy(update={"limits": LimitSettings(max_concurrent_runs=1)})
    async with open_process(limited) as process:
        pool = process.stores.pool
        workflow = await make_workflow(process, step("wait", "WAIT", {"seconds": 3600}))
        run = await begin(process, workflow)
        await runner.drive(process, run.id)
        other = await make_place(pool)
        await pool.execute(
            "UPDATE projects SET account_id = $1 WHERE project_id = $2", run.account_id, other.project_id
        )
        async with transaction(pool) as conn:
            new = NewRun(run.account_id, other.project_id, other.thread_id, MODEL)
            taken = (await starting.start(conn, new, limited.limits)).run
        await an_hour_passes(process)
        await sweeper.sweep(process.stores)
        assert (await row_of(pool, run.id)).phase == "waiting"
        await runner.drive(process, taken.id)
        await sweeper.sweep(process.stores)
        await runner.drive(process, run.id)
        assert (await row_of(pool, run.id)).status == "completed"


async def test_what_comes_back_from_a_wait_stops_nobody_in_its_project(process: Process) -> None:
    place = await make_place(process.stores.pool)
    workflow = await make_workflow(process, step("wait", "WAIT", {"seconds": 3600}), place=place)
    run = await set_columns(process.stores.pool, (await begin(process, workflow)).id, on_active="stop")
    await runner.drive(process, run.id)
    behind = await begin(process, workflow)
    await an_hour_passes(process)
    await sweeper.sweep(process.stores)
    assert (await row_of(process.stores.pool, behind.id)).phase == "waiting"
    await runner.drive(process, run.id)
    assert (await row_of(process.stores.pool, run.id)).status == "completed"


async def test_a_stop_of_a_run_that_waits_counts_at_once(process: Process) -> None:
    run = await begin(process, await make_workflow(process, step("wait", "WAIT", {"seconds": 3600})))
    await runner.drive(process, run.id)
    assert (await stopping.request_stop(process.stores, run.id)).status == "stopped"
    await eventually(lambda: ended_with(process, run, "last:stopped"))


async def ended_with(process: Process, run: Run, word: str) -> bool:
    return kinds(await listed(process.stores, run.id))[-1:] == [word]


async def test_a_stop_in_the_middle_of_a_request_ends_the_execution(process: Process, second: Process) -> None:
    async with serve({"/": Page(hangs=True)}) as site:
        run = await begin(process, await make_workflow(process, step("ask", "WEBHOOK", {"url": site.url()})))
        async with driven(process, run.id) as task:
            await eventually(lambda: site.asked)
            await stopping.request_stop(second.stores, run.id)
            async with asyncio.timeout(PATIENT):
                await task
    assert (await row_of(process.stores.pool, run.id)).status == "stopped"
    assert await visits_of(process, run) == {"ask": "running"}


async def test_an_execution_that_is_handed_over_goes_on_elsewhere(process: Process, second: Process) -> None:
    ask = step("ask", "AGENT", {"prompt": "Tell me"}, "note")
    run = await begin(process, await make_workflow(process, ask, NOTE), SLOW, a=1)
    async with driven(process, run.id) as task:
        await eventually(lambda: chunks_of(process, run))
        process.draining.set()
        async with asyncio.timeout(HANDED_OVER):
            await task
    short = "demo/lorem?chunks=20&delay_ms=1"
    assert (await set_columns(process.stores.pool, run.id, model_name=short)).status == "queued"
    await runner.drive(second, run.id)
    row = await row_of(process.stores.pool, run.id)
    assert (row.status, row.error) == ("completed", None)
    assert row.usage["completion_tokens"] == 20
    said = await process.stores.pool.fetch(
        "SELECT type FROM messages WHERE agent_run_id = $1 ORDER BY position", run.id
    )
    assert [each["type"] for each in said] == ["user", "assistant"]


async def chunks_of(process: Process, run: Run) -> bool:
    return "chunk" in kinds(await listed(process.stores, run.id))


async def test_a_step_that_must_not_be_repeated_is_told_when_it_was_cut_by_a_hand_over(
    process: Process, second: Process
) -> None:
    async with serve({"/": Page(hangs=True)}) as site:
        run = await begin(process, await make_workflow(process, step("pay", "WEBHOOK", {"url": site.url()})))
        async with driven(process, run.id) as task:
            await eventually(lambda: site.asked)
            process.draining.set()
            async with asyncio.timeout(PATIENT):
                await task
        await runner.drive(second, run.id)
        row = await row_of(process.stores.pool, run.id)
        assert row.status == "failed"
        assert row.error
        assert row.error.startswith("Step pay was cut off")
        assert len(site.asked) == 1


async def test_a_step_that_fails_ends_the_run_with_a_sentence_that_names_it(process: Process) -> None:
    bad = step("sum", "TRANSFORM", {"expression": "add(variables.a, `1`)"})
    run = await begin(process, await make_workflow(process, bad), a="x")
    await runner.drive(process, run.id)
    row = await row_of(process.stores.pool, run.id)
    assert row.status == "failed"
    assert row.error
    assert row.error.startswith("Step sum failed: add(variables.a, `1`) has no value")
    last = orjson.loads((await listed(process.stores, run.id))[-1])
    assert (last["status"], last["message"]) == ("failed", row.error)


async def test_a_workflow_that_was_deleted_meanwhile_fails_its_run(process: Process) -> None:
    workflow = await make_workflow(process, NOTE)
    run = await begin(process, workflow)
    await process.stores.pool.execute("DELETE FROM workflows WHERE workflow_id = $1", workflow.workflow_id)
    await runner.drive(process, run.id)
    assert (await row_of(process.stores.pool, run.id)).error == "The workflow of this run was deleted."


async def test_the_message_of_an_execution_is_that_of_the_workflow_actor_and_holds_no_definition(
    process: Process,
) -> None:
    run = await begin(process, await make_workflow(process, NOTE), secret="s3cret")
    message = message_of(run)
    assert isinstance(message, dramatiq.Message)
    assert (message.actor_name, message.queue_name) == ("run_workflow_background", RUN_QUEUE)
    assert message.kwargs["execution_id"] == run.settings["execution_id"]
    assert message.kwargs["agent_run_id"] == str(run.id)
    assert (message.kwargs["workflow_name"], message.kwargs["triggered_by"]) == ("Garden", "MANUAL")
    assert b"s3cret" not in message.encode()


async def test_a_foreign_message_without_a_run_is_given_one_and_once(process: Process) -> None:
    workflow = await make_workflow(process, NOTE)
    execution_id = uuid4()

    async def picked_up() -> UUID:
        return await executions.run_of(process, execution_id, workflow.workflow_id, {"a": 1}, "CRON")

    run_id = await picked_up()
    assert await picked_up() == run_id
    await runner.drive(process, run_id)
    async with process.stores.pool.acquire() as conn:
        shown = await workflow_executions.get(conn, workflow.account_id, execution_id)
    assert (shown.status, shown.triggered_by, shown.variables) == ("completed", "CRON", {"a": 1})
    assert shown.project_id == workflow.project_id
    assert shown.thread_id


async def test_a_foreign_message_that_two_workers_have_at_once_makes_one_run(process: Process) -> None:
    workflow = await make_workflow(process, NOTE)
    await process.stores.pool.execute("UPDATE workflows SET project_id = NULL")
    execution_id, workflow_id = uuid4(), workflow.workflow_id
    both = await asyncio.gather(
        *(executions.run_of(process, execution_id, workflow_id, {"a": 1}, "CRON") for _ in range(4))
    )
    assert len(set(both)) == 1
    assert await process.stores.pool.fetchval("SELECT count(*) FROM agent_runs") == 1


async def test_an_execution_whose_row_has_no_run_is_begun_with_what_the_row_says(process: Process) -> None:
    workflow = await make_workflow(process, NOTE)
    execution_id = uuid4()
    await process.stores.pool.execute(
        "INSERT INTO workflow_executions (execution_id, workflow_id, version_id, variables) VALUES ($1, $2, $3, $4)",
        execution_id,
        workflow.workflow_id,
        workflow.current_version_id,
        {"a": "row"},
    )
    both = await asyncio.gather(
        *(executions.run_of(process, execution_id, None, {"a": "message"}, "") for _ in range(2))
    )
    assert len(set(both)) == 1
    async with process.stores.pool.acquire() as conn:
        shown = await workflow_executions.get(conn, workflow.account_id, execution_id)
    assert (shown.variables, shown.agent_run_id) == ({"a": "row"}, both[0])


async def test_a_message_that_names_nothing_that_can_be_begun_is_refused(process: Process) -> None:
    asking = step("given", "INPUT", {"variables": [{"name": "who"}]})
    workflow = await make_workflow(process, asking)
    with pytest.raises(NotFound):
        await executions.run_of(process, uuid4(), uuid4(), {}, "")
    with pytest.raises(BadInput, match="who is required"):
        await executions.run_of(process, uuid4(), workflow.workflow_id, {}, "")
    assert await process.stores.pool.fetchval("SELECT count(*) FROM agent_runs") == 0
