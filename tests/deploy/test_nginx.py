"""What the shipped configuration of nginx does with requests and answers, before servers that tell what they got."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from services.settings import ApiSettings
from tests.nginx import REFUSING, Nginx, running
from tests.waiting import PATIENT, eventually

STREAM = "/api/agent-run/4b0b6a2e-0d5c-4c7e-9d5e-6a4f0f4d3c11/stream"
TOKEN_BYTES = 16 * 1024
"""As long as an access token may be (CONTRACT: its URL or its header)."""
PATIENCE_SECONDS = 5.0
"""What nginx's 75 s of a silent upstream are here."""
Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """An API process that answers as the test says; `heads` is what it was asked."""

    converse: Converse
    heads: list[dict[str, str]] = field(default_factory=list)
    address: str = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            named = (line.split(": ", 1) for line in lines)
            self.heads.append({"request": request, **{name.lower(): value for name, value in named}})
            await self.converse(reader, writer)
        writer.close()


async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """It says that it closes the connection: nginx would send its next request by one that is about to end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await writer.drain()


Start = Callable[..., Awaitable[tuple[Nginx, list[Upstream]]]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(converse)`: nginx before two such servers; None stands for one that refuses."""
    async with AsyncExitStack() as stack:

        async def start(
            *answers: Converse | None, previews: bool = False, **changes: str
        ) -> tuple[Nginx, list[Upstream]]:
            upstreams = []
            for converse in answers or (hello, hello):
                upstream = Upstream(converse or hello, address=REFUSING)
                if converse:
                    server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0)
                    stack.push_async_callback(closed, server)
                    upstream.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
                upstreams.append(upstream)
            first, second = upstreams[0].address, upstreams[-1].address
            nginx = Nginx(tmp_path, (first, second), preview=first if previews else REFUSING, changes=changes)
            return await stack.enter_async_context(running(nginx)), upstreams

        yield start


async def closed(server: asyncio.Server) -> None:
    server.close()


@pytest.fixture
async def http() -> AsyncIterator[AsyncClient]:
    async with AsyncClient(trust_env=False, verify=False, http2=True, timeout=20) as http:
        yield http


async def test_nginx_takes_the_shipped_configuration(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path, (REFUSING, REFUSING))
    nginx.write()
    said = await nginx.test()
    assert "emerg" not in said
    assert "test is successful" in said


