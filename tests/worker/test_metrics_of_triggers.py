"""What is counted of schedules that fire and of webhooks that are told."""

from datetime import timedelta

import pytest

from agent import firing
from services.postgres import Pool, transaction
from services.schedules.config import Config
from services.settings import OutgoingSettings, Settings
from services.webhooks import deliveries
from tests.services.metrics.reading import Counted
from tests.services.runs.seeds import eventually, make_place
from tests.sites import Page, site
from tests.worker.test_deliveries import QUICK, delivering, ended, until
from tests.worker.test_scheduler import MINUTE, Clock, configured, due_of, logs, make_schedule
from worker import sweeper
from worker.process import Process
from worker.scheduler import Local

DAILY = {"type": "cron", "cron": {"cron_expression": "0 3 * * *"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    webhooks = QUICK.model_copy(update={"attempts": 2})
    return settings.model_copy(update={"webhooks": webhooks, "outgoing": OutgoingSettings(allow_private=True)})


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_a_time_of_a_schedule_is_counted_by_what_came_of_it(
    process: Process, pool: Pool, counted: Counted
) -> None:
    schedule = await make_schedule(pool)
    await Local(process, Clock(due_of(schedule) + timedelta(seconds=0.2))).tick()
    assert [each.status for each in await logs(pool, schedule)] == ["started"]
    assert counted("schedule_firings_total", outcome="started") == 1
    assert counted("schedule_late_seconds_count") == 1
    assert counted("schedule_late_seconds_bucket", le="0.25") == 1
    assert counted("schedule_late_seconds_bucket", le="0.1") == 0


async def test_what_nobody_was_there_for_is_told_apart_from_what_was_left_out(
    process: Process, pool: Pool, counted: Counted
) -> None:
    process = configured(process, max_waiting=1)
    daily = await make_schedule(pool, config=Config.model_validate(DAILY))
    await Local(process, Clock(due_of(daily) + timedelta(hours=2))).tick()
    assert counted("schedule_firings_total", outcome="missed") == 1
    await pool.execute("DELETE FROM schedules")
    crowded = await make_schedule(pool)
    for minute in range(2):
        await Local(process, Clock(due_of(crowded) + minute * MINUTE)).tick()
    assert [each.status for each in await logs(pool, crowded)] == ["started", "skipped"]
    assert counted("schedule_firings_total", outcome="missed") == 1
    assert counted("schedule_firings_total", outcome="skipped") == 1


async def test_what_cannot_be_started_or_fired_is_counted_by_its_reason(
    process: Process, pool: Pool, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = await make_schedule(pool, place := await make_place(pool), model_name="nobody/knows")
    async with transaction(pool) as conn:
        await conn.execute("SELECT FROM projects WHERE project_id = $1 FOR UPDATE", place.project_id)
        await Local(process, Clock(due_of(schedule))).tick()
    assert counted("schedule_postponed_total", reason="held") == 1
    await Local(process, Clock(due_of(schedule) + timedelta(seconds=5))).tick()
    assert counted("schedule_firings_total", outcome="failed") == 1

    async def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(firing, "fire", broken)
    await Local(process, Clock(due_of(schedule) + MINUTE)).tick()
    assert counted("schedule_postponed_total", reason="broken") == 1


async def test_attempts_to_tell_a_webhook_are_counted_by_their_outcome(process: Process, counted: Counted) -> None:
    pool, failing = process.stores.pool, Page(status=500)
    async with site({"/ok": Page(), "/bad": failing, "/gone": Page(status=410)}) as receiver, delivering(process):
        runs = {path: (await ended(pool, receiver.url(path)))[0] for path in ("/ok", "/bad", "/gone")}
        for path, state in (("/ok", "delivered"), ("/bad", "failed"), ("/gone", "gone")):
            await until(pool, runs[path], state)

    def attempts(outcome: str) -> float:
        return counted("webhook_attempt_duration_seconds_count", outcome=outcome)

    assert {each: attempts(each) for each in ("delivered", "again", "failed", "gone")} == {
        "delivered": 1, "again": 1, "failed": 1, "gone": 1,
    }  # fmt: skip


async def test_a_delivery_that_ends_because_its_worker_was_lost_is_counted(process: Process, counted: Counted) -> None:
    pool = process.stores.pool
    await ended(pool, "http://127.0.0.1:9/")
    await deliveries.note_ended(pool, 10)
    await pool.execute("UPDATE webhook_deliveries SET attempt = $1", QUICK.attempts)
    await sweeper.end_deliveries(process.stores)
    await eventually(lambda: counted("webhook_attempts_lost_total") == 1)
