"""What a run is: in which mode it works, with which prompt, tools and MCP servers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from agent import toolset
from agent.context import RunContext, RunFailed
from agent.thread_manager import patiently, repeatedly
from agent.tools import standard
from agent.tools.base import Registry
from agent.toolset import Mode
from services import agent_versions, agents
from services.agent_versions import AgentVersion
from services.errors import NotFound
from services.known_versions import KnownVersions
from services.postgres import Connection
from services.runs.store import Run
from services.secrets import Secrets, SecretUnreadable

BUILDER_PROMPT = (Path(__file__).parent / "prompts" / "agent_builder.md").read_text()
GONE = "The agent that this conversation is about was deleted."
DELETED = "The agent of this run was deleted."
UNREADABLE = "A secret of this agent can no longer be decrypted: enter the secrets of its MCP servers again."


@dataclass(frozen=True, slots=True)
class Profile:
    """`system_prompt` is the agent's own, or empty; the MCP configurations hold open secrets: never log them."""

    mode: Mode
    tools: Registry
    system_prompt: str = ""
    configured_mcps: list[dict[str, Any]] = field(default_factory=list, repr=False)
    custom_mcps: list[dict[str, Any]] = field(default_factory=list, repr=False)


async def load(ctx: RunContext) -> Profile:
    """The profile of a run by the version that it pinned; one that was started without an agent has all tools.

    Waits while Postgres is away. Raises: RunFailed when secrets cannot be read, or when the agent was deleted that it
    works as or is to build.
    """
    try:
        if toolset.mode_of(ctx.run.settings, None) == "builder":
            return await patiently(ctx, lambda conn: of_builder(conn, ctx.run))
        return await repeatedly(ctx, lambda: of_agent(ctx))
    except SecretUnreadable as error:
        raise RunFailed(UNREADABLE) from error
    except NotFound as error:
        raise RunFailed(GONE) from error


async def of_builder(conn: Connection, run: Run) -> Profile:
    prompt = await builder_prompt(conn, run.account_id, UUID(run.settings["target_agent_id"]))
    return Profile("builder", toolset.choose(run.settings, None), prompt)


async def of_agent(ctx: RunContext) -> Profile:
    run, version = ctx.run, None
    if run.agent_version_id:
        versions = ctx.versions or KnownVersions(ctx.pool)
        version = await versions.opened(run.account_id, run.agent_version_id, Secrets.of(ctx.settings.secrets))
    had_agent = run.agent_version_id or (run.settings.get("agent_id") and not run.agent_id)
    if had_agent and version is None:
        raise RunFailed(DELETED)
    tools = toolset.choose(run.settings, version)
    if version is None:
        return Profile("full", tools)
    return Profile("custom", tools, version.system_prompt, version.configured_mcps, version.custom_mcps)


async def builder_prompt(conn: Connection, account_id: UUID, agent_id: UUID) -> str:
    """What the model is told of the agent that it is to build; secrets are masked. Raises: NotFound."""
    agent = await agents.get(conn, account_id, agent_id)
    version = await agent_versions.find(conn, agent.current_version_id) if agent.current_version_id else None
    return BUILDER_PROMPT.format(
        name=agent.name,
        description=agent.description or "none yet",
        configuration=configuration(version),
        groups=", ".join(standard.GROUPS),
    )


def configuration(version: AgentVersion | None) -> str:
    parts = agent_versions.parts_of(version.masked if version else None)
    return orjson.dumps(parts, option=orjson.OPT_INDENT_2).decode()
