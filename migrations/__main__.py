"""`python -m migrations [revision]`: bring the schema up to date, one process at a time."""

import sys
from collections.abc import Sequence
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config

from services import log, settings

Away = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def upgrade(revision: str = "head") -> None:
    """Run every missing migration; others that start meanwhile wait on the advisory lock in env.py."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    command.upgrade(config, revision)


def main(revision: Sequence[str]) -> int | str:
    """What the process ends with: status 0, or a sentence on standard error and status 1."""
    log.configure(settings.load())
    try:
        upgrade(*revision)
    except Away as error:
        return f"migrations: Postgres does not let us in, or went away: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:2]))
