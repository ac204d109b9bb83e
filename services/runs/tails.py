"""Following logs: one shared tail per run and process, fed by one subscription and one round trip for all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.background import Background, repeat, stop
from services.channels import Channels
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Client
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, events, keys
from services.runs.batches import Batch, make_batch
from services.runs.tail import READ_EVENTS, RETRY_SECONDS, Reader, Tail, Windows
from services.settings import StreamSettings

TOLD_AT_ONCE = 1024
"""How many readers are told before the loop does something else: about 16 ms, which each step of a request may wait."""
LOOKED_AT_ONCE = 200
READ_BACK_BYTES = 64 * 1024
"""How much one that is behind reads at once: thousands of them may be slow at the same time."""
READ_BACK_AT_ONCE = 4
LOOKED_UP_AT_ONCE = 500
LOOK_UP_SECONDS = 0.02
SHORT_LIST = 16
"""A list with fewer events is read in the round trip that asks for its length."""


class Tails:
    """All tails of a process. Follow with `follow`, or with `join` and `leave`; nothing else is needed."""

    def __init__(self, settings: StreamSettings, redis: Client, pool: Pool, channels: Channels) -> None:
        self.settings, self.redis, self.pool, self.channels = settings, redis, pool, channels
        self.windows = Windows(settings.window_bytes, settings.windows_bytes)
        self.tails: dict[UUID, Tail] = {}
        self.dirty: dict[Tail, None] = {}
        self.news = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.looks = Background()
        self.reads = asyncio.Semaphore(READ_BACK_AT_ONCE)

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
        """`join` for the length of the block."""
        reader = await self.join(run_id, after=after)
        try:
            yield reader
        finally:
            self.leave(reader)

    async def join(self, run_id: UUID, *, after: int = -1, on_news: Callable[[], None] | None = None) -> Reader:
        """A reader of the run's events with ids above `after`: subscribed first, then read, each once, in order.

        Whoever joins must leave. Raises: redis ConnectionError when the subscription is not confirmed.
        """
        tail = self.tails.get(run_id)
        if tail is None:
            tail = self.tails[run_id] = Tail(run_id, self.windows, self.mark)
        reader = Reader(tail, after + 1, self.read, on_news)
        tail.readers.add(reader)
        try:
            await self.channels.add(keys.news(run_id), tail.listener)
        except BaseException:
            self.leave(reader)
            raise
        self.mark(tail)
        return reader

    def leave(self, reader: Reader) -> None:
        tail = reader.tail
        tail.readers.discard(reader)
        if not tail.readers and self.tails.get(tail.run_id) is tail:
            del self.tails[tail.run_id]
            self.dirty.pop(tail, None)
            self.windows.forget(tail)
            self.channels.remove(keys.news(tail.run_id), tail.listener)
            del tail.listener  # each knows the other

    def mark(self, tail: Tail) -> None:
        self.dirty[tail] = None
        self.news.set()

    def tell(self, tail: Tail) -> None:
        """Wake all readers of a tail; many of them in slices, beside everything else."""
        if len(tail.readers) <= TOLD_AT_ONCE:
            for reader in tuple(tail.readers):
                reader.wake()
            return
        tail.untold = True
        if not tail.telling:
            tail.telling = True
            self.looks.spawn(self.tell_in_slices(tail))

    async def tell_in_slices(self, tail: Tail) -> None:
        while tail.untold:
            tail.untold = False
            for count, reader in enumerate(tuple(tail.readers), 1):
                reader.wake()
                if count % TOLD_AT_ONCE == 0:
                    await asyncio.sleep(0)
        tail.telling = False

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
        """One LRANGE for each run that has news, all of them (or as many as memory should hold) in one round trip."""
        fresh = [tail for tail in tails if tail.end is None]
        begun: set[Tail] = set()
        for first in range(0, len(fresh), LOOKED_AT_ONCE):
            begun |= await self.begin(fresh[first : first + LOOKED_AT_ONCE])
        others = [tail for tail in tails if tail not in begun]
        for first in range(0, len(others), LOOKED_AT_ONCE):
            await self.read_lists(others[first : first + LOOKED_AT_ONCE])

    async def read_lists(self, tails: list[Tail]) -> None:
        looks = [(tail, tail.end or 0, tail.count_in(self.settings.window_bytes)) for tail in tails]
        answers = await self.ask([("LRANGE", tail.key, end, end + count - 1) for tail, end, count in looks], [])
        now = asyncio.get_running_loop().time()
        for (tail, end, count), found in zip(looks, answers, strict=True):
            if found:
                self.take(tail, end, found, count, now)

    async def ask(self, commands: Sequence[tuple[str | int, ...]], nothing: Any) -> list[Any]:
        """The answers; `nothing` for a key that somebody has put something else for: the others are read all the same.

        Raises: redis errors when Redis cannot be asked.
        """
        answers = await self.redis.ask(commands)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if not errors:
            return answers
        for error in errors:
            if isinstance(error, RedisUnreachable):
                raise error
        refused = [error for error in errors if isinstance(error, ResponseError)]
        logger.error("tails.unreadable", count=len(refused), error=repr(refused[0]))
        return [nothing if isinstance(answer, ResponseError) else answer for answer in answers]

    def extend(self, tail: Tail, first_id: int, found: list[bytes]) -> None:
        """Add what was read from `first_id` on; if another look was faster, read again what it may not have seen."""
        if tail.end != first_id:
            self.mark(tail)
            return
        tail.extend(make_batch(first_id, found))
        self.tell(tail)
        tail.forget_if_told()

    async def begin(self, tails: list[Tail]) -> set[Tail]:
        """Where a tail begins: a little before the list's end; older events each reader reads for itself.

        Returns those whose lists are so short that they came along.
        """
        looks = [look for tail in tails for look in (("LLEN", tail.key), ("LRANGE", tail.key, 0, SHORT_LIST - 1))]
        answers = iter(await self.ask(looks, None))
        begun = [(tail, length or 0, found or []) for tail, length, found in zip(tails, answers, answers, strict=True)]
        now = asyncio.get_running_loop().time()
        for tail, length, found in begun:
            tail.end = max(length - READ_EVENTS, 0)
            if found and length < SHORT_LIST:
                self.take(tail, 0, found, SHORT_LIST, now)
            else:
                self.tell(tail)
        self.looks.spawn(self.look_up_later([tail for tail, length, _ in begun if length == 0]))
        return {tail for tail, length, _ in begun if length < SHORT_LIST}

    def take(self, tail: Tail, first_id: int, found: list[bytes], most: int, now: float) -> None:
        """Events from `first_id` on; as many as were asked for are perhaps not all."""
        tail.heard_at = now
        self.extend(tail, first_id, found)
        if len(found) == most:
            self.mark(tail)

    async def look_up_later(self, tails: list[Tail]) -> None:
        """Of most of them the first event is on its way: whoever opens a stream has just seen the row."""
        await asyncio.sleep(LOOK_UP_SECONDS)
        await self.look_up([tail for tail in tails if tail.readers and not tail.end])

    async def look_up(self, tails: list[Tail]) -> None:
        """What the rows say of logs that Redis does not have; beside the reading of the others, which need no row."""
        try:
            for first in range(0, len(tails), LOOKED_UP_AT_ONCE):
                await self.check(tails[first : first + LOOKED_UP_AT_ONCE])
        except PostgresUnreachable as error:
            logger.warning("tails.postgres_unreachable", error=repr(error))

    async def read(self, tail: Tail, first_id: int) -> Batch | None:
        """Events from `first_id` on for one reader that is behind the window: Redis first, else the archive."""
        async with self.reads:
            found = await self.read_list(tail, first_id)
            if not found:
                found = await archive.read(self.pool, tail.run_id, first_id, blocks=1)
        if not found and tail.over and not tail.gone:
            await self.check_expired(tail, first_id)
        if not found and tail.expired:
            return tail.last
        if not found:
            return None
        batch = make_batch(first_id, found)
        tail.learn(batch)
        return batch

    async def read_list(self, tail: Tail, first_id: int) -> list[bytes]:
        last_id = first_id + tail.count_in(READ_BACK_BYTES) - 1
        try:
            return cast(list[bytes], await self.redis.lrange(tail.key, first_id, last_id))
        except (*RedisUnreachable, ResponseError):
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

    async def check(self, tails: Sequence[Tail]) -> None:
        """Read from the archive what it has and the list has not; when both are gone, say the end of the row."""
        rows = await self.pool.fetch(
            "SELECT id, archived_events, event_count, status, error FROM agent_runs WHERE id = ANY($1)",
            [tail.run_id for tail in tails],
        )
        ends = {row["id"]: row for row in rows}
        for tail in tails:
            row = ends.get(tail.run_id)
            if row is None:
                tail.over = tail.gone = True
                self.tell(tail)
            if row and tail.end == 0 and not tail.window:
                tail.end = max(row["archived_events"] - READ_EVENTS, 0)
                self.tell(tail)
            while row and tail.readers and not tail.over and tail.end is not None and tail.end < row["archived_events"]:
                end = tail.end
                found = await archive.read(self.pool, tail.run_id, end)
                if found:
                    self.extend(tail, end, found)
                elif row["event_count"] is not None:
                    tail.expired = True
                    tail.extend(Batch(row["event_count"] - 1, [events.last_event(row["status"], row["error"])], True))
                    self.tell(tail)
                else:
                    break

    async def check_expired(self, tail: Tail, first_id: int) -> None:
        """Only the row may say that events are gone: closed, and no block of it that holds the one that is wanted."""
        tail.expired = (
            await self.pool.fetchval(
                """
            SELECT closed_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM agent_run_event_blocks
                WHERE agent_run_id = id AND first_id <= $2 AND first_id + event_count > $2)
            FROM agent_runs WHERE id = $1
            """,
                tail.run_id,
                first_id,
            )
            is not False
        )


class Ended(Protocol):
    """What a row says of the end of its run."""

    @property
    def id(self) -> UUID: ...
    @property
    def final(self) -> bool: ...
    @property
    def event_count(self) -> int | None: ...


async def last_id(redis: Redis, run: Ended) -> int | None:
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
