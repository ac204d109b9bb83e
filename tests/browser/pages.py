"""A page that uses the client, seen from the test."""

from dataclasses import dataclass
from typing import Any, Self

from playwright.async_api import BrowserContext, Page

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

    async def reached(self, words: str, within: float = 20.0) -> None:
        """Wait until the text has these words."""
        await until(lambda: self.has(words), within=within, every=0.05, says=f"the page never showed {words!r}")

    async def has(self, words: str) -> bool:
        return words in (await self.look())["text"]

    async def received(self, count: int, within: float = 20.0) -> None:
        """Wait until so many events have arrived."""
        await until(lambda: self.has_received(count), within=within, every=0.02, says=f"no {count} events arrived")

    async def has_received(self, count: int) -> bool:
        return bool(await self.page.evaluate("(count) => seen.ids.length >= count", count))

    async def ended(self, within: float = 40.0) -> dict[str, Any]:
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
