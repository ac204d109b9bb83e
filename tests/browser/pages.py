"""Pages seen from the test: one that uses the client, and one with the console."""

import re
from dataclasses import dataclass, field
from typing import Any, Self

from playwright.async_api import BrowserContext, ConsoleMessage, Page, expect

from services.embedded.state import DEFAULT
from tests.acceptance.client import until

BLANK = "<!doctype html><meta charset=utf-8><title>blank</title>"
FOLLOW = """
async ([url, token, runId, options]) => {
  const {Longrun} = await import(`${url}/console/longrun.js`);
  const seen = (window.seen = {states: [], ids: [], texts: [], changes: 0, ends: 0});
  window.longrun ??= new Longrun({url, token, ...options.longrun});
  window.stream = window.longrun.stream(runId, {
    ...options,
    onState: (state, attempt) => seen.states.push(attempt ? `${state}(${attempt})` : state),
    onEvent: (event) => seen.ids.push(event.id),
    onEnd: () => (seen.ends += 1),
    onChange: () => (seen.changes += 1),
  });
}
"""
LOOK = """
() => ({
  ...window.seen, state: stream.state, attempt: stream.attempt, running: stream.running, cursor: stream.cursor,
  text: stream.view.text, parts: stream.view.parts, usage: stream.view.usage, status: stream.view.status,
  message: stream.view.message, error: stream.error?.message ?? null, leading: Boolean(stream.tabs?.leading),
  connected: stream.connected, tries: stream.view.attempt,
})
"""


PICTURES = DEFAULT / "screenshots"
"""Kept to be looked at."""
PATIENT = 40.0
"""Seconds that a test waits for a page: less than the 45 after which tabs take over from one that is silent."""
PATIENT_MS = PATIENT * 1000
REPORT = """
window.reports = [];
addEventListener('securitypolicyviolation', (event) => reports.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
"""What the policy of the page forbade."""
NONSENSE = re.compile(r"undefined|NaN|\[object|^false$|Invalid Date", re.M)
"""What a page shows whose code forgot a case."""
BUSY = "status of 503"
"""What Chromium says when a store was held up for seconds: the page asks again."""


@dataclass
class Reader:
    """A tab that follows a run."""

    page: Page
    url: str
    token: str
    errors: list[str]

    @classmethod
    async def open(cls, context: BrowserContext, url: str, token: str) -> Self:
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{url}/blank")
        return cls(page, url, token, errors)

    async def follow(self, run_id: str, **options: Any) -> None:
        await self.page.evaluate(FOLLOW, [self.url, self.token, run_id, options])

    async def look(self) -> dict[str, Any]:
        seen: dict[str, Any] = await self.page.evaluate(LOOK)
        return seen

    async def reached(self, words: str, within: float = PATIENT) -> None:
        """Wait until the text has these words."""
        await until(lambda: self.has(words), within=within, every=0.05, says=f"the page never showed {words!r}")

    async def has(self, words: str) -> bool:
        return words in (await self.look())["text"]

    async def received(self, count: int, within: float = PATIENT) -> None:
        """Wait until so many events have arrived."""
        await until(lambda: self.has_received(count), within=within, every=0.02, says=f"no {count} events arrived")

    async def has_received(self, count: int) -> bool:
        return bool(await self.page.evaluate("(count) => seen.ids.length >= count", count))

    async def ended(self, within: float = PATIENT) -> dict[str, Any]:
        """What the page shows once the run has ended for it, each event seen once and in order."""
        await until(self.is_over, within=within, every=0.05, says=f"the page never saw the end: {await self.look()}")
        seen = await self.look()
        assert not self.errors
        assert seen["error"] is None, seen
        assert seen["ids"] == list(range(len(seen["ids"]))), "a gap or a duplicate"
        return seen

    async def is_over(self) -> bool:
        return bool(await self.page.evaluate("() => stream.over"))


async def connected(readers: list[Reader], count: int) -> bool:
    """Whether so many of these tabs have a connection of their own."""
    found = [each for each in readers if (await each.look())["connected"]]
    return len(found) == count


@dataclass
class Console:
    """A tab with the console; `errors` is what the browser complained of, what its policy forbade included."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "favicon" not in message.text and BUSY not in message.text:
            self.errors.append(message.text)

    async def go(self, to: str) -> None:
        await self.page.goto(f"{self.url}/#{to}")

    async def show(self, to: str) -> None:
        """Go there and wait until all is there that is asked for."""
        await self.go(to)
        await expect(self.page.locator(f"#main[data-shown='{to}']")).to_be_visible()
        await expect(self.page.locator("main")).not_to_contain_text(NONSENSE, use_inner_text=True)

    async def state(self, name: str) -> None:
        """Wait for the conversation to show that its run stands so."""
        await expect(self.page.locator(f".conversation[data-state={name}]")).to_be_visible()

    async def answers(self) -> list[str]:
        return await self.page.locator(".answer > .markdown").all_inner_texts()

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png")


async def open_console(context: BrowserContext, url: str, token: str) -> Console:
    """As the link of `./dev run` opens it."""
    page = await context.new_page()
    console = Console(page, url)
    await page.add_init_script(REPORT)
    page.on("console", console.heard)
    page.on("pageerror", lambda error: console.errors.append(str(error)))
    await page.goto(f"{url}/#token={token}")
    await expect(page.locator("#prompt")).to_be_visible()
    return console


async def copy_of(console: Console, path: str) -> Console:
    """A second tab of the same person."""
    token = await console.page.evaluate("sessionStorage.getItem('longrun.token')")
    copy = await open_console(console.page.context, console.url, token)
    await copy.go(path)
    return copy
