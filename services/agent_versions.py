"""Versions of agents: what a run pins. They are only ever added."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from services import agent_secrets
from services.errors import NotFound
from services.postgres import Connection, Executor
from services.secrets import Secrets

MISSING = "Agent version not found."
MCPS = ("configured_mcps", "custom_mcps")


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """One row of agent_versions; secrets in it are sealed unless it was opened for a run."""

    version_id: UUID
    agent_id: UUID
    version_number: int
    version_name: str
    system_prompt: str
    configured_mcps: list[dict[str, Any]] = field(repr=False)
    custom_mcps: list[dict[str, Any]] = field(repr=False)
    agentpress_tools: dict[str, Any]
    created_by: UUID | None
    created_at: datetime

    @property
    def masked(self) -> "AgentVersion":
        """As anybody of its account may see it."""
        return self.with_mcps({kind: agent_secrets.masked(getattr(self, kind)) for kind in MCPS})

    def opened(self, secrets: Secrets) -> "AgentVersion":
        """With its secrets, for a run. Raises: SecretUnreadable."""
        return self.with_mcps({kind: agent_secrets.opened(secrets, getattr(self, kind)) for kind in MCPS})

    def renewed(self, secrets: Secrets) -> "AgentVersion":
        """With its secrets encrypted with the first key. Raises: SecretUnreadable."""
        return self.with_mcps({kind: agent_secrets.renewed(secrets, getattr(self, kind)) for kind in MCPS})

    def with_mcps(self, mcps: dict[str, list[dict[str, Any]]]) -> "AgentVersion":
        return replace(self, configured_mcps=mcps["configured_mcps"], custom_mcps=mcps["custom_mcps"])


COLUMNS = ", ".join(f.name for f in fields(AgentVersion))
PARTS = ("system_prompt", *MCPS, "agentpress_tools")
EMPTY: dict[str, Any] = {"system_prompt": "", "configured_mcps": [], "custom_mcps": [], "agentpress_tools": {}}


def changed(
    secrets: Secrets,
    parts: Mapping[str, Any],
    before: AgentVersion | None,
    *,
    merges_tools: bool = False,
    takes_secrets: bool = True,
) -> dict[str, Any]:
    """All parts of the version that `parts` make of the one before, their secrets sealed.

    Raises: Unprocessable as `agent_secrets.seal`.
    """
    was = parts_of(before)
    sealed = {
        kind: agent_secrets.seal(secrets, kind, parts[kind], was[kind], takes_new=takes_secrets)
        for kind in MCPS
        if parts.get(kind) is not None
    }
    given = {name: parts[name] for name in PARTS if parts.get(name) is not None}
    if merges_tools and "agentpress_tools" in given:
        given["agentpress_tools"] = {**was["agentpress_tools"], **given["agentpress_tools"]}
    return {**was, **given, **sealed}


def parts_of(version: AgentVersion | None) -> dict[str, Any]:
    return {name: getattr(version, name) for name in PARTS} if version else EMPTY


async def add(
    conn: Connection,
    agent_id: UUID,
    number: int,
    parts: Mapping[str, Any],
    *,
    version_id: UUID | None = None,
    name: str | None = None,
    created_by: UUID | None = None,
) -> AgentVersion:
    """Store a version of sealed parts. The caller holds the agent's row, so that no number is taken twice."""
    row = await conn.fetchrow(
        f"""
        INSERT INTO agent_versions (version_id, agent_id, version_number, version_name, created_by, {", ".join(PARTS)})
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING {COLUMNS}
        """,
        version_id or uuid4(),
        agent_id,
        number,
        name or f"v{number}",
        created_by,
        *(parts[part] for part in PARTS),
    )
    assert row
    return AgentVersion(**row)


async def find(conn: Executor, version_id: UUID) -> AgentVersion | None:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM agent_versions WHERE version_id = $1", version_id)
    return AgentVersion(**row) if row else None


async def get(conn: Executor, agent_id: UUID, version_id: UUID) -> AgentVersion:
    """Raises: NotFound, also for a version of another agent."""
    version = await find(conn, version_id)
    if version is None or version.agent_id != agent_id:
        raise NotFound(MISSING)
    return version


async def by_ids(conn: Executor, version_ids: list[UUID]) -> list[AgentVersion]:
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM agent_versions WHERE version_id = ANY($1)", version_ids)
    return [AgentVersion(**row) for row in rows]


async def page(conn: Executor, agent_id: UUID, *, limit: int, offset: int) -> list[AgentVersion]:
    """The agent's versions, newest first."""
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS} FROM agent_versions WHERE agent_id = $1
        ORDER BY version_number DESC LIMIT $2 OFFSET $3
        """,
        agent_id,
        limit,
        offset,
    )
    return [AgentVersion(**row) for row in rows]


async def all_after(conn: Executor, version_id: UUID, limit: int) -> list[AgentVersion]:
    """Versions of all accounts by their ids, a page at a time; the first page is after `UUID(int=0)`."""
    query = f"SELECT {COLUMNS} FROM agent_versions WHERE version_id > $1 ORDER BY version_id LIMIT $2"
    return [AgentVersion(**row) for row in await conn.fetch(query, version_id, limit)]


async def keep_renewed(conn: Executor, version: AgentVersion) -> None:
    """Store what `AgentVersion.renewed` gave; nothing else of a version ever changes."""
    await conn.execute(
        "UPDATE agent_versions SET configured_mcps = $2, custom_mcps = $3 WHERE version_id = $1",
        version.version_id,
        version.configured_mcps,
        version.custom_mcps,
    )
