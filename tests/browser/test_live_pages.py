"""Pages that are opened before there is anything to see: they go on by themselves."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from playwright.async_api import Request, Route, expect

from tests.acceptance.brokers import messages_of
from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment
from tests.browser.pages import PATIENT, Console, copy_of
from tests.browser.texts import MORE_THAN_READ, model
from tests.fakes import FakeModel, Talk, Talker, says

STEPS = [
    {
        "id": "greet",
        "name": "Greet",
        "type": "AGENT",
        "next_steps": ["end"],
        "config": {"prompt": "Greet them.", "model_name": "openai/greeter"},
    },
    {"id": "end", "name": "Tell", "type": "TRANSFORM", "config": {"expression": "`1`"}},
]
DEFINED: dict[str, Any] = {"name": "Greeting", "steps": STEPS, "entry_point": "greet", "state": "ACTIVE"}
BEGUN_WITHOUT_A_RUN = """
    INSERT INTO workflow_executions (execution_id, workflow_id, version_id, triggered_by)
    SELECT $1, workflow_id, current_version_id, 'MESSAGE' FROM workflows WHERE workflow_id = $2
"""
ONCE = "() => { window.opened = (window.opened ?? 0) + 1; }"
"""Gone after a reload."""


@pytest.fixture
def greeter(talk: Talk) -> Talker:
    """The model of the workflow's first step."""
    return talk("greeter", before=["Good ", "morning "], after=["goodbye."])


async def begun_without_a_run(system: Deployment, client: Client) -> tuple[str, str]:
    """A workflow and an execution of it that a message has begun."""
    workflow = (await client.http.post("/workflows", json=DEFINED)).raise_for_status().json()
    execution_id = uuid4()
    conn = await asyncpg.connect(system.database_url)
    try:
        await conn.execute(BEGUN_WITHOUT_A_RUN, execution_id, UUID(workflow["id"]))
    finally:
        await conn.close()
    return workflow["id"], str(execution_id)


async def test_an_execution_that_is_opened_before_it_has_a_run_goes_on_without_a_reload(
    system: Deployment, client: Client, console: Console, greeter: Talker
) -> None:
    page = console.page
    workflow_id, execution_id = await begun_without_a_run(system, client)
    await console.show(f"/executions/{execution_id}")
    await page.evaluate(ONCE)
    await expect(page.locator(".facts")).to_contain_text("none yet")
    await expect(page.locator(".steps")).to_contain_text("No step has begun yet.")
    with messages_of(system) as messages:
        messages.send(actor="run_workflow_background", execution_id=execution_id, workflow_id=workflow_id)
    await expect(page.locator(".answer")).to_contain_text("Good morning")
    await expect(page.locator(".graph .running")).to_contain_text("Greet")
    await expect(page.locator(".steps")).to_contain_text("greet")
    greeter.enough()
    await expect(page.locator(".answer")).to_contain_text("goodbye.")
    await expect(page.locator(".graph .completed")).to_have_count(2)
    await expect(page.locator(".steps [data-status=completed]")).to_have_count(2)
    await expect(page.locator(".facts .badge")).to_have_text("completed")
    assert await page.evaluate("window.opened") == 1


@pytest.mark.slow
async def test_an_execution_that_waits_for_a_worker_takes_few_of_the_requests_that_a_user_may_make(
    system: Deployment, client: Client, console: Console
) -> None:
    page, asked = console.page, 0

    def count(request: Request) -> None:
        nonlocal asked
        asked += f"/executions/{execution_id}" in request.url

    _, execution_id = await begun_without_a_run(system, client)
    await console.show(f"/executions/{execution_id}")
    page.on("request", count)
    await page.wait_for_timeout(12_000)
    assert 1 <= asked <= 8, "a minute of it must leave room for others: RATE_LIMIT_PER_MINUTE is 100"


async def test_a_look_that_was_asked_for_before_the_end_does_not_bring_an_execution_back(
    client: Client, console: Console, greeter: Talker
) -> None:
    page, looks = console.page, 0
    early, ended, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    workflow = (await client.http.post("/workflows", json=DEFINED)).raise_for_status().json()
    answer = await client.http.post(f"/workflows/{workflow['id']}/execute", json={"variables": {}})
    execution_id = answer.raise_for_status().json()["execution_id"]

    async def hold(route: Route) -> None:
        """But for the first, which the page is made of."""
        nonlocal looks
        looks += 1
        is_first, found = looks == 1, await route.fetch()
        if is_first or (await found.json())["completed_at"]:
            await route.fulfill(response=found)
            return
        early.set()
        await ended.wait()
        await route.fulfill(response=found)
        late.set()

    await page.route(f"**/executions/{execution_id}", hold)
    await console.show(f"/executions/{execution_id}")
    await asyncio.wait_for(early.wait(), PATIENT)
    greeter.enough()
    badge = page.locator(".facts .badge")
    await expect(badge).to_have_text("completed")
    ended.set()
    await asyncio.wait_for(late.wait(), PATIENT)
    await page.wait_for_timeout(1000)
    await expect(badge).to_have_text("completed")


