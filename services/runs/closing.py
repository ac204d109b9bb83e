"""The end of a run: the row is final first, then its last words, then the archive closes."""

import asyncio
from dataclasses import replace
from itertools import islice
from typing import cast
from uuid import UUID, uuid5

from redis.exceptions import ResponseError
from structlog.contextvars import bound_contextvars

from services import metrics, run_messages, text_tokens
from services.billing import gate_of
from services.billing.calls import Charge
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, control, events, keys
from services.runs.event_log import EventLog, LogRefused
from services.runs.events import Event
from services.runs.fence import Fence, FenceLost
from services.runs.naming import about
from services.runs.store import Run
from services.runs.stores import Stores

PAGE_EVENTS = 500


async def say_last(stores: Stores, log: EventLog, run: Run, *before: Event) -> None:
    """Publish the end of a run whose row is final: `before`, thread_run_end and the last event in one step.

    Raises: FenceLost, LogRefused, redis errors; the sweeper finishes what is cut here.
    """
    last = events.last_event(run.status, run.error)
    start = [events.opening(run.id, run.began_at)] if log.blank else []
    await log.close(last, *start, *before, events.status("thread_run_end", run.id))
    metrics.run_ends.labels(run.status).inc()
    if run.started_at and run.completed_at:
        metrics.run_duration_seconds.labels(run.status).observe((run.completed_at - run.started_at).total_seconds())
    await control.announce_end(stores.of(run.id).redis, run.id, run.status)


async def wake_next(stores: Stores, project_id: UUID) -> None:
    """The project's next queued run may begin, now that the row of the one before it is final."""
    try:
        waiting = await stores.together.next_queued(project_id)
    except PostgresUnreachable as error:
        logger.warning("run.next_not_woken", project_id=str(project_id), error=repr(error))  # the sweeper will
        return
    if waiting:
        stores.dispatch.send_run(waiting)


async def close_from_outside(stores: Stores, run: Run) -> None:
    """Finish a run that is final in its row and whose fence was raised for us; the text it streamed is kept.

    What cannot be done now (a store is away) is done by the sweeper.
    """
    with bound_contextvars(**about(run)):
        await wake_next(stores, run.project_id)
        await close_seized(stores, run)


async def close_seized(stores: Stores, run: Run) -> None:
    fence, shard = Fence(run.id, run.attempt, stores.instance_id), stores.of(run.id)
    log: EventLog | None = None
    try:
        async with shard.closers, asyncio.timeout(stores.settings.runs.close_after.total_seconds()):
            if not await shard.leases.seize(fence):
                return
            log = await shard.writer.open_log(run, fence)
            await finish(stores, log, run)
    except FenceLost:
        logger.info("run.closed_elsewhere")
    except (*RedisUnreachable, *PostgresUnreachable, ResponseError, LogRefused) as error:
        logger.warning("run.close_postponed", error=repr(error))
    finally:
        if log and (log.failure or not log.closing):
            shard.writer.forget(log)


async def finish(stores: Stores, log: EventLog, run: Run) -> None:
    if log.ended:
        log.closing = True
        log.notify(log)
    else:
        kept = await keep_text(stores, log, run)
        await say_last(stores, log, run, *kept)
        logger.info("run.ended", status=run.status, by="outside", error=run.error)
    await stores.of(run.id).leases.release(log.fence)


async def keep_text(stores: Stores, log: EventLog, run: Run) -> list[Event]:
    """Store the text that was streamed and not stored, as its driver would have; repeating it changes nothing.

    Returns the event that says so. A message that the driver stored without coming to say so is said instead.
    """
    recent = await since_last_message(stores, log)
    stored = await run_messages.newest_of_run(stores.pool, run.id)
    if stored is None or any(str(stored.message_id).encode() in event for event in recent):
        text = events.unstored_text(recent)
        if not text:
            return []
        metadata = {"stream_status": "complete", "thread_run_id": str(run.id), "interrupted": True}
        content = {"role": "assistant", "content": text}
        charge = await charge_for(stores, run, text)
        stored = await run_messages.keep(stores.pool, log.fence, uuid5(run.id, text), content, metadata, charge)
    metadata = {**stored.metadata, "stream_status": "complete"}
    said = Event(stored.type, stored.content, metadata, stored.message_id, stored.is_llm_message)
    return [replace(said, created_at=stored.created_at, updated_at=stored.updated_at)]


async def charge_for(stores: Stores, run: Run, text: str) -> Charge | None:
    """What the text of a call costs that its driver had not settled."""
    gate = gate_of(stores.settings)
    call = await gate.unsettled(stores.pool, run.id)
    return gate.charge(call, None, text_tokens.of_text(text)) if call else None


async def since_last_message(stores: Stores, log: EventLog) -> list[bytes]:
    """The log's end from its last stored message (or take-over) on, read backwards: logs may be long."""
    found: list[bytes] = []
    end = log.length
    while end > 0:
        start = max(end - PAGE_EVENTS, 0)
        page = await read_range(stores, log, start, end)
        found = page + found
        if any(events.voids_chunks(said) for event in page if (said := events.parse(event))):
            break
        end = start
        await asyncio.sleep(0)
    return found


async def read_range(stores: Stores, log: EventLog, start: int, end: int) -> list[bytes]:
    """Events `start` to `end` of a log that this process holds: from Redis, else from the archive and the tail."""
    run_id = log.fence.run_id
    listed = cast(list[bytes], await stores.of(run_id).redis.lrange(keys.responses(run_id), start, end - 1))
    if len(listed) == end - start:
        return listed
    archived: list[bytes] = []
    while start + len(archived) < min(end, log.archived):
        blocks = await archive.read(stores.pool, run_id, start + len(archived))
        if not blocks:
            break
        archived += blocks
    tail = islice(log.tail, max(start - log.archived, 0), max(end - log.archived, 0))
    return [*archived[: max(min(end, log.archived) - start, 0)], *tail]
