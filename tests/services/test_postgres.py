import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from services.postgres import Pool, Unreachable, open_pool, transaction
from services.settings import Settings
from tests.benchmarks import plans
from tests.proxy import Proxy
from tests.services.runs.seeds import eventually
from tests.waiting import PATIENT

PATIENCE = 1.0
"""Seconds for a connection and for a statement, each."""
ENOUGH = 5 * 2 * PATIENCE
LONG = timedelta(seconds=PATIENT)


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.postgres.url.get_secret_value()) as proxy:
        yield proxy


def limited(settings: Settings, **changes: Any) -> Any:
    patience = timedelta(seconds=PATIENCE)
    limits = {"pool_max": 2, "acquire_timeout": patience, "command_timeout": patience, **changes}
    return settings.postgres.model_copy(update=limits)


@pytest.fixture
async def few(settings: Settings) -> AsyncIterator[Pool]:
    """Two connections, and little patience."""
    pool = await open_pool(limited(settings))
    yield pool
    await pool.close()


@pytest.fixture
async def far(settings: Settings, proxy: Proxy) -> AsyncIterator[Pool]:
    pool = await open_pool(limited(settings, url=SecretStr(proxy.url), pool_max=1))
    yield pool
    proxy.restore()
    proxy.cut()
    async with asyncio.timeout(ENOUGH):
        await pool.close()


async def test_connections_are_given_in_the_order_in_which_they_were_asked_for(settings: Settings) -> None:
    few = await open_pool(limited(settings, acquire_timeout=LONG, command_timeout=LONG))
    async with few.acquire(), few.acquire():
        asked, given = itertools.count(), []

    async def ask_again_and_again() -> None:
        for _ in range(20):
            number = next(asked)
            async with few.acquire() as conn:
                given.append(number)
                await conn.fetchval("SELECT 1")

    await asyncio.gather(*(ask_again_and_again() for _ in range(20)))
    assert max(abs(number - place) for place, number in enumerate(given)) <= 10, given
    await few.close()


async def test_a_connection_that_is_lost_in_use_gives_its_turn_back(few: Pool) -> None:
    for _ in range(4):
        with pytest.raises(TimeoutError):
            async with transaction(few):
                raise TimeoutError
    async with few.acquire(), few.acquire():
        pass
    assert not few.turns.locked()


async def test_nobody_waits_for_ever_for_a_connection(few: Pool) -> None:
    async with few.acquire(), few.acquire():
        for question in (few.fetchval("SELECT 1"), few.execute("SELECT 1"), begin(few)):
            with pytest.raises(Unreachable):
                async with asyncio.timeout(ENOUGH):
                    await question
    assert await few.fetchval("SELECT 1") == 1


async def begin(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await conn.execute("SELECT 1")


async def test_a_statement_that_hangs_is_given_up_and_ended_in_the_server(few: Pool, pool: Pool) -> None:
    with pytest.raises(Unreachable):
        async with asyncio.timeout(ENOUGH):
            await few.execute("SELECT pg_sleep(60)")
    await eventually(lambda: sleeps(pool, 0), within=ENOUGH)
    assert await few.fetchval("SELECT 1") == 1


async def sleeps(pool: Pool, count: int) -> bool:
    found = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
        " AND datname = current_database()"
    )
    return bool(found == count)


@pytest.mark.parametrize("within", ["a statement", "a transaction"])
async def test_a_server_that_says_nothing_any_more_is_given_up_in_time(far: Pool, proxy: Proxy, within: str) -> None:
    assert await far.fetchval("SELECT 1") == 1
    proxy.stall()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        async with asyncio.timeout(ENOUGH):
            await (far.fetchval("SELECT 1") if within == "a statement" else begin(far))
    assert time.monotonic() - began < 8 * PATIENCE
    proxy.restore()
    proxy.cut()
    assert await far.fetchval("SELECT 1") == 1


async def test_a_transaction_whose_statement_hangs_does_not_wait_for_its_rollback(
    settings: Settings, proxy: Proxy
) -> None:
    pool = await open_pool(limited(settings, url=SecretStr(proxy.url), command_timeout=timedelta(seconds=30)))
    gave_up = 0.0

    async def hang() -> None:
        nonlocal gave_up
        async with transaction(pool) as conn:
            await conn.execute("SELECT 1")
            proxy.stall()
            try:
                await conn.execute("SELECT 1", timeout=PATIENCE)
            finally:
                gave_up = time.monotonic()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hang(), ENOUGH)
    assert time.monotonic() - gave_up < ENOUGH / 2, "it waited for more"
    proxy.restore()
    proxy.cut()
    assert await pool.fetchval("SELECT 1") == 1
    await pool.close()


