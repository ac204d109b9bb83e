"""Migrations of a database that is in use."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from services import schema
from services.embedded.environment import CHECKOUT
from tests import databases
from tests.conftest import named, with_path
from tests.waiting import PATIENT, eventually

BEFORE = "0007"
WAITING = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted)"
TAKEN = """SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::text::regclass AND granted
    AND mode = 'AccessExclusiveLock')"""
ASKING = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE starts_with(query, 'SELECT WHERE pg_try_advisory'))"
VERSION = "SELECT version_num FROM alembic_version"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
MIGRATION = """
from migrations.sql import build_index, execute

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None


def upgrade() -> None:
    {act}
"""
ON = "threads ((metadata ->> 'name'))"
BUILD = f'build_index("threads_by_name", "{ON}")'
NewMigration = Callable[..., None]


@pytest.fixture
async def database() -> AsyncIterator[str]:
    """The address of an empty one."""
    name = f"longrun_old_{uuid4().hex[:12]}"
    await databases.administer(named("DATABASE_URL"), f"CREATE DATABASE {name}")
    yield with_path(named("DATABASE_URL"), name)
    await databases.administer(named("DATABASE_URL"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def old_database(database: str) -> str:
    """The address of one that an earlier version migrated."""
    assert await migrated(database, BEFORE) == 0
    return database


@pytest.fixture
async def connections(database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    found = [await asyncpg.connect(database) for _ in range(2)]
    yield found
    for connection in found:
        await connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the migrations, to which a test adds its own."""
    shutil.copytree(CHECKOUT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def add(folder: Path) -> NewMigration:
    def write(revision: str, act: str, before: str = schema.NEEDED) -> None:
        path = folder / "migrations" / "versions" / f"{revision}_of_a_test.py"
        path.write_text(MIGRATION.format(revision=revision, before=before, act=act))

    return write


async def migration(
    url: str, *revision: str, folder: Path = CHECKOUT, output: int | None = None
) -> asyncio.subprocess.Process:
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(CHECKOUT)}
    argv = [sys.executable, "-m", "migrations", *revision]
    return await asyncio.create_subprocess_exec(*argv, env=environment, cwd=folder, stderr=output)


async def migrated(url: str, *revision: str, folder: Path = CHECKOUT) -> int:
    return await (await migration(url, *revision, folder=folder)).wait()


@asynccontextmanager
async def migrating(url: str, *revision: str, folder: Path = CHECKOUT) -> AsyncIterator[asyncio.subprocess.Process]:
    """Meanwhile; it must have ended well when the block ends."""
    process = await migration(url, *revision, folder=folder)
    try:
        yield process
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_migration_that_waits_for_a_long_reader_holds_up_nobody_else(
    old_database: str, connections: list[asyncpg.Connection]
) -> None:
    backup, other = connections
    long = backup.transaction()
    await long.start()
    await backup.execute("SELECT FROM agent_runs")
    async with migrating(old_database) as process:
        await eventually(lambda: other.fetchval(WAITING, "agent_runs"))
        await other.execute("SELECT FROM agent_runs", timeout=20)
        assert process.returncode is None, "it waits for its turn"
        await long.rollback()
    assert await other.fetchval(VERSION) == schema.NEEDED


async def test_what_a_migration_did_stays_when_the_next_one_waits_or_dies(
    old_database: str, connections: list[asyncpg.Connection]
) -> None:
    writer, other = connections
    long = writer.transaction()
    await long.start()
    await writer.execute("LOCK TABLE messages IN ROW EXCLUSIVE MODE")
    process = await migration(old_database)
    try:
        await eventually(lambda: other.fetchval(WAITING, "messages"))
        assert await other.fetchval(VERSION) == "0013", "0014 is the first that wants messages to itself"
    finally:
        process.kill()
        await process.wait()
    await long.rollback()
    await eventually(lambda: other.fetchval(f"SELECT NOT EXISTS (SELECT {databases.OTHERS} AND state <> 'idle')"))
    assert await other.fetchval(VERSION) == "0013"
    assert not await other.fetchval("SELECT to_regclass('retention_turns')")
    assert await migrated(old_database) == 0


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    database: str, folder: Path, add: NewMigration, connections: list[asyncpg.Connection]
) -> None:
    add("9001", 'execute("CREATE TABLE first ()")')
    add("9002", 'execute("CREATE TABLE second (); SELECT 1 / 0")', before="9001")
    assert await migrated(database, folder=folder) == 1
    other = connections[0]
    assert await other.fetchval(VERSION) == "9001"
    assert await other.fetchval("SELECT to_regclass('first') IS NOT NULL AND to_regclass('second') IS NULL")


