"""The streams that a process has open: how many there may be, who is pinged when, and their end at a drain."""

import asyncio
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from math import ceil
from typing import TYPE_CHECKING
from uuid import UUID

from sse_starlette.sse import AppStatus

from api.wheel import Wheel
from services import metrics
from services.background import Background, repeat, stop
from services.errors import NotFound
from services.joining import Joined
from services.log import logger
from services.postgres import Pool
from services.runs import readable
from services.runs.readable import Question, Readable
from services.runs.shards import Shards
from services.settings import StreamSettings
from services.threads import MISSING_RUN

if TYPE_CHECKING:
    from api.sse import Stream

TICK_SECONDS = 0.25
AT_ONCE = 256
"""How many streams are written to before the loop does something else."""
OTHER_FILES = 100


def room_for_streams(open_files: int) -> int:
    """How many of the files that a process may open are for streams: the others are for everything else it does."""
    return open_files - open_files // 10 - OTHER_FILES if open_files != resource.RLIM_INFINITY else sys.maxsize


class Streams:
    """All open streams of a process: their number is bounded, one wheel pings them, a drain ends them."""

    def __init__(self, settings: StreamSettings, shards: Shards, pool: Pool) -> None:
        self.settings, self.shards = settings, shards
        self.most = min(settings.max_streams, room_for_streams(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        self.runs: Joined[Question, Readable | None] = Joined(partial(readable.find_all, pool))
        self.server: object = None
        self.ping_seconds = settings.ping_interval.total_seconds()
        self.clock = time.monotonic()
        """The time of the newest tick: precise enough for pings, and free."""
        self.open_streams: set[Stream] = set()
        self.of_users: Counter[UUID] = Counter()
        """How many open streams each user has."""
        self.wheel: Wheel[Stream] = Wheel(ceil(self.ping_seconds / TICK_SECONDS))
        self.waiting = Background()
        """Tasks of the streams that must wait: for a store, or for their reader."""
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        if self.most < self.settings.max_streams:
            logger.warning("streams.limited_by_open_files", most=self.most, wanted=self.settings.max_streams)
        self.server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        self.task = asyncio.create_task(repeat(self.tick), name="streams")

    async def close(self) -> None:
        await stop([self.task] if self.task else [])
        await self.waiting.close()

    @property
    def draining(self) -> bool:
        """Whether uvicorn was told to stop: the lifespan's end comes too late (TRAPS 37).

        sse-starlette has a hook in its signal handler, but with `--workers` uvicorn takes the signals before that.
        """
        return AppStatus.should_exit or getattr(self.server, "should_exit", False) is True

    async def find(self, account_id: UUID, run_id: UUID) -> Readable:
        """The run, if the account may read it; those who ask in the same moments share a statement.

        Raises: NotFound; what asyncpg raises when Postgres cannot be asked.
        """
        found = await self.runs.ask(Question(account_id, run_id))
        if found is None:
            raise NotFound(MISSING_RUN)
        return found

    def refusal(self, user_id: UUID) -> str | None:
        """Why the user can open no stream now."""
        if self.draining:
            return "the server is restarting"
        if len(self.open_streams) >= self.most:
            return "too many streams on this server"
        most = self.settings.max_streams_per_user
        return "too many streams of yours on this server" if most and self.of_users[user_id] >= most else None

    def add(self, stream: "Stream") -> None:
        self.open_streams.add(stream)
        metrics.streams_active.inc()
        metrics.streams_opened.inc()
        self.of_users[stream.admitted.user_id] += 1
        self.wheel.add(stream, ceil(self.ping_seconds / TICK_SECONDS))

    def discard(self, stream: "Stream") -> None:
        if stream not in self.open_streams:
            return
        self.open_streams.discard(stream)
        metrics.streams_active.dec()
        self.wheel.discard(stream)
        user_id = stream.admitted.user_id
        self.of_users[user_id] -= 1
        if not self.of_users[user_id]:
            del self.of_users[user_id]

    def sample(self) -> None:
        """How far readers are behind: those that a task works for, the others have been sent all."""
        behind = [stream.reader.events_behind for stream in self.open_streams if stream.task and stream.reader]
        metrics.readers_behind.set(len(behind))
        metrics.reader_lag.set(max(behind, default=0))

    async def tick(self) -> None:
        """A moment later, ping the streams that are due, or end all of them at a drain."""
        await asyncio.sleep(TICK_SECONDS)
        self.clock = time.monotonic()
        if self.draining:
            await self.each(tuple(self.open_streams))
        else:
            await self.each(self.wheel.turn())

    async def each(self, streams: Iterable["Stream"]) -> None:
        for count, stream in enumerate(streams, 1):
            if stream in self.open_streams:
                self.attend(stream)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)

    def attend(self, stream: "Stream") -> None:
        left = stream.attend()
        if not self.draining:
            self.wheel.add(stream, ceil(left / TICK_SECONDS))
