"""What a connection may send, on a real uvicorn; how slowly, without waiting: timers are fired by hand."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any, cast

import orjson
import pytest
import uvicorn
from redis.asyncio import Redis
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from api.connections import GuardedProtocol
from services.settings import ApiSettings, Settings
from tests.api.test_sse import Server, serving
from tests.waiting import PATIENT, eventually

LIMITS = ApiSettings(
    max_url_bytes=1024, max_headers=20, max_header_bytes=4096, min_body_rate=100, body_timeout=timedelta(seconds=10)
)
SHORT = LIMITS.model_copy(update={"head_timeout": timedelta(seconds=0.5), "body_timeout": timedelta(seconds=0.5)})
HEALTH = "/api/health"
CHUNKED = "Transfer-Encoding: chunked"


def head(path: str = HEALTH, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


async def answers(server: Server, *pieces: bytes) -> tuple[list[int], str]:
    """The statuses of what is answered until the server closes, and the last one's `detail`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENT):
        said = await reader.read()
    writer.close()
    parts = said.split(b"HTTP/1.1 ")[1:]
    body = parts[-1].partition(b"\r\n\r\n")[2] if parts else b""
    return [int(part[:3]) for part in parts], orjson.loads(body).get("detail", "") if body.startswith(b"{") else ""


@pytest.fixture
async def server(settings: Settings, redis: Redis) -> AsyncIterator[Server]:
    async with serving(settings.model_copy(update={"api": LIMITS})) as server:
        yield server


@pytest.fixture
async def impatient(settings: Settings, redis: Redis) -> AsyncIterator[Server]:
    async with serving(settings.model_copy(update={"api": SHORT})) as server:
        yield server


@pytest.mark.parametrize(
    ("request_head", "status", "word"),
    [
        (head(f"{HEALTH}?x={'y' * 1100}"), 414, "URL"),
        (head(HEALTH, *(f"X-{n}: y" for n in range(30))), 431, "20 headers"),
        (head(HEALTH, f"X: {'y' * 5000}"), 431, "4096 bytes"),
        (head(HEALTH, f"{'X' * 5000}: y"), 431, "4096 bytes"),
        (b"nonsense\r\n\r\n", 400, "Invalid"),
    ],
)
async def test_a_head_that_is_too_large_is_refused_in_words(
    server: Server, request_head: bytes, status: int, word: str
) -> None:
    statuses, detail = await answers(server, request_head)
    assert statuses == [status]
    assert word in detail
    assert (await answers(server, head(HEALTH, "Connection: close")))[0] == [200]


