"""The tool of runs that build an agent."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from agent.calls import result_id
from agent.context import Calling
from agent.mcp import config
from agent.mcp.config import InvalidServer
from agent.thread_manager import patiently
from agent.tools.base import BadArguments, ToolFailed, tool
from services import agent_versions, agents
from services.agent_fields import ConfiguredMcps, CustomMcps, Description, Name, SystemPrompt
from services.agent_versions import AgentVersion
from services.agents import Agent, Change
from services.errors import NotFound, Unprocessable
from services.postgres import Connection
from services.runs import store
from services.secrets import Secrets

Changed = tuple[Agent, AgentVersion | None]

GONE = "The agent was deleted: nothing can be changed any more."


@tool(repeatable=True)
async def update_agent(
    calling: Calling,
    name: Annotated[Name | None, Field(description="What the agent is called.")] = None,
    description: Annotated[
        Description | None, Field(description="What the agent is for, in a sentence or two.")
    ] = None,
    system_prompt: Annotated[
        SystemPrompt | None, Field(description="Its whole instructions, replacing those it has.")
    ] = None,
    agentpress_tools: Annotated[
        dict[Name, bool] | None, Field(max_length=100, description="Groups of tools to switch on or off; others stay.")
    ] = None,
    configured_mcps: Annotated[
        ConfiguredMcps | None, Field(description="All MCP servers that are known by name, replacing those it has.")
    ] = None,
    custom_mcps: Annotated[
        CustomMcps | None, Field(description="All MCP servers of its own, replacing those it has.")
    ] = None,
) -> str:
    """Change the agent that this conversation is about. Leave out what is to stay as it is.

    A secret in the configuration of an MCP server is shown as ***: send it back like that to keep it. New secrets
    (keys, headers, environment) cannot be set here: the person enters them in the settings of the agent.
    """
    given = {
        "system_prompt": system_prompt,
        "agentpress_tools": agentpress_tools,
        "configured_mcps": as_json(configured_mcps),
        "custom_mcps": as_json(custom_mcps),
    }
    try:
        config.parse(given["configured_mcps"], given["custom_mcps"])
    except InvalidServer as error:
        raise BadArguments(str(error)) from error
    details = {"name": name, "description": description}
    if all(value is None for value in (*given.values(), *details.values())):
        raise BadArguments("Say what to change: name, description, system_prompt, agentpress_tools or MCP servers.")
    agent, made = await change_target(calling, given, details)
    if made is None:
        return f"The agent {agent.name} works with what it did before: version {agent.version_count}."
    return f"The agent {agent.name} was updated: version {made.version_number}."


def as_json(mcps: ConfiguredMcps | CustomMcps | None) -> list[dict[str, Any]] | None:
    return None if mcps is None else [mcp.model_dump(mode="json", exclude_none=True) for mcp in mcps]


async def change_target(calling: Calling, parts: dict[str, Any], details: dict[str, Any]) -> Changed:
    """The agent and the version that the call made, or has made before its worker died. Waits while Postgres is away.

    Raises: FenceLost; BadArguments; ToolFailed.
    """
    try:
        return await patiently(calling.ctx, lambda conn: change_once(conn, calling, parts, details))
    except NotFound as error:
        raise ToolFailed(GONE) from error
    except Unprocessable as error:
        raise BadArguments(str(error)) from error


async def change_once(conn: Connection, calling: Calling, parts: dict[str, Any], details: dict[str, Any]) -> Changed:
    ctx = calling.ctx
    account_id, agent_id = ctx.run.account_id, UUID(ctx.run.settings["target_agent_id"])
    async with conn.transaction():
        await store.hold(conn, ctx.fence)
        version_id = result_id(calling.answer.message_id, calling.call)
        change = Change(parts, details, version_id=version_id, merges_tools=True, takes_secrets=False)
        secrets = Secrets.of(ctx.settings.secrets)
        agent = await agents.change(conn, secrets, account_id, agent_id, change, created_by=ctx.run.created_by)
        return agent, await agent_versions.find(conn, version_id)
