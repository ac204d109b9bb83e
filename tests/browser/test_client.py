"""The client in a real browser, against a real API and real workers."""

import signal

from playwright.async_api import BrowserContext

from agent.llm import demo
from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment
from tests.browser.pages import Reader


def model(chunks: int, delay_ms: int = 20) -> str:
    return f"demo/lorem?chunks={chunks}&delay_ms={delay_ms}"


def text_of(chunks: int) -> str:
    return "".join(demo.lorem(chunks))


async def test_a_page_follows_a_run_from_its_first_word_to_its_end(client: Client, reader: Reader) -> None:
    run = await client.initiate(model(60))
    await reader.follow(run.run_id)
    seen = await reader.ended()
    assert seen["text"] == text_of(60)
    assert seen["states"] == ["connecting", "streaming", "completed"]
    assert (seen["status"], seen["ends"], seen["running"]) == ("completed", 1, False)
    assert seen["usage"]["total_tokens"] > 60
    assert 1 < seen["changes"] < len(seen["ids"])


async def test_an_api_and_a_worker_that_die_in_mid_stream_cost_no_word(
    system: Deployment, client: Client, reader: Reader
) -> None:
    run = await client.initiate(model(200))
    await reader.follow(run.run_id)
    await reader.received(40)
    assert system.api
    system.api.signal(signal.SIGKILL)
    await system.start_api()
    await reader.received(80)
    driver = await system.driver_of(run.run_id)
    driver.signal_group(signal.SIGKILL)
    seen = await reader.ended()
    assert seen["text"] == text_of(200)
    assert "reconnecting(1)" in seen["states"]
    assert seen["tries"] == 2


async def test_tabs_share_one_stream_and_another_takes_over_when_the_leading_one_is_closed(
    system: Deployment, client: Client, context: BrowserContext, reader: Reader
) -> None:
    run = await client.initiate(model(300))
    readers = [reader, *[await Reader.open(context, system.url, client.token) for _ in range(2)]]
    for each in readers:
        await each.follow(run.run_id)
        await each.received(20)
    seen = [await each.look() for each in readers]
    assert [each["leading"] for each in seen] == [True, False, False]
    assert [each["connected"] for each in seen] == [True, False, False]
    await reader.page.close()
    for each in readers[1:]:
        assert (await each.ended())["text"] == text_of(300)
