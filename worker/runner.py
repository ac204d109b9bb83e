"""drive(): lock, control, claim, speak, end; agents and workflows alike. Every ending is one value."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from structlog.contextvars import bound_contextvars

from agent import loop as agent_loop
from agent.context import RunContext, RunFailed
from services.log import logger
from services.postgres import Executor
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import closing, control, events, lifecycle, stopping, store
from services.runs.event_log import EventLog, LogRefused
from services.runs.fence import FenceLost
from services.runs.lease import Held
from services.runs.lifecycle import HandOver
from services.runs.store import Run
from worker.process import Process

T = TypeVar("T")

CANCEL_SECONDS = 5.0
FLUSH_SECONDS = 0.5
ARCHIVE_SECONDS = 5.0
RETRY_SECONDS = (0.1, 0.5, 2.0)
INTERNAL_ERROR = "The run failed because of an internal error."


@dataclass(frozen=True, slots=True)
class Ended:
    """The work is over: `completed`, `failed` with the sentence for the user, or `stopped`."""

    status: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HandedOver:
    """This process drains: the run goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Another attempt owns the run; nothing may be written."""


Ending = Ended | HandedOver | Lost


async def drive(process: Process, run_id: UUID) -> None:
    """Drive a run from wherever it stands to an ending, if it can be had; a duplicate message is harmless."""
    with bound_contextvars(agent_run_id=str(run_id), instance_id=process.stores.instance_id):
        try:
            await drive_known(process, run_id)
            return
        except (*PostgresUnreachable, *RedisUnreachable) as error:
            logger.warning("run.postponed", error=repr(error))
        except Exception:
            logger.exception("run.not_driven")  # the row is the truth: the sweeper sends another message
        with suppress(*PostgresUnreachable):
            await store.forget_message(process.stores.pool, run_id)


async def drive_known(process: Process, run_id: UUID) -> None:
    stores = process.stores
    run = await store.get(stores.pool, run_id)
    if run is None or run.final:
        logger.info("run.nothing_to_do", known=run is not None)
        return
    if not process.begins_runs:
        stores.dispatch.send_run(run)
        return
    dead_after = process.settings.runs.dead_after
    if run.status == "running" and not await lifecycle.is_abandoned(stores.pool, run.id, dead_after):
        logger.info("run.driven_elsewhere")  # asked before the lock: a live driver may have just lost it
        return
    async with claimed(process, run) as claim:
        ending = await attend(process, *claim) if claim else None
    if claim and isinstance(ending, HandedOver):
        await pass_on(process, run, claim[1])
    elif claim is None:
        await store.forget_message(stores.pool, run_id)


async def pass_on(process: Process, run: Run, held: Held) -> None:
    """Wake another worker for a run that was handed over, unless a bare STOP was heard until the very end."""
    if held.stop_asked.is_set():
        await stopping.request_stop(process.stores, run.id)
    else:
        process.stores.dispatch.send_run(run)


@asynccontextmanager
async def claimed(process: Process, run: Run) -> AsyncIterator[tuple[Run, Held] | None]:
    """Lock, subscribe to control, then claim: a stop said from now on is heard, one said before stands in the row."""
    stores, settings = process.stores, process.settings.runs
    async with stores.leases.hold(run.id, run.attempt + 1) as held:
        if held is None:
            logger.info("run.held_elsewhere")
            yield None
            return
        async with control.watch(stores.channels, held):
            row = await lifecycle.claim(stores.pool, run, stores.instance_id, dead_after=settings.dead_after)
            if row is None:
                logger.info("run.not_claimed")
            yield (row, held) if row else None


async def attend(process: Process, run: Run, held: Held) -> Ending:
    logger.info("run.claimed", attempt=run.attempt, crashes=run.crashes, model=run.model_name)
    log = await process.stores.writer.open_log(run, held.fence)
    context = RunContext(
        run=run,
        fence=held.fence,
        log=log,
        pool=process.stores.pool,
        http=process.http,
        settings=process.settings,
    )
    try:
        async with losing_with(held, log):
            ending = await outcome(process, context, log, held)
            return await conclude(process, context, log, held, ending)
    except FenceLost:
        return Lost()
    except (*RedisUnreachable, *PostgresUnreachable, LogRefused) as error:
        logger.warning("run.end_postponed", error=repr(error))  # the sweeper takes it up
        return Lost()
    finally:
        if log.failure or not log.closing:
            process.stores.writer.forget(log)


@asynccontextmanager
async def losing_with(held: Held, log: EventLog) -> AsyncIterator[None]:
    """Whoever waits for the log learns at once when the lease is lost."""

    async def lose() -> None:
        await held.lost.wait()
        log.lose()

    watcher = asyncio.create_task(lose())
    try:
        yield
    finally:
        watcher.cancel()


async def outcome(process: Process, context: RunContext, log: EventLog, held: Held) -> Ending:
    """Run the work until it is over, or until something else ends it."""
    run, limits = context.run, process.settings.runs
    if run.crashes >= limits.max_crashes:
        return Ended("failed", f"The run was given up: its worker died {run.crashes} times.")
    elapsed = run.updated_at - (run.started_at or run.updated_at)
    left = (limits.timeout - elapsed).total_seconds()
    work = asyncio.create_task(produce(context, log), name=f"run {run.id}")
    signals = [asyncio.create_task(event.wait()) for event in (held.lost, held.stop_asked, process.draining)]
    try:
        await asyncio.wait({work, *signals}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for signal in signals:
            signal.cancel()
    return await ending_of(work, process, held, limits.timeout.total_seconds())


async def ending_of(work: "asyncio.Task[Ending]", process: Process, held: Held, timeout_seconds: float) -> Ending:
    """What ended the work, the strongest reason first; work that is not over is cancelled."""
    if held.lost.is_set():
        await cancel(work)
        return Lost()
    if held.stop_asked.is_set():
        await asyncio.gather(cancel(work), commit_stop(process, held))
        return Ended("stopped")
    if work.cancelled():
        return Ended("failed", INTERNAL_ERROR)  # it cancelled itself: nobody else has
    if work.done():
        return work.result()
    await cancel(work)
    if process.draining.is_set():
        return HandedOver()
    return Ended("failed", f"The run was ended: it took longer than {timeout_seconds:g} seconds.")


async def commit_stop(process: Process, held: Held) -> None:
    """A bare STOP counts like any other: from now on the run can only end stopped, whoever ends it."""
    await persist(held, lambda: lifecycle.request_stops(process.stores.pool, [held.fence.run_id]))


async def cancel(work: "asyncio.Task[Ending]") -> None:
    """Cancel and wait; work that does not let go within five seconds is left to the fence."""
    work.cancel()
    done, _ = await asyncio.wait({work}, timeout=CANCEL_SECONDS)
    if not done:
        logger.error("run.does_not_cancel")


async def produce(context: RunContext, log: EventLog) -> Ending:
    """The boundary around whatever a run does: whatever it raises becomes an ending."""
    try:
        await log.append(opening(context.run, log))
        await agent_loop.run_agent(context)
        return Ended("completed")
    except FenceLost:
        return Lost()
    except (RunFailed, LogRefused) as error:
        return Ended("failed", str(error))
    except (Exception, SystemExit):
        logger.exception("run.crashed")
        return Ended("failed", INTERNAL_ERROR)


def opening(run: Run, log: EventLog) -> events.Event:
    if log.blank:
        return events.status("thread_run_start", run.id)
    return events.status("run_resumed", run.id, attempt=run.attempt)


async def conclude(process: Process, context: RunContext, log: EventLog, held: Held, ending: Ending) -> Ending:
    if isinstance(ending, Lost):
        return ending
    if isinstance(ending, HandedOver):
        ending = await hand_over(process, log, held)
    if isinstance(ending, Ended):
        await end(process, context, log, held, ending)
    return ending


async def hand_over(process: Process, log: EventLog, held: Held) -> Ending:
    """Give the run back to the queue, its log archived. A stop that came first ends it instead."""
    stores = process.stores
    settled = await flushed(log)
    async with asyncio.timeout(ARCHIVE_SECONDS):
        await stores.writer.archive_run(log)
    if held.stop_asked.is_set():
        await commit_stop(process, held)
    handed = HandOver(held.fence, log.length, settled)
    row = await persist(held, lambda: stores.hand_overs.ask(handed))
    if row:
        log.lose()  # the row keeps this attempt until the next claim: work that did not let go could speak on
        logger.info("run.handed_over", attempt=row.attempt, length=log.length)
        return HandedOver()
    current = await store.get(stores.pool, held.fence.run_id)
    stop_asked = current and current.attempt == held.fence.attempt and current.stop_requested_at
    return Ended("stopped") if stop_asked else Lost()


async def flushed(log: EventLog) -> bool:
    """Whether Redis took the rest in time; chunks that it does not take are void after a hand-over anyway."""
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await log.flush()
    except TimeoutError:
        return False
    return True


async def end(process: Process, context: RunContext, log: EventLog, held: Held, ending: Ended) -> None:
    """Row first, then the last words; text that was streamed and not stored is kept."""
    try:
        if ending.status != "completed":
            await agent_loop.keep_draft(context)
        log.seal()
        await log.flush()
    except LogRefused as error:
        ending = Ended("failed", ending.error or str(error))
    stores = process.stores
    row = await persist(
        held,
        lambda: lifecycle.end(stores.pool, held.fence, ending.status, error=ending.error, usage=context.usage),
    )
    row = row or await own_end(stores.pool, held)
    if row is None:
        raise FenceLost(str(held.fence.run_id))
    stores.background.spawn(closing.wake_next(stores, row.project_id))
    await closing.say_last(stores, log, row)
    logger.info("run.ended", status=row.status, attempt=row.attempt, events=log.length, error=row.error)


async def own_end(pool: Executor, held: Held) -> Run | None:
    """The row when it is final under our fence: the answer to our own write was lost."""
    row = await store.get(pool, held.fence.run_id)
    return row if row and row.final and row.attempt == held.fence.attempt else None


async def persist(held: Held, write: Callable[[], Awaitable[T]]) -> T:
    """Repeat a row write while Postgres is away and the lease is ours. Raises: FenceLost."""
    tries = 0
    while True:
        try:
            return await write()
        except PostgresUnreachable as error:
            if held.lost.is_set():
                raise FenceLost(str(held.fence.run_id)) from error
            logger.warning("run.write_repeated", error=repr(error))
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1
