"""The database of a test: what the test before gave back, emptied, else a fresh copy of the migrated template."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import asyncpg

WORN = 2000
"""Rows deleted from a database before it is replaced: nobody vacuums here, and its plans would become others."""
WITHIN_MS = 20_000
SCHEMA = """
    SELECT md5(string_agg(object, ' ' ORDER BY object)) FROM (
        SELECT format('class %s %s', oid, xmin) AS object FROM pg_class WHERE oid >= 16384 AND relpersistence = 'p'
        UNION ALL SELECT format('column %s %s %s', attrelid, attnum, xmin) FROM pg_attribute WHERE attrelid >= 16384
        UNION ALL SELECT format('default %s %s', oid, xmin) FROM pg_attrdef
        UNION ALL SELECT format('index %s %s', indexrelid, xmin) FROM pg_index WHERE indexrelid >= 16384
        UNION ALL SELECT format('constraint %s %s', oid, xmin) FROM pg_constraint WHERE oid >= 16384
        UNION ALL SELECT format('trigger %s %s', oid, xmin) FROM pg_trigger
        UNION ALL SELECT format('function %s %s', oid, xmin) FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT format('rule %s %s', oid, xmin) FROM pg_rewrite WHERE oid >= 16384
        UNION ALL SELECT format('type %s %s', oid, xmin) FROM pg_type WHERE oid >= 16384
        UNION ALL SELECT format('sequence %s %s', seqrelid, xmin) FROM pg_sequence
        UNION ALL SELECT format('namespace %s %s', oid, xmin) FROM pg_namespace WHERE oid >= 16384
        UNION ALL SELECT format('database %s', xmin) FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT format('setting %s %s', setrole, xmin) FROM pg_db_role_setting
            WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) objects
"""
"""Every object of ours with the transaction that last changed it: any DDL changes this value."""
TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
OTHERS = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
RESTART_SEQUENCES = "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence"


@dataclass
class Database:
    """A copy of the template, and a connection of ours that empties it.

    `filled` tables held rows from the start, `empty` ones none; `origin` is what the schema and those rows were.
    """

    name: str
    conn: asyncpg.Connection
    filled: list[str]
    empty: list[str]
    origin: list[str]
    deleted: int = 0

    async def emptied(self) -> bool:
        """Whether this is again as it was copied, and worth keeping. Nothing of the test before runs on in it."""
        await self.conn.fetch(f"SELECT pg_terminate_backend(pid, {WITHIN_MS}) {OTHERS}")
        if await self.conn.fetchval(f"SELECT count(*) {OTHERS}") or await origin(self.conn, self.filled) != self.origin:
            return False
        for table in self.empty:
            self.deleted += int((await self.conn.execute(f"DELETE FROM {table}")).split()[-1])
        await self.conn.fetch(RESTART_SEQUENCES)
        return self.deleted < WORN


async def origin(conn: asyncpg.Connection, filled: list[str]) -> list[str]:
    rows = [f"SELECT md5(string_agg(given::text, ' ' ORDER BY given::text)) FROM {table} given" for table in filled]
    return [await conn.fetchval(query) for query in (SCHEMA, *rows)]


class Databases:
    """Lends databases; usually one, again and again: to copy and drop one costs a test a tenth of a second."""

    def __init__(self, url: str, template: str) -> None:
        self.url, self.template = url, template
        self.runner = asyncio.Runner()
        self.kept: Database | None = None

    @contextmanager
    def lent(self) -> Iterator[str]:
        """The name of an empty, migrated database."""
        database, self.kept = self.kept or self.runner.run(self.copied()), None
        yield database.name
        self.kept = self.runner.run(self.taken_back(database))

    async def copied(self) -> Database:
        name = f"longrun_test_{uuid4().hex[:12]}"
        await administer(self.url, copy_of(self.template, name))
        conn = await asyncpg.connect(self.url, database=name)
        # Neither foreign keys nor triggers have a say in what is deleted.
        await conn.execute("SET session_replication_role = replica")
        tables = [row[0] for row in await conn.fetch(TABLES)]
        filled = [table for table in tables if await conn.fetchval(f"SELECT EXISTS (SELECT FROM {table})")]
        empty = [table for table in tables if table not in filled]
        return Database(name, conn, filled, empty, await origin(conn, filled))

    async def taken_back(self, database: Database) -> Database | None:
        try:
            if self.kept is None and await database.emptied():
                return database
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            pass  # the test has ended our connection, too; asyncpg may just be reading why
        await self.drop(database)
        return self.kept

    async def drop(self, database: Database) -> None:
        database.conn.terminate()
        await administer(self.url, f"DROP DATABASE {database.name} WITH (FORCE)")

    def close(self) -> None:
        kept, self.kept = self.kept, None
        if kept:
            self.runner.run(self.drop(kept))
        self.runner.close()


def copy_of(template: str, name: str) -> str:
    """The statement that copies: file by file is twice as fast as through the log, where nothing waits for the disk."""
    return f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY"


async def administer(url: str, *statements: str) -> None:
    conn = await asyncpg.connect(url)
    for statement in statements:
        await conn.execute(statement)
    await conn.close()
