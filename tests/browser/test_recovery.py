"""Whatever happens in mid-stream, the page recovers by itself, with exactly the right text; slow: real durations."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import BrowserContext

from services.settings import AuthSettings
from services.tokens import sign_access_token
from tests.acceptance.client import Client, Started, until
from tests.acceptance.operators import SECRET, Deployment
from tests.browser.pages import Reader
from tests.browser.texts import model, text_of
from tests.proxy import Proxy

CUT_SECONDS = 20
RENEWING = """
async ([url, short, long]) => {
  const {Longrun} = await import(`${url}/console/longrun.js`);
  window.renewed = 0;
  window.longrun = new Longrun({url, token: ({expired}) => (expired ? ((window.renewed += 1), long) : short)});
}
"""
SHORT, LONG = 100, 1500
"""Chunks, 20 ms apart: a run that ends while the network is away, and one that goes on."""


@dataclass
class Followed:
    """A run, and two tabs that follow it, one by each transport."""

    client: Client
    run: Started
    chunks: int
    readers: list[Reader]

    @classmethod
    async def begin(cls, client: Client, context: BrowserContext, url: str, chunks: int) -> "Followed":
        run = await client.initiate(model(chunks))
        readers = []
        for transport in ("fetch", "eventsource"):
            reader = await Reader.open(context, url, client.token)
            await reader.follow(run.run_id, transport=transport, share=False)
            readers.append(reader)
        for reader in readers:
            await reader.received(20)
        return cls(client, run, chunks, readers)

    async def look(self) -> list[dict[str, Any]]:
        return [await reader.look() for reader in self.readers]

    async def are_reconnecting(self) -> bool:
        return all(seen["state"] == "reconnecting" for seen in await self.look())

    async def check_end(self) -> list[dict[str, Any]]:
        """What the tabs show at the end; it is right."""
        all_seen = [await reader.ended() for reader in self.readers]
        [stored] = [each for each in await self.client.messages(self.run.thread_id) if each["type"] == "assistant"]
        for seen in all_seen:
            assert seen["text"] == stored["content"]["content"] == text_of(self.chunks)
            assert (seen["state"], seen["status"], seen["running"]) == ("completed", "completed", False)
        return all_seen


@pytest.fixture
async def proxy(system: Deployment) -> AsyncIterator[Proxy]:
    async with Proxy(system.url) as proxy:
        yield proxy


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


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_the_api_is_restarted(
    system: Deployment, client: Client, context: BrowserContext, sign: signal.Signals
) -> None:
    followed = await Followed.begin(client, context, system.url, 500)
    api = system.api
    assert api
    api.signal(sign)
    await until(followed.are_reconnecting, within=10)
    await api.exited()
    await system.start_api()
    for seen in await followed.check_end():
        assert seen["states"][-2:] == ["streaming", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_the_worker_is_killed_or_hands_over(
    system: Deployment, client: Client, context: BrowserContext, sign: signal.Signals
) -> None:
    followed = await Followed.begin(client, context, system.url, 200)
    driver = await system.driver_of(followed.run.run_id)
    driver.signal_group(sign)
    for seen in await followed.check_end():
        assert seen["tries"] == 2
        assert seen["states"] == ["connecting", "streaming", "completed"]


@pytest.mark.slow
async def test_the_browser_is_offline(system: Deployment, client: Client, context: BrowserContext) -> None:
    both = [await Followed.begin(client, context, system.url, chunks) for chunks in (LONG, SHORT)]
    await context.set_offline(True)
    for followed in both:
        await until(followed.are_reconnecting, within=5, says="offline, and not noticed")
    await asyncio.sleep(CUT_SECONDS)
    for followed in both:
        assert await followed.are_reconnecting()
        assert all(text_of(followed.chunks).startswith(seen["text"]) for seen in await followed.look())
    await context.set_offline(False)
    await check_prompt(both)
    for followed in both:
        await followed.check_end()


@pytest.mark.slow
async def test_the_wire_is_cut(client: Client, context: BrowserContext, proxy: Proxy) -> None:
    both = [await Followed.begin(client, context, proxy.url, chunks) for chunks in (LONG, SHORT)]
    proxy.refuse()
    for followed in both:
        await until(followed.are_reconnecting, within=5, says="cut, and not noticed")
    await asyncio.sleep(CUT_SECONDS)
    for followed in both:
        assert await followed.are_reconnecting()
        assert all(seen["attempt"] > 3 for seen in await followed.look())
    proxy.restore()
    for followed in both:
        await followed.check_end()


async def check_prompt(both: list[Followed]) -> None:
    """The browser says that it is online again: nobody waits for anything else."""
    for followed in both:
        await until(lambda: is_not_reconnecting(followed), within=5, says="online again, and still waiting")  # noqa: B023 - awaited here


async def is_not_reconnecting(followed: Followed) -> bool:
    return all(seen["state"] != "reconnecting" for seen in await followed.look())


@pytest.mark.slow
async def test_the_wire_is_cut_at_any_byte(client: Client, context: BrowserContext, proxy: Proxy) -> None:
    followed = await Followed.begin(client, context, proxy.url, 400)
    for count in (1, 7, 333, 1000, 5000, 20_001):
        proxy.cut_after(count)
        await until(lambda: is_through(proxy), within=10)
    await followed.check_end()


async def is_through(proxy: Proxy) -> bool:
    return proxy.passing is None


@pytest.mark.slow
async def test_nothing_passes_and_nobody_says_so(client: Client, context: BrowserContext, proxy: Proxy) -> None:
    run = await client.initiate(model(SHORT))
    reader = await Reader.open(context, proxy.url, client.token)
    await reader.follow(run.run_id)
    await reader.received(20)
    proxy.stall()
    proxy.lose_replies()
    followed = Followed(client, run, SHORT, [reader])
    await until(followed.are_reconnecting, within=60, says="a dead connection was trusted")
    proxy.cut()
    proxy.restore()
    await followed.check_end()


@pytest.mark.slow
async def test_a_token_that_expired_meanwhile_is_renewed(system: Deployment, context: BrowserContext) -> None:
    user_id = uuid4()
    async with system.client(user_id) as client:
        reader = await Reader.open(context, system.url, client.token)
        short = sign_access_token(SECRET, user_id, lifetime=timedelta(seconds=4) - AuthSettings().leeway)
        await reader.page.evaluate(RENEWING, [system.url, short, client.token])
        run = await client.initiate(model(400))
        await reader.follow(run.run_id)
        await reader.received(20)
        await asyncio.sleep(4)
        api = system.api
        assert api
        api.signal(signal.SIGKILL)
        await api.exited()
        await system.start_api()
        seen = await reader.ended()
        assert seen["text"] == text_of(400)
        assert await reader.page.evaluate("window.renewed") == 1
