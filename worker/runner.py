"""drive(): lock, control, claim, speak, end; agents and workflows alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from redis.exceptions import ResponseError
from structlog.contextvars import bound_contextvars

from agent import loop as agent_loop
from agent.context import RunContext, RunFailed, RunParked, RunStopped
from agent.workflows import engine as workflow_engine
from services import metrics
from services.log import logger, telling_of
from services.postgres import Unreachable as PostgresUnreachable
from services.postgres import is_misuse
from services.redis import Unreachable as RedisUnreachable
from services.runs import control, events, lifecycle, stopping, store
from services.runs.event_log import EventLog, LogRefused
from services.runs.fence import FenceLost
from services.runs.lease import Held
from services.runs.lifecycle import Claimable, Unclaimed
from services.runs.log_writer import Listed
from services.runs.naming import about_attempt
from services.runs.store import Run
from worker import endings
from worker.attempt import Attempt, insist
from worker.endings import Ended, Ending, HandedOver, Lost
from worker.process import Process

CANCEL_SECONDS = 5.0
LET_GO_SECONDS = 15.0
"""How long a cancelled driver waits for its run to be handed over or ended."""
INTERNAL_ERROR = "The run failed because of an internal error."

StoreAway = tuple(kind for kind in (*PostgresUnreachable, *RedisUnreachable) if kind is not OSError)
"""What only the stores' clients raise: an OSError of the work may be about anything."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run as it was claimed, its lease, and its list as it was looked at meanwhile."""

    run: Run
    held: Held
    listed: Listed | None = None


async def drive(process: Process, run_id: UUID, *, unclaimed: bool = False) -> None:
    """Drive a run from wherever it stands to an ending, if it can be had; a duplicate message is harmless.

    `unclaimed`: nobody had claimed it when its message was sent, so the claim is tried before the row is looked at.
    """
    with bound_contextvars(agent_run_id=str(run_id), instance_id=process.stores.instance_id):
        try:
            if not (unclaimed and await drive_unclaimed(process, run_id)):
                await drive_known(process, run_id)
            return
        except FenceLost:
            logger.info("run.lost")
            return
        except (*PostgresUnreachable, *RedisUnreachable) as error:
            logger.warning("run.postponed", error=repr(error))
        except Exception:
            logger.exception("run.not_driven")  # the row is the truth: the sweeper sends another message
        with suppress(*PostgresUnreachable):
            await store.forget_message(process.stores.pool, run_id)


async def drive_unclaimed(process: Process, run_id: UUID) -> bool:
    """Whether the run could be had at once: a claim needs nothing of a row that nobody has claimed before."""
    return process.begins_runs and await drive_claimed(process, Unclaimed(run_id))


async def drive_claimed(process: Process, run: Claimable) -> bool:
    """Whether the run could be had; then it is driven to an ending."""
    async with claimed(process, run) as claim:
        ending = await attend(process, claim) if claim else None
    if claim and isinstance(ending, HandedOver):
        await pass_on(process, claim.run, claim.held, ending)
    return claim is not None


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
    if not await drive_claimed(process, run):
        await store.forget_message(stores.pool, run_id)


async def pass_on(process: Process, run: Run, held: Held, ending: HandedOver) -> None:
    """Wake another worker for a run that was handed over, unless a bare STOP was heard until the very end.

    One that is not to go on at once is left to the sweeper, which waits a little.
    """
    if held.stop_asked.is_set():
        await stopping.request_stop(process.stores, run.id)
    elif ending.at_once:
        process.stores.dispatch.send_run(ending.row or run)


@asynccontextmanager
async def claimed(process: Process, run: Claimable) -> AsyncIterator[Claim | None]:
    """Lock and subscribe to control, then claim: a stop said from now on is heard, one before stands in the row."""
    stores, shard = process.stores, process.stores.of(run.id)
    with control.begin_watch(shard.channels, run.id, stores.instance_id) as watching:
        async with shard.hold(run.id, run.attempt + 1) as held:
            if held is None:
                logger.info("run.held_elsewhere")
                yield None
                return
            await watching(held)
            claim = await claim_and_look(process, run, held)
            if claim is None:
                logger.info("run.not_claimed")
            else:
                count_claim(run, claim.run)
            yield claim


def count_claim(before: Claimable, run: Run) -> None:
    taken_over = isinstance(before, Run) and run.crashes > before.crashes
    metrics.run_claims.labels("first" if run.attempt == 1 else "takeover" if taken_over else "resumed").inc()
    if run.attempt == 1:
        metrics.run_queue_seconds.observe(run.queued.total_seconds())


async def claim_and_look(process: Process, run: Claimable, held: Held) -> Claim | None:
    """Claim; the list of a run that nobody has claimed before is looked at meanwhile: nothing of it is archived."""
    if run.attempt:
        row = await claim_surely(process, run, held)
        return Claim(row, held) if row else None
    looking = asyncio.create_task(look(process, run))
    try:
        row = await claim_surely(process, run, held)
        listed = await looking
        return Claim(row, held, listed) if row else None
    finally:
        looking.cancel()


async def look(process: Process, run: Claimable) -> Listed | None:
    """None when Redis cannot be asked: whoever opens the log knows how long to wait.

    None also when there is more than one event: an old message may be of a run that has said much, and is not ours.
    """
    try:
        listed = await process.stores.of(run.id).writer.look(run.id, until=0)
    except (*RedisUnreachable, ResponseError):
        return None
    return listed if listed.length == len(listed.tail) else None


