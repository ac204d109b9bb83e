"""Pages that mean harm, and browsers that die: each is a result that the model reads, and the next call works."""

import asyncio
import time

import pytest

from agent.browser import rescue, session, wire
from agent.context import RunContext
from agent.tools import browser
from agent.tools.base import ToolFailed
from services.sandbox.protocol import Sandbox
from services.settings import AgentSettings, Settings
from tests.acceptance.client import until
from tests.agent.browser.conftest import TOLD, has_said, listening, outcome, serve, slow_down, state, tell, use

pytestmark = pytest.mark.timeout(600)
SILENT = """
import socket, time
listener = socket.create_server(("127.0.0.1", 8001))
kept = []
while True:
    kept.append(listener.accept())
    print("a visit", flush=True)
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"agent": AgentSettings(browser_timeout="10s")})


async def silent(sandbox: Sandbox) -> str:
    """The address of a server that takes requests and never answers."""
    await sandbox.write_file("/workspace/silent.py", SILENT.encode())
    await sandbox.start_job("silent", "exec python3 silent.py")
    await listening(sandbox, 8001)
    return "http://localhost:8001/"


async def visited(sandbox: Sandbox) -> None:
    """Wait until the browser has asked that server: the first visit was only to see whether it listens."""
    await until(lambda: has_said(sandbox, "silent", b"a visit", times=2), says="nobody has asked the silent server")


@pytest.fixture
def thorough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of a slow browser a page that hangs is closed, and not the browser."""
    slow_down(monkeypatch, rescue, "WITHIN")
    slow_down(monkeypatch, session, "CONNECT_WITHIN")


async def works(ctx: RunContext, sandbox: Sandbox) -> bool:
    url = await serve(sandbox, "fine", "fine")
    return bool((await use(ctx, browser.browser_navigate_to, url=url))["title"] == "fine")


@pytest.mark.slow
@pytest.mark.usefixtures("thorough")
async def test_a_page_whose_script_never_ends_costs_time_and_no_more(ctx: RunContext, sandbox: Sandbox) -> None:
    url = await serve(sandbox, "hangs", "<script>setTimeout(() => { while (true) {} }, 50)</script>")
    told, _ = await outcome(ctx, browser.browser_navigate_to, url=url)
    assert told["message_id"]
    told, _ = await outcome(ctx, browser.browser_wait, seconds=0.2)
    assert told["message_id"]
    assert await works(ctx, sandbox)


@pytest.mark.slow
@pytest.mark.usefixtures("thorough")
async def test_a_page_that_hangs_between_two_calls_is_left_behind(ctx: RunContext, sandbox: Sandbox) -> None:
    hangs = "told().then(say).then(() => { while (true) {} })"
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "later", f"<script>{TOLD}{hangs}</script>"))
    await tell(sandbox)
    await asyncio.sleep(1)  # it hangs as soon as it is answered
    told, _ = await outcome(ctx, browser.browser_scroll_down)
    assert "is gone" in told["message"]
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_a_page_that_crashes_loses_its_tab(ctx: RunContext, sandbox: Sandbox) -> None:
    assert await works(ctx, sandbox)
    told, result = await outcome(ctx, browser.browser_navigate_to, url="chrome://crash")
    assert not result.success
    assert "crashed" in told["message"]
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_a_browser_that_dies_is_started_anew(ctx: RunContext, sandbox: Sandbox) -> None:
    assert await works(ctx, sandbox)
    await sandbox.exec("pkill -KILL -f remote-debugging-port")
    assert await works(ctx, sandbox)
    dying = asyncio.create_task(outcome(ctx, browser.browser_navigate_to, url=await silent(sandbox)))
    await visited(sandbox)
    await sandbox.exec("pkill -KILL -f remote-debugging-port")
    with pytest.raises(ToolFailed, match="broke off"):
        await dying
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_a_browser_that_hangs_is_started_anew(ctx: RunContext, sandbox: Sandbox) -> None:
    assert await works(ctx, sandbox)
    await sandbox.exec("pkill -STOP -f remote-debugging-port")
    url = await serve(sandbox, "fine", "fine")
    assert "started anew" in (await use(ctx, browser.browser_navigate_to, url=url))["message"]


