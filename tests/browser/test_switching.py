"""Somebody else, or another account, in mid-stream: nothing of the one before is left, and nothing is wrong."""

from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

from playwright.async_api import BrowserContext, Page, Request, expect

from services.tokens import sign_access_token
from tests.acceptance.client import Client, until
from tests.acceptance.operators import SECRET, Deployment
from tests.browser.pages import PATIENT, Console, open_console
from tests.browser.texts import MORE_THAN_READ, model

OLD = "The first one's secret"


class Streams:
    """The connections to streams that a page has, by run."""

    def __init__(self, page: Page) -> None:
        self.open: list[str] = []
        page.on("request", self.begun)
        page.on("requestfinished", self.ended)
        page.on("requestfailed", self.ended)

    def begun(self, request: Request) -> None:
        if request.url.endswith("/stream"):
            self.open.append(request.url.split("/")[-2])

    def ended(self, request: Request) -> None:
        if request.url.endswith("/stream"):
            with suppress(ValueError):
                self.open.remove(request.url.split("/")[-2])

    async def are(self, *runs: str) -> None:
        await until(lambda: self.equal(list(runs)), within=PATIENT, every=0.05, says=f"open: {self.open}, not {runs}")

    async def equal(self, runs: list[str]) -> bool:
        return self.open == runs


async def shows_nothing_of_before(page: Page) -> None:
    await expect(page.locator("body")).not_to_contain_text(OLD, use_inner_text=True)
    assert OLD not in await page.title()
    for place in await page.get_by_role("alert").all():
        await expect(place).to_be_empty()


async def talking(client: Client, console: Console) -> str:
    """A run that streams in a conversation of this page."""
    run = await client.initiate(model(MORE_THAN_READ), prompt=OLD)
    await console.go(f"/conversations/{run.thread_id}")
    await console.state("streaming")
    await expect(console.page.locator(".answer")).to_contain_text("Lorem")
    return run.run_id


async def test_whoever_signs_in_after_somebody_begins_anew(
    system: Deployment, client: Client, console: Console
) -> None:
    page, streams = console.page, Streams(console.page)
    run_id = await talking(client, console)
    await streams.are(run_id)
    await page.click("text=Sign out")
    await expect(page.locator("#sign-in")).to_be_visible()
    await streams.are()
    await shows_nothing_of_before(page)
    async with system.client(uuid4()) as other:
        await page.fill("#sign-in textarea", other.token)
        await page.click("#sign-in button")
        await expect(page.locator("#prompt")).to_be_visible()
        await shows_nothing_of_before(page)
        await page.go_back()
        await expect(page.locator("#main[data-shown]")).to_be_visible()
        await expect(page.locator("body")).not_to_contain_text(OLD, use_inner_text=True)
        own = await other.initiate(model(MORE_THAN_READ), prompt="Mine")
        await console.go(f"/conversations/{own.thread_id}")
        await console.state("streaming")
        await streams.are(own.run_id)
        await other.stop(own.run_id)
        await console.state("stopped")
    await client.stop(run_id)
    console.errors[:] = [each for each in console.errors if "404" not in each]  # of going back


async def test_the_same_person_comes_back_to_the_page_that_was_left(
    system: Deployment, context: BrowserContext
) -> None:
    user_id = uuid4()
    async with system.client(user_id) as client:
        console = await open_console(context, system.url, client.token)
        page = console.page
        run_id = await talking(client, console)
        expired = sign_access_token(SECRET, user_id, lifetime=-timedelta(hours=1))
        await page.evaluate("(token) => sessionStorage.setItem('longrun.token', token)", expired)
        await page.reload()
        await expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted")
        await page.fill("#sign-in textarea", client.token)
        await page.click("#sign-in button")
        await console.state("streaming")
        await client.stop(run_id)
        await console.state("stopped")


async def test_another_account_in_one_tab_leaves_the_stream_to_the_others(
    client: Client, context: BrowserContext, console: Console, system: Deployment
) -> None:
    answer = await client.http.post("/accounts", json={"name": "The team"})
    team = answer.raise_for_status().json()["account_id"]
    run_id = await talking(client, console)
    other = await open_console(context, system.url, client.token)
    await other.page.goto(console.page.url)
    await other.state("streaming")
    page, streams, taken_over = console.page, Streams(console.page), Streams(other.page)
    await page.reload()
    await console.state("streaming")
    await page.select_option("select[aria-label=Account]", team)
    await expect(page.locator("#main[data-shown='/conversations']")).to_contain_text("no conversation yet")
    await streams.are()
    await shows_nothing_of_before(page)
    await taken_over.are(run_id)
    asked = {"prompt": "Ours", "model_name": model(MORE_THAN_READ)}
    answer = await client.http.post("/agent/initiate", data=asked, headers={"X-Account-Id": team})
    began = answer.raise_for_status().json()
    await console.go(f"/conversations/{began['thread_id']}")
    await console.state("streaming")
    await streams.are(began["agent_run_id"])
    await shows_nothing_of_before(page)
    before = len(await other.page.locator(".answer").inner_text())
    await expect(other.page.locator("#stop")).to_be_visible()
    await until(lambda: longer(other.page, before), within=PATIENT, says="the other tab does not go on")
    await page.click("#stop")
    await console.state("stopped")
    await client.stop(run_id)
    await other.state("stopped")
    assert other.errors == []


async def longer(page: Page, before: int) -> bool:
    return len(await page.locator(".answer").inner_text()) > before
