"""The stream of a run over a real uvicorn. Its log is written here, as any foreign producer may: RPUSH, PUBLISH new."""

import asyncio
import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast
from uuid import uuid4

import pytest
import uvicorn
from redis.asyncio import Redis
from sse_starlette.sse import AppStatus

from api.app import create_app
from api.open_streams import Streams, room_for_streams
from services.postgres import Pool
from services.settings import Settings, StreamSettings
from tests.acceptance.client import Client, Event, until
from tests.waiting import PATIENT, eventually

PING_SECONDS = 0.3
STREAMS = StreamSettings(
    ping_interval=timedelta(seconds=PING_SECONDS),
    retry=timedelta(seconds=2),
    send_timeout=timedelta(seconds=2),
    silence=timedelta(seconds=0.3),
    window_bytes=4096,
    max_streams=8,
)
PING = b": ping\n\n"
SO_ATTACH_FILTER, BPF_RETURN = 26, 0x06
LAST = {"type": "status", "status": "stopped", "message": "The run was stopped."}


class Server(uvicorn.Server):
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    """Nothing here tells uvicorn how to log: it would set the loggers of the whole process, other tests' too."""
    app = create_app(settings)
    server = Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started, within=30)
    try:
        yield server
    finally:
        server.should_exit = True
        await task


def open_streams_of(server: Server) -> Streams:
    streams: Streams = cast(Any, server.config.loaded_app).app.state.resources.streams
    return streams


@pytest.fixture
async def server(settings: Settings, redis: Redis) -> AsyncIterator[Server]:
    """No sweeper is here to say an end that could not be said in time."""
    runs = settings.runs.model_copy(update={"close_after": timedelta(seconds=30)})
    async with serving(settings.model_copy(update={"streams": STREAMS, "runs": runs})) as server:
        yield server


@pytest.fixture
async def visitor(server: Server, settings: Settings) -> AsyncIterator[Callable[[], Client]]:
    async with AsyncExitStack() as stack:

        def arrive() -> Client:
            client = Client.signed_in(server.url, settings.auth.secret.get_secret_value())
            stack.push_async_callback(client.http.aclose)
            return client

        yield arrive


@pytest.fixture
def ann(visitor: Callable[[], Client]) -> Client:
    return visitor()


@pytest.fixture
async def live(ann: Client) -> str:
    """A run that nobody drives."""
    return (await ann.initiate()).run_id


@pytest.fixture
async def ended(ann: Client) -> str:
    """A run that was stopped before it began: three events, ids 0 to 2."""
    run_id = (await ann.initiate()).run_id
    assert await ann.stop(run_id) == "stopped"
    assert [event.id for event in await ann.read(run_id)] == [0, 1, 2]
    return run_id


async def say(redis: Redis, run_id: str, *said: bytes) -> None:
    key = f"agent_run:{run_id}:responses"
    await redis.rpush(key, *said)
    await redis.expire(key, 60)
    await redis.publish(f"agent_run:{run_id}:new_response", "new")


def numbered(first: int, count: int, *, padding: int = 0) -> list[bytes]:
    return [b'{"type":"note","n":%d,"padding":"%b"}' % (n, b"x" * padding) for n in range(first, first + count)]


async def test_the_headers_keep_proxies_from_holding_a_stream_back(ann: Client, live: str) -> None:
    async with ann.stream(live) as stream:
        headers = stream.response.headers
        assert stream.status == 200
        assert headers["Content-Type"].split(";")[0] == "text/event-stream"
        assert headers["Cache-Control"] == "no-cache, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in headers


async def test_an_event_is_id_and_data_and_retry_is_said_once_and_first(ann: Client, live: str, redis: Redis) -> None:
    await say(redis, live, *numbered(0, 2))
    async with ann.http.stream("GET", f"/agent-run/{live}/stream") as response:
        body = b""
        async for data in response.aiter_raw():
            body += data
            if b"id: 1" in body and body.endswith(PING):
                break
    first, second = numbered(0, 2)
    said = b"retry: 2000\n\nid: 0\ndata: %b\n\nid: 1\ndata: %b\n\n" % (first, second)
    assert body.replace(PING, b"") == said


