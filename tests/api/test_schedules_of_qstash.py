"""Schedules that QStash wakes: what it is told of them, and which of its deliveries fire them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from importlib import import_module
from time import time
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from httpx2 import Response
from pydantic import SecretStr

from services.background import stop
from services.http import open_client
from services.postgres import Pool, transaction
from services.runs.stores import open_stores
from services.schedules import store
from services.settings import QstashSettings, ScheduleSettings, Settings
from tests.api.conftest import Person
from tests.api.world import WATERING, made
from tests.services.metrics.reading import Counted
from tests.services.schedules.recorder import CURRENT, NEXT, TOKEN, Recorder, recording, signature
from tests.waiting import eventually
from worker import scheduler
from worker.process import Process
from worker.scheduler import TOLD_AT_ONCE, Backend, Leaving, Remote, backend_of, keep_scheduling

MINUTELY = {"type": "advanced", "advanced": {"cron_expression": "* * * * *", "timezone": "Europe/Berlin"}}
MODEL = {"model_name": "demo/echo"}
HOST = "http://127.0.0.1:8000"


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    async with recording() as recorder:
        yield recorder


@pytest.fixture
def settings(settings: Settings, recorder: Recorder) -> Settings:
    qstash = QstashSettings(
        url=recorder.url,
        token=SecretStr(TOKEN),
        current_signing_key=SecretStr(CURRENT),
        next_signing_key=SecretStr(NEXT),
    )
    return settings.model_copy(update={"schedules": ScheduleSettings(backend="qstash"), "qstash": qstash})


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Remote]:
    async with open_stores(settings) as stores, open_client(settings) as http:
        remote = Remote(Process(settings, stores, http), import_module("services.schedules.qstash"))
        yield remote
        await remote.close()


@pytest.fixture
async def local(settings: Settings) -> AsyncIterator[Leaving]:
    """A worker after SCHEDULES=local has come back, with the keys of QStash still there."""
    settings = settings.model_copy(update={"schedules": ScheduleSettings(backend="local")})
    async with open_stores(settings) as stores, open_client(settings) as http:
        backend = await backend_of(Process(settings, stores, http))
        assert isinstance(backend, Leaving)
        yield backend
        await backend.close()


async def ticked(backend: Backend) -> None:
    for step in backend.steps:
        await step()


async def schedule_of(person: Person, **fields: Any) -> dict[str, Any]:
    return await made(person, "/schedules", {"config": MINUTELY, "prompt": "Water", **MODEL, **fields})


async def deliver(
    person: Person, schedule: dict[str, Any], message_id: str = "msg_1", target: str = "", **signed: Any
) -> Response:
    """A delivery; `signed`: how its signature differs from a good one."""
    body = orjson.dumps({"schedule_id": schedule["id"]})
    path = f"/api/schedules/trigger/{target or schedule['workflow_id'] or schedule['id']}"
    told = {"url": f"{HOST}{path}", "body": body, **signed}
    headers = {"Upstash-Signature": signature(**told), "Upstash-Message-Id": message_id, "Authorization": ""}
    return await person.post(path.removeprefix("/api"), content=body, headers=headers)


async def make_due(pool: Pool, schedule: dict[str, Any], due: datetime | None = None) -> datetime:
    """By default since this minute began."""
    due = due or datetime.now(UTC).replace(second=0, microsecond=0)
    await pool.execute("UPDATE schedules SET next_fire_at = $2 WHERE schedule_id = $1::uuid", schedule["id"], due)
    return due


async def logs(person: Person, schedule: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await person.get(f"/schedules/{schedule['id']}/logs")).json()["logs"]
    return found


async def test_qstash_is_told_of_all_that_becomes_of_a_schedule(
    ann: Person, recorder: Recorder, worker: Remote
) -> None:
    schedule = await schedule_of(ann)
    path = f"/schedules/{schedule['id']}"
    assert (schedule["sync"], recorder.calls) == ("pending", [])
    await ticked(worker)
    known = recorder.schedules[schedule["id"]]
    assert known["cron"] == "CRON_TZ=Europe/Berlin * * * * *"
    assert known["destination"] == f"{HOST}/api/schedules/trigger/{schedule['id']}"
    assert orjson.loads(known["body"]) == {"schedule_id": schedule["id"]}
    assert (await ann.get(path)).json()["sync"] == "ready"
    hourly = {"type": "simple", "simple": {"interval_type": "hours", "interval_value": 1}}
    for verb, tail, body in (("PUT", "", {"config": hourly}), ("POST", "/pause", None), ("POST", "/resume", None)):
        (await ann.request(verb, f"{path}{tail}", json=body)).raise_for_status()
        await ticked(worker)
        assert recorder.schedules[schedule["id"]]["paused"] == (tail == "/pause")
    assert recorder.schedules[schedule["id"]]["cron"].endswith(",23 * * *")
    await ann.delete(path)
    await ticked(worker)
    assert recorder.schedules == {}
    told = len(recorder.calls)
    await ticked(worker)
    assert len(recorder.calls) == told, "nothing is told twice"


async def test_what_qstash_does_not_hear_is_pending_and_told_once_it_is_back(
    ann: Person, recorder: Recorder, worker: Remote, pool: Pool
) -> None:
    recorder.away = True
    schedule = await schedule_of(ann)
    await ticked(worker)
    shown = (await ann.get(f"/schedules/{schedule['id']}")).json()
    assert (shown["sync"], shown["status"]) == ("pending", "active")
    assert "503" in shown["sync_error"]
    recorder.away = False
    await pool.execute("UPDATE schedules SET telling_until = now()")
    await ticked(worker)
    assert list(recorder.schedules) == [schedule["id"]]


async def test_what_a_worker_told_before_it_died_is_deleted_with_its_thread(
    ann: Person, recorder: Recorder, worker: Remote, pool: Pool
) -> None:
    schedule = await schedule_of(ann)
    await ticked(worker)
    await pool.execute("UPDATE schedules SET told_revision = NULL")
    (await ann.delete(f"/threads/{schedule['thread_id']}")).raise_for_status()
    await ticked(worker)
    assert recorder.schedules == {}
    assert await pool.fetchval("SELECT count(*) FROM schedule_remotes") == 0


@pytest.mark.parametrize("key", [CURRENT, NEXT])
async def test_a_delivery_fires_what_is_due_once_for_each_message(key: str, ann: Person, pool: Pool) -> None:
    workflow = await made(ann, "/workflows", {"name": "Watering", "state": "ACTIVE", **WATERING})
    schedule = await schedule_of(ann, prompt=None, workflow_id=workflow["id"])
    due = await make_due(pool, schedule)
    answers = [(await deliver(ann, schedule, key=key)).raise_for_status().json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["status"] == "started"
    [log] = await logs(ann, schedule)
    assert datetime.fromisoformat(log["scheduled_time"]) == due
    assert log["execution_id"] == answers[0]["execution_id"]
    await make_due(pool, schedule, due)
    other = (await deliver(ann, schedule, "msg_2")).json()
    assert (other["status"], len(await logs(ann, schedule))) == ("ignored", 1), "the time was fired already"


async def test_a_delivery_that_is_a_little_early_fires_and_a_paused_schedule_does_not(ann: Person, pool: Pool) -> None:
    schedule = await schedule_of(ann)
    soon = datetime.now(UTC) + timedelta(seconds=10)
    await pool.execute("UPDATE schedules SET next_fire_at = $1", soon)
    assert (await deliver(ann, schedule)).json()["status"] == "started"
    await ann.post(f"/schedules/{schedule['id']}/pause")
    assert (await deliver(ann, schedule, "msg_2")).json()["status"] == "ignored"


async def test_a_delivery_during_a_change_is_asked_to_come_again(ann: Person, pool: Pool) -> None:
    schedule = await schedule_of(ann)
    await make_due(pool, schedule)
    async with transaction(pool) as conn:
        await store.lock(conn, UUID(schedule["account_id"]), UUID(schedule["id"]))
        assert (await deliver(ann, schedule)).status_code == 503
    assert (await deliver(ann, schedule)).json()["status"] == "started"


async def test_a_clock_may_be_half_a_minute_behind_that_of_qstash(ann: Person, pool: Pool) -> None:
    schedule = await schedule_of(ann)
    await make_due(pool, schedule)
    assert (await deliver(ann, schedule, nbf=int(time()) + 25)).json()["status"] == "started"


FORGED: list[dict[str, Any]] = [
    {"key": "sig_somebody_elses_0123456789abcdef012"},
    {"url": "https://elsewhere.example/api/schedules/trigger/1"},
    {"body": b"{}"},
    {"iss": "Impostor"},
    {"exp": 1},
    {"exp": None},
    {"nbf": 32503680000},
]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("signed", FORGED)
async def test_a_delivery_that_qstash_did_not_sign_for_here_and_now_fires_nothing(
    signed: dict[str, Any], ann: Person, pool: Pool
) -> None:
    schedule = await schedule_of(ann)
    await make_due(pool, schedule)
    answer = await deliver(ann, schedule, **signed)
    assert (answer.status_code, await logs(ann, schedule)) == (401, [])


async def test_a_delivery_without_a_signature_or_for_something_else_fires_nothing(ann: Person, pool: Pool) -> None:
    schedule = await schedule_of(ann)
    await make_due(pool, schedule)
    path = f"/schedules/trigger/{schedule['id']}"
    assert (await ann.post(path, json={"schedule_id": schedule["id"]})).status_code == 401
    junk = {"Upstash-Signature": "a.b.c", "Upstash-Message-Id": "1"}
    assert (await ann.post(path, content=b"\xff", headers=junk)).status_code == 401
    assert (await ann.post(path, content=b"x" * 70_000, headers=junk)).status_code == 413
    assert (await deliver(ann, schedule, target=str(uuid4()))).status_code == 404
    assert (await deliver(ann, schedule, message_id="x" * 300)).status_code == 422
    assert (await deliver(ann, {**schedule, "id": str(uuid4())})).status_code == 404
    assert await logs(ann, schedule) == []


async def test_a_worker_fires_what_qstash_does_not_come_for_within_a_minute(
    ann: Person, worker: Remote, pool: Pool
) -> None:
    schedule = await schedule_of(ann, config={"type": "cron", "cron": {"cron_expression": "0 9 * * *"}}, missed="skip")
    counted = Counted()
    for seconds, fired in ((30, 0), (65, 1)):
        due = datetime.now(UTC) - timedelta(seconds=seconds)
        await pool.execute("UPDATE schedules SET next_fire_at = $1", due)
        await ticked(worker)
        assert [log["status"] for log in await logs(ann, schedule)] == ["started"] * fired
    assert counted("schedule_late_seconds_sum") >= 65, "it is told as late, and not skipped for it"
    assert (await deliver(ann, schedule)).json()["status"] == "ignored", "QStash comes after all"
    assert len(await logs(ann, schedule)) == 1


async def test_a_time_that_clocks_never_show_is_fired_though_qstash_knows_of_none(
    ann: Person, worker: Remote, pool: Pool
) -> None:
    at_half_past_two = {"cron_expression": "30 2 * * *", "timezone": "America/New_York"}
    schedule = await schedule_of(ann, config={"type": "advanced", "advanced": at_half_past_two}, missed="skip")
    gap_ends = datetime(2026, 3, 8, 7, tzinfo=UTC)
    known = await store.find(pool, UUID(schedule["id"]))
    assert known
    assert known.timetable.after(gap_ends - timedelta(hours=2)) == gap_ends
    await pool.execute("UPDATE schedules SET next_fire_at = $1", gap_ends)
    for clock, fired in ((gap_ends - timedelta(seconds=1), []), (gap_ends, [gap_ends])):
        worker.overdue.clock = lambda shown=clock: shown
        await ticked(worker)
        assert [datetime.fromisoformat(log["scheduled_time"]) for log in await logs(ann, schedule)] == fired
    moved = (await ann.get(f"/schedules/{schedule['id']}")).json()["next_execution"]
    assert datetime.fromisoformat(moved) == datetime(2026, 3, 9, 6, 30, tzinfo=UTC), "the next day, at half past two"


async def test_qstash_forgets_all_schedules_once_workers_wake_them_again(
    ann: Person, recorder: Recorder, worker: Remote, local: Leaving, pool: Pool
) -> None:
    schedule = await schedule_of(ann)
    await ticked(worker)
    recorder.away = True
    await make_due(pool, schedule)
    await ticked(local)
    assert (len(recorder.schedules), len(await logs(ann, schedule))) == (1, 1), "it fires, whatever QStash does"
    recorder.away = False
    await pool.execute("UPDATE schedule_remotes SET telling_until = now()")
    await ticked(local)
    assert recorder.schedules == {}
    told = len(recorder.calls)
    await ticked(local)
    assert len(recorder.calls) == told, "it is told once"
    await ticked(worker)
    assert list(recorder.schedules) == [schedule["id"]], "with SCHEDULES=qstash again it is told anew"


async def test_what_qstash_is_told_while_it_is_to_forget_is_forgotten_too(
    ann: Person, recorder: Recorder, worker: Remote, local: Leaving, pool: Pool
) -> None:
    """While workers of both settings run: the one that leaves is slow, and the other tells it of a change."""
    schedule = await schedule_of(ann)
    await ticked(worker)
    recorder.answers.clear()
    before = recorder.asked
    forgetting = asyncio.create_task(local.teller.forget_all())
    await eventually(lambda: recorder.asked == before + 1)
    await pool.execute("UPDATE schedules SET revision = revision + 1")
    telling = asyncio.create_task(worker.teller.tell_news())
    await eventually(lambda: recorder.asked == before + 2)
    recorder.answers.set()
    await asyncio.gather(forgetting, telling)
    assert list(recorder.schedules) == [schedule["id"]], "it was told last"
    await local.teller.forget_all()
    assert recorder.schedules == {}


@pytest.mark.parametrize("backend", ["qstash", "local"])
async def test_a_qstash_that_never_answers_makes_nothing_late_that_workers_fire(
    backend: str, ann: Person, settings: Settings, recorder: Recorder, worker: Remote, pool: Pool
) -> None:
    schedule = await schedule_of(ann)

    async def fired() -> bool:
        return bool(await logs(ann, schedule))

    await ticked(worker)
    await pool.execute("UPDATE schedules SET told_revision = NULL")
    recorder.answers.clear()
    before = recorder.asked
    schedules = ScheduleSettings.model_validate({"SCHEDULES": backend, "poll_interval": timedelta(milliseconds=50)})
    qstash = settings.qstash.model_copy(update={"timeout": timedelta(seconds=60)})
    async with scheduling(settings.model_copy(update={"schedules": schedules, "qstash": qstash})):
        await eventually(lambda: recorder.asked > before)
        await pool.execute("UPDATE schedules SET next_fire_at = now() - interval '2 minutes'")
        late: bool = await eventually(fired)
        assert late
    assert recorder.asked == before + 1, "it was still being told"


@asynccontextmanager
async def scheduling(settings: Settings) -> AsyncIterator[None]:
    """A worker's loop of schedules."""
    async with open_stores(settings) as stores, open_client(settings) as http:
        task = asyncio.create_task(keep_scheduling(Process(settings, stores, http)))
        try:
            yield
        finally:
            await stop([task])


