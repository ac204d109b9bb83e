"""Whether the database has the schema that this code was written for."""

from pathlib import Path

from services.postgres import Executor

VERSIONS = Path(__file__).parents[1] / "migrations" / "versions"


class SchemaBehind(Exception):
    """The database lacks migrations; the text says which."""


def needed() -> str:
    """The newest revision that comes with this code; empty when none does. Its number begins a file's name."""
    return max((path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py")), default="")


NEEDED = needed()


async def require_current(conn: Executor) -> None:
    """A newer schema will do: it is made for the code before, too. Raises: SchemaBehind; what asyncpg raises."""
    there = await conn.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
    found = await conn.fetchval("SELECT max(version_num) FROM alembic_version") if there else None
    if (found or "") < NEEDED:
        raise SchemaBehind(f"The schema is at {found or 'none'}, and {NEEDED} is needed: run python -m migrations.")
