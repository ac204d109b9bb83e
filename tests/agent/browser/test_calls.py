"""Calls between workers, stops, and what is missing."""

import asyncio
import time
from dataclasses import replace

import psutil
import pytest

from agent.browser import chromium
from agent.browser import driver as drivers
from agent.browser.driver import Driver
from agent.context import RunContext
from agent.tools import browser
from agent.tools.base import ToolFailed
from services.runs.fence import FenceLost
from services.sandbox.protocol import Sandbox
from tests.agent.browser.conftest import index_of, let_go, outcome, serve, state, use
from tests.agent.browser.test_hostile import silent, visited
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)


@pytest.mark.usefixtures("well")
async def test_the_next_attempt_goes_on_in_the_same_browser(ctx: RunContext, sandbox: Sandbox) -> None:
    body = "<input placeholder=name><a href=second.html target=_blank>go</a>"
    await serve(sandbox, "second", "There", "Second")
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "first", body))
    await use(ctx, browser.browser_input_text, index=0, text="kept")
    await use(ctx, browser.browser_click_element, index=1)
    await use(ctx, browser.browser_switch_tab, page_id=0)
    await ctx.pool.execute("UPDATE agent_runs SET attempt = 2 WHERE id = $1", ctx.run.id)
    other = Driver()
    run, fence = replace(ctx.run, attempt=2), replace(ctx.fence, attempt=2)
    later = replace(ctx, run=run, fence=fence, opened=None, browser_driver=other)
    told = await use(later, browser.browser_send_keys, keys="End")
    assert (told["title"], told["tabs"]) == ("first", 2)
    assert 'value="kept"' in (await state(later))["interactive_elements"]
    await use(later, browser.browser_click_element, index=index_of(await state(later), ">go<"))
    with pytest.raises(FenceLost):
        await use(ctx, browser.browser_scroll_down)
    await let_go(other)


async def test_a_stop_does_not_wait_for_a_page_that_never_comes(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "fine"))
    going = asyncio.create_task(outcome(ctx, browser.browser_navigate_to, url=await silent(sandbox)))
    await visited(sandbox)
    began = time.monotonic()
    going.cancel()
    await asyncio.wait({going})
    assert time.monotonic() - began < 1
    assert going.cancelled()
    assert (await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "fine")))["title"] == "fine"


@pytest.mark.slow
@pytest.mark.usefixtures("well")
async def test_a_driver_that_died_is_started_anew_and_the_tabs_stay(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "fine"))
    [process] = children()
    process.kill()
    told = await use(ctx, browser.browser_scroll_down)
    assert told["title"] == "fine"


async def test_the_model_is_told_that_the_network_is_closed(ctx: RunContext, sandbox: Sandbox) -> None:
    for url in ("https://example.com/", "http://192.0.2.1/"):
        told, result = await outcome(ctx, browser.browser_navigate_to, url=url)
        assert not result.success
        assert "has no network" in told["message"]
    told, _ = await outcome(ctx, browser.browser_navigate_to, url="http://localhost:8999/")
    assert "ERR_CONNECTION_REFUSED" in told["message"]


async def test_without_the_extra_the_call_says_what_to_install(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "installed", lambda: False)
    with pytest.raises(ToolFailed, match="pip install"):
        await use(ctx, browser.browser_go_back)


async def test_without_chromium_the_call_says_what_to_install(ctx: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "COMMAND", f"echo '{chromium.NONE_HERE}'; exit 127")
    with pytest.raises(ToolFailed, match="chromium-headless-shell"):
        await use(ctx, browser.browser_go_back)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_driver(child)]


def is_driver(process: psutil.Process) -> bool:
    try:
        return "run-driver" in process.cmdline()
    except psutil.Error:
        return False  # it has ended meanwhile


async def ended(sandbox: Sandbox) -> None:
    while (await sandbox.job(chromium.JOB)).running:  # noqa: ASYNC110 - what is waited for happens in the sandbox
        await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("well")
async def test_driver_and_browser_end_when_nobody_uses_them(
    ctx: RunContext, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = f"timeout {chromium.IDLE_SECONDS}"
    assert idle in chromium.COMMAND
    monkeypatch.setattr(chromium, "COMMAND", chromium.COMMAND.replace(idle, "timeout 20"))
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "fine"))
    assert len(children()) == 1
    assert (await sandbox.job(chromium.JOB)).running

    monkeypatch.setattr(drivers, "IDLE_SECONDS", 0.5)
    await use(ctx, browser.browser_scroll_down)
    await eventually(lambda: not children())
    async with asyncio.timeout(5 * 20.0):
        await ended(sandbox)
    assert (await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "fine")))["title"] == "fine"


@pytest.mark.slow
@pytest.mark.usefixtures("well")
async def test_calls_that_are_made_at_once_wait_for_each_other(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "fine", "<p style='height: 5000px'>"))
    told = await asyncio.gather(*(use(ctx, browser.browser_scroll_down, amount=100) for _ in range(3)))
    assert sorted(each["pixels_above"] for each in told) == [100, 200, 300]
