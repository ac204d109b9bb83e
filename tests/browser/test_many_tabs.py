"""Fifty tabs of one person on one run, through nginx with the shipped configuration."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext

from tests.acceptance.client import Client, until
from tests.acceptance.operators import Deployment
from tests.browser.conftest import serve_blank
from tests.browser.pages import Reader
from tests.browser.texts import model, text_of
from tests.nginx import Nginx, running

TABS = 50
CHUNKS = 600
MOST_STREAMS = 10
"""Of tabs that share: one has the stream, and a few that came before they heard of it."""
ANSWER_MS = 5 * 1000
PATIENT = 60.0
ASK = """async ([url, token]) => {
    const began = performance.now();
    const {status} = await fetch(`${url}/api/agent-runs/active`, {headers: {Authorization: `Bearer ${token}`}});
    return [status, performance.now() - began];
}"""
PROTOCOLS = "[...new Set(performance.getEntriesByType('resource').map((each) => each.nextHopProtocol))].join()"
STREAMED = re.compile(r'"GET /api/agent-run/[0-9a-f-]{36}/stream" ')


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


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_fifty_tabs_on_one_run_starve_neither_each_other_nor_anything_else(
    client: Client, nginx: Nginx, trusting: BrowserContext, protocol: str
) -> None:
    """Over HTTP/1.1 they share a stream, as a browser opens six connections; over HTTP/2 each may have its own."""
    shared = protocol == "http/1.1"
    url = nginx.url if shared else nginx.tls_url
    tabs = [await Reader.open(trusting, url, client.token) for _ in range(TABS)]
    run = await client.initiate(model(CHUNKS))
    await asyncio.gather(*(tab.follow(run.run_id, share=shared) for tab in tabs))
    await asyncio.gather(*(tab.received(1, within=PATIENT) for tab in tabs))
    assert (await client.get(run.run_id))["status"] == "running"
    status, took = await tabs[-1].page.evaluate(ASK, [url, client.token])
    assert (status, took < ANSWER_MS) == (200, True), took
    texts = {(await tab.ended(within=PATIENT))["text"] for tab in tabs}
    assert texts == {text_of(CHUNKS)}
    assert await tabs[0].page.evaluate(PROTOCOLS) == protocol
    await until(lambda: logged(nginx), says="nginx logged no stream")
    streams = sum(bool(STREAMED.search(line)) for line in nginx.access_log)
    print(f"{protocol}: {TABS} tabs, {streams} streams, another answer after {took:.0f} ms")  # noqa: T201 - a figure
    assert streams <= MOST_STREAMS if shared else streams >= TABS


async def logged(nginx: Nginx) -> bool:
    return any(STREAMED.search(line) for line in nginx.access_log)
