"""The hook of existing frontends, as it is, over our streams: in Chromium, and in Node with an EventSource package."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.async_api import BrowserContext, Route
from redis.asyncio import Redis

from services.runs import keys
from tests.acceptance.client import Client, Started, until
from tests.acceptance.operators import Deployment
from tests.browser.pages import PATIENT
from tests.browser.texts import MORE_THAN_READ, model, text_of
from tests.fakes import Talk

pytestmark = pytest.mark.timeout(600)
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


async def until_read(system: Deployment, run_id: str, events: int = 0) -> None:
    """Wait until somebody follows the stream of a run that has said so much."""
    async with system.redis() as redis:
        await until(lambda: is_read(redis, UUID(run_id), events), within=PATIENT, says="nobody reads the run")


async def is_read(redis: Redis, run_id: UUID, events: int) -> bool:
    [(_, processes)] = await redis.pubsub_numsub(keys.news(run_id))
    return bool(processes) and await redis.llen(keys.responses(run_id)) >= events


async def is_driven_again(client: Client, run_id: str) -> bool:
    return bool((await client.get(run_id))["attempt"] == 2)


async def test_a_run_that_completes_is_shown_word_for_word(
    system: Deployment, client: Client, hook: Hook, talk: Talk
) -> None:
    talker = talk()
    run = await client.initiate(talker.model)
    seeing = asyncio.create_task(hook(run))
    await until_read(system, run.run_id)
    talker.enough()
    seen = await seeing
    assert seen["outcome"] == "completed"
    assert seen["longest"] == talker.text
    assert seen["messages"] == [talker.text]
    assert seen["unnamed"]


@pytest.mark.slow
async def test_a_run_that_has_ended_is_not_connected_to(client: Client, hook: Hook) -> None:
    run = await client.initiate(model(3))
    await client.get(run.run_id, wait_seconds=20)
    seen = await hook(run)
    assert (seen["outcome"], seen["connections"], seen["messages"]) == ("completed", 0, [text_of(3)])


@pytest.mark.slow
async def test_a_failure_is_shown_as_one(system: Deployment, client: Client, hook: Hook) -> None:
    first = await client.initiate(model(MORE_THAN_READ))
    second = await client.start(first.thread_id, "openai/script-401", on_active="queue")
    seeing = asyncio.create_task(hook(Started(second, first.thread_id, first.project_id)))
    await until_read(system, second)
    await client.stop(first.run_id)
    seen = await seeing
    assert (seen["outcome"], seen["connections"]) == ("failed", 1)


@pytest.mark.slow
async def test_a_stop_is_shown_and_what_was_said_stays(system: Deployment, client: Client, hook: Hook) -> None:
    run = await client.initiate(model(MORE_THAN_READ))
    seeing = asyncio.create_task(hook(run))
    await until_read(system, run.run_id, events=50)
    await client.stop(run.run_id)
    seen = await seeing
    assert (seen["outcome"], seen["connections"]) == ("stopped", 1)
    [kept] = seen["messages"]
    assert kept
    assert text_of(MORE_THAN_READ).startswith(kept)
    assert kept.startswith(seen["longest"])


@pytest.mark.slow
async def test_a_queued_run_is_waited_for(system: Deployment, client: Client, hook: Hook, talk: Talk) -> None:
    talker = talk()
    first = await client.initiate(talker.model)
    second = await client.start(first.thread_id, model(10), on_active="queue")
    seeing = asyncio.create_task(hook(Started(second, first.thread_id, first.project_id)))
    await until_read(system, second)
    talker.enough()
    seen = await seeing
    assert (seen["outcome"], seen["connections"]) == ("completed", 1)
    assert seen["longest"] == text_of(10)
    assert seen["messages"] == [talker.text, text_of(10)]


@pytest.mark.slow
async def test_a_run_that_is_handed_over_ends_with_its_whole_text(
    system: Deployment, client: Client, hook: Hook, talk: Talk
) -> None:
    talker = talk()
    run = await client.initiate(talker.model)
    seeing = asyncio.create_task(hook(run))
    await until_read(system, run.run_id, events=50)
    (await system.driver_of(run.run_id)).signal(signal.SIGTERM)
    await until(lambda: is_driven_again(client, run.run_id), within=PATIENT, says="nobody took the run over")
    talker.enough()
    seen = await seeing
    assert seen["outcome"] == "completed"
    assert seen["messages"] == [talker.text]
    assert seen["longest"].endswith(talker.text)
    assert (await client.get(run.run_id))["attempt"] == 2


@pytest.mark.slow
async def test_a_stream_that_is_cut_by_a_restart_goes_on_by_itself(
    system: Deployment, client: Client, hook: Hook, talk: Talk
) -> None:
    talker = talk()
    run = await client.initiate(talker.model)
    seeing = asyncio.create_task(hook(run))
    await until_read(system, run.run_id, events=50)
    api = system.api
    assert api
    api.signal(signal.SIGTERM)
    await api.exited(within=PATIENT)
    await system.start_api()
    await until_read(system, run.run_id)
    talker.enough()
    seen = await seeing
    assert (seen["outcome"], seen["longest"]) == ("completed", talker.text)
    assert seen["ids"] == list(range(len(seen["ids"])))
    assert seen["connections"] == 2
    await until(lambda: ended(client, run.run_id))


async def ended(client: Client, run_id: str) -> bool:
    return bool((await client.get(run_id))["status"] == "completed")
