"""The console, as a person uses it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from playwright.async_api import BrowserContext, Page, ViewportSize, expect

from api import pages
from services.runs import archive, keys
from tests.acceptance.client import Client, until
from tests.acceptance.operators import Deployment
from tests.browser.pages import Console, open_console
from tests.browser.tasks import Tasks
from tests.browser.texts import MORE_THAN_READ, model
from tests.fakes import FakeModel, Reply, Talk, calls, contents, refuses, says

pytestmark = pytest.mark.timeout(600)
MOST_SCRIPT_BYTES = 150 * 1024
LOREM = model(MORE_THAN_READ)
PHONE: ViewportSize = {"width": 390, "height": 844}
AXE = (Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js").read_text()
SERIOUS = {"serious", "critical"}
FIRST_PAINT_MS = 5 * 1000
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
BEFORE = ["Some **bold** words. ", *(f"word{n} " for n in range(50))]
TASKS = json.dumps({"tasks": [{"title": "Say hello", "status": "done"}]})
NOTHING: dict[str, Any] = {"taken": None, "reports": [], "elements": 0, "links": []}
MARKDOWN = (
    "# Title\n\n**Bold** and *slanted*, `code`, a [link](https://example.org/).\n\n- one\n- two\n  - inside\n\n"
    "1. first\n2. second\n\n> quoted\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n```python\nprint('hello')\n```\n"
)
WORKFLOW = {
    "name": "Triage",
    "description": "Sorts what comes in",
    "entry_point": "ask",
    "state": "ACTIVE",
    "steps": [
        {
            "id": "ask",
            "name": "Ask",
            "type": "INPUT",
            "next_steps": ["urgent"],
            "config": {"variables": [{"name": "level", "type": "number", "default": 3}]},
        },
        {
            "id": "urgent",
            "name": "Urgent?",
            "type": "CONDITION",
            "config": {"expression": "variables.level > `2`"},
            "next_steps": ["now", "later"],
        },
        {
            "id": "now",
            "name": "At once",
            "type": "TRANSFORM",
            "config": {"set": {"when": "'now'"}},
            "next_steps": ["end"],
        },
        {
            "id": "later",
            "name": "Some day",
            "type": "TRANSFORM",
            "config": {"set": {"when": "'later'"}},
            "next_steps": ["end"],
        },
        {"id": "end", "name": "Tell", "type": "TRANSFORM", "config": {"expression": "variables.when"}},
    ],
}
LONG = (
    "Quarterly numbers of all regions, compared with those of the two years before, " * 2,
    "a_name_without_a_gap" * 7,
)
"""Names that some have."""
FORBIDDEN = """() => {
    new Image().src = "https://127.0.0.1:1/x.png";
    const style = document.createElement("style");
    style.textContent = "body { color: red }";
    document.body.append(style);
    const acts = [() => document.body.setAttribute("onclick", "taken = 1"), () => (document.body.innerHTML = "x")];
    for (const act of acts) {
        try {
            act();
        } catch {
            continue;
        }
        throw new Error("markup became elements");
    }
}"""
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
MANY_RUNS, MANY_EVENTS, MANY_MESSAGES = 1_000, 20_000, 2_000
LONGEST_TASK_MS = 200
SECONDS_TO_BE_USABLE = 5
MANY = """
    WITH run AS (
        UPDATE agent_runs SET archived_events = $2, event_count = $2, reserved_events = $2,
            created_at = created_at - interval '1 day'
        WHERE id = $1 RETURNING *
    )
    INSERT INTO agent_runs
    SELECT copy.* FROM run, generate_series(1, $3::int) nth, jsonb_populate_record(
        NULL::agent_runs,
        to_jsonb(run)
        || jsonb_build_object('id', gen_random_uuid(), 'created_at', run.created_at - nth * interval '1 minute')
    ) copy
"""
TALK = """
    INSERT INTO messages (thread_id, agent_run_id, type, content, metadata)
    SELECT message.thread_id, NULL, message.type, message.content, message.metadata
    FROM messages message, generate_series(1, $2::int / 2) nth
    WHERE message.thread_id = (SELECT thread_id FROM agent_runs WHERE id = $1) AND message.type IN ('user', 'assistant')
