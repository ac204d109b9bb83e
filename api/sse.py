"""The event-stream response: one shared tail per run and process, no task that only waits, bounded sends."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.transport import abort
from services.background import repeat, stop
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs.shards import Shards
from services.runs.store import Run
from services.runs.tails import Reader
from services.settings import StreamSettings
from services.stream_tokens import StreamPass

TICK_SECONDS = 0.25
HEADERS = {"Cache-Control": "no-cache, no-transform"}

SLICE_BYTES = 256 * 1024
MEDIA_TYPE = "text/event-stream"


def ending_comment(settings: StreamSettings, reason: str) -> Response:
    """A stream that ends at once: 200, when to come back, and why (a status would end an EventSource for good)."""
    return Response(
        opening(settings) + b": %b, reconnect\n\n" % reason.encode(), headers=HEADERS, media_type=MEDIA_TYPE
    )


def opening(settings: StreamSettings) -> bytes:
    return b"retry: %d\n\n" % int(settings.retry.total_seconds() * 1000)


class Streams:
    """All open streams of a process: their number is bounded, one ticker pings them and ends them at a drain."""

    def __init__(self, settings: StreamSettings, shards: Shards) -> None:
        self.settings, self.shards = settings, shards
        self.open_streams: set[EventStream] = set()
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.create_task(repeat(self.tick), name="streams")

    async def close(self) -> None:
        await stop([self.task] if self.task else [])

    @property
    def draining(self) -> bool:
        """Set by sse-starlette's hook in uvicorn's signal handler: the lifespan's end comes too late (TRAPS 37)."""
        return AppStatus.should_exit

    @property
    def full(self) -> bool:
        return len(self.open_streams) >= self.settings.max_streams

    async def tick(self) -> None:
        """A moment later, wake the streams that are due for a ping, or all of them at a drain."""
        await asyncio.sleep(TICK_SECONDS)
        due = asyncio.get_running_loop().time() - self.settings.ping_interval.total_seconds()
        for stream in tuple(self.open_streams):
            if self.draining or stream.sent_at <= due:
                stream.wake()


class EventStream(EventSourceResponse):
    """A run's events as server-sent events, from `after` on, until the last one.

    An EventSource gives up for good on any status but 200: what ends a stream early is said in a comment.
    """

    def __init__(self, streams: Streams, run: Run, after: int, admitted: StreamPass) -> None:
        super().__init__(nothing(), headers=HEADERS, ping=0)
        self.streams, self.run, self.after, self.admitted = streams, run, after, admitted
        self.sent_at = 0.0
        self.gone = False
        self.dropped = False
        self.refused = False
        self.reader: Reader | None = None

    def refuse(self) -> None:
        """Whoever reads may not do so any more: end the stream."""
        self.refused = True
        self.wake()

    def wake(self) -> None:
        if self.reader:
            self.reader.wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            await self.speak(receive, send)
        if self.dropped:
            await abort(scope)
        elif not self.gone:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def speak(self, receive: Receive, send: Send) -> None:
        await self.write(send, opening(self.streams.settings))
        if self.streams.draining or self.streams.full:
            reason = b"the server is restarting" if self.streams.draining else b"too many streams on this server"
            await self.write(send, b": %b, reconnect\n\n" % reason)
            return
        self.streams.open_streams.add(self)
        listener = asyncio.create_task(self.notice_disconnect(receive))
        try:
            await self.follow(send)
        except (*RedisUnreachable, *PostgresUnreachable) as error:
            logger.warning("stream.store_away", run_id=str(self.run.id), error=repr(error))
            await self.write(send, b": the event store is away, reconnect\n\n")
        finally:
            listener.cancel()
            self.streams.open_streams.discard(self)

    async def follow(self, send: Send) -> None:
        async with self.streams.shards.of(self.run.id).tails.follow(self.run.id, after=self.after) as reader:
            self.reader = reader
            while not (self.gone or reader.over):
                batch = await reader.next()
                if self.refused:
                    await self.write(send, b": this stream is not yours any more\n\n")
                    return
                if batch:
                    await self.write_all(send, batch.frames)
                if self.streams.draining and not reader.over:
                    await self.write(send, b": the server is restarting, reconnect\n\n")
                    return
                if not batch and self.silent:
                    await self.write(send, b": ping\n\n")

    @property
    def silent(self) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self.sent_at >= self.streams.settings.ping_interval.total_seconds()

    async def write_all(self, send: Send, frames: bytes) -> None:
        """In slices, so that a large batch is never wholly in a socket's buffer."""
        for start in range(0, len(frames), SLICE_BYTES):
            if not self.gone:
                await self.write(send, frames[start : start + SLICE_BYTES])

    async def write(self, send: Send, data: bytes) -> None:
        """Send within the time limit; a reader that does not read is dropped, its cursor is its own."""
        try:
            async with asyncio.timeout(self.streams.settings.send_timeout.total_seconds()):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            logger.info("stream.reader_dropped", run_id=str(self.run.id))
            self.gone = self.dropped = True
        self.sent_at = asyncio.get_running_loop().time()

    async def notice_disconnect(self, receive: Receive) -> None:
        """One that sends more than a request may hold is dropped: nobody would notice when it leaves."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except HTTPException:
            self.dropped = True
        self.gone = True
        self.wake()


async def nothing() -> AsyncIterator[bytes]:
    """The content of the base class, which our own `__call__` never iterates."""
    return
    yield b""
