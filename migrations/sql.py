"""Plain SQL in a migration: SQLAlchemy's asyncpg dialect takes one statement a call, the driver takes many."""

from typing import Any

from alembic import op
from sqlalchemy import text
from sqlalchemy.util import await_only

LOCK_TIMEOUT = "500ms"
"""For so long a migration waits for a table: everybody who comes to it meanwhile stands behind the migration.

It is less than Postgres' `deadlock_timeout` (1 s): of two that wait for each other the migration gives up, no request.
"""


def execute(script: str) -> None:
    """Run a script of several statements in the migration's own transaction."""
    op.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")  # SQLAlchemy begins the transaction with it
    op.execute("SET LOCAL statement_timeout = 0")
    run(script)


def build_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index while its table is written to; `definition` is what follows ON: `messages (created_at)`.

    Outside of any transaction, so it should be all that its migration does: what stands before it is committed. It may
    be repeated: an index that an earlier try left behind unfinished is dropped first.
    """
    with op.get_context().autocommit_block():
        # It waits for whoever uses the table, without holding anybody up, and for as long as it takes.
        run("SET lock_timeout = 0")
        run("SET statement_timeout = 0")
        if is_valid(name) is False:
            run(f"DROP INDEX CONCURRENTLY {name}")
        run(f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}")


def is_valid(index: str) -> bool | None:
    """Whether an index is of use; None when it is not there."""
    found: bool | None = (
        op.get_bind()
        .execute(text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": index})
        .scalar()
    )
    return found


def run(script: str) -> None:
    driver: Any = op.get_bind().connection.driver_connection
    await_only(driver.execute(script))
