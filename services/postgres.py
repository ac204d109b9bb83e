"""The Postgres pool and its transactions (asyncpg)."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import perf_counter
from types import FrameType
from typing import Any, TypeVar

import asyncpg
import orjson

from services import metrics
from services.log import logger
from services.settings import PostgresSettings

T = TypeVar("T")

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
"""What a function that takes `conn` first accepts: a pooled or a bare connection."""

Unreachable = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.PostgresSystemError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""What asyncpg raises while the server is away, restarting, failing over, full or overloaded: try again later.

So does a statement or a wait for a connection that took too long (TimeoutError is an OSError), and a deadlock that was
broken at our cost.
"""


def is_misuse(error: Exception) -> bool:
    """Whether asyncpg could not encode an argument: an InterfaceError like others, which no retry cures."""
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


LONG_SECONDS = 60.0
"""For the few statements whose work grows with a whole thread or project."""


NAME = re.compile(r"\s*(?:--\s*(\S[^\n]{0,99})|/\*\s*(\S.{0,99}?)\s*\*/)")
LIBRARIES = ("asyncpg", "contextlib", "services.postgres", "sentry_sdk")


class TimedConnection(asyncpg.Connection):
    """Logs what takes long, by name. What is fast costs two looks at the clock."""

    __slots__ = ()
    slow_seconds = 1.0
    """0: nothing is too slow. The class of a pool has the one of its settings."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        running = super().execute(query, *args, timeout=timeout)
        return await (running if args else self.timed(query, running))  # with arguments it comes by `_execute`

    async def _execute(self, query: str, *args: Any, **named: Any) -> Any:
        return await self.timed(query, super()._execute(query, *args, **named))  # type: ignore[misc]

    async def timed(self, query: str, running: Awaitable[T]) -> T:
        began, failed = perf_counter(), ""
        try:
            return await running
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            took = perf_counter() - began
            measure(query, took, failed)
            if took > self.slow_seconds > 0:
                logger.warning(
                    "postgres.slow_query", query=name_of(query), seconds=round(took, 3), error=failed or None
                )


TIMES = {name: metrics.query_seconds.labels(name) for name in ("select", "insert", "update", "delete", "with", "other")}
"""By the first word of a statement; looked up once, since there are many."""
BEGINNING = 40


def measure(query: str, seconds: float, failed: str) -> None:
    operation = next(iter(query[:BEGINNING].split()), "").lower()
    if operation not in TIMES:
        operation = "other"
    TIMES[operation].observe(seconds)
    if failed and failed != asyncio.CancelledError.__name__:  # nobody waits any more for one that was cancelled
        metrics.query_errors.labels(operation, failed).inc()


def timed_connections(slow_query: timedelta) -> type[TimedConnection]:
    named = {"__slots__": (), "slow_seconds": slow_query.total_seconds()}
    return type(TimedConnection.__name__, (TimedConnection,), named)


def name_of(query: str) -> str:
    """What a comment at the beginning says, else the function that had the statement run."""
    if said := NAME.match(query):
        return said[1] or said[2]
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_globals.get("__name__", "").startswith(LIBRARIES):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}" if frame else ""


class Pool(asyncpg.Pool):
    """A pool in which nobody waits for ever for a connection, or is passed by who comes later.

    TimeoutError after `acquire_timeout`. asyncpg's own queue gives a connection that is free to whoever asks first,
    which under load is hardly ever one who was told that there is one: some waited for seconds.
    """

    __slots__ = ("acquire_timeout", "turns")

    def __init__(self, *arguments: Any, acquire_timeout: timedelta, max_size: int, **named: Any) -> None:
        super().__init__(*arguments, max_size=max_size, **named)
        self.acquire_timeout = acquire_timeout.total_seconds()
        self.turns = asyncio.Semaphore(max_size)

    def acquire(self, *, timeout: float | None = None) -> "asyncpg.pool.PoolAcquireContext":
        return super().acquire(timeout=self.acquire_timeout if timeout is None else timeout)

    async def _acquire(self, timeout: float) -> "asyncpg.pool.PoolConnectionProxy":
        begun = perf_counter()
        async with asyncio.timeout(timeout):
            await self.turns.acquire()
            try:
                connection: asyncpg.pool.PoolConnectionProxy = await super()._acquire(None)  # type: ignore[misc]
            except BaseException:
                self.turns.release()
                raise
        metrics.pool_wait_seconds.observe(perf_counter() - begun)
        connection._holder._timeout = timeout  # type: ignore[attr-defined] # of its release, as asyncpg notes it
        return connection

    async def release(self, connection: "asyncpg.pool.PoolConnectionProxy", *, timeout: float | None = None) -> None:
        """Once for each connection that was acquired."""
        try:
            await super().release(connection, timeout=timeout)
        finally:
            self.turns.release()


Executor = Connection | Pool
"""What a function of one statement accepts: it needs no transaction of its own."""


def storable_text(text: str) -> str:
    """What Postgres takes of a text: it knows neither NUL nor half a surrogate pair."""
    return text.replace("\0", "").encode(errors="replace").decode()


def dump_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


async def prepare_connection(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec("jsonb", encoder=dump_json, decoder=orjson.loads, schema="pg_catalog")


async def leave_as_it_is(_conn: asyncpg.Connection) -> None:
    """Nothing here changes a session for longer than a transaction: resetting it would double the round trips."""


async def open_pool(settings: PostgresSettings, *, min_size: int | None = None) -> Pool:
    """Open the pool of one process.

    `min_size` overrides POSTGRES_POOL_MIN (workers start from POSTGRES_WORKER_POOL_MIN).
    Raises what asyncpg raises when the server cannot be reached.
    """
    smallest = settings.pool_min if min_size is None else min_size
    return await opened(settings, smallest, max(settings.pool_max, smallest))


async def open_upkeep_pool(settings: PostgresSettings) -> Pool:
    """The few connections of what keeps runs and readers alive; opened as they are needed."""
    return await opened(settings, 0, settings.upkeep_connections)


async def opened(settings: PostgresSettings, min_size: int, max_size: int) -> Pool:
    pool = Pool(
        settings.url.get_secret_value(),
        acquire_timeout=settings.acquire_timeout,
        min_size=min_size,
        max_size=max_size,
        max_queries=settings.max_queries,
        max_inactive_connection_lifetime=settings.idle_lifetime.total_seconds(),
        command_timeout=settings.command_timeout.total_seconds(),
        timeout=settings.connect_timeout.total_seconds(),
        init=prepare_connection,
        reset=leave_as_it_is,
        server_settings=server_settings(settings),
        loop=None,
        connection_class=timed_connections(settings.slow_query),
        record_class=asyncpg.Record,
    )
    await pool
    return pool


def server_settings(settings: PostgresSettings) -> dict[str, str]:
    limits = {
        "statement_timeout": settings.statement_timeout,
        "idle_in_transaction_session_timeout": settings.idle_transaction_timeout,
    }
    set_limits = {name: f"{limit / timedelta(milliseconds=1):.0f}" for name, limit in limits.items() if limit}
    return {"application_name": "longrun", "timezone": "UTC", **set_limits}


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """One pooled connection inside one transaction: commits at the end, rolls back on an error.

    Raises: TimeoutError when no connection is free in time, or a statement takes too long.
    """
    async with pool.acquire() as conn:
        begun = conn.transaction()
        await begun.start()
        try:
            yield conn
        except TimeoutError:
            conn.terminate()  # the server ends the transaction; a ROLLBACK would wait for it as long again
            raise
        except BaseException:
            await begun.rollback()
            raise
        await begun.commit()
