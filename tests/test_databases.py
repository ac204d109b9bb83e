"""The databases of tests: each test finds its own as migrated, whatever the one before left."""

from collections.abc import Iterator

import asyncpg
import pytest

from tests.conftest import named
from tests.databases import WORN, Databases

ACCOUNT = "INSERT INTO accounts (name, personal) VALUES ('left over', false)"
PROJECT = "INSERT INTO projects (account_id, name) SELECT account_id, 'left over' FROM accounts"
THREAD = "INSERT INTO threads (account_id, project_id) SELECT account_id, project_id FROM projects"
MESSAGE = "INSERT INTO messages (thread_id, type, content) SELECT thread_id, 'user', '{}' FROM threads"


@pytest.fixture
def copies(template: str) -> Iterator[Databases]:
    copies = Databases(named("DATABASE_URL"), template)
    yield copies
    copies.close()


def session(copies: Databases, name: str) -> asyncpg.Connection:
    return copies.runner.run(asyncpg.connect(copies.url, database=name))


def ask(copies: Databases, name: str, *statements: str) -> object:
    """What the last of the statements answers; their session is left open."""
    conn = session(copies, name)
    try:
        return [copies.runner.run(conn.fetchval(statement)) for statement in statements][-1]
    finally:
        conn.terminate()


def test_what_one_test_stored_the_next_does_not_find(copies: Databases) -> None:
    with copies.lent() as first:
        position = ask(copies, first, ACCOUNT, PROJECT, THREAD, f"{MESSAGE} RETURNING position")
    with copies.lent() as second:
        assert second == first
        assert ask(copies, second, "SELECT count(*) FROM accounts") == 0
        assert ask(copies, second, ACCOUNT, PROJECT, THREAD, f"{MESSAGE} RETURNING position") == position


def test_a_session_that_was_left_open_is_ended(copies: Databases) -> None:
    with copies.lent() as first:
        left = session(copies, first)
        copies.runner.run(left.execute(f"BEGIN; {ACCOUNT}; LOCK TABLE accounts"))
    with copies.lent() as second:
        assert second == first
        assert ask(copies, second, "SELECT count(*) FROM accounts") == 0
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            copies.runner.run(left.execute("COMMIT"))


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE left_over (id int)",
        "DROP INDEX accounts_name",
        "ALTER TABLE accounts ADD COLUMN left_over int",
        "ALTER TABLE accounts ALTER COLUMN name SET DEFAULT 'left over'",
        "ALTER TABLE accounts ADD CONSTRAINT left_over CHECK (name <> '')",
        "ALTER TABLE accounts DISABLE TRIGGER ALL",
        "CREATE FUNCTION left_over() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 1', current_database()); END $$",
    ],
)
def test_a_database_whose_schema_a_test_changed_is_replaced(copies: Databases, change: str) -> None:
    with copies.lent() as first:
        ask(copies, first, change)
    with copies.lent() as second:
        assert second != first


def test_a_database_is_replaced_when_rows_that_it_came_with_were_changed(copies: Databases) -> None:
    with copies.lent() as first:
        version = ask(copies, first, "SELECT version_num FROM alembic_version")
        ask(copies, first, "DELETE FROM alembic_version")
    with copies.lent() as second:
        assert ask(copies, second, "SELECT version_num FROM alembic_version") == version


def test_a_database_is_replaced_when_much_was_deleted_from_it(copies: Databases) -> None:
    with copies.lent() as first:
        ask(copies, first, f"INSERT INTO accounts (name, personal) SELECT n, false FROM generate_series(1, {WORN}) n")
    with copies.lent() as second:
        assert second != first


def test_a_test_that_ends_every_session_takes_nothing_from_the_next(copies: Databases) -> None:
    ours = "datname = current_database() AND pid <> pg_backend_pid()"
    with copies.lent() as first:
        ask(copies, first, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
    with copies.lent() as second:
        assert second != first
        assert ask(copies, second, "SELECT count(*) FROM accounts") == 0


def test_two_that_are_lent_at_a_time_are_two(copies: Databases) -> None:
    with copies.lent() as first, copies.lent() as second:
        assert first != second


def test_none_is_left_in_the_end(copies: Databases) -> None:
    with copies.lent() as first, copies.lent() as second:
        pass
    copies.close()
    other = Databases(copies.url, copies.template)
    known = f"SELECT count(*) FROM pg_database WHERE datname IN ('{first}', '{second}')"
    with other.lent() as name:
        assert ask(other, name, known) == 0
    other.close()