@pytest.mark.parametrize("start", [b"GET /" + b"x" * 100, b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
async def test_of_a_head_that_never_ends_no_more_is_kept_than_the_limit(server: Server, start: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(start)
    filler = b"X: y\r\n" * 1000 if start.endswith(b"\n") else b"x" * 6000

    async def send_for_ever() -> None:
        while True:
            writer.write(filler)
            await writer.drain()

    sending = asyncio.create_task(send_for_ever())
    await eventually(lambda: sending.done() or not server.server_state.connections)
    sending.cancel()
    writer.close()
    del reader


async def test_a_request_after_a_refused_one_is_not_answered(server: Server) -> None:
    assert (await answers(server, head(HEALTH, f"X: {'y' * 5000}") + head()))[0] == [431]
    upgrade = head(HEALTH, "Connection: Upgrade", "Upgrade: websocket", f"X: {'y' * 5000}")
    assert (await answers(server, upgrade))[0] == [431]


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ((b"GET /api/he",), [408]),
        ((head()[:-2],), [408]),
        ((b"",), []),  # said nothing: a browser opens connections in advance
        ((head(), b"GET /"), [200, 408]),
        ((head("/api/threads", "Content-Length: 9", method="POST"), b"{"), [401]),  # before anybody reads its body
        ((head("/api/threads/x", "Content-Length: 9", method="PATCH"), b"{"), [408]),
        ((head("/api/threads/x", CHUNKED, method="PATCH"), b"1\r\n{\r\n"), [408]),
        ((head(HEALTH, "Content-Length: 9"),), [200]),  # answered without its body, which nobody waits for
    ],
)
async def test_what_does_not_arrive_in_time_is_refused_and_its_connection_closed(
    impatient: Server, pieces: tuple[bytes, ...], statuses: list[int]
) -> None:
    assert (await answers(impatient, *pieces))[0] == statuses
    await eventually(lambda: not impatient.server_state.connections and not impatient.server_state.tasks)


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def reads_nothing(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def connection() -> AsyncIterator[tuple[GuardedProtocol, Transport]]:
    """A connection whose application reads nothing and answers nothing."""
    config = uvicorn.Config(cast(Any, reads_nothing), log_config=None, lifespan="off")
    config.load()
    state, transport = ServerState(), Transport()
    protocol = partial(GuardedProtocol, LIMITS)(config=config, server_state=state, app_state={})
    protocol.connection_made(transport)
    yield protocol, transport
    protocol.connection_lost(None)
    for task in state.tasks:
        task.cancel()
    await asyncio.gather(*state.tasks, return_exceptions=True)


Connection = tuple[GuardedProtocol, Transport]


async def test_a_body_is_waited_for_as_long_as_it_keeps_the_pace(connection: Connection) -> None:
    protocol, transport = connection
    protocol.data_received(head(HEALTH, "Content-Length: 100000", method="POST"))
    for _ in range(3):
        protocol.data_received(b"x" * 600)
        protocol.data_received(b"x" * 400)  # 1,000 bytes in 10 s: just enough
        protocol.on_body_due()
        assert not transport.closed
    protocol.data_received(b"x" * 999)
    protocol.on_body_due()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.closed


async def test_a_body_that_waits_for_us_is_not_slow(connection: Connection) -> None:
    protocol, transport = connection
    protocol.data_received(head(HEALTH, "Content-Length: 100000", "Expect: 100-continue", method="POST"))
    protocol.on_body_due()
    assert not transport.closed, "it was not told to go on"
    protocol.cycle.waiting_for_100_continue = False
    protocol.data_received(b"x" * (HIGH_WATER_LIMIT + 1))
    for _ in range(3):
        protocol.on_body_due()
    assert not transport.closed
    protocol.flow.resume_reading()
    protocol.on_body_due()
    assert transport.closed


async def test_whole_requests_leave_no_timer(connection: Connection) -> None:
    protocol, _ = connection
    assert protocol.timer, "whoever connects must say something"
    protocol.data_received(head(HEALTH, "Content-Length: 2", method="POST") + b"{}")
    assert protocol.timer is None
    protocol.data_received(b"GET /")
    timer = protocol.timer
    assert timer
    protocol.data_received(b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert timer.cancelled()
    assert protocol.timer is None


async def test_a_head_that_comes_while_another_request_is_answered_waits_for_us(connection: Connection) -> None:
    protocol, transport = connection
    protocol.data_received(head() * 2 + b"GET /")
    assert protocol.flow.read_paused
    protocol.on_late_head()
    assert not transport.closed
    assert protocol.timer


async def test_a_stream_whose_request_never_ends_is_closed_without_another_answer(connection: Connection) -> None:
    protocol, transport = connection
    protocol.data_received(head(HEALTH, "Content-Length: 10"))
    protocol.cycle.response_started = True
    protocol.on_body_due()
    assert transport.closed
    assert not transport.written
    assert protocol.cycle.disconnected


async def test_the_end_of_a_connection_is_told_to_the_request_that_is_answered_not_only_to_the_one_behind_it(
    connection: Connection,
) -> None:
    protocol, _ = connection
    protocol.data_received(head())
    first = protocol.cycle
    protocol.data_received(head())
    assert protocol.cycle is not first
    waiting = asyncio.ensure_future(received_all(first))
    await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError())
    async with asyncio.timeout(PATIENT):
        assert await waiting == "http.disconnect"


async def received_all(cycle: Any) -> str:
    while (message := await cycle.receive())["type"] == "http.request":
        pass
    return str(message["type"])
