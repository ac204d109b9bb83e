"""The hook of existing frontends, as it is, over our streams: in Chromium, and in Node with an EventSource package."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.async_api import BrowserContext, Route

from tests.acceptance.client import Client, Started, until
from tests.acceptance.operators import Deployment
from tests.browser.texts import model, text_of

HERE = Path(__file__).parent
Hook = Callable[[Started], Coroutine[Any, Any, dict[str, Any]]]
RUNTIMES = ("chromium", "node")


def asked(system: Deployment, client: Client, run: Started) -> dict[str, str]:
    return {"api": f"{system.url}/api", "token": client.token, "runId": run.run_id, "threadId": run.thread_id}


@pytest.fixture(params=RUNTIMES)
async def hook(request: pytest.FixtureRequest, system: Deployment, client: Client, context: BrowserContext) -> Hook:
    """What the hook saw of a run, once it is done with it."""
    if request.param == "node":

        async def in_node(run: Started) -> dict[str, Any]:
            node, _ = compute_driver_executable()
            process = await asyncio.create_subprocess_exec(
                node, HERE / "hook_in_node.js", json.dumps(asked(system, client, run)), stdout=subprocess.PIPE
            )
            output, _ = await process.communicate()
            seen: dict[str, Any] = json.loads(output)
            return seen

        return in_node

    page = await context.new_page()

    async def serve(route: Route) -> None:
        await route.fulfill(path=HERE / "existing_hook.js", content_type="text/javascript")

    await page.route("**/existing_hook.js", serve)
    await page.goto(f"{system.url}/blank")

    async def in_chromium(run: Started) -> dict[str, Any]:
        script = "async (asked) => (await import('/existing_hook.js')).follow({...asked, EventSource})"
        seen: dict[str, Any] = await page.evaluate(script, asked(system, client, run))
        return seen

    return in_chromium


async def test_a_run_that_completes_is_shown_word_for_word(client: Client, hook: Hook) -> None:
    seen = await hook(await client.initiate(model(30)))
    assert seen["outcome"] == "completed"
    assert seen["longest"] == text_of(30)
    assert seen["messages"] == [text_of(30)]
    assert seen["unnamed"]


@pytest.mark.slow
async def test_a_run_that_has_ended_is_not_connected_to(client: Client, hook: Hook) -> None:
    run = await client.initiate(model(3))
    await client.get(run.run_id, wait_seconds=20)
    seen = await hook(run)
    assert (seen["outcome"], seen["connections"], seen["messages"]) == ("completed", 0, [text_of(3)])


@pytest.mark.slow
async def test_a_failure_is_shown_as_one(client: Client, hook: Hook) -> None:
    seen = await hook(await client.initiate("openai/script-401", delay_seconds=1))
    assert (seen["outcome"], seen["connections"]) == ("failed", 1)


@pytest.mark.slow
async def test_a_stop_is_shown_and_what_was_said_stays(client: Client, hook: Hook) -> None:
    run = await client.initiate(model(1000))
    seeing = asyncio.create_task(hook(run))
    await asyncio.sleep(2)
    await client.stop(run.run_id)
    seen = await seeing
    assert seen["outcome"] == "stopped"
    [kept] = seen["messages"]
    assert kept
    assert text_of(1000).startswith(kept)
    assert kept.startswith(seen["longest"])


@pytest.mark.slow
async def test_a_queued_run_is_waited_for(client: Client, hook: Hook) -> None:
    first = await client.initiate(model(100))
    second = await client.start(first.thread_id, model(10), on_active="queue")
    seen = await hook(Started(second, first.thread_id, first.project_id))
    assert (seen["outcome"], seen["connections"]) == ("completed", 1)
    assert seen["longest"] == text_of(10)
    assert seen["messages"] == [text_of(100), text_of(10)]


@pytest.mark.slow
async def test_a_run_that_is_handed_over_ends_with_its_whole_text(
    system: Deployment, client: Client, hook: Hook
) -> None:
    run = await client.initiate(model(150))
    seeing = asyncio.create_task(hook(run))
    driver = await system.driver_of(run.run_id)
    await asyncio.sleep(1.5)
    driver.signal(signal.SIGTERM)
    seen = await seeing
    assert seen["outcome"] == "completed"
    assert seen["messages"] == [text_of(150)]
    assert seen["longest"].endswith(text_of(150))
    assert (await client.get(run.run_id))["attempt"] == 2


@pytest.mark.slow
async def test_a_stream_that_is_cut_by_a_restart_goes_on_by_itself(
    system: Deployment, client: Client, hook: Hook
) -> None:
    run = await client.initiate(model(300))
    seeing = asyncio.create_task(hook(run))
    await asyncio.sleep(1.5)
    api = system.api
    assert api
    api.signal(signal.SIGTERM)
    await api.exited()
    await system.start_api()
    seen = await seeing
    assert (seen["outcome"], seen["longest"]) == ("completed", text_of(300))
    assert seen["ids"] == list(range(len(seen["ids"])))
    assert seen["connections"] == 2
    await until(lambda: ended(client, run.run_id))


async def ended(client: Client, run_id: str) -> bool:
    return bool((await client.get(run_id))["status"] == "completed")