"""
SCROLL = """async () => {
    const element = %s;
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    for (const step of [1, -1]) {
        for (let n = 0; n < 60; n += 1) {
            element.scrollTop += step * Math.max(element.clientHeight, element.scrollHeight / 60);
            await frame();
        }
    }
    element.scrollTop = element.scrollHeight;
    await frame();
    await frame();
}"""
INERT = """() => ({
    taken: window.taken ?? null,
    reports,
    elements: document.querySelectorAll("img, iframe, object, embed, base, body script, [onerror]").length,
    links: [...document.links].map(({protocol}) => protocol).filter((each) => !/^(https?|mailto):$/.test(each)),
})"""
HOSTILE = (
    '<img src=x onerror="window.taken=1"> <script>window.taken=1</script> '
    "[press](javascript:window.taken=1) ![seen](https://127.0.0.1/pixel.png) **bold**"
)


def plain(text: str) -> str:
    """As one reads it, without marks and breaks."""
    return " ".join(text.replace("**", "").replace("#", "").split())


async def test_a_person_starts_reloads_reads_along_stops_and_goes_on(
    system: Deployment,
    fake_model: FakeModel,
    client: Client,
    context: BrowserContext,
    console: Console,
    talk: Talk,
    tmp_path: Path,
) -> None:
    page, talker = console.page, talk(before=["# Title\n\n"], delay=0.1)
    assert await until(lambda: page.evaluate(FIRST_PAINT), says="nothing was painted") <= FIRST_PAINT_MS
    fake_model.script(
        Reply([*contents(BEFORE), *calls("task_list", TASKS)], delay=0.02, finish_reason="tool_calls"),
        talker.reply,
    )
    (tmp_path / "notes.txt").write_text("to be kept")
    assert client.token not in page.url
    await page.set_input_files("#files", tmp_path / "notes.txt")
    await expect(page.locator(".chips")).to_contain_text("notes.txt")
    await page.fill("#prompt", "Say something")
    await page.press("#prompt", "Enter")
    await expect(page.locator(".tool summary code").first).to_have_text("task_list")
    await page.reload()
    await expect(page.locator(".said")).to_contain_text("Say something")
    await console.state("streaming")
    other = await open_console(context, system.url, client.token)
    await other.page.goto(page.url)
    await other.state("streaming")
    talker.enough()
    await console.state("completed")
    await other.state("completed")
    told = await console.answers()
    assert [plain(text) for text in told] == [plain("".join(BEFORE)), plain(talker.text)]
    assert await other.answers() == told
    assert await page.locator(".tool summary code").all_inner_texts() == ["task_list"]
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
    await expect(page.locator("#prompt")).to_be_focused()

    await page.click("text=Details of this run")
    await expect(page.locator("svg.timeline .bar.model").first).to_be_visible()
    await expect(page.locator(".many .line").first).to_contain_text("thread_run_start")
    await console.picture("run")
    assert other.errors == []


async def test_what_others_wrote_does_nothing(fake_model: FakeModel, client: Client, console: Console) -> None:
    """Whatever has a name or says something: model, tools, files, agents, workflows, schedules, errors."""
    page = console.page
    paths = await hostile_things(client, fake_model)
    await page.set_input_files(
        "#files", {"name": "<img src=x onerror=taken=1>.txt", "mimeType": "text/plain", "buffer": b"x"}
    )
    await expect(page.locator(".chips")).to_contain_text("<img")
    assert await page.evaluate(INERT) == NOTHING
    for path in paths:
        await console.show(path)
        await page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        await expect(page.locator("main")).to_contain_text("<img")
        assert await page.evaluate(INERT) == NOTHING, path
    await console.show(paths[0])
    await expect(page.locator(".answer strong").first).to_have_text("bold")
    await console.go("/agents/" + HOSTILE)
    await expect(page.locator("h1")).to_have_text("There is nothing here")
    assert await page.evaluate(INERT) == NOTHING
    await check_policy(page)
    console.errors.clear()


async def check_policy(page: Page) -> None:
    """It is in force, and its report is heard: else a clean one would say nothing."""
    await page.evaluate(FORBIDDEN)
    await page.wait_for_function("reports.length >= 4")
    assert {"img-src", "style-src-elem", "require-trusted-types-for"} <= {
        told.split()[0] for told in await page.evaluate("reports")
    }


async def test_a_token_is_in_the_storage_of_its_tab_and_nowhere_else(
    system: Deployment, client: Client, context: BrowserContext
) -> None:
    console = await open_console(context, system.url, client.token)
    page, asked = console.page, []
    page.on("request", lambda request: asked.append(request.url))
    run = await client.initiate(LOREM)
    for path in (f"/conversations/{run.thread_id}", f"/runs/{run.run_id}", "/health", "/usage"):
        await console.go(path)
        await expect(page.locator("main h1")).to_be_visible()
    assert asked
    assert not [url for url in [*asked, page.url] if client.token in url]
    kept = await page.evaluate("[document.cookie, JSON.stringify(localStorage), document.body.outerHTML].join()")
    assert client.token not in kept
    await client.stop(run.run_id)
    await page.click("text=Sign out")
    await expect(page.locator("#sign-in")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0
    assert console.errors == []


async def test_keys_reach_the_content_and_the_menu_of_a_phone_closes(console: Console) -> None:
    page = console.page
    await console.show("/runs")
    await page.locator(".skip").focus()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await expect(page.locator("h1")).to_have_text("Runs")
    await page.set_viewport_size(PHONE)
    await page.click("#menu")
    await expect(page.locator("#menu")).to_have_attribute("aria-expanded", "true")
    await page.click("nav >> text=Agents")
    await expect(page.locator("#menu")).to_have_attribute("aria-expanded", "false")
    await expect(page.locator("nav")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_is_closed_to_anybody(
    system: Deployment, fake_model: FakeModel, client: Client, context: BrowserContext, scheme: Any
) -> None:
    """What axe-core finds serious, on every page, at both widths."""
    console = await open_console(context, system.url, client.token)
    page = console.page
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    paths = ["/new", *await hostile_things(client, fake_model), "/usage", "/health", "/nowhere"]
    found: list[Any] = []
    for size in (DESKTOP, PHONE):
        await page.set_viewport_size(size)
        for path in paths:
            await console.show(path)
            for name in ("New agent", "New schedule", "From a template", "Edit"):
                if await (button := page.get_by_role("button", name=name, exact=True)).count():
                    await button.click()
            await page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            found += [(path, size["width"], *each) for each in await serious(page)]
    await page.click("#menu")
    found += [("menu", *each) for each in await serious(page)]
    await page.click("text=Sign out")
    found += [("sign in", *each) for each in await serious(page)]
    assert not found, "\n".join(map(str, found))
    assert console.errors == []


async def serious(page: Page) -> list[tuple[str, Any]]:
    """By the debugger, as the page's policy lets it run nothing of ours."""
    await page.evaluate(AXE)
    told = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (
            each["id"],
            [(node["html"][:200], node["any"][:1] and node["any"][0]["message"]) for node in each["nodes"][:3]],
        )
        for each in told["violations"]
        if each["impact"] in SERIOUS
    ]


