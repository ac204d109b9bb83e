"""What a process looked up a moment ago: bounded, aged, and forgotten at once when somebody says that it changed."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic
from typing import Generic, TypeVar

from redis.asyncio import Redis

from services import metrics
from services.background import repeat, stop
from services.channels import Channels
from services.log import logger
from services.redis import Unreachable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LISTEN_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Found(Generic[V]):
    """What a look-up came to: forgotten with its group, and after `seconds` if the room would keep it longer."""

    value: V
    group: str
    seconds: float = inf


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    value: V
    group: str
    until: float


@dataclass(slots=True)
class Counts:
    """Since the process began. `misses` began a look-up, `joined` waited for one that was under way.

    Of the look-ups, `shared` found it in Redis, `unkept` were overtaken by a change.
    """

    hits: int = 0
    misses: int = 0
    joined: int = 0
    shared: int = 0
    unkept: int = 0


class Known(Generic[K, V]):
    """Whoever changes what a group of entries says, says so by `announce` once it is committed.

    What was looked up during a change is used once and not kept, nor is it waited for by whoever asks after the change.
    """

    def __init__(
        self,
        name: str,
        redis: Redis,
        channels: Channels,
        *,
        seconds: float,
        most: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name, self.redis, self.channels = name, redis, channels
        self.seconds, self.most, self.clock = seconds, most, clock
        self.channel = f"{name}:changed"
        self.found: OrderedDict[K, Entry[V]] = OrderedDict()
        self.looking: dict[K, asyncio.Task[V]] = {}
        self.changes = 0
        self.counts = Counts()
        self.hit, self.miss, self.join = (
            metrics.cache_lookups.labels(name, result) for result in ("hit", "miss", "joined")
        )
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.create_task(repeat(self.listen), name=f"{self.name}.listen")

    async def close(self) -> None:
        await stop([*([self.task] if self.task else ()), *self.looking.values()])

    async def get(self, key: K, look_up: Callable[[], Awaitable[Found[V]]]) -> V:
        """What is known of a key, else what `look_up` finds; those who miss it together share one look-up.

        Raises: what it raises, to each of them; that is not kept.
        """
        entry = self.found.get(key)
        if entry and self.clock() < entry.until:
            self.counts.hits += 1
            self.hit.inc()
            self.found.move_to_end(key)
            return entry.value
        looking = self.looking.get(key)
        if looking:
            self.counts.joined += 1
            self.join.inc()
        return await asyncio.shield(looking or self.begin(key, look_up))

    def begin(self, key: K, look_up: Callable[[], Awaitable[Found[V]]]) -> asyncio.Task[V]:
        self.counts.misses += 1
        self.miss.inc()
        task = self.looking[key] = asyncio.create_task(self.look(key, look_up), name=f"{self.name}.look_up")
        task.add_done_callback(partial(self.looked, key))
        return task

    async def look(self, key: K, look_up: Callable[[], Awaitable[Found[V]]]) -> V:
        before, asked_at = self.changes, self.clock()
        self.found.pop(key, None)
        found = await look_up()
        if self.changes == before:
            self.keep(key, found, asked_at)
        else:
            self.counts.unkept += 1
        return found.value

    def looked(self, key: K, task: asyncio.Task[V]) -> None:
        if self.looking.get(key) is task:
            del self.looking[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; maybe nobody does any more

    def keep(self, key: K, found: Found[V], asked_at: float) -> None:
        seconds = min(self.seconds, found.seconds)
        if seconds <= 0:
            return
        self.found[key] = Entry(found.value, found.group, asked_at + seconds)
        if len(self.found) > self.most:
            self.found.popitem(last=False)

    async def announce(self, group: str) -> None:
        """A group changed, as is committed: it counts at once here, and in every other process as soon as it hears.

        While Redis is away, others go on with what they know until it is too old.
        """
        self.forget(group)
        try:
            await self.redis.publish(self.channel, group)
        except Unreachable as error:
            logger.warning("known.change_not_announced", what=self.name, group=group, error=repr(error))

    def forget(self, group: str) -> None:
        self.change()
        for key in [key for key, entry in self.found.items() if entry.group == group]:
            del self.found[key]

    def forget_all(self) -> None:
        self.change()
        self.found.clear()

    def change(self) -> None:
        self.changes += 1
        self.looking.clear()

    async def listen(self) -> None:
        """Hear of changes for ever; what may have been said while we could not hear counts as said."""
        try:
            async with self.channels.listen(self.channel, on_message=self.heard, on_reset=self.forget_all):
                self.forget_all()
                await asyncio.Event().wait()
        except Unreachable as error:
            logger.warning("known.changes_unheard", what=self.name, error=repr(error))
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def heard(self, message: bytes) -> None:
        self.forget(message.decode())
