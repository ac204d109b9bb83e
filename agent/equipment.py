"""What a run works with: the prompt, the tools and the MCP servers of its agent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent import profile
from agent.context import RunContext
from agent.mcp import servers
from agent.prompt import PROMPTS
from agent.tools.base import Registry
from agent.tools.files import FILES
from agent.tools.shell import SHELL

WORKSPACE = (PROMPTS / "workspace.md").read_text().strip()
IN_WORKSPACE = frozenset(known.name for known in (*FILES, *SHELL))


@asynccontextmanager
async def equipped(ctx: RunContext) -> AsyncIterator[None]:
    """Give a run what its agent has, for as long as the context lasts; tools that it was given before stay.

    A server that cannot be used ends nothing. Raises: RunFailed when the agent cannot be read; FenceLost.
    """
    known = await profile.load(ctx)
    async with servers.connected(ctx, known.configured_mcps, known.custom_mcps) as connected:
        ctx.tools = Registry.of((*known.tools, *connected.tools)) if ctx.tools is None else ctx.tools
        ctx.own_prompt = known.system_prompt
        ctx.prompt_sections = tuple(section for section in (workspace(ctx.tools), connected.prompt) if section)
        yield


def workspace(tools: Registry) -> str:
    return WORKSPACE if any(known.name in IN_WORKSPACE for known in tools) else ""
