"""Schedules that any worker fires: each time once, whoever dies, refuses or is slow."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services import workflows
from services.billing.gate import Verdict
from services.billing.local import LocalGate
from services.postgres import Executor, Pool, transaction
from services.schedules import claims, firings, store
from services.schedules.config import Config
from services.schedules.firings import Firing
from services.schedules.store import NewSchedule, Schedule
from services.settings import LimitSettings, ScheduleSettings, Settings
from services.workflows import Change
from tests.services.runs.seeds import Place, make_place
from tests.waiting import PATIENT
from worker import sweeper
from worker.process import Process
from worker.scheduler import Local, attempt

MINUTELY = Config.model_validate({"type": "cron", "cron": {"cron_expression": "* * * * *"}})
MINUTE = timedelta(minutes=1)
WATERING = {"entry_point": "w", "steps": [{"id": "w", "type": "TRANSFORM", "config": {"expression": "variables"}}]}


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


async def make_schedule(pool: Pool, place: Place | None = None, **fields: Any) -> Schedule:
    """Of an agent, every minute."""
    place = place or await make_place(pool)
    told: dict[str, Any] = {"thread_id": place.thread_id, "prompt": "Water the roses"}
    told = {"config": MINUTELY, "model_name": "demo/echo", **({} if "workflow_id" in fields else told), **fields}
    async with transaction(pool) as conn:
        return await store.create(conn, NewSchedule(account_id=place.account_id, name="Roses", **told), 0)


async def make_workflow(pool: Pool, place: Place, **details: Any) -> UUID:
    change = Change({"name": "Watering", "state": "ACTIVE", **details}, WATERING)
    async with transaction(pool) as conn:
        return (await workflows.create(conn, place.account_id, change)).workflow_id


async def logs(pool: Pool, schedule: Schedule) -> list[Firing]:
    """The oldest first."""
    return (await firings.page(pool, schedule.schedule_id, before=None, limit=100))[::-1]


async def now_of(pool: Pool, schedule: Schedule) -> Schedule:
    found = await store.find(pool, schedule.schedule_id)
    assert found
    return found


def due_of(schedule: Schedule) -> datetime:
    assert schedule.next_fire_at
    return schedule.next_fire_at


def with_schedules(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"schedules": ScheduleSettings(**changes)})


def configured(process: Process, **changes: Any) -> Process:
    return replace(process, settings=with_schedules(process.settings, **changes))


async def test_a_schedule_of_an_agent_says_its_prompt_and_starts_a_run(process: Process, pool: Pool) -> None:
    schedule = await make_schedule(pool)
    clock = Clock(due_of(schedule) - timedelta(seconds=1))
    scheduler = Local(process, clock)
    assert await scheduler.tick() == pytest.approx(1, abs=0.1)
    assert await logs(pool, schedule) == []
    clock.now += timedelta(seconds=1)
    assert await scheduler.tick() == pytest.approx(60, abs=0.1)
    [fired] = await logs(pool, schedule)
    assert (fired.status, fired.fire_time) == ("started", due_of(schedule))
    run = await pool.fetchrow("SELECT * FROM agent_runs WHERE id = $1", fired.agent_run_id)
    assert run
    assert (run["thread_id"], run["on_active"], run["judged"]) == (schedule.thread_id, "queue", True)
    said = await pool.fetchval(
        "SELECT content FROM messages WHERE thread_id = $1 ORDER BY position DESC", run["thread_id"]
    )
    assert said == {"role": "user", "content": "Water the roses"}
    later = await now_of(pool, schedule)
    assert (later.execution_count, later.next_fire_at) == (1, due_of(schedule) + MINUTE)


async def test_a_schedule_of_a_workflow_executes_it_with_its_variables(process: Process, pool: Pool) -> None:
    place = await make_place(pool)
    workflow_id = await make_workflow(pool, place, project_id=place.project_id)
    schedule = await make_schedule(pool, place, workflow_id=workflow_id, variables={"bed": 7})
    await Local(process, Clock(due_of(schedule))).tick()
    [fired] = await logs(pool, schedule)
    execution = await pool.fetchrow("SELECT * FROM workflow_executions WHERE execution_id = $1", fired.execution_id)
    assert execution
    assert (execution["variables"], execution["triggered_by"]) == ({"bed": 7}, "SCHEDULE")
    assert execution["agent_run_id"] == fired.agent_run_id


async def test_many_workers_fire_each_time_once(process: Process, second: Process, pool: Pool) -> None:
    schedules = [await make_schedule(pool) for _ in range(20)]
    clock = Clock(max(map(due_of, schedules)))
    workers = [Local(each, clock) for each in (process, second) for _ in range(2)]
    await asyncio.gather(*(worker.tick() for worker in workers))
    for schedule in schedules:
        assert [each.status for each in await logs(pool, schedule)] == ["started"]
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 20


async def test_a_claim_that_another_worker_has_fired_meanwhile_brings_nothing_forward(
    process: Process, pool: Pool
) -> None:
    schedule = await make_schedule(pool)
    clock = Clock(due_of(schedule))
    lease = process.settings.schedules.claim
    (claimed,) = await claims.take(pool, most=10, lease=lease, at=clock.now)
    clock.now += lease
    await Local(process, clock).tick()
    await Local(process, clock).fire(claimed)
    assert [each.fire_time for each in await logs(pool, schedule)] == [schedule.next_fire_at]


async def test_what_a_worker_claimed_and_did_not_fire_is_fired_by_another(process: Process, pool: Pool) -> None:
    schedule = await make_schedule(pool)
    clock = Clock(due_of(schedule))
    lease = process.settings.schedules.claim
    assert len(await claims.take(pool, most=10, lease=lease, at=clock.now)) == 1
    await Local(process, clock).tick()
    assert await logs(pool, schedule) == [], "somebody is at it"
    clock.now += lease
    await Local(process, clock).tick()
    assert [each.status for each in await logs(pool, schedule)] == ["started"]


@pytest.mark.parametrize(
    ("missed", "fired", "noted"),
    [("skip", [], ["skipped"]), ("once", [30], ["started"]), ("all", [28, 29, 30], ["started"] * 3)],
)
async def test_times_that_were_missed_are_skipped_or_made_up_for(
    missed: str, fired: list[int], noted: list[str], process: Process, pool: Pool
) -> None:
    """Half an hour without workers; of `all`, three at the most. The newest is over a minute late."""
    process = configured(process, max_catch_up=3, max_waiting=0)
    workflow_id = await make_workflow(pool, place := await make_place(pool))
    hourly = Config.model_validate({"type": "simple", "simple": {"interval_type": "minutes", "interval_value": 2}})
    schedule = await make_schedule(pool, place, workflow_id=workflow_id, missed=missed, config=hourly)
    first = due_of(schedule)
    await Local(process, Clock(first + 60 * MINUTE + timedelta(seconds=90))).tick()
    rows = await logs(pool, schedule)
    assert [each.status for each in rows] == noted
    started = [(each.fire_time - first) // (2 * MINUTE) for each in rows if each.status == "started"]
    assert started == fired
    assert (await now_of(pool, schedule)).next_fire_at == first + 62 * MINUTE


async def test_what_is_too_late_even_for_once_is_skipped(process: Process, pool: Pool) -> None:
    daily = Config.model_validate({"type": "cron", "cron": {"cron_expression": "0 3 * * *"}})
    schedule = await make_schedule(pool, config=daily)
    await Local(process, Clock(due_of(schedule) + timedelta(hours=2))).tick()
    [noted] = await logs(pool, schedule)
    assert noted.status == "skipped"
    assert noted.error
    assert "missed" in noted.error
    assert (await now_of(pool, schedule)).next_fire_at == due_of(schedule) + timedelta(days=1)


async def test_it_ends_after_as_many_executions_as_were_asked_for(process: Process, pool: Pool) -> None:
    told = {"cron_expression": "* * * * *", "max_executions": 2}
    schedule = await make_schedule(pool, config=Config.model_validate({"type": "advanced", "advanced": told}))
    for minute in range(3):
        await Local(process, Clock(due_of(schedule) + minute * MINUTE)).tick()
    ended = await now_of(pool, schedule)
    assert (ended.status, ended.execution_count, ended.next_fire_at) == ("completed", 2, None)


async def test_a_time_that_was_fired_is_not_fired_again_when_clocks_are_set_back(process: Process, pool: Pool) -> None:
    schedule = await make_schedule(pool)
    await Local(process, Clock(due_of(schedule))).tick()
    await pool.execute("UPDATE schedules SET next_fire_at = $1", due_of(schedule))
    await Local(process, Clock(due_of(schedule))).tick()
    assert len(await logs(pool, schedule)) == 1
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 1
    assert (await now_of(pool, schedule)).next_fire_at == due_of(schedule) + MINUTE


async def test_it_ends_with_its_end_date(process: Process, pool: Pool) -> None:
    end = datetime.now(UTC) + 3 * MINUTE
    told = {"cron_expression": "* * * * *", "end_date": end.isoformat()}
    schedule = await make_schedule(pool, config=Config.model_validate({"type": "advanced", "advanced": told}))
    await Local(process, Clock(end + MINUTE)).tick()
    ended = await now_of(pool, schedule)
    assert (ended.status, ended.execution_count) == ("completed", 1)


async def test_a_firing_without_a_slot_waits_in_line_for_one(process: Process, pool: Pool) -> None:
    limits = LimitSettings(max_concurrent_runs=1, rate_limit_per_minute=0)
    process = replace(process, settings=process.settings.model_copy(update={"limits": limits}))
    first = await make_place(pool)
    schedules = [await make_schedule(pool, first), await make_schedule(pool, await make_place(pool, first.account_id))]
    await Local(process, Clock(max(map(due_of, schedules)))).tick()
    assert [(await logs(pool, each))[0].status for each in schedules] == ["started", "started"]
    runs = await pool.fetch("SELECT judged FROM agent_runs ORDER BY judged")
    assert [run["judged"] for run in runs] == [False, True]
    await pool.execute("UPDATE agent_runs SET status = 'stopped', completed_at = now() WHERE judged")
    await sweeper.judge_due(process.stores)
    assert await pool.fetchval("SELECT judged FROM agent_runs WHERE status = 'queued'")


async def test_a_schedule_whose_runs_pile_up_skips_and_says_so(process: Process, pool: Pool) -> None:
    process = configured(process, max_waiting=2)
    schedule = await make_schedule(pool)
    clock = Clock(due_of(schedule))
    for _ in range(3):
        await Local(process, clock).tick()
        clock.now += MINUTE
    rows = await logs(pool, schedule)
    assert [each.status for each in rows] == ["started", "started", "skipped"]
    assert rows[2].error == "It was skipped: 2 runs of this schedule have not ended yet."


class Refusing(LocalGate):
    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        return Verdict(False, "There are no credits left.")


async def test_what_cannot_be_started_is_told_in_a_sentence_and_holds_up_nothing(process: Process, pool: Pool) -> None:
    poor = await make_schedule(pool)
    await Local(replace(process, gate=Refusing()), Clock(due_of(poor))).tick()
    place = await make_place(pool)
    paused = await make_schedule(pool, place, workflow_id=await make_workflow(pool, place, state="PAUSED"))
    orphan = await make_schedule(pool, agent_id=UUID(int=7))
    unknown = await make_schedule(pool, model_name="nobody/nothing")
    fine = await make_schedule(pool)
    await Local(process, Clock(max(map(due_of, (paused, orphan, unknown, fine))))).tick()
    said = {}
    for schedule in (poor, paused, orphan, unknown, fine):
        row = (await logs(pool, schedule))[0]
        said[schedule.schedule_id] = (row.status, row.error)
    assert said[poor.schedule_id] == ("failed", "There are no credits left.")
    assert said[paused.schedule_id] == ("failed", "This workflow is paused.")
    assert said[orphan.schedule_id] == ("failed", "Agent not found.")
    assert said[unknown.schedule_id][0] == "failed"
    assert said[fine.schedule_id] == ("started", None)
    assert (await now_of(pool, orphan)).error_count == 1
    messages = "SELECT count(*) FROM messages WHERE thread_id = $1"
    assert await pool.fetchval(messages, orphan.thread_id) == 1, "what was begun is undone"


async def test_a_worker_that_leaves_fires_nothing_and_looks_for_nothing(process: Process, pool: Pool) -> None:
    schedule = await make_schedule(pool)
    process.leaving.set()
    assert await Local(process, Clock(due_of(schedule) + MINUTE)).tick() is None, "others are woken by what is due"
    assert await logs(pool, schedule) == []


async def test_one_whose_project_is_locked_holds_up_no_other(process: Process, pool: Pool) -> None:
    place = await make_place(pool)
    stuck, fine = await make_schedule(pool, place), await make_schedule(pool)
    clock = Clock(max(map(due_of, (stuck, fine))))
    async with transaction(pool) as conn:
        await conn.execute("SELECT FROM projects WHERE project_id = $1 FOR UPDATE", place.project_id)
        async with asyncio.timeout(PATIENT):
            await Local(process, clock).tick()
        assert [each.status for each in await logs(pool, fine)] == ["started"]
        assert await logs(pool, stuck) == []
    clock.now += timedelta(seconds=5)
    await Local(process, clock).tick()
    assert [each.status for each in await logs(pool, stuck)] == ["started"]


async def test_what_is_deleted_takes_its_schedules_along(process: Process, pool: Pool) -> None:
    place = await make_place(pool)
    workflow_id = await make_workflow(pool, place)
    await make_schedule(pool, place, workflow_id=workflow_id)
    await make_schedule(pool, place)
    await pool.execute("DELETE FROM workflows WHERE workflow_id = $1", workflow_id)
    await pool.execute("DELETE FROM threads WHERE thread_id = $1", place.thread_id)
    assert await pool.fetchval("SELECT count(*) FROM schedules") == 0


async def test_old_firings_are_forgotten(process: Process, pool: Pool) -> None:
    schedule = await make_schedule(pool)
    await Local(process, Clock(due_of(schedule))).tick()
    await sweeper.forget_firings(process.stores)
    assert len(await logs(pool, schedule)) == 1
    await pool.execute("UPDATE schedule_firings SET created_at = now() - interval '31 days'")
    await sweeper.forget_firings(process.stores)
    assert await logs(pool, schedule) == []


async def test_a_store_that_is_away_ends_no_loop() -> None:
    async def broken() -> float | None:
        raise ConnectionRefusedError

    assert await attempt(broken) is None
