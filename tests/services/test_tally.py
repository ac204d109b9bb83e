import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services import queues, tally
from services.broker import Rabbit
from services.postgres import Pool
from services.publisher import Publisher
from services.queues import lengths
from services.settings import BrokerSettings, Settings
from services.tally import ENDED, SETTLED_AFTER, BrokerTally, Kept, Tally
from services.webhooks import backlog
from tests.services.conftest import Graveyard
from tests.services.runs.seeds import make_place
from tests.waiting import PATIENT, eventually

OLD = timedelta(days=3)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it may take is not what most tests are about."""
    for name in ("READ_SECONDS", "BROKER_SECONDS", "COUNT_SECONDS"):
        monkeypatch.setattr(tally, name, PATIENT)


async def add_runs(pool: Pool, status: str, count: int, *, ago: timedelta = timedelta(0), **values: Any) -> None:
    """Runs of one status, each in a project of its own."""
    for _ in range(count):
        place = await make_place(pool)
        await pool.execute(
            """
            INSERT INTO agent_runs (id, account_id, project_id, thread_id, model_name, status, created_at, completed_at,
                                    not_before, heartbeat_at, judged)
            VALUES ($1, $2, $3, $4, 'demo/echo', $5, now() - $6::interval,
                    CASE WHEN $5 NOT IN ('queued', 'running') THEN now() - $6::interval END,
                    now() + $7::interval, now(), $8)
            """,
            uuid4(),
            place.account_id,
            place.project_id,
            place.thread_id,
            status,
            ago,
            values.get("due_in"),
            values.get("judged", True),
        )


async def told(tally: Kept) -> dict[tuple[str, str], float]:
    tally.read_at = float("-inf")
    families = await tally.read()
    return {
        (sample.name.removeprefix("longrun_"), " ".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


async def in_database(pool: Pool) -> dict[tuple[str, str], float]:
    rows = await pool.fetch("SELECT status, count(*) FROM agent_runs WHERE completed_at IS NOT NULL GROUP BY 1")
    counted = {("runs_ended", row["status"]): float(row["count"]) for row in rows}
    return {("runs_ended", status): counted.get(("runs_ended", status), 0.0) for status in tally.FINAL}


async def test_ends_by_status_are_those_of_the_database_however_old_they_are(pool: Pool) -> None:
    known = Tally(pool)
    assert (await told(known)).items() >= (await in_database(pool)).items()
    await add_runs(pool, "completed", 3, ago=OLD)
    await add_runs(pool, "failed", 2, ago=SETTLED_AFTER)
    await add_runs(pool, "completed", 2)
    fresh = Tally(pool)
    for _ in range(3):
        assert (await told(fresh)).items() >= (await in_database(pool)).items()
        await add_runs(pool, "stopped", 1)
        await add_runs(pool, "completed", 1, ago=SETTLED_AFTER - timedelta(seconds=30))
    assert fresh.settled.by_status == {"completed": 3, "failed": 2}


async def test_only_what_ended_of_late_is_counted_again(pool: Pool) -> None:
    await add_runs(pool, "completed", 2, ago=OLD)
    known = Tally(pool)
    await told(known)
    await pool.execute("UPDATE agent_runs SET status = 'failed'")
    assert (await told(known))["runs_ended", "completed"] == 2, "it looked at old rows again"
    known.settled.counted_at -= tally.RECOUNT_SECONDS + 1
    assert (await told(known))["runs_ended", "completed"] == 0, "what was deleted meanwhile is never noticed"


async def test_it_is_counted_along_an_index(pool: Pool) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL enable_seqscan = off")
        await conn.execute("SET LOCAL enable_bitmapscan = off")
        plan = await conn.fetch(f"EXPLAIN {ENDED.replace('$1', 'now()').replace('$2', repr('1 min'))}")
    assert "Index Only Scan using agent_runs_ended" in "\n".join(row[0] for row in plan)


async def test_what_waits_is_told_apart_from_what_could_begin(pool: Pool) -> None:
    await add_runs(pool, "queued", 2, ago=timedelta(seconds=90))
    await add_runs(pool, "queued", 1, ago=OLD, due_in=timedelta(hours=1))
    await add_runs(pool, "queued", 1, ago=OLD, judged=False)
    await add_runs(pool, "queued", 1, ago=OLD, due_in=-timedelta(seconds=5))
    await add_runs(pool, "running", 1)
    found = await told(Tally(pool))
    assert [found["runs_unfinished", phase] for phase in tally.PHASES] == [2, 3, 1, 0]
    assert found["queued_runs", ""] == 3
    assert 90 <= found["queued_run_age_seconds", ""] < 150


async def test_many_who_ask_at_once_cost_one_look(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    known, looks = Tally(pool), 0
    look = known.look

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(known, "look", counted)
    await asyncio.gather(*(known.read() for _ in range(20)))
    assert looks == 1


async def test_a_database_that_is_away_is_told_of(pool: Pool) -> None:
    known = Tally(pool)
    await pool.close()
    assert await told(known) == {("database_up", ""): 0}


async def test_a_count_that_takes_long_holds_back_nothing_else(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    await add_runs(pool, "completed", 3, ago=OLD)
    await add_runs(pool, "queued", 2)
    monkeypatch.setattr(tally, "COUNT_SECONDS", 0.1)
    slow = ENDED.replace("FROM agent_runs", "FROM (SELECT pg_advisory_xact_lock(1)) AS busy, agent_runs")
    monkeypatch.setattr(tally, "ENDED", slow)
    known = Tally(pool)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock(1)")
        found = await told(known)
        assert found["database_up", ""] == 1
        assert found["queued_runs", ""] == 2
        assert ("runs_ended", "completed") not in found
    monkeypatch.setattr(tally, "ENDED", ENDED)
    monkeypatch.setattr(tally, "COUNT_SECONDS", PATIENT)
    await eventually(lambda: known.settled.by_status["completed"] == 3, says="the count was given up")
    assert (await told(known))["runs_ended", "completed"] == 3


async def test_a_count_under_way_ends_with_the_process(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "COUNT_SECONDS", 0.1)
    monkeypatch.setattr(
        tally, "ENDED", ENDED.replace("FROM agent_runs", "FROM (SELECT pg_sleep(30)) AS busy, agent_runs")
    )
    known = Tally(pool)
    await told(known)
    async with asyncio.timeout(PATIENT):
        await known.close()
        await pool.close()


async def test_schedules_that_nobody_fires_are_told_with_the_age_of_the_longest_due(pool: Pool) -> None:
    found = await told(Tally(pool))
    assert (found["schedules_due", ""], found["schedule_due_age_seconds", ""]) == (0, 0)
    await add_schedule(pool, "- interval '90 seconds'", "NULL")
    await add_schedule(pool, "- interval '30 seconds'", "now() - interval '1 second'")
    await add_schedule(pool, "- interval '1 hour'", "now() + interval '10 minutes'")
    await add_schedule(pool, "+ interval '1 hour'", "NULL")
    found = await told(Tally(pool))
    assert found["schedules_due", ""] == 2, "one that a worker has claimed is not left alone"
    assert 90 <= found["schedule_due_age_seconds", ""] < 150


async def add_schedule(pool: Pool, due: str, claimed_until: str) -> None:
    place = await make_place(pool)
    await pool.execute(
        f"""
        INSERT INTO schedules (account_id, thread_id, prompt, name, config, anchor, next_fire_at, claimed_until)
        VALUES ($1, $2, 'Water', 'Roses', '{{}}', now(), now() {due}, {claimed_until})
        """,
        place.account_id,
        place.thread_id,
    )


async def test_ends_that_no_webhook_was_told_of_are_told_with_their_age(pool: Pool) -> None:
    found = await told(Tally(pool))
    assert [found[f"webhook{each}", ""] for each in ("s_untold", "_untold_age_seconds", "_due_age_seconds")] == [0] * 3
    await add_runs(pool, "completed", 4, ago=timedelta(seconds=90))
    await pool.execute("UPDATE agent_runs SET webhook_url = 'http://a.test/', webhook_noted_at = now()")
    await pool.execute(
        """
        INSERT INTO webhook_deliveries (agent_run_id, account_id, receiver, state, created_at, due_at, ended_at)
        SELECT id, account_id, 'a.test', (ARRAY['pending', 'pending', 'failed', 'delivered'])[number],
            now() - interval '1 hour' * number, now() + interval '40 seconds' * (2 * number - 3),
            CASE WHEN number > 2 THEN now() END
        FROM (SELECT id, account_id, row_number() OVER () AS number FROM agent_runs) AS run
        """
    )
    found = await told(Tally(pool))
    assert found["webhooks_untold", ""] == 2
    assert 7200 <= found["webhook_untold_age_seconds", ""] < 7260, "also one that waits to be tried again"
    assert 40 <= found["webhook_due_age_seconds", ""] < 100, "that one is not due"
    await pool.execute("UPDATE webhook_deliveries SET state = 'delivered', ended_at = now()")
    await pool.execute("UPDATE agent_runs SET webhook_noted_at = NULL WHERE id IN (SELECT id FROM agent_runs LIMIT 1)")
    found = await told(Tally(pool))
    assert found["webhooks_untold", ""] == 1, "one of which no delivery was made yet"
    assert 90 <= found["webhook_untold_age_seconds", ""] < 150
    assert 90 <= found["webhook_due_age_seconds", ""] < 150


async def test_of_a_large_backlog_what_is_due_first_is_looked_at(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MOST", 2)
    await add_runs(pool, "completed", 3, ago=timedelta(seconds=90))
    await add_runs(pool, "completed", 3, ago=timedelta(seconds=30))
    await pool.execute("UPDATE agent_runs SET webhook_url = 'http://a.test/'")
    await pool.execute(
        """
        INSERT INTO webhook_deliveries (agent_run_id, account_id, receiver, state, due_at)
        SELECT id, account_id, 'a.test', 'pending', now() - interval '1 minute' * row_number() OVER ()
        FROM agent_runs WHERE completed_at > now() - interval '1 minute'
        """
    )
    await pool.execute(
        "UPDATE agent_runs SET webhook_noted_at = now() WHERE id IN (SELECT agent_run_id FROM webhook_deliveries)"
    )
    found = await told(Tally(pool))
    assert found["webhooks_untold", ""] == 4, "so many of the deliveries, and of the ends without one"
    assert 180 <= found["webhook_due_age_seconds", ""] < 240
    assert 90 <= found["webhook_untold_age_seconds", ""] < 150


async def test_messages_at_the_broker_are_told_by_their_state_and_none_is_read(
    graveyard: Graveyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "QUEUES", (graveyard.queue,))
    buried = graveyard.bury(2)
    graveyard.broker.enqueue(graveyard.message())
    publisher = Publisher(graveyard.settings)
    publisher.open()
    try:
        found = await told(BrokerTally(publisher))
    finally:
        await publisher.close()
    states = {state: found["broker_messages", f"{graveyard.queue} {state}"] for state in ("ready", "delayed", "dead")}
    assert states == {"ready": 1, "delayed": 0, "dead": 2}
    assert found["broker_up", ""] == 1
    assert len(buried) == 2


@pytest.mark.parametrize("graveyard", ["rabbitmq"], indirect=True)
def test_to_look_at_queues_keeps_no_channel_open_and_one_that_is_missing_breaks_nothing(
    graveyard: Graveyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(graveyard.broker, Rabbit)
    monkeypatch.setattr(queues, "QUEUES", (graveyard.queue, f"{graveyard.queue}_missing"))
    graveyard.bury(1)
    for _ in range(5):
        found = lengths(graveyard.broker)
        assert found[graveyard.queue, "dead"] == 1
        assert found[f"{graveyard.queue}_missing", "dead"] == 0
    assert len(graveyard.broker.connection._impl._channels) == 1, "its own, which it sends by"


async def test_a_broker_that_is_away_is_told_of() -> None:
    url = SecretStr("amqp://guest:guest@127.0.0.1:1/%2F?connection_attempts=1")
    publisher = Publisher(Settings(broker=BrokerSettings(url=url)))
    publisher.open()
    try:
        assert await told(BrokerTally(publisher)) == {("broker_up", ""): 0}
    finally:
        await publisher.close()