async def test_a_foreign_event_of_several_lines_stays_one_event(ann: Client, live: str, redis: Redis) -> None:
    await say(redis, live, b'{"type":\n"note"}')
    async with ann.http.stream("GET", f"/agent-run/{live}/stream") as response:
        body = b""
        async for data in response.aiter_raw():
            body += data
            if b"note" in body:
                break
    assert b'id: 0\ndata: {"type":\ndata: "note"}\n\n' in body


async def test_events_are_told_as_they_come(ann: Client, live: str, redis: Redis) -> None:
    async with ann.stream(live) as stream:
        for number in range(5):
            await say(redis, live, *numbered(number, 1))
            assert await stream.take(1) == [Event(number, numbered(number, 1)[0])]


async def test_a_silent_stream_is_pinged_and_a_busy_one_is_not(ann: Client, live: str, redis: Redis) -> None:
    async with ann.stream(live) as stream:
        moments = []
        for number in range(10):
            await say(redis, live, *numbered(number, 1))
            await stream.take(1)
            moments.append(asyncio.get_running_loop().time())
            await asyncio.sleep(PING_SECONDS / 6)
        silences = [later - earlier for earlier, later in pairwise(moments)]
        assert len(stream.comments) <= sum(round(silence / PING_SECONDS) for silence in silences)
        listening = asyncio.ensure_future(stream.take(1))
        await eventually(lambda: stream.comments[:3] == ["ping"] * 3)
        await say(redis, live, *numbered(10, 1))
        assert [event.id for event in await listening] == [10]


@pytest.mark.parametrize("cursor", [0, 1, 7])
async def test_only_what_comes_after_the_cursor_is_told_and_zero_is_a_cursor(
    ann: Client, live: str, redis: Redis, cursor: int
) -> None:
    await say(redis, live, *numbered(0, 10))
    async with ann.stream(live, cursor) as stream:
        assert [event.id for event in await stream.take(9 - cursor)] == list(range(cursor + 1, 10))
    async with ann.http.stream("GET", f"/agent-run/{live}/stream", params={"last_event_id": cursor}) as response:
        async for data in response.aiter_raw():
            if b"id: " in data:
                assert b"id: %d\n" % (cursor + 1) in data
                assert b"id: %d\n" % cursor not in data
                break


async def test_the_header_wins_over_the_query_of_a_reconnect(ann: Client, live: str, redis: Redis) -> None:
    await say(redis, live, *numbered(0, 10))
    headers, params = {"Last-Event-ID": "7"}, {"last_event_id": "2"}
    async with ann.http.stream("GET", f"/agent-run/{live}/stream", headers=headers, params=params) as response:
        async for data in response.aiter_raw():
            if b"id: " in data:
                assert data.startswith(b"id: 8\n")
                break


@pytest.mark.parametrize("cursor", ["-1", "abc", "1.5", "1e3", " ", "0x1", "9" * 40, "1,2"])
async def test_a_malformed_cursor_is_422(ann: Client, live: str, cursor: str) -> None:
    path = f"/agent-run/{live}/stream"
    answers = [await ann.http.get(path, params={"last_event_id": cursor})]
    if cursor.strip():
        answers.append(await ann.http.get(path, headers={"Last-Event-ID": cursor}))
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert "id of an event" in answer.json()["detail"][0]["msg"]


async def test_a_cursor_past_the_end_of_a_live_log_waits(ann: Client, live: str, redis: Redis) -> None:
    await say(redis, live, *numbered(0, 3))
    async with ann.stream(live, 5) as stream:
        first = asyncio.ensure_future(stream.take(1))
        await eventually(lambda: stream.comments)
        await say(redis, live, *numbered(3, 3))
        await eventually(lambda: len(stream.comments) > 1)
        assert not first.done()
        await say(redis, live, *numbered(6, 2))
        assert [event.id for event in await first] == [6]