async def test_a_step_that_somebody_reads_stays_open_while_others_begin(
    client: Client, console: Console, greeter: Talker
) -> None:
    page = console.page
    workflow = (await client.http.post("/workflows", json=DEFINED)).raise_for_status().json()
    answer = await client.http.post(f"/workflows/{workflow['id']}/execute", json={"variables": {}})
    await console.show(f"/executions/{answer.raise_for_status().json()['execution_id']}")
    await page.locator(".steps summary").first.click()
    greeter.enough()
    await expect(page.locator(".steps [data-status=completed]")).to_have_count(2)
    await expect(page.locator(".steps details").first).to_have_attribute("open", "")
    await expect(page.locator(".answer")).to_contain_text("goodbye.")


async def test_a_run_and_a_conversation_that_are_opened_while_queued_go_on_without_a_reload(
    client: Client, console: Console, fake_model: FakeModel
) -> None:
    fake_model.script(says("First", " here.", delay=0.01))
    page = console.page
    first = await client.initiate(model(MORE_THAN_READ))
    run_id = await client.start(first.thread_id, "openai/later", on_active="queue")
    await console.show(f"/runs/{run_id}")
    await page.evaluate(ONCE)
    await expect(page.locator(".facts .badge")).to_have_text("waiting")
    conversation = await copy_of(console, f"/conversations/{first.thread_id}")
    await conversation.state("streaming")
    await client.stop(first.run_id)
    await expect(page.locator("svg.timeline .bar.queue")).to_be_visible()
    await expect(page.locator(".facts .badge")).to_have_text("completed")
    await expect(page.locator(".many .line").last).to_contain_text("completed")
    assert await page.evaluate("window.opened") == 1
    await expect(conversation.page.locator(".answer").last).to_contain_text("First here.")
    await conversation.state("completed")


async def test_a_conversation_that_is_looked_at_again_shows_what_others_have_begun(
    client: Client, console: Console
) -> None:
    page = console.page
    first = await client.initiate("demo/echo", prompt="One")
    await client.get(first.run_id, wait_seconds=20)
    await console.show(f"/conversations/{first.thread_id}")
    await console.state("completed")
    run_id = await client.start(first.thread_id, model(MORE_THAN_READ))
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await console.state("streaming")
    await expect(page.locator(".answer").last).to_contain_text("Lorem")
    await client.stop(run_id)
    await console.state("stopped")
    (await client.http.post(f"/threads/{first.thread_id}/messages/add", json={"message": "Two"})).raise_for_status()
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page.locator(".said").last).to_contain_text("Two")


async def test_usage_shows_runs_and_tokens_where_nothing_is_billed(client: Client, console: Console) -> None:
    page = console.page
    await console.show("/usage")
    await expect(page.locator("main")).to_contain_text("Nothing was run in the last 14 days.")
    await expect(page.locator("svg")).to_have_count(0)
    run = await client.initiate("demo/echo")
    tokens = (await client.get(run.run_id, wait_seconds=20))["usage"]["total_tokens"]
    await page.reload()
    row = page.locator("table.list tbody tr")
    await expect(row).to_have_text(f"demo/echo1{tokens}—")
    charts = page.locator("svg.chart")
    await expect(charts).to_have_count(2)
    for chart, told in zip(await charts.all(), ("1", str(tokens)), strict=True):
        assert str(await chart.get_attribute("aria-label")).endswith(f": {told}")
    await console.show("/runs")
    await expect(row.first).to_contain_text("demo/echo")
    await expect(row.first.locator("[data-label=Tokens]")).to_have_text(str(tokens))


async def test_a_schedule_tells_when_it_fires_next_and_after_that(client: Client, console: Console) -> None:
    for config in (
        {"type": "cron", "cron": {"cron_expression": "0 9 * * *"}},
        {"type": "advanced", "advanced": {"cron_expression": "0 9 * * *", "timezone": "Asia/Tokyo"}},
    ):
        asked = {"name": "Every morning", "prompt": "Good morning", "config": config}
        made = (await client.http.post("/schedules", json=asked)).raise_for_status().json()
        await console.show(f"/schedules/{made['id']}")
        times = console.page.locator(".facts div", has_text="After that").locator("dd")
        assert (await times.inner_text()).count(":00") == 4
        await console.page.click("text=Pause")
        await expect(console.page.locator(".facts .badge")).to_have_text("paused")
        await console.page.click("text=Resume")
        await expect(console.page.locator(".facts .badge")).to_have_text("active")
        await console.page.click("text=Delete")
        await expect(console.page.locator("h1")).to_have_text("Schedules")
