"""What is looked at now and then rather than counted: memory, pools, the event loop, what is pending."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services import metrics
from services.postgres import Pool
from services.runs.stores import Stores

INTERVAL_SECONDS = 2.0
PAGE_BYTES = resource.getpagesize()
OPEN_FILES = "/proc/self/fd"


async def keep_sampling(sampler: "Sampler") -> None:
    """For ever, and how late the loop was each time."""
    while True:
        sampler.sample()
        await sample_files()
        woken_at = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        metrics.loop_lag.set(max(time.monotonic() - woken_at, 0.0))


async def sample_files() -> None:
    """Beside the loop: of ten thousand streams it takes tens of milliseconds."""
    with suppress(OSError):
        metrics.open_files.set(await asyncio.to_thread(count_open_files))


def count_open_files() -> int:
    """Linux knows the number from 6.2 on; before, each is listed. Raises: OSError where there is no /proc."""
    return os.stat(OPEN_FILES).st_size or len(os.listdir(OPEN_FILES))


class Sampler:
    """`others` look at what the process has besides its stores."""

    def __init__(self, stores: Stores, *others: Callable[[], None]) -> None:
        self.stores, self.others = stores, others
        self.cpu_seconds = 0.0

    def sample(self) -> None:
        self.sample_process()
        self.sample_stores()
        for other in self.others:
            other()

    def sample_process(self) -> None:
        used = time.process_time()
        metrics.cpu_seconds.inc(max(used - self.cpu_seconds, 0.0))
        self.cpu_seconds = used
        metrics.processes.set(1)
        with suppress(OSError):  # no Linux: there is no /proc
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
            metrics.resident_memory.set(resident)
            metrics.highest_memory.set(resident)
        metrics.open_files_limit.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def sample_stores(self) -> None:
        sample_pool("main", self.stores.pool)
        sample_pool("upkeep", self.stores.upkeep)
        shards = self.stores.shards.each
        for shard in shards:
            connections = shard.redis.connection_pool
            used = len(connections._in_use_connections) - len(shard.redis.kept)
            metrics.redis_connections.labels(shard.name).set(used)
            metrics.redis_limit.labels(shard.name).set(connections.max_connections)
        metrics.runs_active.set(sum(len(shard.leases.held) for shard in shards))
        metrics.events_pending.set(sum(log.pending_bytes for shard in shards for log in shard.writer.logs))
        metrics.messages_waiting.set(self.stores.dispatch.publisher.outbox.qsize())


def sample_pool(name: str, pool: Pool) -> None:
    idle = pool.get_idle_size()
    metrics.pool_connections.labels(name, "idle").set(idle)
    metrics.pool_connections.labels(name, "used").set(pool.get_size() - idle)
    metrics.pool_limit.labels(name).set(pool.get_max_size())
