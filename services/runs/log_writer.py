"""One writer per process for all its logs: it opens them, and appends what they have pending in one round trip."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import UUID

from redis import exceptions

from services import metrics
from services.background import repeat, stop
from services.log import logger
from services.postgres import Pool
from services.redis import Client
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, events, keys
from services.runs.event_log import EventLog
from services.runs.fence import Fence
from services.runs.lease import Leases
from services.runs.log_archiver import LogArchiver
from services.runs.log_mender import LogMender
from services.runs.log_script import Batches, LogScript
from services.runs.store import Run
from services.settings import RunSettings

RETRY_SECONDS = 0.1
CLOSE_SECONDS = 2.0
ROUND_TRIP_BYTES = 4 * 1024 * 1024
VOID = events.Event("status", {"status_type": "void"})


@dataclass(frozen=True, slots=True)
class Listed:
    """A log's list: how long it is, its events behind the archived ones, and which start of Redis (`epoch`) has it."""

    epoch: str
    length: int
    tail: list[bytes]


def epoch_of(info: bytes) -> str:
    """The `run_id` of INFO's answer, which is new at every start of the server."""
    return info.partition(b"\r\nrun_id:")[2].partition(b"\r")[0].decode()


class LogWriter:
    """Moves what the process's logs have pending into Redis, and their tails into Postgres."""

    def __init__(self, settings: RunSettings, redis: Client, pool: Pool, leases: Leases) -> None:
        self.settings, self.redis, self.pool = settings, redis, pool
        self.logs: set[EventLog] = set()
        self.dirty: dict[EventLog, None] = {}
        self.pending = asyncio.Event()
        self.awaited = asyncio.Event()
        self.script = LogScript(redis, int(settings.log_ttl.total_seconds() * 1000))
        self.mender = LogMender(redis, pool, leases, self.script, self.notify)
        self.archiver = LogArchiver(settings, pool, self.logs, self.forget)
        self.tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self.tasks = [
            asyncio.create_task(repeat(self.append_pending), name="log appends"),
            asyncio.create_task(repeat(self.archiver.archive_due), name="log archive"),
        ]

    async def close(self) -> None:
        """Stop, and archive once more; what is pending stays unwritten, so logs are closed or handed over before."""
        await stop(self.tasks)
        await self.mender.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.archiver.archive_all()

    async def look(self, run_id: UUID, archived: int = 0, *, until: int = -1) -> Listed:
        """What Redis has of a log from its `archived` events on, the event `until` included.

        With the lock in hand: nobody else appends then.

        Raises: redis errors when Redis cannot be asked.
        """
        responses = keys.responses(run_id)
        commands = [("INFO", "server"), ("LLEN", responses), ("LRANGE", responses, archived, until)]
        answers = await self.redis.ask(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        info, length, tail = answers
        return Listed(epoch_of(info), length, tail)

    async def open_log(self, run: Run, fence: Fence, listed: Listed | None = None) -> EventLog:
        """The log of a run whose fence and lock are ours, as far as it got.

        A first attempt, of which nothing is archived, may have looked at the list before: `listed`.
        Ids that an earlier attempt may have given out and that no store remembers become `void` events, but for the
        first: everybody knows how a run begins.
        Raises: redis or asyncpg errors when a store cannot be asked.
        """
        listed = listed or await self.look(run.id, run.archived_events)
        length, tail, epoch = listed.length, listed.tail, listed.epoch
        self.archiver.epoch = epoch
        earlier = run.reserved_events if fence.attempt > 1 else 0  # the first claim has reserved ids for itself
        whole = length >= run.archived_events and length > 0 and run.log_epoch == epoch
        known = fence.attempt > 1 or run.log_epoch == epoch
        log = EventLog(
            fence,
            run.thread_id,
            self.settings,
            archived=run.archived_events,
            tail=tail,
            reserved=run.reserved_events if known else 0,  # Redis has restarted since: a whole list would look lost
            notify=self.notify,
        )
        log.written_bytes = log.tail_bytes + (await archive.size(self.pool, run.id) if run.archived_events else 0)
        log.ended = run.final and await self.has_last_event(log)
        if not whole and not log.ended and earlier > log.length:
            logger.warning("log.void", agent_run_id=str(run.id), first_id=log.length, count=earlier - log.length)
            first = [log.encode(events.opening(run.id, run.began_at))] if log.blank else []
            log.extend([*first, *(log.encode(VOID) for _ in range(earlier - log.length - len(first)))])
        self.logs.add(log)
        if log.reserved - log.length < archive.FIRST_EVENTS // 2:
            self.archiver.starving.set()
        return log

    async def has_last_event(self, log: EventLog) -> bool:
        newest = [log.tail[-1]] if log.tail else []
        if not newest and log.archived:
            newest = await archive.read(self.pool, log.fence.run_id, log.archived - 1)
        return bool(newest) and events.final_status(newest[-1]) is not None

    def forget(self, log: EventLog) -> None:
        self.logs.discard(log)
        self.dirty.pop(log, None)

    def notify(self, log: EventLog) -> None:
        if log.awaited:
            self.awaited.set()
        if log in self.dirty:
            return
        self.dirty[log] = None
        self.pending.set()

    def notify_all(self, logs: Iterable[EventLog]) -> None:
        for log in logs:
            self.notify(log)

    async def append_pending(self) -> None:
        """At once when idle or when somebody waits for it, else at most every `append_interval`."""
        await self.pending.wait()
        self.pending.clear()
        self.awaited.clear()
        logs = [log for log in self.dirty if not log.repairing and not log.failure]
        self.dirty.clear()
        try:
            reached = await self.push(logs)
        except Exception:
            self.notify_all(logs)
            raise
        if not reached:
            await asyncio.sleep(RETRY_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.append_interval.total_seconds()):
                await self.awaited.wait()

    async def push(self, logs: list[EventLog]) -> bool:
        """One append for each log, all in one round trip; False when Redis was not reached or took nothing."""
        batches, begun = self.batches(logs), monotonic()
        try:
            verdicts = await self.script.append(batches)
        except RedisUnreachable as error:
            logger.warning("log.redis_unreachable", error=repr(error))
            self.notify_all(log for log, _ in batches)
            return False
        metrics.append_seconds.observe(monotonic() - begun)
        appended = 0
        for (log, batch), verdict in zip(batches, verdicts, strict=True):
            self.take_verdict(log, len(batch), verdict)
            appended += len(batch) if verdict == b"ok" else 0
        metrics.events_appended.inc(appended)
        full = [verdict for verdict in verdicts if isinstance(verdict, RedisUnreachable)]
        if full:
            logger.warning("log.redis_full", count=len(full), error=repr(full[0]))
        return not full

    def batches(self, logs: list[EventLog]) -> Batches:
        """What goes into one round trip; the logs that did not fit are the first of the next."""
        batches: Batches = []
        size = 0
        for position, log in enumerate(logs):
            if size >= ROUND_TRIP_BYTES:
                self.notify_all(logs[position:])
                break
            if batch := log.batch():
                batches.append((log, batch))
                size += log.pending_bytes
            elif log.pending:
                self.archiver.starving.set()
        return batches

    def take_verdict(self, log: EventLog, count: int, verdict: Any) -> None:
        if verdict == b"ok":
            log.appended(count)
            if log.pending:
                self.notify(log)
            if log.tail_bytes > log.max_tail_bytes:
                self.archiver.starving.set()
        elif verdict == b"lost":
            log.lose()
        elif verdict == b"missing":
            self.mender.repair(log, self.mender.retake)
        elif verdict == b"held":
            self.mender.repair(log, self.mender.wait)
        elif verdict == b"short":
            self.mender.repair(log, self.mender.refill)
        elif verdict == b"longer":
            self.mender.repair(log, self.mender.catch_up)
        else:
            self.take_refusal(log, verdict)

    def take_refusal(self, log: EventLog, error: Exception) -> None:
        if isinstance(error, (exceptions.NoScriptError, *RedisUnreachable)):
            self.notify(log)
        else:
            self.mender.repair(log, self.mender.wait_out(error))
