"""The end of a run: the row is final first, then its last words, then the archive closes."""

from typing import cast
from uuid import UUID, uuid5

from asyncpg import Record
from redis.exceptions import ResponseError

from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, control, events, keys, store
from services.runs.event_log import EventLog, LogRefused
from services.runs.events import Event
from services.runs.fence import Fence, FenceLost
from services.runs.store import Run
from services.runs.stores import Stores


async def say_last(stores: Stores, log: EventLog, run: Run, *before: Event) -> None:
    """Publish the end of a run whose row is final: `before`, thread_run_end and the last event in one step.

    Raises: FenceLost, LogRefused, redis errors; the sweeper finishes what is cut here.
    """
    last = events.last_event(run.status, run.error)
    start = [events.status("thread_run_start", run.id)] if log.length == 0 and not log.pending else []
    await log.close(last, *start, *before, events.status("thread_run_end", run.id))
    await control.announce_end(stores.redis, run.id, run.status)


async def wake_next(stores: Stores, project_id: UUID) -> None:
    """The project's next queued run may begin, now that the row of the one before it is final."""
    try:
        waiting = await store.next_queued(stores.pool, project_id)
    except PostgresUnreachable as error:
        logger.warning("run.next_not_woken", project_id=str(project_id), error=repr(error))  # the sweeper will
        return
    if waiting:
        stores.dispatch.send_run(waiting)


async def close_from_outside(stores: Stores, run: Run) -> None:
    """Finish a run that is final in its row and whose fence was raised for us; the text it streamed is kept.

    What cannot be done now (a store is away) is done by the sweeper.
    """
    await wake_next(stores, run.project_id)
    fence = Fence(run.id, run.attempt, stores.instance_id)
    log: EventLog | None = None
    try:
        if not await stores.leases.seize(fence):
            return
        log = await stores.writer.open_log(run, fence)
        await finish(stores, log, run)
    except FenceLost:
        logger.info("run.closed_elsewhere", run_id=str(run.id))
    except (*RedisUnreachable, *PostgresUnreachable, ResponseError, LogRefused) as error:
        logger.warning("run.close_postponed", run_id=str(run.id), error=repr(error))
    finally:
        if log and (log.failure or not log.closing):
            stores.writer.forget(log)


async def finish(stores: Stores, log: EventLog, run: Run) -> None:
    if log.ended:
        log.closing = True
        log.notify(log)
    else:
        kept = await keep_text(stores, log, run)
        await say_last(stores, log, run, *kept)
        logger.info("run.ended", run_id=str(run.id), status=run.status, attempt=run.attempt, by="outside")
    await stores.leases.release(log.fence)


async def keep_text(stores: Stores, log: EventLog, run: Run) -> list[Event]:
    """Store the text that was streamed and not stored, as its driver would have; repeating it changes nothing.

    Returns the event that says so.
    """
    text = events.unstored_text(await whole_log(stores, log))
    if not text:
        return []
    metadata = {"stream_status": "complete", "thread_run_id": str(run.id), "interrupted": True}
    content = {"role": "assistant", "content": text}
    row = await stored_text(stores, run, content) or await stores.pool.fetchrow(
        """
        INSERT INTO messages (message_id, thread_id, agent_run_id, type, is_llm_message, content, metadata)
        SELECT $1, thread_id, id, 'assistant', true, $2, $3 FROM agent_runs WHERE id = $4 AND attempt = $5
        ON CONFLICT (message_id) DO UPDATE SET updated_at = messages.updated_at
        RETURNING message_id, created_at, updated_at
        """,
        uuid5(run.id, text),
        content,
        metadata,
        run.id,
        run.attempt,
    )
    if row is None:
        raise FenceLost(str(run.id))
    return [Event("assistant", content, metadata, is_llm_message=True, **row)]


async def stored_text(stores: Stores, run: Run, content: dict[str, str]) -> Record | None:
    """The row of a text that its driver stored without coming to say so."""
    return await stores.pool.fetchrow(
        """
        SELECT message_id, created_at, updated_at FROM messages
        WHERE agent_run_id = $1 AND type = 'assistant' AND content @> $2
        """,
        run.id,
        content,
    )


async def whole_log(stores: Stores, log: EventLog) -> list[bytes]:
    """Every event of a log that this process holds: from Redis, else from the archive and the tail."""
    run_id: UUID = log.fence.run_id
    listed = cast(list[bytes], await stores.redis.lrange(keys.responses(run_id), 0, -1))
    if len(listed) >= log.length:
        return listed
    archived: list[bytes] = []
    while len(archived) < log.archived and (found := await archive.read(stores.pool, run_id, len(archived))):
        archived += found
    return [*archived[: log.archived], *log.tail]