@pytest.mark.parametrize("cursor", [2, 3, 10**17])
async def test_at_or_past_the_last_event_of_an_ended_run_there_is_no_content(
    ann: Client, ended: str, cursor: int
) -> None:
    answer = await ann.http.get(f"/agent-run/{ended}/stream", headers={"Last-Event-ID": str(cursor)})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("cursor", [None, 0, 1])
async def test_the_server_closes_after_the_last_event(ann: Client, ended: str, cursor: int | None) -> None:
    events = await ann.read(ended, cursor)
    assert [event.id for event in events] == list(range(0 if cursor is None else cursor + 1, 3))
    assert events[-1].said == LAST


async def test_a_reader_that_is_there_sees_the_end_and_the_server_closes(ann: Client, live: str) -> None:
    async with ann.stream(live) as stream:
        reading = asyncio.ensure_future(stream.rest())
        await ann.stop(live)
        events = await reading
    assert events[-1].final == "stopped"
    assert [event.final for event in events[:-1]] == [None, None]


async def test_after_redis_forgot_it_the_log_comes_from_the_archive(
    ann: Client, ended: str, redis: Redis, pool: Pool
) -> None:
    events = await ann.read(ended)
    await eventually(lambda: pool.fetchval("SELECT closed_at FROM agent_runs"))
    await redis.flushdb()
    assert await ann.read(ended) == events
    assert await ann.read(ended, 1) == events[2:]


async def test_after_retention_only_the_last_event_is_left_with_its_id(
    ann: Client, ended: str, redis: Redis, pool: Pool
) -> None:
    events = await ann.read(ended)
    await eventually(lambda: pool.fetchval("SELECT closed_at FROM agent_runs"))
    await pool.execute("DELETE FROM agent_run_event_blocks")
    await redis.flushdb()
    assert await ann.read(ended) == events[2:]
    assert await ann.read(ended, 1) == events[2:]
    assert await ann.read(ended, 2) == []


async def test_the_run_of_somebody_else_and_one_that_does_not_exist_look_the_same(
    ann: Client, visitor: Callable[[], Client], live: str
) -> None:
    bob = visitor()
    theirs = await bob.http.get(f"/agent-run/{live}/stream")
    nobodys = await bob.http.get(f"/agent-run/{uuid4()}/stream")
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content


async def test_a_token_in_the_url_opens_a_stream(ann: Client, ended: str) -> None:
    token = ann.http.headers.pop("Authorization").removeprefix("Bearer ")
    path = f"/agent-run/{ended}/stream"
    assert (await ann.http.get(path, params={"token": token})).text.count("id: ") == 3
    for refused in (await ann.http.get(path), await ann.http.get(path, params={"token": f"{token}x"})):
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"


async def test_readers_that_join_while_events_pour_in_miss_none(ann: Client, live: str, redis: Redis) -> None:
    total = 2000

    async def pour() -> None:
        for first in range(0, total, 10):
            await say(redis, live, *numbered(first, 10, padding=100))
            await asyncio.sleep(0)

    async def join(delay: float) -> list[int]:
        await asyncio.sleep(delay)
        async with ann.stream(live) as stream:
            return [event.id for event in await stream.take(total)]

    *logs, _ = await asyncio.gather(*(join(0.02 * number) for number in range(8)), pour())
    assert logs == [list(range(total))] * 8


async def test_readers_of_a_run_share_one_subscription_which_goes_with_the_last(
    ann: Client, live: str, redis: Redis
) -> None:
    channel = f"agent_run:{live}:new_response"
    await say(redis, live, *numbered(0, 1))
    async with AsyncExitStack() as stack:
        for _ in range(5):
            stream = await stack.enter_async_context(ann.stream(live))
            await stream.take(1)
        assert await redis.pubsub_numsub(channel) == [(channel.encode(), 1)]

    async def left() -> bool:
        return await redis.pubsub_numsub(channel) == [(channel.encode(), 0)]

    await until(left)


