"""A run with a real sandbox of its own, and its tools."""

from typing import Any

import pytest
from httpx2 import AsyncClient

from agent.context import RunContext
from agent.tools.base import Tool, ToolResult
from services.postgres import Pool
from services.sandbox.protocol import Sandbox, SandboxProvider
from services.settings import Settings
from tests.agent.seeds import calling, make_context


@pytest.fixture
async def ctx(pool: Pool, http: AsyncClient, settings: Settings, sandboxes: SandboxProvider) -> RunContext:
    ctx, _ = await make_context(pool, http, settings, "openai/gpt-4o")
    ctx.sandboxes = sandboxes
    return ctx


@pytest.fixture
async def sandbox(ctx: RunContext) -> Sandbox:
    return await ctx.sandbox()


async def result_of(ctx: RunContext, tool: Tool, **arguments: Any) -> ToolResult:
    """What a call of the tool comes to. Raises: what the tool raises."""
    return await tool.run(calling(ctx, tool.name), tool.read(arguments))


async def use(ctx: RunContext, tool: Tool, **arguments: Any) -> str:
    return (await result_of(ctx, tool, **arguments)).output
