import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from services import settings as settings_module
from services import workers
from services.admin.cli import main
from services.admin.run_report import InRedis, Report
from services.broker import make_broker
from services.runs import lifecycle, store
from services.runs.stores import Stores
from services.settings import Settings
from services.workers import Worker
from tests.services.runs.seeds import driving, eventually, make_place, make_run, set_columns
from worker import presence
from worker.process import Process

MINUTE = timedelta(minutes=1)


class Admin:
    """The commands on the stores of a test, in a thread: they have a loop of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    async def run(self, *arguments: str, code: int = 0) -> str:
        self.capsys.readouterr()
        assert await asyncio.to_thread(main, list(arguments)) == code, self.capsys.readouterr()
        out, err = self.capsys.readouterr()
        return out + err

    async def json(self, *arguments: str, code: int = 0) -> Any:
        assert await asyncio.to_thread(main, [*arguments, "--json"]) == code
        return json.loads(self.capsys.readouterr().out)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Leases that outlast a command on a busy machine."""
    lasting = settings.runs.model_copy(update={"lock_ttl": MINUTE, "dead_after": MINUTE})
    return settings.model_copy(update={"runs": lasting})


@pytest.fixture
def admin(stores: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    monkeypatch.setattr(settings_module, "load", lambda: stores.settings)
    return Admin(capsys)


async def test_stuck_is_a_dead_driver_a_long_silence_and_a_due_run_that_nobody_begins(
    admin: Admin, stores: Stores
) -> None:
    hour = timedelta(hours=1)
    well = await make_run(stores.pool, status="running", instance_id="a", started_at=datetime.now(UTC))
    await stores.pool.execute("UPDATE agent_runs SET heartbeat_at = now() WHERE id = $1", well.id)
    dead = await make_run(stores.pool, status="running", instance_id="b", started_at=datetime.now(UTC) - hour)
    silent = await make_run(stores.pool, status="running", instance_id="c", started_at=datetime.now(UTC) - hour)
    await stores.pool.execute("UPDATE agent_runs SET heartbeat_at = now() WHERE id = $1", silent.id)
    await stores.pool.execute("UPDATE agent_runs SET heartbeat_at = now() - interval '1 hour' WHERE id = $1", dead.id)
    await stores.pool.execute("UPDATE agent_runs SET updated_at = now() - interval '1 hour' WHERE id = $1", silent.id)
    resumed = await make_run(stores.pool, status="running", instance_id="d", started_at=datetime.now(UTC) - hour)
    handed_over = await make_run(stores.pool, created_at=datetime.now(UTC) - hour)
    await stores.pool.execute(
        "UPDATE agent_runs SET attempt = 2, updated_at = now(), heartbeat_at = now() WHERE id = ANY($1)",
        [resumed.id, handed_over.id],
    )
    unbegun = await make_run(stores.pool, created_at=datetime.now(UTC) - hour)
    delayed = await make_run(stores.pool, created_at=datetime.now(UTC) - hour, not_before=datetime.now(UTC) + hour)
    listed = await admin.json("runs", "list", "--stuck")
    assert {run["id"] for run in listed["runs"]} == {str(run.id) for run in (dead, silent, unbegun)}
    everything = await admin.run("runs", "list")
    assert all(str(run.id) in everything for run in (well, dead, silent, resumed, handed_over, unbegun, delayed))


async def test_runs_are_stopped_by_filter_and_a_dry_run_changes_nothing(admin: Admin, stores: Stores) -> None:
    place = await make_place(stores.pool)
    mine, other = await make_run(stores.pool, place), await make_run(stores.pool)
    would = await admin.json("runs", "stop", "--account", str(place.account_id), "--dry-run")
    assert [run["id"] for run in would["would_be_stopped"]] == [str(mine.id)]
    assert not (await row(stores, mine.id)).final
    await admin.run("runs", "stop", "--account", str(place.account_id))
    assert (await row(stores, mine.id)).status == "stopped"
    assert (await row(stores, mine.id)).closed_at
    assert not (await row(stores, other.id)).final


async def row(stores: Stores, run_id: Any) -> store.Run:
    run = await store.get(stores.pool, run_id)
    assert run
    return run


async def test_a_run_that_is_requeued_is_taken_from_its_driver_and_one_that_ended_is_left_alone(
    admin: Admin, stores: Stores
) -> None:
    async with driving(stores) as driver:
        before = driver.run.attempt
        await admin.run("runs", "requeue", str(driver.run.id))
        again = await row(stores, driver.run.id)
        assert (again.status, again.attempt, again.instance_id) == ("queued", before + 1, None)
        late = await lifecycle.end(stores.pool, driver.held.fence, "completed", error=None, usage={})
        assert late is None
    await admin.run("runs", "stop", str(driver.run.id))
    said = await admin.run("runs", "requeue", str(driver.run.id), code=1)
    assert "has ended (stopped)" in said
    assert "/retry" in said


async def test_a_stop_that_is_committed_is_not_undone_by_a_requeue(admin: Admin, stores: Stores) -> None:
    async with driving(stores) as driver:
        await set_columns(stores.pool, driver.run.id, stop_requested_at=datetime.now(UTC))
        await admin.run("runs", "requeue", str(driver.run.id), code=1)
        assert (await row(stores, driver.run.id)).status == "running"


async def test_a_run_is_shown_with_its_driver_lock_and_last_events_and_no_secret(
    admin: Admin, stores: Stores, redis: Redis
) -> None:
    async with driving(stores) as driver:
        await driver.say("some", "text")
        worker = Worker(driver.held.fence.instance_id, "host-1", 12, 11, 7, "2026-01-01T00:00:00+00:00")
        await workers.announce(stores.redis, worker, timedelta(seconds=60))
        await set_columns(stores.pool, driver.run.id, error=None, metadata={"password": "s3cr3t"})
        shown = await admin.json("runs", "show", str(driver.run.id))
        assert shown["redis"]["lock"] == driver.held.fence.lock_value
        assert shown["worker"]["host"] == "host-1"
        assert shown["run"]["metadata"] == {"password": "***"}
        told = await admin.run("runs", "show", str(driver.run.id))
        assert "host-1, process 12 of group 11" in told
        assert "It is driven." in told
        listed = await admin.run("workers", "list")
        assert "1 of 7" in listed
        assert str(driver.run.id) in await admin.run("workers", "show", worker.instance_id)


async def test_a_worker_that_is_not_announced_and_drives_is_listed_all_the_same(admin: Admin, stores: Stores) -> None:
    async with driving(stores) as driver:
        listed = await admin.json("workers", "list")
        assert listed["not_announced"] == {driver.held.fence.instance_id: [str(driver.run.id)]}
    missing = uuid4().hex[:12]
    assert missing in await admin.run("workers", "drain", missing, code=1)


async def test_a_process_is_announced_while_it_lives_and_forgotten_when_it_closes(stores: Stores) -> None:
    process = Process(stores.settings, stores, http=None)  # type: ignore[arg-type]
    task = stores.background.spawn(presence.keep_present(process, 7))
    known = await eventually(lambda: workers.known(stores.redis))
    assert (known[0].instance_id, known[0].slots, known[0].leaving) == (stores.instance_id, 7, False)
    assert await stores.redis.pttl(workers.key(stores.instance_id)) > 0
    task.cancel()
    await asyncio.wait([task])
    assert not await workers.known(stores.redis)


async def test_queues_of_the_redis_broker_are_counted(admin: Admin, stores: Stores) -> None:
    broker = make_broker(stores.settings)
    queued = await make_run(stores.pool)
    before = (await admin.json("queues"))["queues"][0]["ready"]
    stores.dispatch.send_run(queued)

    async def is_there() -> bool:
        return bool((await admin.json("queues"))["queues"][0]["ready"] == before + 1)

    await eventually(is_there)
    assert (await admin.json("queues"))["runs"]["queued"] == 1
    assert "could start" in await admin.run("queues")
    broker.flush("agent_runs")
    broker.close()


async def test_keys_are_listed_and_revoked_and_accounts_are_found_by_a_part_of_their_name(
    admin: Admin, stores: Stores
) -> None:
    place = await make_place(stores.pool)
    key_id = await stores.pool.fetchval(
        "INSERT INTO api_keys (account_id, created_by, public_key, secret_hash, title, scopes)"
        " VALUES ($1, $1, 'pk_x', '', 'of a robot', '{runs:read}') RETURNING key_id",
        place.account_id,
    )
    account = str(place.account_id)
    assert "of a robot" in await admin.run("keys", "list", account)
    [revoked] = (await admin.json("keys", "revoke", account, str(key_id)))["keys"]
    assert revoked["status"] == "revoked"
    assert "key not found" in await admin.run("keys", "revoke", account, str(uuid4()), code=1)
    [found] = (await admin.json("accounts", "list", "--search", account[:13]))["accounts"]
    assert (found["account_id"], found["projects"], found["keys"]) == (account, 1, 0)
    assert account in await admin.run("accounts", "show", account)


def advice_on(run: store.Run, redis: InRedis, **columns: Any) -> list[str]:
    return Report(replace(run, **columns), redis, None, [], [], timedelta(seconds=15)).advice


async def test_what_to_look_at_follows_from_how_the_run_stands(stores: Stores) -> None:
    free, held = InRedis("a"), InRedis("a", lock="x:1")
    old = datetime.now(UTC) - timedelta(minutes=5)
    running = {"status": "running", "instance_id": "i", "started_at": old, "heartbeat_at": old}
    ended = {"status": "failed", "completed_at": old, "closed_at": old, "instance_id": "i"}
    cases: list[tuple[InRedis, dict[str, Any], str]] = [
        (free, running, "Its driver is dead"),
        (held, running, "its worker hangs"),
        (InRedis("a", answers=False), running, "does not answer"),
        (free, {}, "has confirmed no message"),
        (free, {"message_sent_at": old}, "nobody has begun it"),
        (free, {"not_before": datetime.now(UTC) + timedelta(hours=1), "phase": "waiting"}, "delayed until"),
        (free, {**ended, "error": "The run failed because of an internal error."}, "`run.crashed`"),
        (free, {**ended, "error": "The run was given up: its worker died 5 times."}, "`worker.loop_blocked`"),
        (free, {**ended, "error": "Something else."}, "stands in the last events"),
        (free, {**ended, "closed_at": None, "error": "x"}, "not published or archived yet"),
    ]
    run = await make_run(stores.pool)
    for redis, columns, said in cases:
        advice = advice_on(run, redis, **columns)
        assert any(said in sentence for sentence in advice), (said, advice)
