"""The Postgres pool and its transactions (asyncpg)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson

from services.settings import PostgresSettings

Pool = asyncpg.Pool
Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
"""What a function that takes `conn` first accepts: a pooled or a bare connection."""

Executor = Connection | Pool
"""What a function of one statement accepts: it needs no transaction of its own."""

Unreachable = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.exceptions.TransactionRollbackError,
)
"""What asyncpg raises while the server is away, restarting or failing over, or when it chose us to break a deadlock."""


ACQUIRE_SECONDS = 10.0


def dump_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


async def prepare_connection(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec("jsonb", encoder=dump_json, decoder=orjson.loads, schema="pg_catalog")


async def open_pool(settings: PostgresSettings, *, min_size: int | None = None) -> Pool:
    """Open the pool of one process.

    `min_size` overrides POSTGRES_POOL_MIN (workers start from POSTGRES_WORKER_POOL_MIN).
    Raises what asyncpg raises when the server cannot be reached.
    """
    smallest = settings.pool_min if min_size is None else min_size
    return await asyncpg.create_pool(
        settings.url.get_secret_value(),
        min_size=smallest,
        max_size=max(settings.pool_max, smallest),
        max_queries=settings.max_queries,
        max_inactive_connection_lifetime=settings.idle_lifetime.total_seconds(),
        command_timeout=settings.command_timeout.total_seconds(),
        timeout=settings.connect_timeout.total_seconds(),
        init=prepare_connection,
        server_settings={"application_name": "longrun", "timezone": "UTC"},
    )


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """One pooled connection inside one transaction: commits at the end, rolls back on an error.

    Raises: TimeoutError when no connection is free within ten seconds.
    """
    async with pool.acquire(timeout=ACQUIRE_SECONDS) as conn, conn.transaction():
        yield conn