async def test_readers_of_a_run_share_its_reads_and_need_no_task_once_they_have_caught_up(
    server: Server, ann: Client, live: str, redis: Redis
) -> None:
    open_streams = open_streams_of(server)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(ann.stream(live)) for _ in range(STREAMS.max_streams)]
        await say(redis, live, *numbered(0, 1))
        await asyncio.gather(*(stream.take(1) for stream in streams))
        await eventually(lambda: len(open_streams.open_streams) == STREAMS.max_streams)
        await redis.config_resetstat()
        for number in range(1, 21):
            await say(redis, live, *numbered(number, 1))
            await asyncio.gather(*(stream.take(1) for stream in streams))
        reads = (await redis.info("commandstats"))["cmdstat_lrange"]["calls"]
        assert reads < 2 * 20, "about one for each event (and one now and then, to be sure)"
        assert not open_streams.waiting.tasks
        assert all(stream.wire.cycle for stream in open_streams.open_streams), "chunks could be written directly"


async def test_too_many_streams_are_told_to_come_again_and_find_room_later(
    ann: Client, live: str, redis: Redis
) -> None:
    await say(redis, live, *numbered(0, 1))
    async with AsyncExitStack() as stack:
        for _ in range(STREAMS.max_streams):
            await (await stack.enter_async_context(ann.stream(live))).take(1)
        async with ann.stream(live) as refused:
            assert refused.status == 200
            assert await refused.rest() == []
            assert refused.parser.retries == [2000]
            assert refused.comments == ["too many streams on this server, reconnect"]

    async def welcome() -> bool:
        async with ann.stream(live) as stream:
            return bool(await stream.take(1))

    await until(welcome)


async def test_a_user_with_too_many_streams_is_told_to_come_again_and_others_are_not(
    settings: Settings, redis: Redis
) -> None:
    most = 2
    streams = STREAMS.model_copy(update={"max_streams_per_user": most})
    async with serving(settings.model_copy(update={"streams": streams})) as server, AsyncExitStack() as stack:
        secret = settings.auth.secret.get_secret_value()
        ann, bob = [await stack.enter_async_context(Client.signed_in(server.url, secret)) for _ in range(2)]
        mine, his = (await ann.initiate()).run_id, (await bob.initiate()).run_id
        for run_id in (mine, his):
            await say(redis, run_id, *numbered(0, 1))
        async with AsyncExitStack() as open_ones:
            for _ in range(most):
                await (await open_ones.enter_async_context(ann.stream(mine))).take(1)
            async with ann.stream(mine) as refused:
                assert refused.status == 200
                assert await refused.rest() == []
                assert refused.comments == ["too many streams of yours on this server, reconnect"]
            async with bob.stream(his) as welcome:
                assert await welcome.take(1)

        async def has_room() -> bool:
            async with ann.stream(mine) as stream:
                return bool(await stream.take(1))

        await until(has_room)
    await eventually(lambda: not open_streams_of(server).of_users)


