"""Logs whose lists are not what their writer knew of them: mended one by one, beside all others."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from redis import exceptions

from services.background import Background
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Client
from services.redis import Unreachable as RedisUnreachable
from services.runs import archive, events
from services.runs.event_log import BATCH_EVENTS, EventLog
from services.runs.lease import Leases
from services.runs.log_script import LogScript

RETRY_SECONDS = 0.1


class LogMender:
    """Cures what the script's verdicts say is wrong; `notify` is told of each log that may be appended to again."""

    def __init__(
        self, redis: Client, pool: Pool, leases: Leases, script: LogScript, notify: Callable[[EventLog], None]
    ) -> None:
        self.redis, self.pool, self.leases, self.script, self.notify = redis, pool, leases, script, notify
        self.repairs = Background()

    async def close(self) -> None:
        await self.repairs.close()

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
            if not await self.script.refill(log, length, lost):
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
