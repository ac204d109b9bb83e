"""One attempt at one run: what its driver has in hand, and how long it waits for a store that is away."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from agent.context import AgentConfig, RunContext
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.postgres import is_misuse
from services.redis import Unreachable as RedisUnreachable
from services.runs.event_log import EventLog
from services.runs.fence import FenceLost
from services.runs.lease import Held
from services.runs.log_writer import Listed
from services.runs.store import Run
from worker.process import Process

T = TypeVar("T")

RETRY_SECONDS = (0.1, 0.5, 2.0)
LAST_SECONDS = 0.5


@dataclass
class Attempt:
    process: Process
    run: Run
    held: Held
    listed: Listed | None = None
    """The run's list, if it was looked at under this very lock."""
    claimed_at: float = field(default_factory=monotonic)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process drains, or when whoever waits for the run no longer does: hand it over."""

    def open(self, log: EventLog) -> RunContext:
        """What the work may touch, speaking into `log`."""
        return RunContext(
            run=self.run,
            fence=self.held.fence,
            log=log,
            pool=self.process.stores.pool,
            http=self.process.http,
            settings=self.process.settings,
            sandboxes=self.process.sandboxes,
            config=AgentConfig.of(self.process.settings.agent),
            gate=self.process.gate,
            browser_driver=self.process.browser_driver,
            versions=self.process.stores.versions,
        )

    async def insist(self, act: Callable[[], Awaitable[T]], *, until_leaving: bool = False) -> T:
        """`insist` under this attempt's lease."""
        return await insist(self.process, self.held, act, give_up=self.leave.is_set if until_leaving else never)

    async def unless_leaving(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; None when it is not done half a second after the run is to be let go.

        Raises: what it raises.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.create_task(self.leave.wait())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({working}, timeout=LAST_SECONDS)
            return await working if working.done() else None
        finally:
            leaving.cancel()
            working.cancel()


def never() -> bool:
    return False


async def insist(process: Process, held: Held, act: Callable[[], Awaitable[T]], *, give_up: Callable[[], bool]) -> T:
    """Repeat what a store is too sick for, as long as the lease is ours: live runs wait.

    Raises: FenceLost when the lease is lost; the store's error when `give_up` says so or the process closes.
    """
    tries = 0
    while True:
        try:
            return await act()
        except (*PostgresUnreachable, *RedisUnreachable) as error:
            if held.lost.is_set():
                raise FenceLost(str(held.fence.run_id)) from error
            if is_misuse(error) or give_up() or process.stores.pool.is_closing():
                raise
            logger.warning("run.store_away", error=repr(error), tries=tries + 1)
        await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
        tries += 1
