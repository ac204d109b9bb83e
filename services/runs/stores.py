"""What the rooms of a run share in one process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID, uuid4

from services.agent_versions import AgentVersion
from services.background import Background, repeat
from services.cache import Cache
from services.channels import Channels
from services.gates import Gates
from services.joining import Joined
from services.known_versions import KnownVersions
from services.postgres import Pool, open_pool, open_upkeep_pool
from services.redis import Client
from services.runs import lifecycle
from services.runs.dispatch import Dispatch
from services.runs.lease import Leases
from services.runs.lifecycle import HandOver
from services.runs.log_writer import LogWriter
from services.runs.shards import Shard, Shards, make_shards
from services.runs.store import Run
from services.runs.tails import Tails
from services.runs.together import Together
from services.settings import Settings
from services.tracing import UNTRACED, Tracing

STARTS_AT_ONCE = 4
STARTS_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Stores:
    """Opened once per process (API or worker) by `open_stores`."""

    settings: Settings
    instance_id: str
    pool: Pool
    upkeep: Pool
    """Connections of what keeps runs and readers alive: no request and no agent can use them up."""
    shards: Shards
    dispatch: Dispatch
    background: Background
    hand_overs: Joined[HandOver, Run | None]
    together: Together
    versions: KnownVersions
    starts: Gates[UUID] = field(default_factory=lambda: Gates(STARTS_AT_ONCE, STARTS_PATIENCE_SECONDS))
    """Starts of an account take turns in Postgres: no more of them than these wait there and use up the pool."""

    def of(self, run_id: UUID) -> Shard:
        """The Redis server of a run, and the rooms on it."""
        return self.shards.of(run_id)

    @property
    def redis(self) -> Client:
        """The home server's client, for what belongs to no run. A run's is `of(run_id).redis`; so with all below."""
        return self.shards.home.redis

    @property
    def channels(self) -> Channels:
        return self.shards.home.channels

    @property
    def leases(self) -> Leases:
        return self.shards.home.leases

    @property
    def writer(self) -> LogWriter:
        return self.shards.home.writer

    @property
    def tails(self) -> Tails:
        return self.shards.home.tails


@asynccontextmanager
async def open_stores(
    settings: Settings, *, pool_min: int | None = None, tracing: Tracing = UNTRACED
) -> AsyncIterator[Stores]:
    """Open pool, Redis, subscriptions, log writer and dispatch; close them in reverse. `tracing` is told of messages.

    Raises: what asyncpg raises when Postgres cannot be reached. Redis and the broker may come later.
    """
    instance_id = uuid4().hex[:12]
    pool, upkeep = await open_pool(settings.postgres, min_size=pool_min), await open_upkeep_pool(settings.postgres)
    shards = make_shards(settings, upkeep, instance_id)
    dispatch = Dispatch(settings, upkeep, tracing)
    home, secret = shards.home, settings.secrets.each[0]
    versions = Cache("agent_versions", AgentVersion, home.redis, home.channels, secret)
    stores = Stores(
        settings=settings,
        instance_id=instance_id,
        pool=pool,
        upkeep=upkeep,
        shards=shards,
        dispatch=dispatch,
        background=Background(),
        hand_overs=Joined(partial(lifecycle.hand_over_all, upkeep)),
        together=Together(pool),
        versions=KnownVersions(pool, versions),
    )
    shards.open()
    versions.open()
    dispatch.open()
    for shard in shards.each:
        stores.background.spawn(repeat(shard.leases.renew_later))
        stores.background.spawn(repeat(shard.leases.beat_later))
    try:
        yield stores
    finally:
        for closing in (stores.background, versions, shards, dispatch):
            await closing.close()
        await upkeep.close()
        await pool.close()
