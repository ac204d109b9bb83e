"""Agents and their versions."""

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from agent.mcp import config
from agent.mcp.config import InvalidServer
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.fields import Text
from api.paging import PageQuery, Pagination, pagination
from api.routes.projects import Deleted
from services import agent_search, agent_versions, agents, threads
from services.agent_fields import Avatar, Description, Name, VersionChange
from services.agent_search import SortBy, SortOrder, Wanted
from services.agent_versions import AgentVersion
from services.agents import Agent, Change
from services.postgres import Executor, transaction

router = APIRouter(tags=["agents"])

MAX_AGENTS = 100
MAX_ASKED_TOOLS = 100
STEPS = re.compile(r"\w+")
"""Of a place like `custom_mcps[1].config.url`."""
NO_AGENT = "No agent has worked on this thread, and there is no default one; any may be chosen."

AgentsQuery = Annotated[int, Query(ge=1, le=MAX_AGENTS)]
ShortText = Annotated[Text, Query(max_length=200)]


class VersionOut(BaseModel):
    """Secrets of MCP servers are masked as `***`."""

    version_id: UUID
    agent_id: UUID
    version_number: int
    version_name: str
    system_prompt: str
    configured_mcps: list[dict[str, Any]]
    custom_mcps: list[dict[str, Any]]
    agentpress_tools: dict[str, Any]
    is_active: bool
    created_by: UUID | None
    created_at: datetime
    updated_at: datetime


class AgentOut(BaseModel):
    """What it is made of is its current version's; secrets of MCP servers are masked as `***`."""

    agent_id: UUID
    account_id: UUID
    name: str
    description: str
    system_prompt: str
    configured_mcps: list[dict[str, Any]]
    custom_mcps: list[dict[str, Any]]
    agentpress_tools: dict[str, Any]
    is_default: bool
    avatar: str | None
    avatar_color: str | None
    created_at: datetime
    updated_at: datetime
    current_version_id: UUID | None
    version_count: int
    current_version: VersionOut | None


class AgentPage(BaseModel):
    agents: list[AgentOut]
    pagination: Pagination


class ThreadAgent(BaseModel):
    """`source`: `recent` (of the thread's newest run that had one), `default` (the account's) or `none`."""

    agent: AgentOut | None
    source: str
    message: str


class AgentPatch(VersionChange):
    name: Name | None = None
    description: Description | None = None
    is_default: bool | None = None
    avatar: Avatar | None = None
    avatar_color: Avatar | None = None

    @property
    def change(self) -> Change:
        """Raises: RequestValidationError for an MCP server that cannot be one."""
        details = self.model_dump(include=set(agents.DETAILS))
        return Change(parts=with_checked_servers(self.parts), details=details, is_default=self.is_default)


class AgentIn(AgentPatch):
    name: Name


class VersionIn(VersionChange):
    version_name: Name | None = None

    @property
    def change(self) -> Change:
        """Raises: RequestValidationError for an MCP server that cannot be one."""
        parts = with_checked_servers(self.parts)
        return Change(parts=parts, details={}, version_name=self.version_name, always=True)


def with_checked_servers(parts: dict[str, Any]) -> dict[str, Any]:
    try:
        config.parse(parts.get("configured_mcps"), parts.get("custom_mcps"))
    except InvalidServer as error:
        place = [int(step) if step.isdecimal() else step for step in STEPS.findall(error.field)]
        said = {"type": "value_error", "loc": ("body", *place), "msg": error.problem}
        raise RequestValidationError([said]) from error
    return parts


def shown_version(version: AgentVersion, active_id: UUID | None) -> VersionOut:
    masked = version.masked
    return VersionOut(
        version_id=masked.version_id,
        agent_id=masked.agent_id,
        version_number=masked.version_number,
        version_name=masked.version_name,
        system_prompt=masked.system_prompt,
        configured_mcps=masked.configured_mcps,
        custom_mcps=masked.custom_mcps,
        agentpress_tools=masked.agentpress_tools,
        is_active=masked.version_id == active_id,
        created_by=masked.created_by,
        created_at=masked.created_at,
        updated_at=masked.created_at,
    )


def shown(agent: Agent, version: AgentVersion | None) -> AgentOut:
    current = shown_version(version, agent.current_version_id) if version else None
    return AgentOut(
        agent_id=agent.agent_id,
        account_id=agent.account_id,
        name=agent.name,
        description=agent.description,
        system_prompt=current.system_prompt if current else "",
        configured_mcps=current.configured_mcps if current else [],
        custom_mcps=current.custom_mcps if current else [],
        agentpress_tools=current.agentpress_tools if current else {},
        is_default=agent.is_default,
        avatar=agent.avatar,
        avatar_color=agent.avatar_color,
        created_at=agent.created_at,
        updated_at=agent.updated_at,
        current_version_id=agent.current_version_id,
        version_count=agent.version_count,
        current_version=current,
    )


async def shown_all(conn: Executor, found: list[Agent]) -> list[AgentOut]:
    current = [agent.current_version_id for agent in found if agent.current_version_id]
    versions = {version.agent_id: version for version in await agent_versions.by_ids(conn, current)}
    return [shown(agent, versions.get(agent.agent_id)) for agent in found]


async def shown_one(conn: Executor, agent: Agent) -> AgentOut:
    (one,) = await shown_all(conn, [agent])
    return one


