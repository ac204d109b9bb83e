"""One table of addresses that nobody may have opened from here, against everything that opens what others name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import httpcore2
import httpx2
import pytest
from httpcore2 import SOCKET_OPTION, AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from agent import pages
from agent.pages import PageUnreadable
from services import outgoing
from services.addresses import Address
from services.outgoing import ForbiddenUrl, open_guarded_client
from services.settings import McpSettings, OutgoingSettings, Settings
from tests.agent.mcp.hosts import at
from tests.agent.mcp.runs import Meeting
from tests.sites import redirect, site

GUARDED = Settings(
    mcp=McpSettings.model_validate({"connect_timeout": "20s"}), outgoing=OutgoingSettings(allow_private=False)
)
PUBLIC = "93.184.216.34"

ADDRESSES = [
    "127.0.0.1",
    "127.8.9.10",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "0.0.0.0",
    "169.254.1.1",
    "169.254.169.254",  # metadata of most clouds
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "100.64.0.1",  # carrier-grade NAT
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "0:0:0:0:0:ffff:10.0.0.1",
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",  # 6to4
    "2002:a9fe:a9fe::",
    "2001:0:7f00:1::",  # Teredo
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
]
"""Each stands in a URL, and is what a harmless name is answered with."""

NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.names.example": ["127.0.0.1"],
    "nothing.example": [],
    **{f"a{number}.example": [address] for number, address in enumerate(ADDRESSES)},
}

ENCODINGS = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0x/",
    "http://127.0.0.1./",
    "http://127。0。0。1/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://localhost./",
    "http://\uff4cocalhost/",
    "http://lo\u00adcalhost/",
    "http://ⓛocalhost/",
    "http://127%2e0%2e0%2e1/",
    "http://localhost%00.example/",
    "HTTP://127.0.0.1/",
    "hTtPs://LOCALHOST/",
    "http://[::ffff:7f00:1]:80/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[v1.fe80::1]/",
    "http://public.example@127.0.0.1/",
    "http://user:hush@public.example/",
    "http://127.0.0.1:80\\@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1#@public.example/",
    "http://127.0.0.1?@public.example/",
    "http:127.0.0.1/",
    "http:/127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://public.example:22/",
    "http://public.example:0/",
    "http://public.example\t.evil.example/",
    "http://127.0.0.1\r\nHost: public.example/",
]

OTHERS = [
    "file:///etc/passwd",
    "ftp://public.example/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ws://public.example/",
    "data:text/html,hello",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "//public.example/",
]

URLS = [
    *(f"http://{f'[{address}]' if ':' in address else address}/" for address in ADDRESSES),
    *(f"https://{name}/" for name in NAMES),
    *ENCODINGS,
    *OTHERS,
]


class Network(AsyncNetworkBackend):
    """Remembers where connections were to go; what is at the public address is a server of the test."""

    def __init__(self, port: int = 0) -> None:
        self.port, self.targets = port, list[str]()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        self.targets.append(host)
        if host != PUBLIC or not self.port:
            raise httpcore2.ConnectError("nobody is there")
        stream = await AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout)
        stream.get_extra_info = lambda info: None  # type: ignore[method-assign]  # it would show that both ends are here
        return stream


class Internet:
    """What names are answered with: the next answer each time, the last one for ever."""

    def __init__(self) -> None:
        self.network = Network()
        self.answers = {name: [addresses] for name, addresses in NAMES.items()}

    async def look_up(self, host: str, port: int) -> list[Address]:
        left = self.answers.get(host.lower(), [[PUBLIC]])
        return [ip_address(address) for address in (left.pop(0) if len(left) > 1 else left[0])]


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    internet = Internet()
    monkeypatch.setattr(outgoing, "look_up", internet.look_up)
    monkeypatch.setattr(outgoing, "AnyIOBackend", lambda: internet.network)
    return internet


@asynccontextmanager
async def serving(internet: Internet, location: str) -> AsyncIterator[None]:
    """At the public address every request is sent on to `location`."""
    async with site({path: redirect(location) for path in ("/", "/mcp", "/sse")}) as server:
        internet.network = Network(server.port)
        yield


async def reads_page(url: str) -> str:
    """Why it was refused; empty when it was not."""
    try:
        await pages.read(GUARDED, url)
    except PageUnreadable as error:
        return str(error)
    return ""


async def sends_webhook(url: str) -> str:
    try:
        async with open_guarded_client(GUARDED) as client:
            answer = await client.post(url, content=b"{}")
    except (ForbiddenUrl, httpx2.HTTPError, httpx2.InvalidURL) as error:
        return str(error) or repr(error)
    return "" if answer.is_success else "it was refused"


async def connects_server(url: str, kind: str) -> str:
    async with Meeting(GUARDED, at(url, kind)).held() as meeting:
        assert not meeting.names
        return meeting.troubles[0][1] if meeting.troubles else ""


async def connects_streamable(url: str) -> str:
    return await connects_server(url, "http")


async def connects_sse(url: str) -> str:
    return await connects_server(url, "sse")


Opens = Callable[[str], Awaitable[str]]
opens = pytest.mark.parametrize("open_url", [reads_page, sends_webhook, connects_streamable, connects_sse])


@opens
async def test_nobody_has_an_address_opened_that_is_not_public(internet: Internet, open_url: Opens) -> None:
    for url in URLS:
        async with asyncio.timeout(60):
            refusal = await open_url(url)
        assert refusal, url
        assert not internet.network.targets, url
        assert "hush" not in refusal
        if "/a" in url:  # nothing is told of what a name leads to
            assert not any(address in refusal for address in ADDRESSES if len(address) > 6), url


@opens
async def test_what_is_public_is_connected_to(internet: Internet, open_url: Opens) -> None:
    """The same table would pass where nothing works at all."""
    for url in (
        "http://public.example/",
        f"https://{PUBLIC}/",
        "HTTP://Public.Example:8080/",
        "http://münchen.example/",
    ):
        internet.network.targets.clear()
        await open_url(url)
        assert set(internet.network.targets) == {PUBLIC}, url


@opens
async def test_a_name_that_is_answered_for_anew_leads_nowhere_else(internet: Internet, open_url: Opens) -> None:
    internet.answers["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    internet.answers["mixed.example"] = [["10.0.0.1", PUBLIC, "::1"]]
    for name in ("rebinding.example", "mixed.example"):
        assert await open_url(f"http://{name}/")
    assert set(internet.network.targets) == {PUBLIC}


@opens
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "//169.254.169.254/",
        "https://localhost/",
        "http://a0.example/",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "http://user:hush@public.example/",
        "file:///etc/passwd",
        "http://public.example:22/",
    ],
)
async def test_a_redirect_leads_nowhere_inside(internet: Internet, open_url: Opens, location: str) -> None:
    async with serving(internet, location), asyncio.timeout(60):
        assert await open_url("http://public.example/")
        assert set(internet.network.targets) == {PUBLIC}