async def test_what_a_client_says_of_its_own_address_is_not_passed_on(start: Start, http: AsyncClient) -> None:
    nginx, (first, second) = await start()
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Host": "api.example.org:8000"}
    (await http.get(f"{nginx.url}/api/health", headers=forged)).raise_for_status()
    (await http.get(f"{nginx.tls_url}/api/health", headers={"X-Request-ID": "asked-by-me"})).raise_for_status()
    plain, tls = sorted(first.heads + second.heads, key=lambda head: head["x-forwarded-proto"])
    assert (plain["x-forwarded-for"], plain["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert plain["host"] == "api.example.org:8000"
    assert tls["x-forwarded-proto"] == "https"
    assert tls["host"] == f"127.0.0.1:{nginx.tls_port}"
    assert tls["x-request-id"] == "asked-by-me"


@pytest.mark.parametrize("name", ["", "x" * 129, 'a" b', "id;drop"])
async def test_a_request_without_a_fit_name_is_given_one_which_is_in_the_log(
    start: Start, http: AsyncClient, name: str
) -> None:
    nginx, upstreams = await start()
    await http.get(f"{nginx.url}/api/health", headers={"X-Request-ID": name})
    (head,) = upstreams[0].heads + upstreams[1].heads
    assert len(head["x-request-id"]) == 32
    (line,) = await eventually(lambda: nginx.access_log)
    assert f"request_id={head['x-request-id']}" in line


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
async def test_events_come_one_by_one(start: Start, http: AsyncClient, protocol: str) -> None:
    heard = asyncio.Event()

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for n in range(3):
            writer.write(b"id: %d\ndata: {}\n\n" % n)
            await asyncio.wait_for(heard.wait(), PATIENT)
            heard.clear()

    nginx, _ = await start(speak, speak)
    url = nginx.tls_url if protocol == "HTTP/2" else nginx.url
    async with http.stream("GET", f"{url}{STREAM}") as answer:
        assert answer.http_version == protocol
        chunks = answer.aiter_raw()
        for n in range(3):
            assert await asyncio.wait_for(anext(chunks), PATIENT) == b"id: %d\ndata: {}\n\n" % n
            heard.set()
        assert [chunk async for chunk in chunks] == []


async def test_a_stream_may_be_silent_for_any_time_as_long_as_it_says_so(start: Start, http: AsyncClient) -> None:
    async def ping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(12):
            await asyncio.sleep(PATIENCE_SECONDS / 8)
            writer.write(b": ping\n\n")
        await writer.drain()

    nginx, _ = await start(ping, ping, **{"75s": f"{PATIENCE_SECONDS:.0f}s"})
    assert (await http.get(f"{nginx.tls_url}{STREAM}")).text == ": ping\n\n" * 12


async def test_a_stream_that_no_api_answers_is_told_to_come_again_since_a_browser_gives_up_on_an_error(
    start: Start, http: AsyncClient
) -> None:
    nginx, _ = await start(None)
    answer = await http.get(f"{nginx.url}{STREAM}?token=secret-of-a-stream")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.startswith("retry: 3000\n\n: ")
    (line,) = await eventually(lambda: nginx.access_log)
    assert STREAM in line
    assert "secret-of-a-stream" not in line


async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """As a process that is killed."""


@pytest.mark.parametrize("broken", [None, hang_up])
@pytest.mark.parametrize("body", [None, b"x"])
async def test_a_request_that_no_api_answers_is_503_with_when_to_come_again(
    start: Start, http: AsyncClient, body: bytes | None, broken: Converse | None
) -> None:
    nginx, _ = await start(broken)
    answer = await http.request("POST" if body else "GET", f"{nginx.url}/api/agent/initiate", content=body)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["detail"]


async def test_an_api_that_refuses_is_passed_over(start: Start, http: AsyncClient) -> None:
    nginx, (_, second) = await start(None, hello)
    for _n in range(4):
        assert (await http.post(f"{nginx.url}/api/agent/initiate", content=b"x")).status_code == 200
        assert (await http.get(f"{nginx.url}{STREAM}")).status_code == 200
    assert len(second.heads) == 8


async def test_streams_are_all_back_as_soon_as_an_api_is_although_none_of_them_ends(
    start: Start, http: AsyncClient
) -> None:
    back = asyncio.Event()

    async def speak_or_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if back.is_set():
            writer.write(STREAM_HEAD + b": here\n\n")
            await reader.read()

    nginx, _ = await start(speak_or_hang_up, speak_or_hang_up)
    for _n in range(4):
        assert (await http.get(f"{nginx.url}{STREAM}")).text.startswith("retry")
    back.set()
    async with AsyncExitStack() as streams:
        for n in range(8):
            url = f"{nginx.url}{STREAM.replace('4b0b', f'{n:04}')}"
            answer = await streams.enter_async_context(http.stream("GET", url))
            assert await anext(answer.aiter_raw()) == b": here\n\n"


async def test_bodies_and_heads_as_large_as_the_api_takes_reach_it_and_its_refusal_of_larger_ones_comes_back(
    start: Start, http: AsyncClient
) -> None:
    limits = ApiSettings()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 413 Too Large\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{"detail":""}')
        writer.write_eof()
        while await reader.read(1 << 20):
            pass

    nginx, upstreams = await start(refuse, refuse)
    token = "t" * TOKEN_BYTES
    answer = await http.post(
        f"{nginx.url}/api/agent/initiate?token={token}",
        headers={"Authorization": f"Bearer {token}"},
        content=bytes(1 << 20),
    )
    assert answer.json() == {"detail": ""}
    (head,) = upstreams[0].heads + upstreams[1].heads
    assert head["authorization"].endswith(token)
    assert await announced(nginx, limits.max_upload_bytes + (1 << 20)) == 413
    assert len(upstreams[0].heads + upstreams[1].heads) == 2, "a form of as many files as may be was not passed on"
    assert await announced(nginx, 2 * limits.max_upload_bytes) == 413
    assert len(upstreams[0].heads + upstreams[1].heads) == 2, "what no API takes was passed on"


async def announced(nginx: Nginx, size: int) -> int:
    """The status for a body of so many bytes, of which none is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
    writer.write(b"POST /api/agent/initiate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    line = await asyncio.wait_for(reader.readline(), PATIENT)
    writer.close()
    return int(line.split()[1])


async def test_the_numbers_of_a_process_are_not_for_the_world(start: Start, http: AsyncClient) -> None:
    nginx, upstreams = await start()
    for path in ("/metrics", "//metrics", "/%6detrics", "/api/../metrics"):
        assert (await http.get(f"{nginx.url}{path}")).status_code == 404
    assert not any("etrics" in head["request"] for upstream in upstreams for head in upstream.heads)


async def test_a_preview_may_become_another_protocol(start: Start) -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        writer.write(await reader.readexactly(4))
        await writer.drain()

    nginx, upstreams = await start(upgrade, upgrade, previews=True)
    reader, writer = await connect_tls(nginx)
    writer.write(b"GET / HTTP/1.1\r\nHost: label.previews.example.org\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENT)
    assert b" 101 " in head
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), PATIENT) == b"ping"
    writer.close()
    (asked,) = upstreams[0].heads
    assert (asked["host"], asked["upgrade"]) == ("label.previews.example.org", "echo")


async def connect_tls(nginx: Nginx) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", nginx.tls_port, ssl=context)
