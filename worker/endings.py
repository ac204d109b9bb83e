"""Every ending of a run is one value and one write."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from agent import charges, thread_manager
from agent import loop as agent_loop
from agent.context import RunContext
from services import metrics
from services.log import logger
from services.messages import Message, NewMessage
from services.postgres import Unreachable as PostgresUnreachable
from services.run_messages import FencedMessage
from services.runs import closing, store
from services.runs.event_log import EventLog, LogRefused
from services.runs.fence import FenceLost
from services.runs.lifecycle import HandOver
from services.runs.store import Run
from services.runs.stores import Stores
from worker.attempt import LAST_SECONDS, Attempt

ARCHIVE_SECONDS = 5.0
ACKNOWLEDGED_AT = 0.25
"""Of the grace that a driver has after a stop."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The work is over: `completed`, `failed` with the sentence for the user, or `stopped`.

    A run that nobody asked to stop says why it was.
    """

    status: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The run goes on elsewhere: at once when this process drains, a little later when a store failed the work.

    With `until` it is set aside, and goes on when the time has come.
    """

    at_once: bool = True
    until: datetime | None = None
    row: Run | None = None
    """As it was given back."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Another attempt owns the run; nothing may be written."""


Ending = Ended | HandedOver | Lost


def in_words(ending: Ending) -> tuple[str, str | None]:
    if isinstance(ending, Ended):
        return ending.status, ending.error
    return ("handed_over" if isinstance(ending, HandedOver) else "lost"), None


async def conclude(attempt: Attempt, context: RunContext, log: EventLog, ending: Ending) -> Ending:
    """Write an ending down; returns the one that it became. Raises: FenceLost."""
    if isinstance(ending, HandedOver):
        ending = await hand_over(attempt, log, ending)
    with acknowledging(attempt):
        if isinstance(ending, Ended):
            said = await attempt.unless_leaving(say_rest(attempt, context, log, ending))
            ending = said or await hand_over(attempt, log, HandedOver())
        if isinstance(ending, Ended):
            await end(attempt, context, log, ending)
    return ending


@contextmanager
def acknowledging(attempt: Attempt) -> Iterator[None]:
    """Of a stop that takes its time, say that it is on its way: whoever asked for it would end the run over it.

    Only now, when the work has let go: a run whose work does not is to be ended by whoever asked.
    """
    if not attempt.held.stop_asked.is_set():
        yield
        return
    stores = attempt.process.stores
    patience = stores.settings.runs.stop_grace.total_seconds() * ACKNOWLEDGED_AT
    timer = attempt.process.loop.call_later(patience, lambda: stores.background.spawn(acknowledge(attempt)))
    try:
        yield
    finally:
        timer.cancel()


async def acknowledge(attempt: Attempt) -> None:
    with suppress(*PostgresUnreachable):  # whoever asked cannot end it either
        await attempt.process.stores.together.acknowledge_stop(attempt.held.fence)


async def say_rest(attempt: Attempt, context: RunContext, log: EventLog, ending: Ended) -> Ended:
    """Text that was streamed and not stored is kept, and all that was said is appended; nothing more is taken."""
    try:
        if ending.status != "completed":
            await agent_loop.keep_draft(context, partial(store_together, attempt.process.stores))
        await charges.settle_rest(context)
        log.seal()
        if not (attempt.held.stop_asked.is_set() and ending.status == "stopped"):
            await log.flush()  # what it says may change the end; that of a run that was asked to stop is certain
    except LogRefused as error:
        return Ended("failed", ending.error or str(error))
    return ending


async def store_together(stores: Stores, ctx: RunContext, message: NewMessage) -> Message:
    """`thread_manager.store` of a draft, with those of other runs that end in the same moment.

    One that is charged is stored alone: a statement for many must not wait for the balances of their accounts.
    """
    if message.charge:
        return await thread_manager.store(ctx, message)
    draft = FencedMessage.of(ctx.fence, ctx.run.thread_id, ctx.draft.message_id, message)
    return await stores.together.add(draft, lambda: thread_manager.store(ctx, message))


async def end(attempt: Attempt, context: RunContext, log: EventLog, ending: Ended) -> None:
    """Row first, then the last words."""
    stores, fence = attempt.process.stores, attempt.held.fence
    row = await attempt.insist(
        lambda: stores.together.end(fence, ending.status, error=ending.error, usage=context.usage)
    )
    row = row or await attempt.insist(lambda: own_end(attempt))
    if row is None:
        raise FenceLost(str(fence.run_id))
    stores.background.spawn(closing.wake_next(stores, row.project_id))
    await attempt.unless_leaving(closing.say_last(stores, log, row))
    logger.info("run.ended", status=row.status, events=log.length, error=row.error)


async def own_end(attempt: Attempt) -> Run | None:
    """The row when it is final under our fence: the answer to our own write was lost."""
    fence = attempt.held.fence
    row = await store.get(attempt.process.stores.pool, fence.run_id)
    return row if row and row.final and row.attempt == fence.attempt else None


async def commit_stop(attempt: Attempt) -> None:
    """A bare STOP counts like any other: from now on the run can only end stopped, whoever ends it.

    One that came by the API is committed already: looking costs no commit.
    """
    together, run_id = attempt.process.stores.together, attempt.held.fence.run_id

    async def commit() -> None:
        if not await together.is_stop_committed(run_id):
            await together.request_stop(run_id)

    await attempt.insist(commit)


async def hand_over(attempt: Attempt, log: EventLog | None, ending: HandedOver) -> Ending:
    """Give the run back to the queue, its log archived as far as it can be. A stop that came first ends it instead."""
    stores, held = attempt.process.stores, attempt.held
    settled = log is not None and await flushed(log)
    length = await archived_length(attempt, log)
    if held.stop_asked.is_set():
        await commit_stop(attempt)
    row = await give_back(attempt, length, settled, ending) or await give_back(attempt, None, False, ending)
    row = row or await attempt.insist(lambda: store.get(stores.pool, held.fence.run_id))
    if row is None or row.attempt != held.fence.attempt or row.final:
        return Lost()
    if row.stop_requested_at:
        return Ended("stopped")
    if log:
        log.lose()  # the row keeps this attempt until the next claim: work that did not let go could speak on
    reason = "parked" if ending.until else "drain" if ending.at_once else "store away"
    metrics.run_handovers.labels(reason).inc()
    logger.info("run.handed_over", length=length, until=ending.until and ending.until.isoformat())
    return replace(ending, row=row)


async def give_back(attempt: Attempt, length: int | None, settled: bool, ending: HandedOver) -> Run | None:
    handed = HandOver(attempt.held.fence, length, settled, ending.until)
    return await attempt.insist(lambda: attempt.process.stores.hand_overs.ask(handed))


async def flushed(log: EventLog) -> bool:
    """Whether Redis took the rest in time; chunks that it does not take are void after a hand-over anyway."""
    try:
        async with asyncio.timeout(LAST_SECONDS):
            await log.flush()
    except (TimeoutError, LogRefused):
        return False
    return True


async def archived_length(attempt: Attempt, log: EventLog | None) -> int | None:
    """The log's length once it is archived to its end, or None when it is not in time."""
    if log is None:
        return None
    try:
        async with asyncio.timeout(ARCHIVE_SECONDS):
            whole = await attempt.process.stores.of(attempt.run.id).writer.archiver.archive_run(log)
    except TimeoutError:
        return None
    return log.length if whole else None
