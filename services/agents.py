"""Agents and their versions."""

from uuid import UUID

from services.errors import NotFound
from services.postgres import Connection

MISSING = "Agent not found."


async def current_version(conn: Connection, account_id: UUID, agent_id: UUID) -> UUID | None:
    """The version that a run of this agent pins at its start; None for an agent that has none yet.

    Raises: NotFound, alike for an agent that is somebody else's and one that is not there.
    """
    row = await conn.fetchrow(
        "SELECT current_version_id FROM agents WHERE agent_id = $1 AND account_id = $2", agent_id, account_id
    )
    if not row:
        raise NotFound(MISSING)
    version_id: UUID | None = row["current_version_id"]
    return version_id
