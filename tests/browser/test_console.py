"""The console, as a person uses it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, expect

from agent.llm import demo
from api import pages
from services.embedded.state import DEFAULT
from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment

PICTURES = DEFAULT / "screenshots"
"""Kept to be looked at."""
MOST_SCRIPT_BYTES = 150 * 1024
PATIENT_MS = 20_000
LOREM = "demo/lorem?chunks=150&delay_ms=20"
PHONE = {"width": 390, "height": 844}
HOSTILE = (
    '<img src=x onerror="window.taken=1"> <script>window.taken=1</script> '
    "[press](javascript:window.taken=1) ![seen](https://127.0.0.1/pixel.png) **bold**"
)


@dataclass
class Console:
    """A tab with the console; `errors` is what the browser complained of, what its policy forbade included."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "favicon" not in message.text:
            self.errors.append(message.text)

    async def go(self, to: str) -> None:
        await self.page.goto(f"{self.url}/#{to}")

    async def state(self, name: str) -> None:
        """Wait for the conversation to show that its run stands so."""
        await expect(self.page.locator(f".conversation[data-state={name}]")).to_be_visible(timeout=PATIENT_MS)

    async def answers(self) -> list[str]:
        return await self.page.locator(".answer > .markdown").all_inner_texts()

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png")


async def open_console(context: BrowserContext, url: str, token: str) -> Console:
    """As the link of `./dev run` opens it."""
    page = await context.new_page()
    page.set_default_timeout(PATIENT_MS)
    console = Console(page, url)
    page.on("console", console.heard)
    page.on("pageerror", lambda error: console.errors.append(str(error)))
    await page.goto(f"{url}/#token={token}")
    await expect(page.locator("#prompt")).to_be_visible(timeout=PATIENT_MS)
    return console


@pytest.fixture
async def console(system: Deployment, client: Client, context: BrowserContext) -> AsyncIterator[Console]:
    console = await open_console(context, system.url, client.token)
    yield console
    assert console.errors == []


def plain(text: str) -> str:
    return " ".join(text.split())


async def test_a_person_starts_reloads_reads_along_stops_and_goes_on(
    system: Deployment, client: Client, context: BrowserContext, console: Console, tmp_path: Path
) -> None:
    page = console.page
    (tmp_path / "notes.txt").write_text("to be kept")
    assert client.token not in page.url
    await page.set_input_files("#files", tmp_path / "notes.txt")
    await expect(page.locator(".chips")).to_contain_text("notes.txt")
    await page.fill("#prompt", "Say something")
    await page.select_option("#model", "demo/tour")
    await page.press("#prompt", "Enter")
    await expect(page.locator(".tool summary code").first).to_have_text("task_list", timeout=PATIENT_MS)
    await page.reload()
    await expect(page.locator(".said")).to_contain_text("Say something")
    other = await open_console(context, system.url, client.token)
    await other.page.goto(page.url)
    await console.state("completed")
    await other.state("completed")
    told = await console.answers()
    assert plain(told[0]) == plain(demo.STOPS[0].replace("**", "").replace("`", ""))
    assert await other.answers() == told
    assert await page.locator(".tool summary code").all_inner_texts() == ["task_list", "create_file", "ask"]
    await page.locator(".tool summary").first.click()
    await expect(page.locator(".tool .body").first).to_contain_text("Say hello")

    run_id = await client.start(page.url.rpartition("/")[2], LOREM)
    await page.reload()
    await console.state("streaming")
    await page.click("#stop")
    await console.state("stopped")
    assert (await client.get(run_id))["status"] == "stopped"
    await page.fill("#prompt", "Go on")
    await page.select_option("#model", "demo/echo")
    await page.click("#send")
    await console.state("completed")
    await expect(page.locator(".said").last).to_contain_text("Go on")

    await page.click("text=Details of this run")
    await expect(page.locator("svg.timeline .bar.model").first).to_be_visible()
    await expect(page.locator(".many .line").first).to_contain_text("thread_run_start")
    await console.picture("run")
    assert other.errors == []


async def test_what_others_wrote_does_nothing(client: Client, console: Console) -> None:
    """The model says again what was written; names of agents and files come from anybody too."""
    page = console.page
    made = await client.http.post("/agents", json={"name": HOSTILE[:100], "system_prompt": HOSTILE})
    agent_id = made.raise_for_status().json()["agent_id"]
    await page.set_input_files("#files", {"name": "<b>x</b>.txt", "mimeType": "text/plain", "buffer": b"x"})
    run = await client.initiate("demo/echo", prompt=HOSTILE)
    await console.go(f"/conversations/{run.thread_id}")
    await console.state("completed")
    await expect(page.locator(".answer strong")).to_have_text("bold")
    await console.go(f"/agents/{agent_id}")
    await expect(page.locator("h1")).to_contain_text("<img")
    await console.go(f"/runs/{run.run_id}")
    await expect(page.locator(".many .line").first).to_be_visible()
    for path in ("/agents", "/conversations", f"/conversations/{run.thread_id}"):
        await console.go(path)
        await expect(page.locator("h1")).to_be_visible()
        assert await page.locator("img, iframe, #main script, a[href^='javascript' i]").count() == 0
        assert await page.evaluate("window.taken") is None


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
async def test_every_page_is_there_in_both_schemes_and_sizes_and_fits(
    system: Deployment, client: Client, context: BrowserContext, scheme: Any, size: Any
) -> None:
    console = await open_console(context, system.url, client.token)
    page = console.page
    await page.set_viewport_size(size)
    await page.emulate_media(color_scheme=scheme)
    run = await client.initiate("demo/echo", prompt="# Title\n\n- one\n- two\n\n| a | b |\n| - | - |\n| 1 | 2 |")
    kind = f"{'phone' if size is PHONE else 'desktop'}-{scheme}"
    paths = ["/new", "/conversations", f"/conversations/{run.thread_id}", "/runs", f"/runs/{run.run_id}"]
    paths += ["/agents", "/workflows", "/schedules", "/usage", "/health"]
    for path in paths:
        await console.go(path)
        await expect(page.locator("h1")).to_be_visible()
        await expect(page.locator("main .problem:not(:empty)")).to_have_count(0)
        await asyncio.sleep(0.3)  # the picture is for people: lists have arrived by then
        await console.picture(f"{kind}{path.replace('/', '-')[:20]}")
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
    assert console.errors == []


async def test_a_token_that_is_not_accepted_leads_to_the_sign_in(
    system: Deployment, client: Client, context: BrowserContext
) -> None:
    page = await context.new_page()
    await page.goto(f"{system.url}/#token=nonsense")
    await expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted", timeout=PATIENT_MS)
    await page.fill("#sign-in textarea", client.token)
    await page.click("text=Sign in >> nth=-1")
    await expect(page.locator("#prompt")).to_be_visible(timeout=PATIENT_MS)


def test_all_scripts_together_are_small() -> None:
    size = sum(path.stat().st_size for path in pages.FOLDER.rglob("*.js"))
    assert size <= MOST_SCRIPT_BYTES
