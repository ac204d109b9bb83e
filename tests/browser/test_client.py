"""The client in a real browser, against a real API and real workers."""

import asyncio
import signal

import pytest
from playwright.async_api import BrowserContext

from tests.acceptance.client import Client, until
from tests.acceptance.operators import Deployment
from tests.browser.pages import Reader
from tests.browser.texts import model, text_of


async def test_a_page_follows_a_run_from_its_first_word_to_its_end(client: Client, reader: Reader) -> None:
    run = await client.initiate(model(60))
    await reader.follow(run.run_id)
    seen = await reader.ended()
    assert seen["text"] == text_of(60)
    assert seen["states"] == ["connecting", "streaming", "completed"]
    assert (seen["status"], seen["ends"], seen["running"]) == ("completed", 1, False)
    assert seen["usage"]["total_tokens"] > 60
    assert 1 < seen["changes"] < len(seen["ids"])


async def test_an_api_that_dies_and_a_worker_that_leaves_in_mid_stream_cost_no_word(
    system: Deployment, client: Client, reader: Reader
) -> None:
    run = await client.initiate(model(120))
    await reader.follow(run.run_id)
    await reader.received(20)
    (await system.driver_of(run.run_id)).signal(signal.SIGTERM)
    assert system.api
    system.api.signal(signal.SIGKILL)
    await system.start_api()
    seen = await reader.ended()
    assert seen["text"] == text_of(120)
    assert "reconnecting(1)" in seen["states"]
    assert seen["tries"] == 2


async def test_tabs_share_one_stream_and_another_takes_over_when_the_leading_one_is_closed(
    system: Deployment, client: Client, context: BrowserContext, reader: Reader
) -> None:
    run = await client.initiate(model(150))
    readers = [reader, *[await Reader.open(context, system.url, client.token) for _ in range(2)]]
    for each in readers:
        await each.follow(run.run_id)
        await each.received(5)
    seen = [await each.look() for each in readers]
    assert [each["leading"] for each in seen] == [True, False, False]
    assert [each["connected"] for each in seen] == [True, False, False]
    await reader.page.close()
    for each in readers[1:]:
        assert (await each.ended())["text"] == text_of(150)


@pytest.mark.slow
async def test_fifty_tabs_over_http_1_read_one_run_without_starving(
    system: Deployment, client: Client, context: BrowserContext
) -> None:
    run = await client.initiate(model(1000))
    readers = [await Reader.open(context, system.url, client.token) for _ in range(50)]
    await asyncio.gather(*(each.follow(run.run_id) for each in readers))
    await asyncio.gather(*(each.received(100) for each in readers))
    await until(lambda: connections_of(readers, 1), within=5, says="tabs hold connections of their own")
    assert (await client.get(run.run_id))["status"] == "running"
    status = await readers[-1].page.evaluate("(id) => longrun.run(id).then(({status}) => status)", run.run_id)
    assert status == "running", "other requests of a tab find a connection"
    await readers[0].page.close()
    seen = await asyncio.gather(*(each.ended() for each in readers[1:]))
    assert {each["text"] for each in seen} == {text_of(1000)}


async def connections_of(readers: list[Reader], count: int) -> bool:
    connected = [each for each in readers if (await each.look())["connected"]]
    return len(connected) == count
