"""Plain SQL in a migration: SQLAlchemy's asyncpg dialect takes one statement a call, the driver takes many."""

from alembic import op
from sqlalchemy.util import await_only


def execute(script: str) -> None:
    """Run a script of several statements in the migration's own transaction."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    await_only(driver.execute(script))