@pytest.mark.slow
async def test_a_server_that_never_answers_is_given_up(ctx: RunContext, sandbox: Sandbox) -> None:
    told, result = await outcome(ctx, browser.browser_navigate_to, url=await silent(sandbox))
    assert not result.success
    assert "did not answer" in told["message"]
    assert await works(ctx, sandbox)


async def test_dialogs_are_answered_and_told(ctx: RunContext, sandbox: Sandbox) -> None:
    body = """<script>onbeforeunload = (event) => { event.preventDefault(); return 'stay'; };
        setTimeout(() => { alert('Hi'); document.title = `${confirm('Sure?')} ${prompt('Name?')}`; })</script>"""
    told = await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "asks", body))
    assert told["title"] == "true null"
    assert "(alert), which was accepted: 'Hi'" in told["message"]
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_dialogs_without_end_are_no_more_than_a_page_that_hangs(ctx: RunContext, sandbox: Sandbox) -> None:
    told, _ = await outcome(
        ctx,
        browser.browser_navigate_to,
        url=await serve(sandbox, "nags", "<script>while (true) alert('again')</script>"),
    )
    assert told["message"].count("again") <= 20
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_a_download_comes_into_the_workspace(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/data.bin", b"x" * 100_000)
    told = await use(ctx, browser.browser_navigate_to, url="http://localhost:8000/data.bin")
    assert "data.bin is in /workspace/downloads" in told["message"]
    assert len(await sandbox.read_file("/workspace/downloads/data.bin")) == 100_000


@pytest.mark.slow
async def test_windows_without_end_become_no_more_than_a_few_tabs(ctx: RunContext, sandbox: Sandbox) -> None:
    body = "<script>for (let n = 0; n < 40; n++) window.open('about:blank#' + n)</script>"
    told, _ = await outcome(ctx, browser.browser_navigate_to, url=await serve(sandbox, "opens", body))
    assert told["tabs"] <= 10
    assert await works(ctx, sandbox)


@pytest.mark.slow
async def test_a_gigantic_page_is_shown_in_part(ctx: RunContext, sandbox: Sandbox) -> None:
    body = """<script>document.write('<button>' + 'word '.repeat(50) + '</button>');
        document.write('<div><a href=x>link</a><p>text</p></div>'.repeat(100000))</script>"""
    began = time.monotonic()
    told, _ = await outcome(ctx, browser.browser_navigate_to, url=await serve(sandbox, "big", body))
    assert time.monotonic() - began < 60
    shown = await state(ctx)
    assert told["title"] == "big"
    assert 0 < len(shown["interactive_elements"].splitlines()) <= 200
    assert len(str(shown["interactive_elements"])) + len(shown["text"]) < 40_000


async def test_a_page_cannot_lie_about_itself_by_its_scripts_or_names(ctx: RunContext, sandbox: Sandbox) -> None:
    body = """<form onclick="1"><input name=getAttribute><input name=tagName><input name=attributes></form>
        <img name=createTreeWalker><img name=documentElement><button>Real</button><script>
        JSON.stringify = () => 'x'.repeat(1e9); Array.prototype.push = () => { throw 1; };
        Document.prototype.createTreeWalker = String.prototype.slice = () => ({}); Map = Set = null;</script>"""
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "lies", body))
    assert "<button>Real</button>" in (await state(ctx))["interactive_elements"]


@pytest.mark.slow
async def test_a_browser_that_floods_its_driver_is_cut_off(
    ctx: RunContext, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await works(ctx, sandbox)
    monkeypatch.setattr(wire, "MOST_BYTES", 6_000)
    with pytest.raises(ToolFailed, match="more than"):
        await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "loud", "<p>" + "x" * 100_000))
    monkeypatch.undo()
    assert await works(ctx, sandbox)
