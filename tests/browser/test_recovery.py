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
from tests.browser.pages import PATIENT, Reader
from tests.fakes import Talk, Talker
from tests.proxy import Proxy

pytestmark = pytest.mark.timeout(600)
CUT_SECONDS = 20
BACK_SECONDS = 90.0
"""Longer than a page waits at most before it tries again."""
DEAD_SECONDS = 120.0
"""Longer than a page trusts a connection that says nothing."""
RENEWING = """
async ([url, short, long]) => {
  const {Longrun} = await import(`${url}/console/longrun.js`);
  window.renewed = 0;
  window.longrun = new Longrun({url, token: ({expired}) => (expired ? ((window.renewed += 1), long) : short)});
}
"""
PROMPT_MS = 1000
"""By the clock of the page between two lines of its own, with nothing to wait for."""
NOTE_WHAT_IS_ASKED = """() => {
  const ask = window.fetch;
  window.asked = [];
  window.fetch = (...given) => (asked.push(performance.now()), ask(...given));
  const Source = window.EventSource;
  window.EventSource = class extends Source {
    constructor(...given) {
      asked.push(performance.now());
      super(...given);
    }
  };
  addEventListener('online', ({timeStamp}) => (window.onlineAt ??= timeStamp));
}"""
ASKED_AFTER = "() => Math.min(...asked.filter((at) => at >= onlineAt)) - onlineAt"


@dataclass
class Followed:
    """A run, and two tabs that follow it, one by each transport."""

    client: Client
    run: Started
    talker: Talker
    readers: list[Reader]

    @classmethod
    async def begin(cls, client: Client, context: BrowserContext, url: str, talker: Talker) -> "Followed":
        readers = {transport: await Reader.open(context, url, client.token) for transport in ("fetch", "eventsource")}
        run = await client.initiate(talker.model)
        for transport, reader in readers.items():
            await reader.follow(run.run_id, transport=transport, share=False)
        for reader in readers.values():
            await reader.received(20)
        return cls(client, run, talker, list(readers.values()))

    async def look(self) -> list[dict[str, Any]]:
        return [await reader.look() for reader in self.readers]

    async def are_reconnecting(self) -> bool:
        return all(seen["state"] == "reconnecting" for seen in await self.look())

    async def are_back(self) -> bool:
        return all(seen["state"] in ("streaming", "completed") for seen in await self.look())

    async def is_driven_again(self) -> bool:
        return bool((await self.client.get(self.run.run_id))["attempt"] == 2)

    async def end_unseen(self) -> None:
        """Have the run end while no tab can know."""
        self.talker.enough()
        assert (await self.client.get(self.run.run_id, wait_seconds=60))["status"] == "completed"

    async def check_end(self) -> list[dict[str, Any]]:
        """What the tabs show at the end; it is right."""
        self.talker.enough()
        all_seen = [await reader.ended() for reader in self.readers]
        [stored] = [each for each in await self.client.messages(self.run.thread_id) if each["type"] == "assistant"]
        for seen in all_seen:
            assert seen["text"] == stored["content"]["content"] == self.talker.text
            assert (seen["state"], seen["status"], seen["running"]) == ("completed", "completed", False)
        return all_seen


@pytest.fixture
async def proxy(system: Deployment) -> AsyncIterator[Proxy]:
    async with Proxy(system.url) as proxy:
        yield proxy


async def test_an_api_that_dies_and_a_worker_that_leaves_in_mid_stream_cost_no_word(
    system: Deployment, client: Client, reader: Reader, talk: Talk
) -> None:
    talker = talk()
    run = await client.initiate(talker.model)
    await reader.follow(run.run_id)
    await reader.received(20)
    followed = Followed(client, run, talker, [reader])
    (await system.driver_of(run.run_id)).signal(signal.SIGTERM)
    await restart(system, signal.SIGKILL)
    await until(followed.is_driven_again, within=PATIENT, says="nobody took the run over")
    [seen] = await followed.check_end()
    assert "reconnecting(1)" in seen["states"]
    assert seen["tries"] == 2


