"""Agents: a prompt, tools and MCP servers that runs of an account work with; what they are is in their versions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from services import agent_versions
from services.errors import Conflict, NotFound
from services.postgres import LONG_SECONDS, Connection, Executor
from services.secrets import Secrets

MISSING = "Agent not found."
DEFAULT_STAYS = "The default agent cannot be deleted; make another one the default first."
DETAILS = ("name", "description", "avatar", "avatar_color")


@dataclass(frozen=True, slots=True)
class Agent:
    agent_id: UUID
    account_id: UUID
    name: str
    description: str
    is_default: bool
    avatar: str | None
    avatar_color: str | None
    current_version_id: UUID | None
    version_count: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an agent: `parts` (of a version) and `details` that are None or absent stay as they are."""

    parts: Mapping[str, Any]
    details: Mapping[str, Any]
    is_default: bool | None = None
    version_name: str | None = None
    version_id: UUID | None = None
    """The id of the version that it makes; a change whose version exists already is not made again."""
    always: bool = False
    """Whether it makes a version even if nothing in it is new."""
    merges_tools: bool = False
    """Whether groups of tools that are not named stay as they are."""
    takes_secrets: bool = True
    """Whether secrets may be new, rather than only kept."""


COLUMNS = ", ".join(f"a.{f.name}" for f in fields(Agent))
WIDTH = len(fields(Agent))


async def get(conn: Executor, account_id: UUID, agent_id: UUID) -> Agent:
    """Raises: NotFound, alike for an agent that is somebody else's and one that is not there."""
    query = f"SELECT {COLUMNS} FROM agents a WHERE agent_id = $1 AND account_id = $2"
    return await found(conn, query, agent_id, account_id)


async def lock(conn: Connection, account_id: UUID, agent_id: UUID) -> Agent:
    """As `get`, for a change: parallel ones of the same agent wait for each other. Runs may start meanwhile."""
    query = f"SELECT {COLUMNS} FROM agents a WHERE agent_id = $1 AND account_id = $2 FOR NO KEY UPDATE"
    return await found(conn, query, agent_id, account_id)


async def found(conn: Executor, query: str, *arguments: Any) -> Agent:
    row = await conn.fetchrow(query, *arguments)
    if not row:
        raise NotFound(MISSING)
    return Agent(**row)


async def default_of(conn: Executor, account_id: UUID) -> Agent | None:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM agents a WHERE account_id = $1 AND is_default", account_id)
    return Agent(**row) if row else None


async def recent_of(conn: Executor, thread_id: UUID) -> Agent | None:
    """The agent of the thread's newest run that had one."""
    row = await conn.fetchrow(
        f"""
        SELECT {COLUMNS} FROM agent_runs r JOIN agents a USING (agent_id)
        WHERE r.thread_id = $1 ORDER BY r.created_at DESC, r.id DESC LIMIT 1
        """,
        thread_id,
    )
    return Agent(**row) if row else None


async def current_version(conn: Connection, account_id: UUID, agent_id: UUID) -> UUID | None:
    """The version that a run of this agent pins at its start; None for an agent that has none yet.

    Raises: NotFound, alike for an agent that is somebody else's and one that is not there.
    """
    return (await get(conn, account_id, agent_id)).current_version_id


async def create(
    conn: Connection, secrets: Secrets, account_id: UUID, change: Change, *, created_by: UUID | None = None
) -> Agent:
    """A new agent with its first version, in the caller's transaction. Raises: Unprocessable for a masked secret."""
    parts = agent_versions.changed(secrets, change.parts, None)
    if change.is_default:
        await clear_default(conn, account_id)
    agent_id, version_id = uuid4(), uuid4()
    details = {"description": "", **given(change.details)}
    row = await conn.fetchrow(
        f"""
        INSERT INTO agents AS a
            (agent_id, account_id, is_default, current_version_id, version_count, {", ".join(DETAILS)})
        VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8) RETURNING {COLUMNS}
        """,
        agent_id,
        account_id,
        bool(change.is_default),
        version_id,
        *(details.get(name) for name in DETAILS),
    )
    assert row
    await agent_versions.add(
        conn, agent_id, 1, parts, version_id=version_id, name=change.version_name, created_by=created_by
    )
    return Agent(**row)


