"""Migrations of a database that is in use."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from tests import databases
from tests.conftest import named, with_path
from tests.waiting import eventually

BEFORE = "0007"
WAITING = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'agent_runs'::regclass AND NOT granted)"


@pytest.fixture
async def old_database() -> AsyncIterator[str]:
    """The address of one that an earlier version migrated."""
    name = f"longrun_old_{uuid4().hex[:12]}"
    await databases.administer(named("DATABASE_URL"), f"CREATE DATABASE {name}")
    url = with_path(named("DATABASE_URL"), name)
    assert await (await migration(url, BEFORE)).wait() == 0
    yield url
    await databases.administer(named("DATABASE_URL"), f"DROP DATABASE {name} WITH (FORCE)")


async def migration(url: str, *revision: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "DATABASE_URL": url}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "migrations", *revision, env=environment)


async def test_a_migration_that_waits_for_a_long_reader_holds_up_nobody_else(old_database: str) -> None:
    backup, other = [await asyncpg.connect(old_database) for _ in range(2)]
    long = backup.transaction()
    await long.start()
    await backup.execute("SELECT FROM agent_runs")
    migrating = await migration(old_database)
    try:
        await eventually(lambda: other.fetchval(WAITING))
        await other.execute("SELECT FROM agent_runs", timeout=20)
        assert migrating.returncode is None, "it waits for its turn"
        await long.rollback()
        async with asyncio.timeout(60):
            assert await migrating.wait() == 0
        assert await other.fetchval("SELECT version_num FROM alembic_version") > BEFORE
    finally:
        if migrating.returncode is None:
            migrating.kill()
            await migrating.wait()
        await backup.close()
        await other.close()
