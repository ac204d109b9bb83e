"""The Redis servers that runs are spread over, each with the rooms of the runs that live on it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from services.channels import Channels
from services.joining import Joined
from services.postgres import Pool
from services.redis import Client, open_redis
from services.runs import control
from services.runs.doubt import Doubt
from services.runs.lease import Held, Leases
from services.runs.log_writer import LogWriter
from services.runs.placement import choose
from services.runs.tails import Tails
from services.settings import RedisSettings, Settings

CLOSERS = 4
DOUBT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Shard:
    """One Redis server as this process uses it. Nothing in it waits for another server."""

    name: str
    redis: Client
    channels: Channels
    leases: Leases
    writer: LogWriter
    tails: Tails
    doubt: Doubt
    stops_said: Joined[UUID, int]
    """`control.announce_stops`, for all who say a stop in the same moments."""
    closers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CLOSERS))
    """How many runs are ended from outside at a time."""

    @asynccontextmanager
    async def hold(self, run_id: UUID, attempt: int) -> AsyncIterator[Held | None]:
        """`leases.hold`; when the server is known to be away it is refused at once, and takes no slot of a worker.

        Raises: redis errors when the server cannot be asked.
        """
        self.doubt.check()
        async with AsyncExitStack() as stack:
            yield await self.doubt.learn(stack.enter_async_context(self.leases.hold(run_id, attempt)))

    def open(self) -> None:
        for room in (self.channels, self.writer, self.tails):
            room.open()

    async def close(self) -> None:
        for room in (self.leases.retaking, self.tails, self.writer, self.channels):
            await room.close()
        await self.redis.aclose()


class Shards:
    """All servers in the order of the settings; the first is the home of what belongs to no run."""

    def __init__(self, each: Sequence[Shard]) -> None:
        self.each = tuple(each)
        self.names = [shard.name for shard in each]
        self.by_name = {shard.name: shard for shard in each}

    @property
    def home(self) -> Shard:
        return self.each[0]

    def of(self, run_id: UUID) -> Shard:
        return self.by_name[choose(self.names, run_id)]

    def group(self, run_ids: Iterable[UUID]) -> list[tuple[Shard, list[UUID]]]:
        """The ids by server, for one round trip to each."""
        groups: dict[str, list[UUID]] = defaultdict(list)
        for run_id in run_ids:
            groups[choose(self.names, run_id)].append(run_id)
        return [(self.by_name[name], some) for name, some in groups.items()]

    def open(self) -> None:
        for shard in self.each:
            shard.open()

    async def close(self) -> None:
        await asyncio.gather(*(shard.close() for shard in self.each))


def make_shards(settings: Settings, upkeep: Pool, instance_id: str) -> Shards:
    """One shard for each Redis server of the settings; `upkeep` is the pool of what keeps runs and readers alive."""
    servers = settings.redis.servers
    # One server is asked every time: nobody would gain anything by being refused.
    doubts = [Doubt(server.name, DOUBT_SECONDS if len(servers) > 1 else 0.0) for server in servers]
    return Shards(
        [
            make_shard(settings, server, upkeep, instance_id, doubt)
            for server, doubt in zip(servers, doubts, strict=True)
        ]
    )


def make_shard(settings: Settings, server: RedisSettings, upkeep: Pool, instance_id: str, doubt: Doubt) -> Shard:
    redis, channels = open_redis(server), Channels(server)
    leases = Leases(settings.runs, redis, upkeep, instance_id)
    return Shard(
        name=server.name,
        redis=redis,
        channels=channels,
        leases=leases,
        writer=LogWriter(settings.runs, redis, upkeep, leases),
        tails=Tails(settings.streams, redis, upkeep, channels),
        doubt=doubt,
        stops_said=Joined(partial(control.announce_stops, redis)),
    )
