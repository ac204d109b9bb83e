"""The retention loop, in every worker: whoever has the turn deletes what is old, for a bounded time."""

import asyncio
import random
from collections import Counter
from contextlib import aclosing

from services import retention
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.retention import NotOurTurn
from services.runs.stores import Stores


async def keep_removing_old(stores: Stores) -> None:
    settings = stores.settings.retention
    if not settings.anything:
        return
    while True:
        await asyncio.sleep(settings.interval.total_seconds() * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
        try:
            await remove_old(stores)
        except PostgresUnreachable as error:
            logger.warning("retention.postponed", error=repr(error))
        except Exception:
            logger.exception("retention.failed")


async def remove_old(stores: Stores) -> Counter[str]:
    """One sweep, unless another process is at it or was a moment ago; how much was removed by rule."""
    settings = stores.settings.retention
    removed: Counter[str] = Counter()
    turn = await retention.last_turn(stores.pool)
    if turn and (turn.taken or (turn.rested is not None and turn.rested < settings.interval / 2)):
        return removed
    sweep = retention.sweep(stores.pool, settings, stores.instance_id, within=settings.sweep_time)
    try:
        async with aclosing(sweep) as batches:
            async for batch in batches:
                removed[batch.rule] += batch.count
    except NotOurTurn:
        return removed
    finally:
        if removed:
            logger.info("retention.removed", **removed)
    return removed
