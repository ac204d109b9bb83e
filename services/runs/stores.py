"""What the rooms of a run share in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

from services.background import Background, repeat
from services.joining import Joined
from services.postgres import Pool, open_pool, open_upkeep_pool
from services.redis import Channels, Client, open_redis
from services.runs import lifecycle
from services.runs.dispatch import Dispatch
from services.runs.lease import Leases
from services.runs.lifecycle import HandOver
from services.runs.log_writer import LogWriter
from services.runs.store import Run
from services.runs.tails import Tails
from services.settings import Settings

CLOSERS = 4


@dataclass(frozen=True, slots=True)
class Stores:
    """Opened once per process (API or worker) by `open_stores`."""

    settings: Settings
    instance_id: str
    pool: Pool
    upkeep: Pool
    """Connections of what keeps runs and readers alive: no request and no agent can use them up."""
    redis: Client
    channels: Channels
    leases: Leases
    writer: LogWriter
    tails: Tails
    dispatch: Dispatch
    background: Background
    hand_overs: Joined[HandOver, Run | None]
    closers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CLOSERS))
    """How many runs are ended from outside at a time."""


@asynccontextmanager
async def open_stores(settings: Settings, *, pool_min: int | None = None) -> AsyncIterator[Stores]:
    """Open pool, Redis, subscriptions, log writer and dispatch; close them in reverse.

    Raises: what asyncpg raises when Postgres cannot be reached. Redis and the broker may come later.
    """
    instance_id = uuid4().hex[:12]
    pool, upkeep = await open_pool(settings.postgres, min_size=pool_min), await open_upkeep_pool(settings.postgres)
    redis = open_redis(settings.redis)
    channels = Channels(settings.redis)
    leases = Leases(settings.runs, redis, upkeep, instance_id)
    writer = LogWriter(settings.runs, redis, upkeep, leases)
    tails = Tails(settings.streams, redis, upkeep, channels)
    dispatch = Dispatch(settings, upkeep)
    stores = Stores(
        settings=settings,
        instance_id=instance_id,
        pool=pool,
        upkeep=upkeep,
        redis=redis,
        channels=channels,
        leases=leases,
        writer=writer,
        tails=tails,
        dispatch=dispatch,
        background=Background(),
        hand_overs=Joined(partial(lifecycle.hand_over_all, upkeep)),
    )
    for room in (channels, writer, tails, dispatch):
        room.open()
    stores.background.spawn(repeat(leases.renew_later))
    stores.background.spawn(repeat(leases.beat_later))
    try:
        yield stores
    finally:
        for closing in (stores.background, leases.retaking, tails, writer, dispatch, channels):
            await closing.close()
        await redis.aclose()
        await upkeep.close()
        await pool.close()
