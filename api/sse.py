"""Event streams: the tails of the process drive every reader's `send`; a task works only for one that must wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from uuid import UUID

from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.open_streams import Streams
from api.transport import Wire, wire_of
from services import metrics
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs.tail import Reader
from services.runs.tails import Tails
from services.settings import StreamSettings
from services.stream_tokens import StreamPass

HEADERS = {"Cache-Control": "no-cache, no-transform"}

SLICE_BYTES = 64 * 1024
MEDIA_TYPE = "text/event-stream"
PING = b": ping\n\n"
REFUSED = b": this stream is not yours any more\n\n"
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


def ending_comment(settings: StreamSettings, reason: str) -> Response:
    """A stream that ends at once: 200, when to come back, and why (a status would end an EventSource for good)."""
    return Response(opening(settings) + comment(reason), headers=HEADERS, media_type=MEDIA_TYPE)


def opening(settings: StreamSettings) -> bytes:
    return b"retry: %d\n\n" % int(settings.retry.total_seconds() * 1000)


def comment(reason: str) -> bytes:
    return b": %b, reconnect\n\n" % reason.encode()


class EventStream(EventSourceResponse):
    """A run's events as server-sent events, from `after` on, until the last one.

    An EventSource gives up for good on any status but 200: what ends a stream early is said in a comment.
    """

    media_type = MEDIA_TYPE

    def __init__(self, streams: Streams, admitted: StreamPass, after: int) -> None:
        super().__init__(nothing(), headers=HEADERS, ping=0)
        self.streams, self.admitted, self.after = streams, admitted, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send(END)
            return
        refusal = self.streams.refusal(self.admitted.user_id)
        body = opening(self.streams.settings) + (comment(refusal) if refusal else b"")
        await send({"type": "http.response.body", "body": body, "more_body": not refusal})
        if refusal:
            metrics.streams_refused.labels(refusal).inc()
        else:
            wire = wire_of(scope)
            wire.go_on = partial(Stream(self.streams, self.admitted, wire).serve, self.after, receive)


class Stream:
    """One open stream. Its request's task only waits for the end; what is said is written by whoever has the news."""

    __slots__ = ("admitted", "ended", "reader", "refused", "sent_at", "streams", "task", "wire")

    def __init__(self, streams: Streams, admitted: StreamPass, wire: Wire) -> None:
        self.streams, self.admitted, self.wire = streams, admitted, wire
        self.reader: Reader | None = None
        self.task: asyncio.Task[None] | None = None
        self.sent_at = streams.clock
        self.refused = False
        self.ended = False

    @property
    def run_id(self) -> UUID:
        return self.admitted.run_id

    async def serve(self, after: int, receive: Receive) -> None:
        """Until the reader or the stream is at its end."""
        wire, streams, tails = self.wire, self.streams, self.tails
        wire.expect_answers(streams.settings.send_timeout)
        wire.expect_chunks()
        streams.add(self)
        try:
            try:
                self.reader = await tails.join(self.run_id, after=after, on_news=self.on_news)
            except RedisUnreachable as error:
                self.say_store_is_away(error)
            else:
                self.on_news()
            await until_disconnected(receive, wire)
        finally:
            self.close()

    @property
    def tails(self) -> Tails:
        return self.streams.shards.of(self.run_id).tails

    def close(self) -> None:
        self.ended = True
        self.streams.discard(self)
        if self.reader:
            self.tails.leave(self.reader)
            self.reader = None  # each knows the other, and nobody should have to look for such rings
        if self.task:
            self.task.cancel()

    def on_news(self) -> None:
        """Write what the window has, at once; hand over to a task when that is not possible."""
        reader = self.reader
        if self.task or self.ended or reader is None:
            return
        while reader.behind:
            batch = reader.held()
            if batch is None or batch.size > SLICE_BYTES:
                self.work()
                return
            reader.take(batch)
            if not (self.write_chunk(batch.chunk) or self.write(batch.frames)):
                return
        if reader.finished:
            self.end()

    def write_chunk(self, chunk: bytes) -> bool:
        """Whether it was written at once, below `send`; if not, `send` has to be asked."""
        self.sent_at = self.streams.clock
        try:
            return self.wire.write_chunk(chunk)
        except (OSError, RuntimeError) as error:
            self.lose(error)
            return True

    def write(self, body: bytes, *, more: bool = True) -> bool:
        """Whether it was written at once; if not, a task waits for the reader and goes on from there."""
        rest = self.begin_send(body, more=more)
        if rest:
            self.work(rest)
        return rest is None

    def begin_send(self, body: bytes, *, more: bool) -> Awaitable[None] | None:
        self.sent_at = self.streams.clock
        try:
            return self.wire.start_send({"type": "http.response.body", "body": body, "more_body": more})
        except (OSError, RuntimeError) as error:
            self.lose(error)
            return None

    def lose(self, error: Exception) -> None:
        """Its own loss: whoever has the news goes on to the next reader."""
        logger.warning("stream.write_failed", agent_run_id=str(self.run_id), error=repr(error))
        self.ended = True
        self.wire.abort()

    def end(self, last_words: bytes = b"") -> None:
        """The server sees that the answer is complete, and `receive` tells the request's task."""
        self.ended = True
        self.write(last_words, more=False)

    def refuse(self) -> None:
        """Whoever reads may not do so any more: end the stream."""
        self.refused = True
        if not (self.task or self.ended):
            self.end(REFUSED)

    def say_store_is_away(self, error: Exception) -> None:
        logger.warning("stream.store_away", agent_run_id=str(self.run_id), error=repr(error))
        self.end(comment("the event store is away"))

    def attend(self) -> float:
        """Do what a silent stream, or one that is to end, needs; returns for how many seconds it needs nothing."""
        idle = not (self.task or self.ended)
        if idle and self.streams.draining:
            self.end(comment("the server is restarting"))
        left = self.sent_at + self.streams.ping_seconds - self.streams.clock
        if left > 0:
            return left
        if idle:
            self.write(PING)
        return self.streams.ping_seconds

    def work(self, rest: Awaitable[None] | None = None) -> None:
        self.task = self.streams.waiting.spawn(self.catch_up(rest))

    async def catch_up(self, rest: Awaitable[None] | None) -> None:
        """Bring a reader up to its tail at its own pace; from there on it needs no task."""
        try:
            if rest:
                await self.patiently(rest)
            if not self.ended and self.reader:
                await self.read_on(self.reader)
        except TooSlow:
            metrics.streams_dropped.inc()
            logger.info("stream.reader_dropped", agent_run_id=str(self.run_id))
            self.ended = True
            self.wire.abort()
        except (*RedisUnreachable, *PostgresUnreachable) as error:
            self.task = None
            self.say_store_is_away(error)
        finally:
            if self.task is asyncio.current_task():
                self.task = None

    async def read_on(self, reader: Reader) -> None:
        while reader.behind and not self.wire.closing:
            batch = await reader.fetch()
            if batch:
                await self.send_all(batch.frames)
            elif not reader.over:
                await reader.wait_for_stores()
                await self.ping_if_silent()
            if self.refused or self.streams.draining:
                break
        if self.refused:
            await self.send_last(REFUSED)
        elif reader.finished:
            await self.send_last(b"")
        elif self.streams.draining:
            await self.send_last(comment("the server is restarting"))

    async def send_all(self, frames: bytes) -> None:
        """In slices, so that a large batch is never wholly in a socket's buffer."""
        for start in range(0, len(frames), SLICE_BYTES):
            await self.send(frames[start : start + SLICE_BYTES])

    async def ping_if_silent(self) -> None:
        if self.streams.clock - self.sent_at >= self.streams.ping_seconds:
            await self.send(PING)

    async def send_last(self, words: bytes) -> None:
        self.ended = True
        await self.send(words, more=False)

    async def send(self, body: bytes, *, more: bool = True) -> None:
        rest = self.begin_send(body, more=more)
        if rest:
            await self.patiently(rest)

    async def patiently(self, rest: Awaitable[None]) -> None:
        """Wait for a reader, but not for ever: its cursor is its own. Raises: TooSlow."""
        try:
            async with asyncio.timeout(self.streams.settings.send_timeout.total_seconds()):
                await rest
        except TimeoutError:
            raise TooSlow from None


class TooSlow(Exception):
    """The reader does not read."""


async def until_disconnected(receive: Receive, wire: Wire) -> None:
    """One that sends more than a request may hold is dropped: nobody would notice when it leaves."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except HTTPException:
        wire.abort()
        await asyncio.sleep(0)  # uvicorn must see the loss before the answer ends unfinished


async def nothing() -> AsyncIterator[bytes]:
    """The content of the base class, which our own `__call__` never iterates."""
    return
    yield b""
