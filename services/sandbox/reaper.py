"""The reaper, in every worker: ends sandboxes that nobody uses, and removes what deletions have left.

Several at once do no harm.
"""

import asyncio
import random

from services import removals
from services.log import logger
from services.redis import Unreachable as RedisUnreachable
from services.removals import Removal
from services.runs import keys
from services.runs.stores import Stores
from services.sandbox.protocol import SandboxProvider, SandboxUnavailable


async def keep_reaping(sandboxes: SandboxProvider, stores: Stores) -> None:
    interval = stores.settings.sandbox.reap_interval.total_seconds()
    while True:
        await asyncio.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret
        try:
            for project_id in await sandboxes.reap(stores.settings.sandbox.idle_timeout.total_seconds()):
                logger.info("sandbox.reaped", project_id=str(project_id))
        except Exception:
            logger.exception("sandbox.reap_failed")
        try:
            await remove_leftovers(sandboxes, stores)
        except Exception:
            logger.exception("removals.failed")


async def remove_leftovers(sandboxes: SandboxProvider, stores: Stores) -> None:
    """Remove what is noted of deletions; what cannot be removed now stays noted."""
    done = []
    async for removal in removals.noted(stores.pool):
        try:
            await remove(sandboxes, stores, removal)
            done.append(removal.removal_id)
        except (SandboxUnavailable, *RedisUnreachable) as error:
            logger.warning("removal.postponed", project_id=str(removal.project_id), error=repr(error))
    if done:
        await removals.forget(stores.pool, done)


async def remove(sandboxes: SandboxProvider, stores: Stores, removal: Removal) -> None:
    if removal.project_id:
        await sandboxes.delete(removal.project_id)
    for shard, run_ids in stores.shards.group(removal.run_ids):
        await shard.redis.unlink(*(keys.responses(run_id) for run_id in run_ids))