async def test_a_worker_whose_clock_is_fast_fires_nothing_before_qstash_could(
    ann: Person, worker: Remote, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fast(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(minutes=10)

    schedule = await schedule_of(ann)
    await pool.execute("UPDATE schedules SET next_fire_at = now() + interval '5 minutes'")
    monkeypatch.setattr(scheduler, "datetime", Fast)
    await ticked(worker)
    assert await logs(ann, schedule) == []


async def test_a_qstash_that_refuses_is_not_asked_as_fast_as_it_refuses(
    ann: Person, recorder: Recorder, worker: Remote, local: Leaving, pool: Pool
) -> None:
    schedule = await schedule_of(ann)
    for _ in range(2 * TOLD_AT_ONCE):
        await pool.execute(
            """
            INSERT INTO schedules (account_id, thread_id, prompt, name, config, anchor)
            SELECT account_id, thread_id, prompt, name, config, anchor FROM schedules WHERE schedule_id = $1::uuid
            """,
            schedule["id"],
        )
    assert await worker.teller.tell_news() == 0, "there is more to tell"
    recorder.away = True
    assert await worker.teller.tell_news() is None
    await pool.execute("UPDATE schedule_remotes SET telling_until = NULL")
    assert await local.teller.forget_all() is None
    recorder.away = False
    await pool.execute("UPDATE schedule_remotes SET telling_until = NULL")
    assert await local.teller.forget_all() == 0
