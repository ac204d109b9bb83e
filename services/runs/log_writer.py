"""One writer per process for all its logs: appends in one pipeline, archives in one statement."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast
from uuid import UUID

from redis import exceptions

from services import metrics
from services.background import Background, repeat, stop
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Client, Command, Encoded, bulk
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, events, keys
from services.runs.archive import Block
from services.runs.event_log import BATCH_EVENTS, EventLog
from services.runs.fence import Fence
from services.runs.lease import ATTEMPT_OF, Leases
from services.runs.store import Run
from services.settings import RunSettings

APPEND = f"""
{ATTEMPT_OF}
local verdicts, taken, at = {{}}, {{}}, 2
for log = 1, #KEYS / 2 do
    local owner, length = redis.call('GET', KEYS[2 * log - 1]), redis.call('LLEN', KEYS[2 * log])
    local expected = tonumber(ARGV[at + 2])
    if not owner then verdicts[log] = 'missing'
    elseif owner ~= ARGV[at] and attempt_of(owner) <= attempt_of(ARGV[at]) then verdicts[log] = 'held'
    elseif owner ~= ARGV[at] then verdicts[log] = 'lost'
    elseif length < expected then verdicts[log] = 'short'
    elseif length > expected then verdicts[log] = 'longer'
    elseif taken[KEYS[2 * log]] then verdicts[log] = 'longer'
    else verdicts[log], taken[KEYS[2 * log]] = 'ok', true end
    at = at + 4 + ARGV[at + 3]
end
at = 2
for log = 1, #KEYS / 2 do
    local first, last = at + 4, at + 3 + ARGV[at + 3]
    if verdicts[log] == 'ok' then
        for start = first, last, 1000 do
            redis.call('RPUSH', KEYS[2 * log], unpack(ARGV, start, math.min(start + 999, last)))
        end
        redis.call('PEXPIRE', KEYS[2 * log], ARGV[1])
        redis.call('PUBLISH', ARGV[at + 1], 'new')
    end
    at = last + 1
end
return verdicts
"""
"""The atomic step of many logs: fence, expected length (a repeated append cannot double), RPUSH, EXPIRE, PUBLISH.

