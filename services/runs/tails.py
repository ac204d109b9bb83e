"""Following logs: one shared tail per run and process, fed by one subscription and one pipeline."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from services.background import Background, repeat, stop
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Channels
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, events, keys
from services.runs.store import Run
from services.settings import StreamSettings

READ_EVENTS = 500
EVENT_BYTES = 2048
"""How large an event is thought to be before one was seen: reads are bounded in bytes by their count."""
RETRY_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive events from id `first_id` on; `last` says that the run's last event is among them."""

    first_id: int
    events: list[bytes]
    last: bool

    @property
    def end(self) -> int:
        return self.first_id + len(self.events)

    @cached_property
    def frames(self) -> bytes:
        """The batch as server-sent events, encoded once for all readers."""
        return b"".join(
            b"id: %d\ndata: %b\n\n" % (number, data_lines(event))
            for number, event in enumerate(self.events, self.first_id)
        )

    def since(self, event_id: int) -> "Batch":
        """The part from `event_id` on; the batch itself when that is all of it."""
        skipped = event_id - self.first_id
        return self if skipped <= 0 else Batch(event_id, self.events[skipped:], self.last)


def data_lines(event: bytes) -> bytes:
    """An event that a foreign producer wrote over several lines has one `data:` for each."""
    return event if b"\n" not in event and b"\r" not in event else b"\ndata: ".join(event.splitlines())


def make_batch(first_id: int, found: list[bytes]) -> Batch:
    """A batch that ends with the last event, if that is among the events found."""
    for position, event in enumerate(found):
        if events.final_status(event):
            return Batch(first_id, found[: position + 1], True)
    return Batch(first_id, found, False)


class Tail:
    """The newest events of one run, shared by its readers in this process."""

    def __init__(self, run_id: UUID, window_bytes: int) -> None:
        self.run_id, self.window_bytes = run_id, window_bytes
        self.end: int | None = None
        """The id after the newest event seen, None before the first look."""
        self.window: deque[Batch] = deque()
        self.size = 0
        self.mean_bytes = float(EVENT_BYTES)
        self.over = False
        self.expired = False
        """Whether retention has taken all but the last event."""
        self.gone = False
        """Whether the run was deleted: what Redis still has of it is told, and nothing ends it."""
        self.readers: set[Reader] = set()
        self.heard_at = 0.0

    @property
    def read_count(self) -> int:
        """How many events to read at once: about a window's worth."""
        return max(1, min(READ_EVENTS, int(self.window_bytes / self.mean_bytes)))

    def learn(self, found: list[bytes]) -> None:
        self.mean_bytes = (self.mean_bytes + sum(map(len, found)) / len(found)) / 2

    def extend(self, batch: Batch) -> None:
        if not batch.events:
            return
        self.learn(batch.events)
        self.window.append(batch)
        self.end, self.over = batch.end, batch.last
        self.size += sum(map(len, batch.events))
        while self.size > self.window_bytes and len(self.window) > 1:
            self.size -= sum(map(len, self.window.popleft().events))
        for reader in tuple(self.readers):
            reader.wake()

    def give_up(self) -> None:
        """The run was deleted, and nobody says anything of it any more."""
        self.over = self.gone = True
        for reader in tuple(self.readers):
            reader.wake()

    def held(self, event_id: int) -> Iterator[Batch]:
        """What the window holds from `event_id` on; nothing when that is older than the window."""
        if not self.window or event_id < self.window[0].first_id:
            return
        for batch in self.window:
            if batch.end > event_id:
                yield batch.since(event_id)


def wake(tails: Iterable[Tail]) -> None:
    for reader in [reader for tail in tails for reader in tail.readers]:
        reader.wake()


async def answers_of(pipeline: Pipeline, nothing: Any) -> list[Any]:
    """The answers; `nothing` for a key that somebody has put something else for: the others are read all the same.

    Raises: redis errors when Redis cannot be asked.
    """
    answers = await pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, RedisUnreachable):
            raise answer
    refused = [answer for answer in answers if isinstance(answer, ResponseError)]
    if refused:
        logger.error("tails.unreadable", count=len(refused), error=repr(refused[0]))
    return [nothing if isinstance(answer, ResponseError) else answer for answer in answers]


