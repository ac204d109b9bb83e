"""Pages that are open for long hold no more, and stand still no longer, for all that they have heard."""

import asyncio
from dataclasses import dataclass
from typing import Self

import pytest
from playwright.async_api import CDPSession, Page, expect

from tests.acceptance.client import Client, until
from tests.browser.pages import PATIENT_MS, Console, copy_of, longest_task, watch_tasks
from tests.browser.texts import model

pytestmark = pytest.mark.slow

EARLY, LATE = 5_000, 20_000
"""Events of one run, when the page is measured."""
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
    client: Client, console: Console
) -> None:
    run = await client.initiate(model(LATE, delay_ms=1))
    talk, log = console, await copy_of(console, f"/runs/{run.run_id}")
    await talk.go(f"/conversations/{run.thread_id}")
    scales = [await Scale.of(talk.page), await Scale.of(log.page)]
    for each in (talk, log):
        await watch_tasks(each.page)

    async def heard(count: int) -> tuple[int, list[Held]]:
        await until(lambda: is_at(log.page, count), within=5 * 60, every=0.2, says=f"no {count} events were shown")
        chars = len(await talk.page.locator(".answer").inner_text())
        return chars, [await scale.held() for scale in scales]

    chars, early = await heard(EARLY)
    await expect(talk.page.locator("#stop")).to_be_in_viewport()
    more_chars, late = await heard(LATE - 200)
    talked, logged = (one - other for one, other in zip(late, early, strict=True))
    longest = [await longest_task(each.page) for each in (talk, log)]
    await talk.state("completed")
    figures = (
        f"{EARLY:,} to {LATE:,} events: a conversation of {chars:,} to {more_chars:,} characters grew by {talked},"
        f" the page of the run by {logged}; longest tasks {longest[0]:.0f} and {longest[1]:.0f} ms"
    )
    print(figures)  # noqa: T201 - figures are for the reader of the test's output
    assert talked.heap <= MOST_PER_CHAR * (more_chars - chars), figures
    assert logged.heap <= MOST_PER_EVENT * (LATE - EARLY), figures
    assert max(talked.nodes, logged.nodes) <= MOST_NODES, figures
    assert max(longest) <= LONGEST_TASK_MS, figures
    assert log.errors == []


async def is_at(page: Page, count: int) -> bool:
    """Whether the page of a run shows so many events."""
    told = await page.locator("p.quiet", has_text="events").inner_text(timeout=PATIENT_MS)
    return int(told.split()[0].replace(",", "")) >= count


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
    await asyncio.sleep(1)
    return await scale.held()
