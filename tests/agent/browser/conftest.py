"""A run with a real sandbox and a real browser in it, and pages that the sandbox serves to it."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from httpx2 import AsyncClient

from agent.browser.driver import Driver
from agent.context import RunContext
from agent.tools.base import Tool, ToolResult
from services import messages
from services.messages import Message
from services.postgres import Pool
from services.sandbox.protocol import Sandbox, SandboxProvider
from services.settings import Settings
from tests.agent.seeds import calling, make_context

SITE = "http://localhost:8000"


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    driver = Driver()
    yield driver
    await driver.close()


@pytest.fixture
async def ctx(
    pool: Pool, http: AsyncClient, settings: Settings, sandboxes: SandboxProvider, driver: Driver
) -> RunContext:
    ctx, _ = await make_context(pool, http, settings, "openai/gpt-4o")
    ctx.sandboxes, ctx.browser_driver = sandboxes, driver
    return ctx


@pytest.fixture
async def sandbox(ctx: RunContext) -> Sandbox:
    """It serves its workspace."""
    sandbox = await ctx.sandbox()
    await sandbox.start_job("web", "python3 -u -m http.server 8000")
    return sandbox


async def serve(sandbox: Sandbox, name: str, body: str, title: str = "") -> str:
    """The address of a page that is served from now on."""
    page = f"<!doctype html><meta charset=utf-8><title>{title or name}</title><body>{body}</body>"
    await sandbox.write_file(f"/workspace/{name}.html", page.encode())
    return f"{SITE}/{name}.html"


async def use(ctx: RunContext, tool: Tool, **arguments: Any) -> dict[str, Any]:
    """What a call that succeeds tells the model."""
    told, result = await outcome(ctx, tool, **arguments)
    assert result.success, told
    return told


async def outcome(ctx: RunContext, tool: Tool, **arguments: Any) -> tuple[dict[str, Any], ToolResult]:
    result = await tool.run(calling(ctx, tool.name), tool.read(arguments))
    return orjson.loads(result.output), result


async def state(ctx: RunContext) -> dict[str, Any]:
    """What is stored of the browser as it stands."""
    content: dict[str, Any] = (await newest(ctx)).content
    return content


async def newest(ctx: RunContext) -> Message:
    async with ctx.pool.acquire() as conn:
        found = await messages.temporary(conn, ctx.run.thread_id, 2**63 - 1)
    return found[0]


def index_of(state: dict[str, Any], words: str) -> int:
    """The number of the element whose line holds these words."""
    lines = [line for line in state["interactive_elements"].splitlines() if words in line]
    assert len(lines) == 1, state["interactive_elements"]
    return int(lines[0][1 : lines[0].index("]")])
