"""Alembic's entry: one process at a time, and each migration in a transaction of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import asyncpg
from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services import settings
from services.log import logger

ADVISORY_LOCK = 0x10A66  # any number of ours
ASK_SECONDS = 0.5
RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 3600.0
"""How long others may keep a table busy, a backup for instance."""


@asynccontextmanager
async def alone(url: str) -> AsyncIterator[None]:
    """Others that migrate wait meanwhile.

    The lock is asked for, not waited for, and kept by a connection that does nothing else: an index that is built
    concurrently waits for every snapshot that is held, such as that of a statement which waits for this lock.
    """
    keeper = await asyncpg.connect(url)
    try:
        async with keeper.transaction(isolation="read_committed"):
            await keeper.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            while not await take_lock(keeper):  # noqa: ASYNC110 - nobody tells when it is free
                await asyncio.sleep(ASK_SECONDS)
            yield
    finally:
        await keeper.close()


async def take_lock(keeper: asyncpg.Connection) -> bool:
    """As a simple query: a prepared one would hold its snapshot for as long as the transaction lasts."""
    return await keeper.execute(f"SELECT WHERE pg_try_advisory_xact_lock({ADVISORY_LOCK})") == "SELECT 1"


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_patiently(engine: AsyncEngine) -> None:
    """What is done stays; a migration that met a busy table is tried again. Raises: what the last try did."""
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        try:
            async with engine.connect() as connection:
                await connection.run_sync(migrate)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if monotonic() > deadline:
                raise
            logger.warning("migrations.table_busy", error=str(error))
        else:
            return
        await asyncio.sleep(RETRY_SECONDS)


async def main() -> None:
    url = settings.load().postgres.url.get_secret_value()
    # The driver reads the address, as it does for all other processes: SQLAlchemy knows no `sslmode`, for instance.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool
    )
    async with alone(url):
        await migrate_patiently(engine)
    await engine.dispose()


asyncio.run(main())
