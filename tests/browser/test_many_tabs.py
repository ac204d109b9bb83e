"""Fifty tabs of one person on one run, through nginx with the shipped configuration."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Request

from tests.acceptance.client import Client, until
from tests.acceptance.operators import Deployment
from tests.browser.conftest import serve_blank
from tests.browser.pages import Reader, connected
from tests.browser.texts import MORE_THAN_READ, model, text_of
from tests.nginx import Nginx, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TABS = 50
ANSWER_MS = 5 * 1000
ASKED = 3
PATIENT = 60.0
ASK = """async ([url, token]) => {
    const began = performance.now();
    const {status} = await fetch(`${url}/api/agent-runs/active`, {headers: {Authorization: `Bearer ${token}`}});
    return [status, performance.now() - began];
}"""
PROTOCOLS = "[...new Set(performance.getEntriesByType('resource').map((each) => each.nextHopProtocol))].join()"
STREAM = re.compile(r"/api/agent-run/[0-9a-f-]{36}/stream$")


@pytest.fixture
async def nginx(system: Deployment, tmp_path: Path) -> AsyncIterator[Nginx]:
    api = f"127.0.0.1:{system.port}"
    async with running(Nginx(tmp_path, (api, api))) as nginx:
        yield nginx


@pytest.fixture
async def trusting(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser that takes the certificate of the test."""
    context = await browser.new_context(ignore_https_errors=True)
    await context.route("**/blank", serve_blank)
    yield context
    await context.close()


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_fifty_tabs_on_one_run_starve_neither_each_other_nor_anything_else(
    client: Client, nginx: Nginx, trusting: BrowserContext, protocol: str
) -> None:
    """Over HTTP/1.1 they share a stream, as a browser opens six connections; over HTTP/2 each may have its own."""
    shared = protocol == "http/1.1"
    url = nginx.url if shared else nginx.tls_url
    tabs = [await Reader.open(trusting, url, client.token) for _ in range(TABS)]
    requests: list[Request] = []
    for tab in tabs:
        tab.page.on("request", lambda request: requests.append(request))  # playwright takes no built-in
    run = await client.initiate(model(MORE_THAN_READ))
    await asyncio.gather(*(tab.follow(run.run_id, share=shared) for tab in tabs))
    await asyncio.gather(*(tab.received(1, within=PATIENT) for tab in tabs))
    wanted = 1 if shared else TABS
    await until(lambda: connected(tabs, wanted), within=PATIENT, every=0.5, says=f"{wanted} never had the connections")
    opened = streams_of(requests)
    answers = [await tabs[-1].page.evaluate(ASK, [url, client.token]) for _ in range(ASKED)]
    took = min(took for _, took in answers)  # more is what the machine did meanwhile
    assert ({status for status, _ in answers}, took < ANSWER_MS) == ({200}, True), answers
    newest = max([(await tab.look())["cursor"] for tab in tabs])
    await asyncio.gather(*(tab.received(newest + 50, within=PATIENT) for tab in tabs))
    assert await client.stop(run.run_id) == "stopped"
    (text,) = {(await tab.ended(within=PATIENT))["text"] for tab in tabs}
    assert text
    assert text_of(MORE_THAN_READ).startswith(text)
    assert await tabs[0].page.evaluate(PROTOCOLS) == protocol
    print(f"{protocol}: {TABS} tabs, {opened} streams until they shared, another answer after {took:.0f} ms")  # noqa: T201 - a figure
    assert streams_of(requests) == opened, "tabs that shared a stream opened others"


def streams_of(requests: list[Request]) -> int:
    return sum(bool(STREAM.search(request.url)) for request in requests)
