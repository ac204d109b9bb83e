"""A run with a real sandbox and a real browser in it, and pages that the sandbox serves to it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
from httpx2 import AsyncClient

from agent.browser import chromium, downloads, session, tab
from agent.browser import driver as drivers
from agent.browser.driver import Driver
from agent.context import RunContext
from agent.tools.base import Tool, ToolResult
from services import messages
from services.messages import Message
from services.postgres import Pool
from services.sandbox.protocol import Sandbox, SandboxProvider
from services.settings import Settings
from tests.acceptance.client import until
from tests.agent.seeds import calling, make_context
from tests.waiting import PATIENT

LAUNCHED_BY = "PLAYWRIGHT_NODEJS_PATH"
SITE = "http://localhost:8000"
TOLD = """
    const told = async () => {
        while (!(await fetch('go', {cache: 'no-store'})).ok) await new Promise((later) => setTimeout(later, 50));
    };
    const say = () => fetch('went', {cache: 'no-store'});
"""
"""For the script of a page that waits for `tell`: `told()` is over then, and `say()` lets `tell` return."""


@pytest.fixture(autouse=True)
def by_itself() -> Iterator[None]:
    """A driver names its launcher in the environment: those of other tests are not to be launched so."""
    known = os.environ.get(LAUNCHED_BY)
    yield
    if known is None:
        os.environ.pop(LAUNCHED_BY, None)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts, or comes in the end, has five times as long as usual: others are tested beside it."""
    slow_down(monkeypatch, drivers, "START_WITHIN")
    slow_down(monkeypatch, chromium, "START_WITHIN")
    slow_down(monkeypatch, downloads, "FINISH_WITHIN")


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page of this test hangs, so nothing has to be given up soon."""
    for name in ("FIRST_WITHIN", "CONNECT_WITHIN", "ANNOUNCED_WITHIN"):
        slow_down(monkeypatch, session, name)
    for name in ("SCRIPT_WITHIN", "LOADED_WITHIN", "SCREENSHOT_WITHIN"):
        slow_down(monkeypatch, tab, name)


def slow_down(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    monkeypatch.setattr(module, name, 5 * getattr(module, name))


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    driver = Driver()
    yield driver
    await let_go(driver)


async def let_go(driver: Driver) -> None:
    """Its process has ended then, however long that takes: others count processes."""
    await driver.close()
    if driver.ending:
        await asyncio.wait(driver.ending, timeout=PATIENT)


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
    await listening(sandbox, 8000)
    return sandbox


async def listening(sandbox: Sandbox, port: int) -> None:
    await sandbox.exec(f"until (echo > /dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.05; done")


async def tell(sandbox: Sandbox) -> None:
    """Have a page with TOLD go on, and wait until it says that it did."""
    await sandbox.write_file("/workspace/go", b"now")
    await until(lambda: has_said(sandbox, "web", b"GET /went"), every=0.05, says="the page did not go on")


async def has_said(sandbox: Sandbox, job: str, words: bytes, times: int = 1) -> bool:
    return (await sandbox.job(job)).output.count(words) >= times


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