async def change(
    conn: Connection,
    secrets: Secrets,
    account_id: UUID,
    agent_id: UUID,
    change: Change,
    *,
    created_by: UUID | None = None,
) -> Agent:
    """Change an agent in the caller's transaction; a new version becomes the current one.

    Raises: NotFound; Unprocessable for a masked secret that there is nothing behind.
    """
    if change.is_default:
        await take_turns(conn, account_id)
    agent = await lock(conn, account_id, agent_id)
    if change.is_default and not agent.is_default:
        await clear_default(conn, account_id)
    if change.version_id and await agent_versions.find(conn, change.version_id):
        return agent
    agent = await describe(conn, agent, change)
    current = await agent_versions.find(conn, agent.current_version_id) if agent.current_version_id else None
    parts = agent_versions.changed(
        secrets, change.parts, current, merges_tools=change.merges_tools, takes_secrets=change.takes_secrets
    )
    if parts == agent_versions.parts_of(current) and not change.always:
        return agent
    return await add_version(conn, agent, parts, change, created_by)


async def describe(conn: Connection, agent: Agent, change: Change) -> Agent:
    details = given(change.details)
    if change.is_default is not None:
        details["is_default"] = change.is_default
    news = {name: value for name, value in details.items() if value != getattr(agent, name)}
    if not news:
        return agent
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(news, 2))
    query = f"UPDATE agents a SET {settings}, updated_at = now() WHERE agent_id = $1 RETURNING {COLUMNS}"
    return await found(conn, query, agent.agent_id, *news.values())


async def add_version(
    conn: Connection, agent: Agent, parts: Mapping[str, Any], change: Change, created_by: UUID | None
) -> Agent:
    version = await agent_versions.add(
        conn,
        agent.agent_id,
        agent.version_count + 1,
        parts,
        version_id=change.version_id,
        name=change.version_name,
        created_by=created_by,
    )
    query = f"""
        UPDATE agents a SET current_version_id = $2, version_count = $3, updated_at = now()
        WHERE agent_id = $1 RETURNING {COLUMNS}
    """
    return await found(conn, query, agent.agent_id, version.version_id, version.version_number)


async def activate(conn: Connection, account_id: UUID, agent_id: UUID, version_id: UUID) -> Agent:
    """Make a version the current one: runs that start from now on pin it. Raises: NotFound."""
    await lock(conn, account_id, agent_id)
    await agent_versions.get(conn, agent_id, version_id)
    query = f"""
        UPDATE agents a SET current_version_id = $2, updated_at = now() WHERE agent_id = $1 RETURNING {COLUMNS}
    """
    return await found(conn, query, agent_id, version_id)


async def delete(conn: Connection, account_id: UUID, agent_id: UUID) -> None:
    """Delete an agent with its versions; its runs and messages stay. Raises: NotFound; Conflict for the default one."""
    await get(conn, account_id, agent_id)
    # Live runs first, in the order of whoever stores a message of one: no deadlocks.
    live = "SELECT FROM agent_runs WHERE agent_id = $1 AND completed_at IS NULL ORDER BY id FOR NO KEY UPDATE"
    await conn.execute(live, agent_id)
    agent = await lock(conn, account_id, agent_id)
    if agent.is_default:
        raise Conflict(DEFAULT_STAYS)
    await conn.execute("DELETE FROM agents WHERE agent_id = $1", agent_id, timeout=LONG_SECONDS)


async def take_turns(conn: Connection, account_id: UUID) -> None:
    """Parallel changes of an account's default wait for each other."""
    await conn.execute("SELECT FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE", account_id)


async def clear_default(conn: Connection, account_id: UUID) -> None:
    await take_turns(conn, account_id)
    await conn.execute(
        "UPDATE agents SET is_default = false, updated_at = now() WHERE account_id = $1 AND is_default", account_id
    )


def given(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: details[name] for name in DETAILS if details.get(name) is not None}