async def test_a_draining_server_ends_streams_with_a_comment_and_opens_none(
    ann: Client, live: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(redis, live, *numbered(0, 1))
    async with ann.stream(live) as stream:
        await stream.take(1)
        monkeypatch.setattr(AppStatus, "should_exit", True)
        assert await stream.rest() == []
        assert stream.comments[-1] == "the server is restarting, reconnect"
    async with ann.stream(live, 0) as refused:
        assert (refused.status, await refused.rest()) == (200, [])
        assert refused.comments == ["the server is restarting, reconnect"]


@asynccontextmanager
async def asleep(server: Server, ann: Client, run_id: str, headers: str = "") -> AsyncIterator[socket.socket]:
    """A reader that asks for a stream and does not read it, as a phone whose lid is shut."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sleeper.setblocking(False)
        await loop.sock_connect(sleeper, ("127.0.0.1", server.port))
        head = f"GET /api/agent-run/{run_id}/stream HTTP/1.1\r\nHost: x\r\n{headers}"
        await loop.sock_sendall(sleeper, f"{head}Authorization: {ann.http.headers['Authorization']}\r\n\r\n".encode())
        yield sleeper


async def test_a_reader_that_does_not_read_is_dropped_and_its_cursor_still_holds(
    server: Server, ann: Client, live: str, redis: Redis
) -> None:
    count, padding = 20_000, 1000
    for first in range(0, count, 500):
        await say(redis, live, *numbered(first, 500, padding=padding))
    async with asleep(server, ann, live) as sleeper:
        async with ann.stream(live) as other:
            assert len(await other.take(count)) == count, "one that reads is not held up"
        await eventually(lambda: not open_streams_of(server).open_streams, says="one that does not read is kept")
        told = 0
        with suppress(ConnectionResetError):
            async with asyncio.timeout(PATIENT):
                while data := await asyncio.get_running_loop().sock_recv(sleeper, 1 << 20):
                    told += len(data)
    assert told < count * padding, "it was told everything: it was not slow"
    async with ann.stream(live, count - 2) as stream:
        assert [event.id for event in await stream.take(1)] == [count - 1]


async def test_a_reader_that_was_dropped_costs_no_connection(
    server: Server, ann: Client, live: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for first in range(0, 20_000, 500):
        await say(redis, live, *numbered(first, 500, padding=1000))
    await ann.http.aclose()
    async with asleep(server, ann, live):
        await eventually(lambda: server.server_state.connections, says="it did not connect")
        await eventually(lambda: not server.server_state.connections, says="a reader that sleeps keeps its connection")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def vanish(connection: socket.socket) -> None:
    """Acknowledge nothing from now on, and say nothing: the peer of a cut cable (socket(7), SO_ATTACH_FILTER)."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


async def test_a_reader_that_vanished_without_a_word_is_dropped(server: Server, ann: Client, live: str) -> None:
    await ann.http.aclose()
    async with asleep(server, ann, live) as sleeper:
        assert await asyncio.get_running_loop().sock_recv(sleeper, 1 << 16)
        vanish(sleeper)
        assert server.server_state.connections
        await eventually(lambda: not server.server_state.connections, says="a vanished reader is kept")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_reader_that_vanished_is_gone_within_a_minute(settings: Settings, ann: Client, live: str) -> None:
    """With the durations that an operator gets."""
    async with serving(settings) as server, asleep(server, ann, live) as sleeper:
        assert await asyncio.get_running_loop().sock_recv(sleeper, 1 << 16)
        vanish(sleeper)
        await eventually(lambda: not server.server_state.connections, within=60, says="a vanished reader is kept")


@pytest.mark.parametrize(("open_files", "streams"), [(1024, 822), (20_000, 17_900), (65_536, 58_883)])
def test_some_of_the_files_that_may_be_open_are_kept_for_everything_else(open_files: int, streams: int) -> None:
    assert room_for_streams(open_files) == streams


async def test_a_slow_reader_costs_no_more_than_a_slice_and_delays_nobody(settings: Settings, redis: Redis) -> None:
    """It is kept for longer than the other is waited for."""
    streams = STREAMS.model_copy(update={"send_timeout": timedelta(minutes=5)})
    async with serving(settings.model_copy(update={"streams": streams})) as server, AsyncExitStack() as stack:
        ann = await stack.enter_async_context(Client.signed_in(server.url, settings.auth.secret.get_secret_value()))
        live = (await ann.initiate()).run_id
        await stack.enter_async_context(asleep(server, ann, live))
        other = await stack.enter_async_context(ann.stream(live))
        for first in range(0, 4000, 100):
            await say(redis, live, *numbered(first, 100, padding=1000))
            async with asyncio.timeout(PATIENT):
                assert len(await other.take(100)) == 100
            held = [protocol.transport.get_write_buffer_size() for protocol in server.server_state.connections]
            assert max(held) < 512 * 1024


async def test_a_reader_that_sends_more_than_a_request_may_hold_is_dropped(
    server: Server, ann: Client, live: str, redis: Redis
) -> None:
    channel = f"agent_run:{live}:new_response"
    async with asleep(server, ann, live, "Content-Length: 2000000\r\n"):
        await asyncio.sleep(PING_SECONDS)

    async def left() -> bool:
        return await redis.pubsub_numsub(channel) == [(channel.encode(), 0)]

    await until(left)
