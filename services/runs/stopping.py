"""Stopping runs: durable first, announced second; a run without a live driver is ended by whoever was asked."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from services import origin
from services.errors import NotFound
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable
from services.runs import closing, lifecycle, store
from services.runs.lifecycle import Overdue
from services.runs.naming import about
from services.runs.shards import Shard
from services.runs.store import Run
from services.runs.stores import Stores

ACKNOWLEDGED_SECONDS = 0.6
"""How much longer than the grace a driver has that acknowledges a stop: the end of many at once takes its time."""


async def request_stop(stores: Stores, run_id: UUID) -> Run:
    """Stop a run; once this returns it can only end `stopped`, or had ended before. Idempotent.

    Returns the row as it is then. Raises: NotFound.
    """
    stopped = await stores.together.request_stop(run_id)
    if stopped:
        await announce(stores, [stopped])
    run = stopped or await store.get(stores.pool, run_id)
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
        logger.info("run.stop_asked", phase=run.phase, asked_by=origin.current.get().request_id or None, **about(run))
    close(stores, [run for run in stopped if run.final])
    running = [run for run in stopped if not run.final]
    if not running:
        return
    heard = await heard_by(stores, running)
    driven = [run for run, listeners in zip(running, heard, strict=True) if listeners]
    undriven = [run for run, listeners in zip(running, heard, strict=True) if not listeners]
    for runs, grace in ((driven, stores.settings.runs.stop_grace.total_seconds()), (undriven, 0.0)):
        if runs:
            stores.background.spawn(see_them_end(stores, runs, grace))


async def heard_by(stores: Stores, runs: Sequence[Run]) -> list[int]:
    """How many heard of the stop of each run."""
    groups = stores.shards.group(run.id for run in runs)
    answers = await asyncio.gather(*(heard_on(shard, run_ids) for shard, run_ids in groups))
    heard = {run_id: count for answer in answers for run_id, count in answer.items()}
    return [heard[run.id] for run in runs]


async def heard_on(shard: Shard, run_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The same for runs of one server; nobody has heard when that is away."""
    try:
        heard = await asyncio.gather(*map(shard.stops_said.ask, run_ids))
    except Unreachable as error:
        logger.warning("run.stop_not_announced", count=len(run_ids), server=shard.name, error=repr(error))
        return dict.fromkeys(run_ids, 0)
    return dict(zip(run_ids, heard, strict=True))


async def see_them_end(stores: Stores, runs: Sequence[Run], grace: float) -> None:
    """After `grace` seconds, raise the fence of the runs that their drivers have not ended, and end them here.

    A driver that has let go of its work and acknowledges the stop is given a little longer.
    """
    await asyncio.sleep(grace)
    try:
        left = await end_here(stores, runs, spare=grace > 0)
        if left and grace:
            await asyncio.sleep(ACKNOWLEDGED_SECONDS)
            left = await end_here(stores, left, spare=False)
        if left:  # somebody has their rows locked, which the others did not wait for
            close(stores, await lifecycle.end_all_from_outside(stores.pool, attempts_of(left), "stopped"))
    except PostgresUnreachable as error:
        logger.warning("run.stop_postponed", count=len(runs), error=repr(error))  # the sweeper takes it up


async def end_here(stores: Stores, runs: Sequence[Run], *, spare: bool) -> list[Run]:
    """End what has not ended; `spare`: but the runs whose drivers acknowledge the stop. Returns what is left."""
    asked = [Overdue(run_id, attempt, spare) for run_id, attempt in attempts_of(runs)]
    found = await asyncio.gather(*map(stores.together.end_overdue, asked))
    close(stores, [run for run in found if run and run.final])
    return [run for run in found if run and not run.final]


def close(stores: Stores, ended: Sequence[Run]) -> None:
    for run in ended:
        stores.background.spawn(closing.close_from_outside(stores, run))


def attempts_of(runs: Sequence[Run]) -> list[tuple[UUID, int]]:
    return [(run.id, run.attempt) for run in runs]
