"""Stopping runs: durable first, announced second; a run without a live driver is ended by whoever was asked."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from services.errors import NotFound
from services.log import logger
from services.redis import Unreachable
from services.runs import closing, control, lifecycle, store
from services.runs.store import Run
from services.runs.stores import Stores


async def request_stop(stores: Stores, run_id: UUID) -> Run:
    """Stop a run; once this returns it can only end `stopped`, or had ended before. Idempotent.

    Returns the row as it is then. Raises: NotFound.
    """
    stopped = await lifecycle.request_stops(stores.pool, [run_id])
    await announce(stores, stopped)
    run = stopped[0] if stopped else await store.get(stores.pool, run_id)
    if run is None:
        raise NotFound
    return run


async def request_stops(stores: Stores, run_ids: Sequence[UUID]) -> list[Run]:
    """Stop many runs with one statement; returns those that were not final before."""
    stopped = await lifecycle.request_stops(stores.pool, run_ids)
    await announce(stores, stopped)
    return stopped


async def announce(stores: Stores, stopped: Sequence[Run]) -> None:
    """Tell the drivers of runs whose stop is committed, and see to it that each run really ends."""
    for run in stopped:
        logger.info("run.stop_asked", run_id=str(run.id), phase=run.phase)
        if run.final:
            stores.background.spawn(closing.close_from_outside(stores, run))
    running = [run for run in stopped if not run.final]
    heard = await asyncio.gather(*(heard_by(stores, run) for run in running))
    for run, listeners in zip(running, heard, strict=True):
        grace = stores.settings.runs.stop_grace.total_seconds() if listeners else 0.0
        stores.background.spawn(see_it_end(stores, run, grace))


async def heard_by(stores: Stores, run: Run) -> int:
    try:
        return await control.announce_stop(stores.redis, run.id)
    except Unreachable as error:
        logger.warning("run.stop_not_announced", run_id=str(run.id), error=repr(error))
        return 0


async def see_it_end(stores: Stores, run: Run, grace: float) -> None:
    """After `grace` seconds, raise the fence of a run that its driver has not ended, and end it here."""
    await asyncio.sleep(grace)
    ended = await lifecycle.end_from_outside(stores.pool, run.id, run.attempt, "stopped")
    if ended:
        await closing.close_from_outside(stores, ended)
