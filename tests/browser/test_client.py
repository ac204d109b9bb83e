"""The client in a real browser, against a real API and real workers."""

import asyncio
import json

import pytest
from playwright.async_api import BrowserContext
from playwright.async_api import Error as PlaywrightError

from tests.acceptance.client import Client, until
from tests.acceptance.operators import Deployment
from tests.browser.pages import PATIENT, Reader, connected
from tests.browser.texts import MORE_THAN_READ, model, text_of
from tests.fakes import USAGE, Talk

pytestmark = pytest.mark.timeout(600)
FREEZE = "() => (document.dispatchEvent(new Event('freeze')), stream.cursor)"


async def test_tabs_share_one_stream_and_another_takes_over_when_the_leading_one_is_closed(
    system: Deployment, client: Client, context: BrowserContext, reader: Reader, talk: Talk
) -> None:
    readers = [reader, *[await Reader.open(context, system.url, client.token) for _ in range(2)]]
    talker = talk(delay=0.005)
    run = await client.initiate(talker.model)
    for each in readers:
        await each.follow(run.run_id)
        await each.received(5)
    seen = [await each.look() for each in readers]
    assert [each["leading"] for each in seen] == [True, False, False]
    await until(lambda: connected(readers, 1), within=PATIENT, says="tabs hold connections of their own")
    await reader.page.close()
    others = readers[1:]
    newest = max([(await each.look())["cursor"] for each in others])
    for each in others:
        await each.received(newest + 50)
    talker.enough()
    for each in others:
        told = await each.ended()
        assert told["text"] == talker.text
        assert set(told["states"]) == {"connecting", "streaming", "completed"}
        assert (told["status"], told["ends"], told["running"]) == ("completed", 1, False)
        assert told["usage"]["total_tokens"] == USAGE["total_tokens"]
        assert 1 < told["changes"] < len(told["ids"])


@pytest.mark.slow
async def test_a_tab_that_crashes_or_is_put_to_sleep_hands_the_stream_on(
    system: Deployment, client: Client, context: BrowserContext, reader: Reader, talk: Talk
) -> None:
    crashing, sleeping, last = [reader, *[await Reader.open(context, system.url, client.token) for _ in range(2)]]
    talker = talk()
    run = await client.initiate(talker.model)
    for each in (crashing, sleeping, last):
        await each.follow(run.run_id)
        await each.received(5)
    crash = await context.new_cdp_session(crashing.page)
    crashed = asyncio.create_task(crash.send("Page.crash"))
    await until(lambda: leads(sleeping), says="the second tab never led")
    asleep = await sleeping.page.evaluate(FREEZE)
    await until(lambda: leads(last), says="the third tab never led")
    before = max(asleep, (await last.look())["cursor"])
    await last.received(before + 50)
    assert (await sleeping.look())["cursor"] == asleep
    await sleeping.page.evaluate("document.dispatchEvent(new Event('resume'))")
    await sleeping.received(before + 60)
    assert await leads(last)
    talker.enough()
    for each in (sleeping, last):
        assert (await each.ended())["text"] == talker.text
    await crashing.page.close()
    with pytest.raises(PlaywrightError, match="closed"):
        await crashed


async def leads(reader: Reader) -> bool:
    return bool((await reader.look())["leading"])


@pytest.mark.slow
async def test_tools_are_shown_as_they_work(client: Client, reader: Reader) -> None:
    run = await client.initiate("demo/tour")
    await reader.follow(run.run_id)
    seen = await reader.ended()
    tools = [part for part in seen["parts"] if part["kind"] == "tool"]
    assert [(tool["name"], tool["status"]) for tool in tools] == [
        ("task_list", "completed"), ("create_file", "completed"), ("ask", "completed"),
    ]  # fmt: skip
    for tool in tools:
        assert json.loads(tool["arguments"])
        assert tool["result"]
        assert tool["startedAt"] < tool["endedAt"]
    kinds = [part["kind"] for part in seen["parts"]]
    assert kinds == ["answer", "tool"] * 3
    stored = [each["content"] for each in await client.messages(run.thread_id) if each["type"] == "assistant"]
    assert [part["text"] for part in seen["parts"] if part["kind"] == "answer"] == [each["content"] for each in stored]


@pytest.mark.slow
async def test_fifty_tabs_over_http_1_read_one_run_without_starving(
    system: Deployment, client: Client, context: BrowserContext
) -> None:
    readers = [await Reader.open(context, system.url, client.token) for _ in range(50)]
    run = await client.initiate(model(MORE_THAN_READ))
    await asyncio.gather(*(each.follow(run.run_id) for each in readers))
    await asyncio.gather(*(each.received(100) for each in readers))
    await until(lambda: connected(readers, 1), within=PATIENT, says="tabs hold connections of their own")
    status = await readers[-1].page.evaluate("(id) => longrun.run(id).then(({status}) => status)", run.run_id)
    assert status == "running", "other requests of a tab find a connection"
    await readers.pop(0).page.close()
    newest = max([(await each.look())["cursor"] for each in readers])
    await asyncio.gather(*(each.received(newest + 50) for each in readers))
    assert await client.stop(run.run_id) == "stopped"
    (text,) = {(await each.ended())["text"] for each in readers}
    assert text
    assert text_of(MORE_THAN_READ).startswith(text)