async def claim_surely(process: Process, run: Claimable, held: Held) -> Run | None:
    """Claim, or find out whether an earlier try did: nobody would drive a run whose claim was not answered."""
    stores, limits = process.stores, process.settings.runs
    tried = False

    async def claim() -> Run | None:
        nonlocal tried
        async with stores.pool.acquire() as conn:
            earlier, tried = tried, True
            row = await lifecycle.claim(
                conn,
                run,
                stores.instance_id,
                dead_after=limits.dead_after,
                epoch=stores.of(run.id).writer.archiver.epoch,
            )
            if row or not earlier:
                return row
            row = await store.get(conn, run.id)
        ours = row and (row.attempt, row.instance_id, row.status) == (held.fence.attempt, stores.instance_id, "running")
        return row if ours else None

    return await insist(process, held, claim, give_up=lambda: not (tried or process.begins_runs))


async def attend(process: Process, claim: Claim) -> Ending:
    """See a claimed run through to an ending. Cancelling this hands the run over; an end begun before is finished."""
    with telling_of(str(claim.run.id), about_attempt(claim.run)):
        return await attend_named(process, claim)


async def attend_named(process: Process, claim: Claim) -> Ending:
    run = claim.run
    logger.info("run.claimed", crashes=run.crashes, model=run.model_name)
    attempt = Attempt(process, run, claim.held, claim.listed)
    driving = process.stores.background.spawn(see_through(attempt))
    try:
        return await asyncio.shield(driving)
    except asyncio.CancelledError:
        attempt.leave.set()
        await asyncio.wait({driving}, timeout=LET_GO_SECONDS)
        raise


async def see_through(attempt: Attempt) -> Ending:
    """Every store that is away is waited for while the lease is ours; what cannot be done any more is left."""
    stores, draining = attempt.process.stores, asyncio.create_task(attempt.process.draining.wait())
    draining.add_done_callback(lambda _: attempt.leave.set())
    log: EventLog | None = None
    try:
        log = await opened_log(attempt)
        if log is None:
            return await endings.hand_over(attempt, None, HandedOver())
        if log.blank:
            log.due_at = attempt.claimed_at - attempt.run.queued.total_seconds()
        context = attempt.open(log)
        with attempt.process.tracing.attempt(attempt.run) as context.tracer:
            async with losing_with(attempt.held, log):
                ending = await outcome(attempt, context, log)
                ending = await endings.conclude(attempt, context, log, ending)
            context.tracer.ended(*endings.in_words(ending))
            return ending
    except FenceLost:
        return Lost()
    except (*RedisUnreachable, *PostgresUnreachable, LogRefused) as error:
        logger.warning("run.end_postponed", error=repr(error))  # the sweeper takes it up
        return Lost()
    finally:
        draining.cancel()
        if log and (log.failure or not log.closing):
            stores.of(attempt.run.id).writer.forget(log)


async def opened_log(attempt: Attempt) -> EventLog | None:
    """The run's log, or None when the run was to be let go before the stores answered."""
    writer, fence = attempt.process.stores.of(attempt.run.id).writer, attempt.held.fence
    try:
        return await attempt.insist(lambda: writer.open_log(attempt.run, fence, attempt.listed), until_leaving=True)
    except (*RedisUnreachable, *PostgresUnreachable):
        if attempt.leave.is_set():
            return None
        raise


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


async def outcome(attempt: Attempt, context: RunContext, log: EventLog) -> Ending:
    """Run the work until it is over, or until something else ends it."""
    run, held, limits = attempt.run, attempt.held, attempt.process.settings.runs
    if run.crashes >= limits.max_crashes:
        return Ended("failed", f"The run was given up: its worker died {run.crashes} times.")
    left = (limits.timeout - run.worked).total_seconds()
    work = asyncio.create_task(produce(context, log), name=f"run {run.id}")
    signals = [asyncio.create_task(event.wait()) for event in (held.lost, held.stop_asked, attempt.leave)]
    try:
        await asyncio.wait({work, *signals}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        return await ending_of(work, attempt, limits.timeout.total_seconds())
    finally:
        for task in (*signals, work):
            task.cancel()


async def ending_of(work: "asyncio.Task[Ending]", attempt: Attempt, timeout_seconds: float) -> Ending:
    """What ended the work, the strongest reason first; work that is not over is cancelled."""
    if attempt.held.lost.is_set():
        await cancel(work)
        return Lost()
    if attempt.held.stop_asked.is_set():
        await asyncio.gather(cancel(work), endings.commit_stop(attempt))
        return Ended("stopped")
    if work.cancelled():
        return Ended("failed", INTERNAL_ERROR)  # it cancelled itself: nobody else has
    if work.done():
        return work.result()
    await cancel(work)
    if attempt.leave.is_set():
        return HandedOver()
    return Ended("failed", f"The run was ended: it took longer than {timeout_seconds:g} seconds.")


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
        await work(context)
        return Ended("completed")
    except RunParked as parked:
        return HandedOver(at_once=False, until=parked.until)
    except FenceLost:
        return Lost()
    except RunStopped as stopped:
        return Ended("stopped", str(stopped))
    except (RunFailed, LogRefused) as error:
        return Ended("failed", str(error))
    except StoreAway as error:
        if is_misuse(error):
            logger.exception("run.crashed")
            return Ended("failed", INTERNAL_ERROR)
        logger.warning("run.work_postponed", error=repr(error))
        return HandedOver(at_once=False)
    except (Exception, SystemExit):
        logger.exception("run.crashed")
        return Ended("failed", INTERNAL_ERROR)


async def work(context: RunContext) -> None:
    """What a run of this kind does."""
    if context.run.kind == "workflow":
        await workflow_engine.run_workflow(context)
    else:
        await agent_loop.run_agent(context)


def opening(run: Run, log: EventLog) -> events.Event:
    if log.blank:
        return events.opening(run.id, run.began_at)
    return events.status("run_resumed", run.id, attempt=run.attempt)
