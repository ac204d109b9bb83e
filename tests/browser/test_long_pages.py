"""Pages that are open for long hold no more, and stand still no longer, for all that they have heard."""

import asyncio
from dataclasses import dataclass, fields
from typing import Self

import pytest
from playwright.async_api import CDPSession, Page, expect

from tests.acceptance.client import Client, until
from tests.browser.pages import Console, copy_of
from tests.browser.tasks import Tasks
from tests.browser.texts import model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EARLY, LATE, MORE_THAN_SHOWN = 5_000, 20_000, 100_000
"""Events of one run: when the page is measured, and what it would come to if it were not stopped then."""
LONGEST_TASK_MS = 5 * 200
MOST_PER_CHAR = 5 * 4
"""Bytes of heap for each character of a conversation: its text is there as one text, as blocks and as nodes."""
MOST_PER_EVENT = 5 * 250
"""Bytes of heap for each line of a run's log, which is kept to be looked at: of each event its JSON."""
MOST_NODES = 500
RUNS, WARM, CHUNKS = 20, 3, 200
EVENTS = f"{CHUNKS + 6} events"
MOST_HEAP_LEFT, MOST_NODES_LEFT, MOST_LISTENERS_LEFT = 1_500_000, 100, 20


@dataclass
class Held:
    """What a page holds once what nobody needs is collected; `heap` in bytes."""

    heap: int
    nodes: int
    listeners: int

    def __sub__(self, other: "Held") -> "Held":
        return Held(self.heap - other.heap, self.nodes - other.nodes, self.listeners - other.listeners)


@dataclass
class Scale:
    session: CDPSession

    @classmethod
    async def of(cls, page: Page) -> Self:
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable")
        return cls(session)

    async def held(self) -> Held:
        for _ in range(2):
            await self.session.send("HeapProfiler.collectGarbage")
        told = {
            each["name"]: int(each["value"]) for each in (await self.session.send("Performance.getMetrics"))["metrics"]
        }
        return Held(told["JSHeapUsedSize"], told["Nodes"], told["JSEventListeners"])


async def test_twenty_thousand_events_as_they_are_said_cost_a_page_no_more_than_their_text(
    client: Client, console: Console, tasks: Tasks
) -> None:
    run = await client.initiate(model(MORE_THAN_SHOWN, delay_ms=1))
    talk, log = console, await copy_of(console, f"/runs/{run.run_id}")
    await talk.go(f"/conversations/{run.thread_id}")
    scales = [await Scale.of(talk.page), await Scale.of(log.page)]
    for each in (talk, log):
        await tasks.watch(each.page)

    async def heard(least: int) -> tuple[int, int, list[Held]]:
        count = await until(lambda: shown(log.page, least), within=5 * 60, every=0.2, says=f"no {least} were shown")
        chars = len(await talk.page.locator(".answer").inner_text())
        return count, chars, [await scale.held() for scale in scales]

    count, chars, early = await heard(EARLY)
    await expect(talk.page.locator("#stop")).to_be_in_viewport()
    more, more_chars, late = await heard(LATE - 200)
    talked, logged = (one - other for one, other in zip(late, early, strict=True))
    longest = [await tasks.longest(each.page) for each in (talk, log)]
    assert await client.stop(run.run_id) == "stopped"
    await talk.state("stopped")
    figures = (
        f"{count:,} to {more:,} events: a conversation of {chars:,} to {more_chars:,} characters grew by {talked},"
        f" the page of the run by {logged}; longest tasks {longest[0]:.0f} and {longest[1]:.0f} ms"
    )
    print(figures)  # noqa: T201 - figures are for the reader of the test's output
    assert talked.heap <= MOST_PER_CHAR * (more_chars - chars), figures
    assert logged.heap <= MOST_PER_EVENT * (more - count), figures
    assert max(talked.nodes, logged.nodes) <= MOST_NODES, figures
    assert max(longest) <= LONGEST_TASK_MS, figures
    assert log.errors == []


async def shown(page: Page, least: int) -> int:
    """How many events the page of a run shows; 0 for fewer than that."""
    told = await page.locator("p.quiet", has_text="events").inner_text()
    count = int(told.split()[0].replace(",", ""))
    return count if count >= least else 0


async def test_a_page_that_followed_twenty_runs_holds_what_it_held_before(client: Client, console: Console) -> None:
    scale = await Scale.of(console.page)
    before = after = Held(0, 0, 0)
    for nth in range(WARM + RUNS):
        run = await client.initiate(model(CHUNKS, delay_ms=2))
        await console.show(f"/conversations/{run.thread_id}")
        await console.state("completed")
        await console.show(f"/runs/{run.run_id}")
        await expect(console.page.get_by_text(EVENTS)).to_be_visible()
        await console.show("/health")
        if nth == WARM - 1:
            before = await settled(scale)
    after = await settled(scale)
    figures = f"after {WARM} runs {before}, after {WARM + RUNS} {after}"
    print(figures)  # noqa: T201 - figures are for the reader of the test's output
    left = after - before
    assert left.heap <= MOST_HEAP_LEFT, figures
    assert left.nodes <= MOST_NODES_LEFT, figures
    assert left.listeners <= MOST_LISTENERS_LEFT, figures


async def settled(scale: Scale) -> Held:
    """The least of some looks: what is on its way out when one of them is taken is not held."""
    looks = []
    for _ in range(4):
        await asyncio.sleep(0.5)
        looks.append(await scale.held())
    return Held(*(min(getattr(look, each.name) for look in looks) for each in fields(Held)))
