import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.postgres import Pool
from services.runs import tally
from services.runs.tally import ENDED, SETTLED_AFTER, Tally
from tests.services.runs.seeds import make_place
from tests.waiting import eventually

OLD = timedelta(days=3)


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


async def told(tally: Tally) -> dict[tuple[str, str], float]:
    tally.read_at = float("-inf")
    families = await tally.read()
    return {
        (sample.name.removeprefix("longrun_"), next(iter(sample.labels.values()), "")): sample.value
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
    assert 90 <= found["queued_run_age_seconds", ""] < 100


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
    monkeypatch.setattr(tally, "READ_SECONDS", 1.0)
    slow = ENDED.replace("FROM agent_runs", "FROM (SELECT pg_sleep(1.5)) AS busy, agent_runs")
    monkeypatch.setattr(tally, "ENDED", slow)
    known = Tally(pool)
    found = await told(known)
    assert found["database_up", ""] == 1
    assert found["queued_runs", ""] == 2
    assert ("runs_ended", "completed") not in found
    monkeypatch.setattr(tally, "ENDED", ENDED)
    await eventually(lambda: known.settled.by_status["completed"] == 3, says="the count was given up")
    assert (await told(known))["runs_ended", "completed"] == 3


async def test_a_count_under_way_ends_with_the_process(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "COUNT_SECONDS", 0.1)
    monkeypatch.setattr(
        tally, "ENDED", ENDED.replace("FROM agent_runs", "FROM (SELECT pg_sleep(30)) AS busy, agent_runs")
    )
    known = Tally(pool)
    await told(known)
    async with asyncio.timeout(5):
        await known.close()
        await pool.close()