async def test_the_server_ends_a_statement_that_runs_for_too_long(settings: Settings) -> None:
    pool = await open_pool(limited(settings, statement_timeout=timedelta(seconds=PATIENCE)))
    with pytest.raises(Unreachable) as raised:
        await pool.execute("SELECT pg_sleep(60)", timeout=ENOUGH)
    assert isinstance(raised.value, asyncpg.QueryCanceledError)
    await pool.close()


async def test_a_frozen_process_does_not_keep_its_rows_locked(settings: Settings, pool: Pool) -> None:
    frozen = await open_pool(limited(settings, idle_transaction_timeout=timedelta(seconds=PATIENCE)))
    await pool.execute("CREATE TABLE things AS SELECT 1 AS n")

    async def freeze() -> None:
        async with transaction(frozen) as conn:
            await conn.execute("UPDATE things SET n = 2")
            async with asyncio.timeout(ENOUGH):
                await pool.execute("UPDATE things SET n = 3")
            await conn.execute("UPDATE things SET n = 4")

    with pytest.raises(Unreachable):
        await freeze()
    assert await pool.fetchval("SELECT n FROM things") == 3
    assert await frozen.fetchval("SELECT 1") == 1
    await frozen.close()


@pytest.mark.parametrize("code", ["53000", "53100", "53200", "53300", "53400", "58030", "57014", "40P01", "55P03"])
async def test_a_server_that_is_full_or_overloaded_counts_as_unreachable(pool: Pool, code: str) -> None:
    with pytest.raises(Unreachable):
        await pool.execute(f"DO $$ BEGIN RAISE EXCEPTION 'too much' USING ERRCODE = '{code}'; END $$")
    assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("code", ["23505", "42P01", "22001", "XX000"])
async def test_a_mistake_of_ours_does_not_count_as_unreachable(pool: Pool, code: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as raised:
        await pool.execute(f"DO $$ BEGIN RAISE EXCEPTION 'wrong' USING ERRCODE = '{code}'; END $$")
    assert not isinstance(raised.value, Unreachable)


async def test_a_commit_that_fails_stores_nothing_and_spares_the_connection(settings: Settings, pool: Pool) -> None:
    single = await open_pool(limited(settings, pool_max=1))
    await fail_commits(pool)
    with pytest.raises(Unreachable):
        async with transaction(single) as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
    assert await single.fetchval("SELECT count(*) FROM things") == 0
    await single.close()


async def fail_commits(pool: Pool) -> None:
    """A table whose rows can be written, and never committed."""
    await pool.execute(
        """
        CREATE TABLE things (n int);
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON things
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION full_disk();
        """
    )


async def test_a_statement_over_the_pool_costs_one_round_trip(pool: Pool) -> None:
    async with plans.recorded(pool) as said:
        await pool.fetchval("SELECT 1")
        async with transaction(pool) as conn:
            await conn.fetchval("SELECT 2")
    assert [one.query for one in said] == ["SELECT 1", "SELECT 2"]


@pytest.fixture
async def timed(settings: Settings) -> AsyncIterator[Pool]:
    pool = await open_pool(limited(settings, slow_query=timedelta(seconds=0.5), command_timeout=LONG))
    yield pool
    await pool.close()


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in said if line["event"] == "postgres.slow_query"]


async def take_time(pool: Pool, seconds: float) -> None:
    await pool.fetchval("SELECT pg_sleep($1)", seconds)


async def test_a_statement_that_takes_long_is_logged_by_the_name_of_its_function(
    timed: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    await take_time(timed, 0.01)
    await take_time(timed, 0.6)
    async with transaction(timed) as conn:
        await conn.execute("/* nightly sum */ SELECT pg_sleep(0.6)")
        await conn.fetch("  -- of the morning\nSELECT pg_sleep(0.6)")
    here = __name__
    assert [line["query"] for line in slow_lines(caplog)] == [f"{here}.take_time", "nightly sum", "of the morning"]
    assert all(0.6 <= line["seconds"] < PATIENT for line in slow_lines(caplog))


async def test_one_that_took_too_long_is_logged_with_what_it_came_to(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await open_pool(limited(settings, slow_query=timedelta(seconds=0.5)))
    with pytest.raises(TimeoutError):
        await take_time(pool, 60)
    await pool.close()
    assert [line["error"] for line in slow_lines(caplog)] == ["TimeoutError"]


async def test_nothing_is_too_slow_when_nothing_is_to_be_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await open_pool(limited(settings, slow_query=timedelta(), command_timeout=LONG))
    await take_time(pool, 0.2)
    await pool.close()
    assert not slow_lines(caplog)
