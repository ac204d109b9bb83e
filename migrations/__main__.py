"""`python -m migrations [revision]`: bring the schema up to date, one process at a time."""

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config

from services import log, settings


def upgrade(revision: str = "head") -> None:
    """Run every missing migration; others that start meanwhile wait on the advisory lock in env.py."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    command.upgrade(config, revision)


if __name__ == "__main__":
    log.configure(settings.load())
    upgrade(*sys.argv[1:2])