Keys: lock and list of each log. Arguments: TTL; of each owner, channel, expected length, number of events, events.
What may be refused is asked before anything is written: a call that fails has appended nothing. A list that is named
twice is appended to once, as by two calls.
"""

NUMBERS = b"$12\r\n%012d\r\n$6\r\n%06d\r\n"
"""Expected length and number of events, as wide as they may become."""

Batches = list[tuple[EventLog, list[bytes]]]
"""What is to be appended next to each log."""

LOGS_AT_ONCE = 64
"""How many logs a call of the script appends to: it holds up everybody else."""
RETRY_SECONDS = 0.1
CLOSE_SECONDS = 2.0
ROUND_TRIP_BYTES = 4 * 1024 * 1024
STATEMENT_BYTES = 8 * 1024 * 1024
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
        self.settings, self.redis, self.pool, self.leases = settings, redis, pool, leases
        self.script = redis.register_script(APPEND)
        self.ttl_ms = int(settings.log_ttl.total_seconds() * 1000)
        self.epoch = ""
        self.logs: set[EventLog] = set()
        self.dirty: dict[EventLog, None] = {}
        self.pending = asyncio.Event()
        self.awaited = asyncio.Event()
        self.starving = asyncio.Event()
        self.archive_at = 0.0
        self.repairs = Background()
        self.tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self.tasks = [
            asyncio.create_task(repeat(self.append_pending), name="log appends"),
            asyncio.create_task(repeat(self.archive_due), name="log archive"),
        ]

    async def close(self) -> None:
        """Stop, and archive once more; what is pending stays unwritten, so logs are closed or handed over before."""
        await stop(self.tasks)
        await self.repairs.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.archive_all()

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
        length, tail, self.epoch = listed.length, listed.tail, listed.epoch
        earlier = run.reserved_events if fence.attempt > 1 else 0  # the first claim has reserved ids for itself
        whole = length >= run.archived_events and length > 0 and run.log_epoch == self.epoch
        known = fence.attempt > 1 or run.log_epoch == self.epoch
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
            self.starving.set()
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

    # Appending.

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
            verdicts = await self.append(batches)
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
                self.starving.set()
        return batches

    async def append(self, batches: Batches) -> list[Any]:
        """A verdict of the script for each log, or the error for which nothing was appended to it.

        Raises: redis errors when the server cannot be asked.
        """
        calls = [batches[first : first + LOGS_AT_ONCE] for first in range(0, len(batches), LOGS_AT_ONCE)]
        verdicts: list[Any] = []
        for some, answer in zip(calls, await self.redis.ask(list(map(self.appends_of, calls))), strict=True):
            if isinstance(answer, exceptions.NoScriptError):
                await self.redis.script_load(APPEND)
            if not isinstance(answer, Exception):
                verdicts += answer
            elif len(some) == 1 or isinstance(answer, (exceptions.NoScriptError, *RedisUnreachable)):
                verdicts += [answer] * len(some)
            else:
                verdicts += await self.append_each(some)
        return verdicts

    async def append_each(self, batches: Batches) -> list[Any]:
        """One of these logs is at fault that all of them were refused: each in a call of its own."""
        answers = await self.redis.ask([self.appends_of([each]) for each in batches])
        return [answer if isinstance(answer, Exception) else answer[0] for answer in answers]

    def appends_of(self, batches: Batches) -> Command:
        """One call of the script, written out: what is the same each time is encoded once, in small pieces."""
        names: list[bytes] = []
        words: list[bytes] = []
        count = 4
        for log, batch in batches:
            names.append(log.spoken_keys)
            words.append(log.spoken_owner)
            words.append(NUMBERS % (log.length, len(batch)))
            words += map(bulk, batch)
            count += 6 + len(batch)
        script = map(bulk, (b"EVALSHA", self.script.sha.encode(), b"%d" % (2 * len(batches))))
        return Encoded(count, [*script, *names, bulk(b"%d" % self.ttl_ms), *words])

    def take_verdict(self, log: EventLog, count: int, verdict: Any) -> None:
        if verdict == b"ok":
            log.appended(count)
            if log.pending:
                self.notify(log)
            if log.tail_bytes > log.max_tail_bytes:
                self.starving.set()
        elif verdict == b"lost":
            log.lose()
        elif verdict == b"missing":
            self.repair(log, self.retake)
        elif verdict == b"held":
            self.repair(log, self.wait)
        elif verdict == b"short":
            self.repair(log, self.refill)
        elif verdict == b"longer":
            self.repair(log, self.catch_up)
        else:
            self.take_refusal(log, verdict)

    def take_refusal(self, log: EventLog, error: Exception) -> None:
        if isinstance(error, (exceptions.NoScriptError, *RedisUnreachable)):
            self.notify(log)
        else:
            self.repair(log, self.wait_out(error))

    def repair(self, log: EventLog, cure: Callable[[EventLog], Awaitable[None]]) -> None:
        """Mend one log beside the others; it is left out of the pipeline meanwhile."""
        log.repairing = True
        self.repairs.spawn(self.mend(log, cure))

    async def mend(self, log: EventLog, cure: Callable[[EventLog], Awaitable[None]]) -> None:
        try:
            await cure(log)
        except (*RedisUnreachable, *PostgresUnreachable, exceptions.ResponseError) as error:
            logger.warning("log.not_mended", agent_run_id=str(log.fence.run_id), error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            log.repairing = False
            self.notify(log)

    def wait_out(self, error: Exception) -> Callable[[EventLog], Awaitable[None]]:
        async def wait(log: EventLog) -> None:
            logger.warning("log.append_refused", agent_run_id=str(log.fence.run_id), error=repr(error))
            log.refused(asyncio.get_running_loop().time())
            await asyncio.sleep(RETRY_SECONDS)

        return wait

    async def wait(self, log: EventLog) -> None:
        """A worker that came by an old message has the lock: its claim fails, and it gives the lock back."""
        await asyncio.sleep(RETRY_SECONDS)

    async def retake(self, log: EventLog) -> None:
        if not await self.leases.retake(log.fence):
            log.lose()

    async def refill(self, log: EventLog) -> None:
        """Redis lost the list's end: push what the archive and the tail hold, under the fence."""
        length = int(await self.redis.llen(log.responses))
        logger.warning("log.refill", agent_run_id=str(log.fence.run_id), from_id=length, to_id=log.length)
        while length < log.length:
            lost = await self.lost_events(log, length)
            if not lost:
                log.lose()  # the archive is gone, and with it the run
                return
            arguments: list[str | int | bytes] = [self.ttl_ms, log.owner, log.news, length, len(lost), *lost]
            (verdict,) = await self.script(keys=[log.lock, log.responses], args=arguments)
            if verdict != b"ok":
                return
            length += len(lost)

    async def lost_events(self, log: EventLog, first_id: int) -> list[bytes]:
        """What the list is given back next: the archive piece by piece, its end and the whole tail in one step.

        A list that ended in between would look whole to an attempt that takes over from one that died meanwhile.
        """
        found: list[bytes] = []
        if first_id < log.archived:
            found = await archive.read(self.pool, log.fence.run_id, first_id)
            if len(found) > BATCH_EVENTS or not found:
                return found[:BATCH_EVENTS]
        start = first_id + len(found) - log.archived
        return found if start < 0 else [*found, *log.tail[start:]]

    async def catch_up(self, log: EventLog) -> None:
        """The list is longer than we knew: our own append whose answer was lost, or a foreign producer."""
        found = cast(list[bytes], await self.redis.lrange(log.responses, log.length, log.length + BATCH_EVENTS - 1))
        ours = 0
        while ours < min(len(found), len(log.pending)) and found[ours] == log.pending[ours]:
            ours += 1
        log.appended(ours)
        log.extend(found[ours:])
        if any(events.final_status(event) for event in found[ours:]):
            log.lose()

    # Archiving.

    async def archive_due(self) -> None:
        """One interval after the last began, however long that took; at once when a log waits for it."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.archive_at):
                await self.starving.wait()
        self.starving.clear()
        self.archive_at = loop.time() + self.settings.archive_interval.total_seconds()
        await self.archive_all()

    async def archive_all(self) -> None:
        """Store what every log has to store: one statement, and more only for what did not fit into it."""
        more = True
        while more:
            pairs, more = self.due_blocks()
            try:
                more = await self.store_blocks(pairs) and more
            except PostgresUnreachable as error:
                logger.warning("log.postgres_unreachable", error=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
                return

    async def store_blocks(self, pairs: list[tuple[EventLog, Block]]) -> bool:
        """Whether any was taken: what nobody takes now is not worth another statement at once."""
        stored = await archive.store(self.pool, [block for _, block in pairs]) if pairs else set()
        for log, block in pairs:
            if (log.fence.run_id, log.fence.attempt) in stored:
                metrics.events_archived.inc(len(block.events))
                log.archived_block(block)
                self.leave_closed(log)
            else:
                await self.check_refusal(log)
        return bool(stored)

    def due_blocks(self) -> tuple[list[tuple[EventLog, Block]], bool]:
        """The blocks of one statement, and whether some had to be left for the next."""
        pairs: list[tuple[EventLog, Block]] = []
        size = 0
        for failed in [log for log in self.logs if log.failure]:
            self.forget(failed)  # its owner may have left it to us while its end was on the way
        for log in sorted(self.logs, key=lambda log: log.fence.run_id):  # one order for all: no deadlocks
            if size >= STATEMENT_BYTES:
                return pairs, True
            block = log.block(self.epoch)
            if block:
                pairs.append((log, block))
                size += sum(map(len, block.events))
        return pairs, any(len(block.events) < len(log.tail) for log, block in pairs)

    def leave_closed(self, log: EventLog) -> None:
        if log.closed.is_set():
            self.forget(log)

    async def check_refusal(self, log: EventLog) -> None:
        """A block that was not taken: its row was locked, it was stored before, or the fence was raised."""
        row = await self.pool.fetchrow(
            "SELECT attempt, archived_events, reserved_events, closed_at FROM agent_runs WHERE id = $1",
            log.fence.run_id,
        )
        if row is None or row["attempt"] != log.fence.attempt:
            log.lose()
            self.forget(log)
            return
        stored = row["archived_events"] - log.archived
        if stored > 0:
            block = Block(log.fence, log.archived, log.tail[:stored], row["reserved_events"], self.epoch)
            log.archived_block(block)
        if row["closed_at"]:
            log.closed.set()
            self.forget(log)

    async def archive_run(self, log: EventLog) -> bool:
        """Archive one log to its present end (a hand-over); False when its fence is lost."""
        while log.archived < log.length and not log.failure:
            self.starving.set()
            log.moved.clear()
            await log.moved.wait()
        return log.failure is None
