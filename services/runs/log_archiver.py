"""The archive of a process's logs: their tails go to Postgres, many in one statement."""

import asyncio
from collections.abc import Callable, Set
from contextlib import suppress

from services import metrics
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.runs import archive
from services.runs.archive import Block
from services.runs.event_log import EventLog
from services.settings import RunSettings

RETRY_SECONDS = 0.1
STATEMENT_BYTES = 8 * 1024 * 1024


class LogArchiver:
    """Moves the tails of `logs` into Postgres, and has those forgotten that are closed or lost."""

    def __init__(
        self, settings: RunSettings, pool: Pool, logs: Set[EventLog], forget: Callable[[EventLog], None]
    ) -> None:
        self.pool, self.logs, self.forget = pool, logs, forget
        self.interval = settings.archive_interval.total_seconds()
        self.epoch = ""
        """Which start of Redis has the lists: blocks say so."""
        self.starving = asyncio.Event()
        """Set when a log waits for ids, or for room in its tail."""
        self.due_at = 0.0

    async def archive_due(self) -> None:
        """One interval after the last began, however long that took; at once when a log waits for it."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.due_at):
                await self.starving.wait()
        self.starving.clear()
        self.due_at = loop.time() + self.interval
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