async def restart(system: Deployment, sign: signal.Signals) -> None:
    api = system.api
    assert api
    api.signal(sign)
    await api.exited(within=PATIENT)
    await system.start_api()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_the_api_is_restarted(
    system: Deployment, client: Client, context: BrowserContext, talk: Talk, sign: signal.Signals
) -> None:
    followed = await Followed.begin(client, context, system.url, talk())
    api = system.api
    assert api
    api.signal(sign)
    await until(followed.are_reconnecting)
    await api.exited(within=PATIENT)
    await system.start_api()
    await until(followed.are_back, within=BACK_SECONDS, says="the tabs never came back")
    for seen in await followed.check_end():
        assert seen["states"][-2:] == ["streaming", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_the_worker_is_killed_or_hands_over(
    system: Deployment, client: Client, context: BrowserContext, talk: Talk, sign: signal.Signals
) -> None:
    followed = await Followed.begin(client, context, system.url, talk())
    driver = await system.driver_of(followed.run.run_id)
    driver.signal_group(sign)
    await until(followed.is_driven_again, within=PATIENT, says="nobody took the run over")
    for seen in await followed.check_end():
        assert seen["tries"] == 2
        assert seen["states"] == ["connecting", "streaming", "completed"]


@pytest.mark.slow
async def test_the_browser_is_offline(system: Deployment, client: Client, context: BrowserContext, talk: Talk) -> None:
    going_on, ending = both = [await Followed.begin(client, context, system.url, talk()) for _ in range(2)]
    readers = [*going_on.readers, *ending.readers]
    for reader in readers:
        await reader.page.evaluate(NOTE_WHAT_IS_ASKED)
    await context.set_offline(True)
    for followed in both:
        await until(followed.are_reconnecting, says="offline, and not noticed")
    await ending.end_unseen()
    await asyncio.sleep(CUT_SECONDS)
    for followed in both:
        assert await followed.are_reconnecting()
        assert all(followed.talker.text.startswith(seen["text"]) for seen in await followed.look())
    await context.set_offline(False)
    for followed in both:
        await until(followed.are_back, within=BACK_SECONDS, says="online again, and the tabs never came back")
    for reader in readers:
        waited = await reader.page.evaluate(ASKED_AFTER)
        assert waited <= PROMPT_MS, "the browser says that it is online again: nobody waits for anything else"
    for followed in both:
        await followed.check_end()


@pytest.mark.slow
async def test_the_wire_is_cut(client: Client, context: BrowserContext, proxy: Proxy, talk: Talk) -> None:
    both = [await Followed.begin(client, context, proxy.url, talk()) for _ in range(2)]
    proxy.refuse()
    for followed in both:
        await until(followed.are_reconnecting, says="cut, and not noticed")
    await both[1].end_unseen()
    await asyncio.sleep(CUT_SECONDS)
    for followed in both:
        assert await followed.are_reconnecting()
        assert all(seen["attempt"] > 3 for seen in await followed.look())
    proxy.restore()
    for followed in both:
        await until(followed.are_back, within=BACK_SECONDS, says="the tabs never came back")
        await followed.check_end()


@pytest.mark.slow
async def test_the_wire_is_cut_at_any_byte(client: Client, context: BrowserContext, proxy: Proxy, talk: Talk) -> None:
    followed = await Followed.begin(client, context, proxy.url, talk())
    for count in (1, 7, 333, 1000, 5000, 20_001):
        proxy.cut_after(count)
        await until(lambda: is_through(proxy), within=PATIENT)
    await followed.check_end()


async def is_through(proxy: Proxy) -> bool:
    return proxy.passing is None


@pytest.mark.slow
async def test_nothing_passes_and_nobody_says_so(
    client: Client, context: BrowserContext, proxy: Proxy, talk: Talk
) -> None:
    talker = talk()
    reader = await Reader.open(context, proxy.url, client.token)
    run = await client.initiate(talker.model)
    await reader.follow(run.run_id)
    await reader.received(20)
    proxy.stall()
    proxy.lose_replies()
    followed = Followed(client, run, talker, [reader])
    await followed.end_unseen()
    await until(followed.are_reconnecting, within=DEAD_SECONDS, says="a dead connection was trusted")
    proxy.cut()
    proxy.restore()
    await followed.check_end()


@pytest.mark.slow
async def test_a_token_that_expired_meanwhile_is_renewed(
    system: Deployment, context: BrowserContext, talk: Talk
) -> None:
    user_id, talker = uuid4(), talk()
    async with system.client(user_id) as client:
        reader = await Reader.open(context, system.url, client.token)
        short = sign_access_token(SECRET, user_id, lifetime=timedelta(seconds=4) - AuthSettings().leeway)
        await reader.page.evaluate(RENEWING, [system.url, short, client.token])
        run = await client.initiate(talker.model)
        await reader.follow(run.run_id)
        await reader.received(20)
        await asyncio.sleep(4)
        await restart(system, signal.SIGKILL)
        followed = Followed(client, run, talker, [reader])
        await until(followed.are_back, within=BACK_SECONDS, says="the tab never came back")
        await followed.check_end()
        assert await reader.page.evaluate("window.renewed") == 1