@pytest.mark.slow
async def test_a_thousand_runs_and_twenty_thousand_events_stay_smooth(
    system: Deployment, client: Client, console: Console, tasks: Tasks
) -> None:
    page = console.page
    run = await client.initiate("demo/echo")
    await client.get(run.run_id, wait_seconds=20)
    await until_closed(system, run.run_id)
    await make_many(system, run.run_id)
    await tasks.watch(page)

    began = time.monotonic()
    await console.go("/runs")
    rows = page.locator("table.list tbody tr")
    for count in range(100, MANY_RUNS + 1, 100):
        await expect(rows).to_have_count(count)
        if count < MANY_RUNS:
            await page.click("text=Show more")
    took_runs, longest_runs = time.monotonic() - began, await scroll(tasks, page, "document.scrollingElement")

    began = time.monotonic()
    await console.go(f"/runs/{run.run_id}")
    await expect(page.get_by_text(f"{MANY_EVENTS:,} events")).to_be_visible()
    took_events, longest_events = time.monotonic() - began, await scroll(tasks, page, "document.querySelector('.many')")
    await expect(page.locator(".many .line").last).to_contain_text("completed")

    began = time.monotonic()
    await console.go(f"/conversations/{run.thread_id}")
    await expect(page.locator(".answer").last).to_be_visible()
    took_talk, longest_talk = time.monotonic() - began, await scroll(tasks, page, "document.scrollingElement")
    figures = (
        f"1,000 runs: {took_runs:.1f} s, longest task {longest_runs:.0f} ms; 20,000 events: {took_events:.1f} s,"
        f" {longest_events:.0f} ms; 2,000 messages: {took_talk:.1f} s, {longest_talk:.0f} ms"
    )
    print(figures)  # noqa: T201 - figures are for the reader of the test's output
    assert max(longest_runs, longest_events, longest_talk) <= 5 * LONGEST_TASK_MS, figures
    assert max(took_runs, took_events, took_talk) <= 5 * SECONDS_TO_BE_USABLE, figures


@asynccontextmanager
async def connected(system: Deployment) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(system.database_url)
    try:
        yield conn
    finally:
        await conn.close()


async def until_closed(system: Deployment, run_id: str) -> None:
    await until(system.all_closed, says=f"{run_id} was not closed")


