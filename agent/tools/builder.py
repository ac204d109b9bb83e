"""The tools of runs that build an agent."""

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from agent.calls import result_id
from agent.context import Calling
from agent.mcp import config
from agent.mcp.config import InvalidServer
from agent.thread_manager import patiently
from agent.tools.base import BadArguments, ToolFailed, tool
from services import agent_versions, agents, projects, threads
from services.agent_fields import ConfiguredMcps, CustomMcps, Description, Name, SystemPrompt
from services.agent_versions import AgentVersion
from services.agents import Agent, Change
from services.errors import NotFound, Unprocessable
from services.fields import not_blank
from services.postgres import Connection
from services.runs import store
from services.schedules import store as schedules
from services.schedules.config import Advanced, Config, CronExpression, Zone
from services.schedules.store import NewSchedule, Schedule
from services.schedules.times import describe
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


@tool(repeatable=True)
async def create_schedule(
    calling: Calling,
    name: Annotated[Name, Field(description="What the schedule is called.")],
    prompt: Annotated[SystemPrompt, AfterValidator(not_blank), Field(description="What the agent is told each time.")],
    cron_expression: Annotated[
        CronExpression,
        Field(description="When: minute, hour, day of month, month, day of week, such as 0 9 * * MON-FRI."),
    ],
    timezone: Annotated[Zone, Field(description="By whose clocks: an IANA time zone such as Europe/Berlin.")] = "UTC",
    new_thread: Annotated[
        bool, Field(description="Whether it works in a conversation of its own instead of this one.")
    ] = True,
) -> str:
    """Have the agent that this conversation is about work at set times."""
    advanced = Advanced(cron_expression=cron_expression, timezone=timezone)
    wanted = Wanted(name, prompt, Config(type="advanced", advanced=advanced), new_thread)
    try:
        made = await patiently(calling.ctx, lambda conn: schedule_once(conn, calling, wanted))
    except NotFound as error:
        raise ToolFailed(GONE) from error
    except Unprocessable as error:
        raise ToolFailed(str(error)) from error
    when = f"{describe(cron_expression)} ({timezone})"
    return f"The schedule {made.name} was made: {when}. Its id is {made.schedule_id}, its thread {made.thread_id}."


@dataclass(frozen=True, slots=True)
class Wanted:
    """A schedule as a call asks for it."""

    name: str
    prompt: str
    config: Config
    new_thread: bool


async def schedule_once(conn: Connection, calling: Calling, wanted: Wanted) -> Schedule:
    """The schedule that the call makes, or has made before its worker died.

    Raises: FenceLost; NotFound, Unprocessable.
    """
    ctx = calling.ctx
    account_id, agent_id = ctx.run.account_id, UUID(ctx.run.settings["target_agent_id"])
    schedule_id = result_id(calling.answer.message_id, calling.call)
    async with conn.transaction():
        await store.hold(conn, ctx.fence)
        if known := await schedules.find(conn, schedule_id):
            return known
        await agents.get(conn, account_id, agent_id)
        new = NewSchedule(
            account_id=account_id,
            name=wanted.name,
            config=wanted.config,
            thread_id=await thread_for(conn, calling, wanted),
            agent_id=agent_id,
            prompt=wanted.prompt,
            created_by=ctx.run.created_by,
            schedule_id=schedule_id,
        )
        return await schedules.create(conn, new, ctx.settings.schedules.max_per_account)


async def thread_for(conn: Connection, calling: Calling, wanted: Wanted) -> UUID:
    run = calling.ctx.run
    if not wanted.new_thread:
        return run.thread_id
    project = await projects.create(conn, run.account_id, wanted.name)
    return (await threads.create(conn, run.account_id, project.project_id, {"title": wanted.name})).thread_id


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