@router.get("/agents")
async def list_agents(
    caller: CallerDep,
    pool: PoolDep,
    page: PageQuery = 1,
    limit: AgentsQuery = 20,
    search: ShortText | None = None,
    sort_by: SortBy = "created_at",
    sort_order: SortOrder = "desc",
    has_default: bool | None = None,
    has_mcp_tools: bool | None = None,
    has_agentpress_tools: bool | None = None,
    tools: Annotated[Text, Query(max_length=5_000)] = "",
) -> AgentPage:
    """`tools`: names of enabled tools or MCP servers, commas between them; agents with any of them are shown."""
    wanted = Wanted(
        search=(search or "").strip() or None,
        is_default=has_default,
        has_mcps=has_mcp_tools,
        has_tools=has_agentpress_tools,
        tools=tuple(name.strip() for name in tools.split(",") if name.strip())[:MAX_ASKED_TOOLS],
    )
    async with pool.acquire() as conn:
        found = await agent_search.page(
            conn,
            caller.account_id,
            wanted,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=(page - 1) * limit,
        )
        total = await agent_search.count(conn, caller.account_id, wanted)
        return AgentPage(agents=await shown_all(conn, found), pagination=pagination(page, limit, total))


@router.post("/agents")
async def create_agent(asked: AgentIn, caller: CallerDep, resources: ResourcesDep) -> AgentOut:
    """An agent with its first version."""
    async with transaction(resources.pool) as conn:
        made = await agents.create(conn, resources.secrets, caller.account_id, asked.change, created_by=caller.user_id)
        return await shown_one(conn, made)


@router.get("/agents/{agent_id}")
async def get_agent(agent_id: UUID, caller: CallerDep, pool: PoolDep) -> AgentOut:
    async with pool.acquire() as conn:
        return await shown_one(conn, await agents.get(conn, caller.account_id, agent_id))


@router.put("/agents/{agent_id}")
async def change_agent(agent_id: UUID, asked: AgentPatch, caller: CallerDep, resources: ResourcesDep) -> AgentOut:
    """What is absent or null stays as it is. A new prompt, other tools or MCP servers make a version.

    A secret that is sent back masked is kept.
    """
    return await changed(caller.account_id, caller.user_id, agent_id, asked.change, resources)


async def changed(account_id: UUID, user_id: UUID, agent_id: UUID, change: Change, resources: ResourcesDep) -> AgentOut:
    async with transaction(resources.pool) as conn:
        agent = await agents.change(conn, resources.secrets, account_id, agent_id, change, created_by=user_id)
        return await shown_one(conn, agent)


@router.delete("/agents/{agent_id}")
async def delete_agent(agent_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Its versions go with it, its runs and messages stay. The default agent cannot be deleted: 409."""
    async with transaction(resources.pool) as conn:
        await agents.delete(conn, caller.account_id, agent_id)
    await resources.stores.versions.forget(caller.account_id)
    return Deleted(message="Agent deleted.")


@router.get("/agents/{agent_id}/versions")
async def list_versions(
    agent_id: UUID, caller: CallerDep, pool: PoolDep, page: PageQuery = 1, limit: AgentsQuery = MAX_AGENTS
) -> list[VersionOut]:
    """Newest first."""
    async with pool.acquire() as conn:
        agent = await agents.get(conn, caller.account_id, agent_id)
        found = await agent_versions.page(conn, agent_id, limit=limit, offset=(page - 1) * limit)
    return [shown_version(version, agent.current_version_id) for version in found]


@router.post("/agents/{agent_id}/versions")
async def create_version(agent_id: UUID, asked: VersionIn, caller: CallerDep, resources: ResourcesDep) -> VersionOut:
    """A version that becomes the current one, even if nothing in it is new; what is absent is the current one's."""
    agent = await changed(caller.account_id, caller.user_id, agent_id, asked.change, resources)
    assert agent.current_version
    return agent.current_version


@router.get("/agents/{agent_id}/versions/{version_id}")
async def get_version(agent_id: UUID, version_id: UUID, caller: CallerDep, pool: PoolDep) -> VersionOut:
    async with pool.acquire() as conn:
        agent = await agents.get(conn, caller.account_id, agent_id)
        version = await agent_versions.get(conn, agent_id, version_id)
    return shown_version(version, agent.current_version_id)


@router.put("/agents/{agent_id}/versions/{version_id}/activate")
async def activate_version(agent_id: UUID, version_id: UUID, caller: CallerDep, pool: PoolDep) -> AgentOut:
    """Runs that start from now on work with this version."""
    async with transaction(pool) as conn:
        return await shown_one(conn, await agents.activate(conn, caller.account_id, agent_id, version_id))


@router.get("/thread/{thread_id}/agent")
async def get_thread_agent(thread_id: UUID, caller: CallerDep, pool: PoolDep) -> ThreadAgent:
    """The agent that a client may offer for the next run. Of somebody else's public thread none is shown."""
    async with pool.acquire() as conn:
        thread = await threads.readable(conn, caller.account_id, thread_id)
        if thread.account_id != caller.account_id:
            return ThreadAgent(agent=None, source="none", message=NO_AGENT)
        recent = await agents.recent_of(conn, thread_id)
        agent = recent or await agents.default_of(conn, caller.account_id)
        if agent is None:
            return ThreadAgent(agent=None, source="none", message=NO_AGENT)
        source = "recent" if recent else "default"
        message = f"The {source} agent of this thread is {agent.name}; any other may be chosen."
        return ThreadAgent(agent=await shown_one(conn, agent), source=source, message=message)