async def make_many(system: Deployment, run_id: str) -> None:
    """The run gets a long log and a long conversation, and so many others like it beside it, all of yesterday."""
    events = [json.dumps(event_of(n)).encode() for n in range(MANY_EVENTS - 1)]
    async with connected(system) as conn, system.redis() as redis:
        rows = await conn.fetch("SELECT events FROM agent_run_event_blocks WHERE agent_run_id = $1", UUID(run_id))
        final = [event for row in rows for event in archive.unpack(row["events"])][-1]
        await conn.execute("DELETE FROM agent_run_event_blocks WHERE agent_run_id = $1", UUID(run_id))
        events.append(final)
        await conn.executemany(
            "INSERT INTO agent_run_event_blocks (agent_run_id, first_id, event_count, events) VALUES ($1, $2, $3, $4)",
            [
                (UUID(run_id), first, len(block), archive.pack(block))
                for first in range(0, MANY_EVENTS, 500)
                for block in [events[first : first + 500]]
            ],
        )
        await conn.execute(MANY, UUID(run_id), MANY_EVENTS, MANY_RUNS - 1)
        await conn.execute(TALK, UUID(run_id), MANY_MESSAGES)
        await redis.delete(keys.responses(UUID(run_id)))


def event_of(n: int) -> dict[str, Any]:
    """A call of a model, a tool that says something, and what it came to, over and over."""
    at = f"2026-01-01T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z"
    call = {"tool_call_id": f"call_{n // 20}", "function_name": "execute_command"}
    place = n % 20
    kind = "assistant" if place < 12 else "status"
    content: dict[str, Any] = {"role": "assistant", "content": "some words of an answer "}
    if n == 0:
        kind, content = "status", {"status_type": "thread_run_start"}
    elif place == 1:
        kind, content = "status", {"status_type": "assistant_response_start"}
    elif place == 12:
        content = {"status_type": "tool_started", **call}
    elif place == 19:
        content = {"status_type": "tool_completed", **call}
    elif place > 12:
        content = {"status_type": "tool_output", **call, "output": "a line of output\n" * 5}
    metadata = {"stream_status": "chunk"} if kind == "assistant" else {}
    words = {"content": json.dumps(content), "metadata": json.dumps(metadata)}
    return {"sequence": n, "message_id": None, "type": kind, "is_llm_message": False, **words, "created_at": at}


async def scroll(tasks: Tasks, page: Page, what: str) -> float:
    """To the end and back, a screen a frame; the longest task since the last time, in milliseconds."""
    await page.evaluate(SCROLL % what)
    return await tasks.longest(page)