class Reader:
    """One follower: a cursor and a wake-up, no buffer of its own."""

    def __init__(self, tails: "Tails", tail: Tail, cursor: int) -> None:
        self.tails, self.tail, self.cursor = tails, tail, cursor
        self.over = False
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def next(self) -> Batch | None:
        """The next events, or None when somebody woke the reader for another reason.

        Raises: redis or asyncpg errors when neither store can be read.
        """
        if self.over:
            return None
        if self.tail.over and not self.behind:
            self.over = True  # the cursor was beyond the last event
            return None
        batch = self.newest()
        if batch is None and self.behind:
            batch = await self.tails.read(self.tail, self.cursor)
            if batch is None and self.tail.gone:
                self.over = True
            elif batch is None:
                await asyncio.sleep(RETRY_SECONDS)  # Redis lost it, and it is not archived or refilled yet
        elif batch is None:
            await self.sleep()
            batch = self.newest()
        if batch:
            self.cursor, self.over = batch.end, batch.last
        return batch

    def newest(self) -> Batch | None:
        return next(self.tail.held(self.cursor), None)

    @property
    def behind(self) -> bool:
        return self.tail.end is not None and self.cursor < self.tail.end

    async def sleep(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None


class Tails:
    """All tails of a process. Follow with `follow`; nothing else is needed."""

    def __init__(self, settings: StreamSettings, redis: Redis, pool: Pool, channels: Channels) -> None:
        self.settings, self.redis, self.pool, self.channels = settings, redis, pool, channels
        self.tails: dict[UUID, Tail] = {}
        self.dirty: dict[Tail, None] = {}
        self.news = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.looks = Background()

    def open(self) -> None:
        self.tasks = [
            asyncio.create_task(repeat(self.read_marked), name="tails"),
            asyncio.create_task(repeat(self.check_silent), name="silent tails"),
        ]

    async def close(self) -> None:
        await stop(self.tasks)
        await self.looks.close()

    @asynccontextmanager
    async def follow(self, run_id: UUID, *, after: int = -1) -> AsyncIterator[Reader]:
        """A reader of the run's events with ids above `after`: subscribed first, then read, each once, in order.

        Raises: redis ConnectionError when the subscription is not confirmed.
        """
        tail = self.tails.get(run_id)
        if tail is None:
            tail = self.tails[run_id] = Tail(run_id, self.settings.window_bytes)
        reader = Reader(self, tail, after + 1)
        tail.readers.add(reader)
        try:
            async with self.channels.listen(
                keys.news(run_id), on_message=self.hear(tail), on_reset=lambda: self.mark(tail)
            ):
                self.mark(tail)
                yield reader
        finally:
            tail.readers.discard(reader)
            if not tail.readers and self.tails.get(run_id) is tail:
                del self.tails[run_id]
                self.dirty.pop(tail, None)

    def hear(self, tail: Tail) -> Callable[[bytes], None]:
        return lambda _: self.mark(tail)

    def mark(self, tail: Tail) -> None:
        self.dirty[tail] = None
        self.news.set()

    async def read_marked(self) -> None:
        """Wait for news, then read them all; what could not be read is marked again."""
        await self.news.wait()
        self.news.clear()
        tails = [tail for tail in self.dirty if tail.readers and not tail.over]
        self.dirty.clear()
        try:
            await self.read_news(tails)
        except (*RedisUnreachable, *PostgresUnreachable) as error:
            logger.warning("tails.store_unreachable", error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)
            for tail in tails:
                self.mark(tail)

    async def read_news(self, tails: list[Tail]) -> None:
        """One LRANGE for each run that has news, all in one round trip."""
        fresh = [tail for tail in tails if tail.end is None]
        if fresh:
            await self.find_ends(fresh)
        if not tails:
            return
        looks = [(tail, tail.end or 0, tail.read_count) for tail in tails]
        pipeline = self.redis.pipeline(transaction=False)
        for tail, end, count in looks:
            pipeline.lrange(keys.responses(tail.run_id), end, end + count - 1)
        now = asyncio.get_running_loop().time()
        for (tail, end, count), found in zip(looks, await answers_of(pipeline, []), strict=True):
            if found:
                tail.heard_at = now
                self.extend(tail, end, found)
            if len(found) == count:
                self.mark(tail)

    def extend(self, tail: Tail, first_id: int, found: list[bytes]) -> None:
        """Add what was read from `first_id` on, unless another look was faster."""
        if tail.end == first_id:
            tail.extend(make_batch(first_id, found))

    async def find_ends(self, tails: list[Tail]) -> None:
        """Where a tail begins: a little before the list's end; older events each reader reads for itself."""
        pipeline = self.redis.pipeline(transaction=False)
        for tail in tails:
            pipeline.llen(keys.responses(tail.run_id))
        lengths = await answers_of(pipeline, 0)
        for tail, length in zip(tails, lengths, strict=True):
            tail.end = max(length - READ_EVENTS, 0)
        self.looks.spawn(self.look_up([tail for tail, length in zip(tails, lengths, strict=True) if length == 0]))
        wake(tails)

    async def look_up(self, tails: list[Tail]) -> None:
        """What the rows say of logs that Redis does not have; beside the reading of the others, which need no row."""
        try:
            await self.check(tails)
        except PostgresUnreachable as error:
            logger.warning("tails.postgres_unreachable", error=repr(error))

    async def read(self, tail: Tail, first_id: int) -> Batch | None:
        """Events from `first_id` on for one reader that is behind the window: Redis first, else the archive."""
        found = await self.read_list(tail, first_id)
        if not found:
            found = await archive.read(self.pool, tail.run_id, first_id, blocks=1)
        if found:
            tail.learn(found)
        if not found and tail.over and not tail.gone:
            await self.check_expired(tail)
        if not found and tail.expired:
            return tail.window[-1]
        return make_batch(first_id, found) if found else None

    async def read_list(self, tail: Tail, first_id: int) -> list[bytes]:
        key, last_id = keys.responses(tail.run_id), first_id + tail.read_count - 1
        try:
            return cast(list[bytes], await self.redis.lrange(key, first_id, last_id))
        except RedisUnreachable:
            return []

    async def check_silent(self) -> None:
        """A log that is silent is looked at in the row: its news may have been lost, or Redis with all of it."""
        interval = self.settings.silence.total_seconds()
        await asyncio.sleep(interval)
        since = asyncio.get_running_loop().time() - interval
        silent = [tail for tail in self.tails.values() if not tail.over and tail.heard_at <= since]
        for tail in silent:
            self.mark(tail)
        await self.look_up(silent)

    async def check(self, tails: list[Tail]) -> None:
        """Read from the archive what it has and the list has not; when both are gone, say the end of the row."""
        if not tails:
            return
        rows = await self.pool.fetch(
            "SELECT id, archived_events, event_count, status, error FROM agent_runs WHERE id = ANY($1)",
            [tail.run_id for tail in tails],
        )
        ends = {row["id"]: row for row in rows}
        for tail in tails:
            row = ends.get(tail.run_id)
            if row is None:
                tail.give_up()
            if row and tail.end == 0 and not tail.window:
                tail.end = max(row["archived_events"] - READ_EVENTS, 0)
                wake([tail])
            while row and not tail.over and tail.end is not None and tail.end < row["archived_events"]:
                end = tail.end
                found = await archive.read(self.pool, tail.run_id, end)
                if found:
                    self.extend(tail, end, found)
                elif row["event_count"] is not None:
                    tail.expired = True
                    tail.extend(Batch(row["event_count"] - 1, [events.last_event(row["status"], row["error"])], True))
                else:
                    break

    async def check_expired(self, tail: Tail) -> None:
        """Only the row may say that events are gone: closed, and no block of it left."""
        tail.expired = (
            await self.pool.fetchval(
                """
            SELECT closed_at IS NOT NULL AND NOT EXISTS (SELECT FROM agent_run_event_blocks WHERE agent_run_id = id)
            FROM agent_runs WHERE id = $1
            """,
                tail.run_id,
            )
            is not False
        )


async def last_id(redis: Redis, run: Run) -> int | None:
    """The id of the last event of a run that has ended and said so, or None while readers may still wait for it."""
    if run.event_count is not None:
        return run.event_count - 1
    if not run.final:
        return None
    pipeline = redis.pipeline(transaction=False)
    pipeline.llen(keys.responses(run.id))
    pipeline.lindex(keys.responses(run.id), -1)
    length, newest = await pipeline.execute()
    return length - 1 if newest and events.final_status(newest) else None