async def test_of_a_request_and_a_migration_that_wait_for_each_other_the_migration_gives_up(
    database: str, folder: Path, add: NewMigration, connections: list[asyncpg.Connection]
) -> None:
    """Postgres ends whoever has waited longest, which is the request."""
    add("9001", 'execute("LOCK TABLE threads; SELECT pg_sleep(0.1); LOCK TABLE projects")')
    assert await migrated(database, schema.NEEDED) == 0
    request, other = connections
    whole = request.transaction()
    await whole.start()
    await request.execute("LOCK TABLE projects IN ROW EXCLUSIVE MODE")
    async with migrating(database, folder=folder):
        await eventually(lambda: other.fetchval(TAKEN, "threads"), every=0.01)
        await request.execute("LOCK TABLE threads IN ROW EXCLUSIVE MODE", timeout=PATIENT)
        await whole.commit()
    assert await other.fetchval(VERSION) == "9001"


async def test_an_index_is_built_while_its_table_is_written_to(
    database: str, folder: Path, add: NewMigration, connections: list[asyncpg.Connection]
) -> None:
    add("9001", BUILD)
    assert await migrated(database, schema.NEEDED) == 0
    early, other = connections
    long = early.transaction()
    await long.start()
    await early.execute("LOCK TABLE threads IN ROW EXCLUSIVE MODE")
    async with migrating(database, folder=folder) as process:
        await eventually(lambda: other.fetchval("SELECT EXISTS (SELECT FROM pg_stat_progress_create_index)"))
        await other.execute("UPDATE threads SET updated_at = now()", timeout=PATIENT)
        assert process.returncode is None, "it waits for whoever wrote before"
        await long.rollback()
    assert await other.fetchval(VALID, "threads_by_name")
    assert await other.fetchval(VERSION) == "9001"


async def test_an_index_that_an_earlier_try_left_unfinished_is_built_anew(
    database: str, folder: Path, add: NewMigration, connections: list[asyncpg.Connection]
) -> None:
    add("9001", 'execute("CREATE TABLE things (name text); INSERT INTO things VALUES (1), (1)")')
    add("9002", 'build_index("things_name", "things (name)", unique=True)', before="9001")
    other = connections[0]
    assert await migrated(database, folder=folder) == 1
    assert await other.fetchval(VERSION) == "9001"
    assert await other.fetchval(VALID, "things_name") is False
    await other.execute("DELETE FROM things")
    assert await migrated(database, folder=folder) == 0
    assert await other.fetchval(VALID, "things_name")


async def test_several_that_migrate_at_once_take_turns_beside_an_index_that_is_built(
    database: str, folder: Path, add: NewMigration, connections: list[asyncpg.Connection]
) -> None:
    add("9001", 'execute("CREATE TABLE once ()")')
    add("9002", BUILD, before="9001")
    add("9003", 'execute("CREATE TABLE twice ()")', before="9002")
    async with migrating(database, folder=folder), migrating(database, folder=folder):
        assert await migrated(database, folder=folder) == 0
    other = connections[0]
    assert (await other.fetchval(VERSION), await other.fetchval(VALID, "threads_by_name")) == ("9003", True)


async def test_a_migration_of_the_version_before_is_waited_for(
    old_database: str, connections: list[asyncpg.Connection]
) -> None:
    """It keeps one lock, in one transaction, until it is done with all."""
    before, other = connections
    older = before.transaction()
    await older.start()
    await before.execute("SELECT pg_advisory_xact_lock(68198)")
    async with migrating(old_database) as process:
        await eventually(lambda: other.fetchval(ASKING))
        assert process.returncode is None
        assert await other.fetchval(VERSION) == BEFORE
        await older.rollback()
    assert await other.fetchval(VERSION) == schema.NEEDED


async def test_an_address_may_say_all_that_the_driver_understands(
    database: str, connections: list[asyncpg.Connection]
) -> None:
    assert await migrated(f"{database}?sslmode=disable&application_name=migrations", "0001") == 0
    assert await connections[0].fetchval(VERSION) == "0001"


@pytest.mark.parametrize("path", ["longrun_that_is_not_there", ""], ids=["no database", "no server"])
async def test_without_a_database_there_is_a_sentence_and_no_traceback(path: str) -> None:
    url = with_path(named("DATABASE_URL"), path) if path else "postgresql://a:hush@127.0.0.1:1/a"
    process = await migration(url, output=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.startswith(b"migrations: Postgres does not let us in")
    assert b"hush" not in said