async def hostile_things(client: Client, model: FakeModel) -> list[str]:
    """Makes one of each; the pages that show them."""
    name = HOSTILE[:100]

    async def made(path: str, json: Any) -> Any:
        return (await client.http.post(path, json=json)).raise_for_status().json()

    tasks = json.dumps({"tasks": [{"title": HOSTILE[:90], "status": "done"}]})
    thought = {"reasoning_content": HOSTILE}
    model.script(Reply([thought, *calls("task_list", tasks)], finish_reason="tool_calls"), says(HOSTILE))
    run = await client.initiate("openai/hostile", prompt=HOSTILE)
    assert (await client.get(run.run_id, wait_seconds=20))["status"] == "completed"
    title = {"title": HOSTILE[:200]}
    (await client.http.patch(f"/threads/{run.thread_id}", json=title)).raise_for_status()
    model.script(refuses(400, HOSTILE))
    failed = await client.initiate("openai/hostile")
    assert "<img" in (await client.get(failed.run_id, wait_seconds=20))["error"]

    agent = await made("/agents", {"name": name, "description": HOSTILE, "system_prompt": HOSTILE})
    variable = {"name": "x", "type": "string", "description": HOSTILE, "default": HOSTILE}
    steps = [
        {"id": "a", "name": name, "type": "INPUT", "config": {"variables": [variable]}, "next_steps": ["b"]},
        {"id": "b", "name": name, "type": "TRANSFORM", "config": {"set": {"y": "x"}}},
    ]
    defined = {"name": name, "description": HOSTILE, "steps": steps, "entry_point": "a", "state": "ACTIVE"}
    workflow = await made("/workflows", defined)
    execution = await made(f"/workflows/{workflow['id']}/execute", {"variables": {}})
    await client.get(execution["agent_run_id"], wait_seconds=20)
    cron = {"type": "cron", "cron": {"cron_expression": "0 9 * * *"}}
    schedule = await made("/schedules", {"name": name, "prompt": HOSTILE, "config": cron})
    return [
        f"/conversations/{run.thread_id}",
        f"/conversations/{failed.thread_id}",
        "/conversations",
        f"/runs/{run.run_id}",
        f"/runs/{failed.run_id}",
        "/runs",
        "/agents",
        f"/agents/{agent['agent_id']}",
        "/workflows",
        f"/workflows/{workflow['id']}",
        f"/executions/{execution['execution_id']}",
        "/schedules",
        f"/schedules/{schedule['id']}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
async def test_every_page_is_there_in_both_schemes_and_sizes_and_fits(
    system: Deployment, client: Client, context: BrowserContext, fake_model: FakeModel, scheme: Any, size: Any
) -> None:
    fake_model.script(refuses(400, "This model does not take images of more than 20 megapixels. " * 3))
    console = await open_console(context, system.url, client.token)
    page = console.page
    await page.set_viewport_size(size)
    await page.emulate_media(color_scheme=scheme)
    kind = f"{'phone' if size is PHONE else 'desktop'}-{scheme}"
    for name, path in (await things_of_all_kinds(client)).items():
        await console.show(path)
        if await (card := page.locator("details.tool summary")).count():
            await card.first.click()
        await asyncio.sleep(0.3)  # the picture is for people: live pages have caught up by then
        await console.picture(f"{kind}-{name}")
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
    if size is PHONE:
        await page.click("#menu")
        await console.picture(f"{kind}-menu")
        await page.click("#menu")
    await console.show("/schedules")
    await page.click("text=New schedule")
    await expect(page.locator("form.card")).to_contain_text("Next:")
    await console.picture(f"{kind}-new-schedule")
    await page.evaluate("document.querySelector('nav button').click()")
    await expect(page.locator("#sign-in")).to_be_visible()
    await console.picture(f"{kind}-sign-in")
    assert console.errors == []


async def things_of_all_kinds(client: Client) -> dict[str, str]:
    """Makes one of each that a person may have; the page of each, by name."""

    async def made(path: str, json: Any) -> Any:
        return (await client.http.post(path, json=json)).raise_for_status().json()

    tour = await client.initiate("demo/tour", prompt="Show me around")
    (await client.http.patch(f"/threads/{tour.thread_id}", json={"title": "A tour"})).raise_for_status()
    text = await client.initiate("demo/echo", prompt=MARKDOWN)
    agent = await made(
        "/agents", {"name": "Researcher", "description": "Finds out", "system_prompt": "Find out.\n" * 9}
    )
    (await client.http.put(f"/agents/{agent['agent_id']}", json={"system_prompt": "Find out more."})).raise_for_status()
    workflow = await made("/workflows", WORKFLOW)
    execution = await made(f"/workflows/{workflow['id']}/execute", {"variables": {}})
    for name in LONG:
        await made("/agents", {"name": name, "description": name, "system_prompt": name})
        await made("/workflows", {**WORKFLOW, "name": name})
        named = await client.initiate("demo/echo", prompt=name)
        (await client.http.patch(f"/threads/{named.thread_id}", json={"title": name})).raise_for_status()
    refused = await client.initiate("openai/refused")
    cron = {"type": "cron", "cron": {"cron_expression": "0 9 * * 1-5"}}
    schedule = await made("/schedules", {"name": "Every morning", "workflow_id": workflow["id"], "config": cron})
    for run_id in (tour.run_id, text.run_id, execution["agent_run_id"], refused.run_id):
        await client.get(run_id, wait_seconds=30)
    paths = {name: f"/{name}" for name in ("new", "conversations", "runs", "agents", "workflows", "schedules")}
    return {
        **paths,
        "usage": "/usage",
        "health": "/health",
        "conversation": f"/conversations/{tour.thread_id}",
        "markdown": f"/conversations/{text.thread_id}",
        "run": f"/runs/{tour.run_id}",
        "refused": f"/runs/{refused.run_id}",
        "failed": f"/conversations/{refused.thread_id}",
        "agent": f"/agents/{agent['agent_id']}",
        "workflow": f"/workflows/{workflow['id']}",
        "execution": f"/executions/{execution['execution_id']}",
        "schedule": f"/schedules/{schedule['id']}",
    }


async def test_a_token_that_is_not_accepted_leads_to_the_sign_in(
    system: Deployment, client: Client, context: BrowserContext
) -> None:
    page = await context.new_page()
    await page.goto(f"{system.url}/#token=nonsense")
    await expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted")
    await page.fill("#sign-in textarea", client.token)
    await page.click("text=Sign in >> nth=-1")
    await expect(page.locator("#prompt")).to_be_visible()


def test_all_scripts_together_are_small() -> None:
    size = sum(path.stat().st_size for path in pages.FOLDER.rglob("*.js"))
    assert size <= MOST_SCRIPT_BYTES
