"""Alembic's entry: one async connection, one advisory lock, one transaction."""

import asyncio
from time import monotonic

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services import settings
from services.log import logger

ADVISORY_LOCK = 0x10A66  # any number of ours; held for the length of the migration's transaction
LOCK_TIMEOUT = "2s"
"""For so long a migration waits for a table: everybody who comes to it meanwhile stands behind the migration."""
RETRY_SECONDS = 3.0
PATIENCE_SECONDS = 3600.0
"""How long others may keep a table busy, a backup for instance."""


def migrate(connection: Connection) -> None:
    context.configure(connection=connection)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        context.run_migrations()


async def migrate_patiently(engine: AsyncEngine) -> None:
    """All or nothing, and all again when a table was busy. Raises: what the last try did."""
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
    engine = create_async_engine(f"postgresql+asyncpg://{url.partition('://')[2]}", poolclass=NullPool)
    await migrate_patiently(engine)
    await engine.dispose()


asyncio.run(main())
