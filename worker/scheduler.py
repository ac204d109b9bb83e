"""Fires schedules, in every worker: those that are due by themselves, or by keeping what QStash knows up to date."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Protocol
from uuid import UUID

from agent import firing
from agent.firing import Held
from services import metrics
from services.log import logger
from services.postgres import Unreachable
from services.schedules import claims, remotes
from services.schedules.claims import Due
from services.schedules.store import Schedule
from worker.process import Process

Clock = Callable[[], datetime]

BATCH_PER_SLOT = 5
SHORTEST_SECONDS = 0.005
HELD_FOR = timedelta(seconds=2)
BROKEN_FOR = timedelta(seconds=30)
TOLD_AT_ONCE = 10
TELLING = timedelta(seconds=30)
"""A lease in which QStash is told of one schedule; longer than its calls may take."""
OVERDUE = timedelta(minutes=1)
"""How long QStash may be late before a worker fires in its place."""


class Backend(Protocol):
    """Who wakes schedules."""

    async def tick(self) -> float | None:
        """Do what is to be done; seconds until there is more, None when nobody knows of any."""
        ...

    async def close(self) -> None: ...


async def keep_scheduling(process: Process) -> None:
    backend = await backend_of(process)
    longest = process.settings.schedules.poll_interval.total_seconds()
    try:
        while True:
            wait = await attempt(backend)
            await asyncio.sleep(longest if wait is None else min(max(wait, SHORTEST_SECONDS), longest))
    finally:
        await backend.close()


async def attempt(backend: Backend) -> float | None:
    try:
        return await backend.tick()
    except Unreachable as error:
        logger.warning("scheduler.postponed", error=repr(error))
    except Exception:
        logger.exception("scheduler.failed")
    return None


async def backend_of(process: Process) -> Backend:
    """The one that SCHEDULES names; with the keys of QStash it is told that it is the other no more."""
    woken_here = process.settings.schedules.backend == "local"
    if woken_here and not process.settings.qstash.complete:
        return Local(process)
    module: Any = await asyncio.to_thread(import_module, "services.schedules.qstash")
    return Leaving(process, module) if woken_here else Remote(process, module)


class Local:
    """Schedules that are due, by the clock of the database unless another one is given; or have been for `late`."""

    def __init__(self, process: Process, clock: Clock | None = None, late: timedelta = timedelta(0)) -> None:
        self.process, self.clock, self.late = process, clock, late
        self.free = asyncio.Semaphore(process.settings.schedules.concurrency)

    async def close(self) -> None:
        """It has opened nothing."""

    @property
    def now(self) -> datetime | None:
        if self.clock:
            return self.clock()
        return datetime.now(UTC) - self.late if self.late else None

    async def tick(self) -> float | None:
        """Fire what is due, batch by batch; what a worker claims and does not fire is others' after a while."""
        settings, pool = self.process.settings.schedules, self.process.stores.pool
        most = settings.concurrency * BATCH_PER_SLOT
        while self.process.begins_runs:
            batch = await claims.take(pool, most=most, lease=settings.claim, at=self.now)
            if not batch:
                break
            await asyncio.gather(*map(self.fire, batch))
        if not self.process.begins_runs:
            return None
        return await claims.seconds_to_next(pool, self.now)

    async def fire(self, due: Due) -> None:
        """One that fails holds up no other."""
        async with self.free:
            try:
                await firing.fire(self.process, due, late=self.late)
            except (Held, *Unreachable) as error:
                metrics.schedule_postponed.labels("held" if isinstance(error, Held) else "store away").inc()
                logger.info("schedule.postponed", schedule_id=str(due.schedule_id), error=repr(error))
                await self.postpone(due, HELD_FOR)
            except Exception:
                metrics.schedule_postponed.labels("broken").inc()
                logger.exception("schedule.failed", schedule_id=str(due.schedule_id))
                await self.postpone(due, BROKEN_FOR)

    async def postpone(self, due: Due, until: timedelta) -> None:
        try:
            await claims.postpone(self.process.stores.pool, due.schedule_id, until, self.now)
        except Unreachable as error:
            logger.warning("schedule.not_postponed", schedule_id=str(due.schedule_id), error=repr(error))


class Remote:
    """QStash delivers when it is time; here it is told which schedules there are.

    What it is late for is fired here, as if it had come in time: it was away, or has not heard of a schedule yet, or
    its clocks know no such time on the day on which they are set forward.
    """

    def __init__(self, process: Process, module: Any) -> None:
        self.teller = Teller(process, module)
        self.overdue = Local(process, late=OVERDUE)

    async def close(self) -> None:
        await self.teller.close()

    async def tick(self) -> float | None:
        await self.overdue.tick()
        return 0 if await self.teller.tell_news() else None


class Leaving(Local):
    """Schedules that QStash woke once, and has to forget: it would deliver for years what nobody takes any more."""

    def __init__(self, process: Process, module: Any) -> None:
        super().__init__(process)
        self.teller = Teller(process, module)

    async def close(self) -> None:
        await self.teller.close()

    async def tick(self) -> float | None:
        wait = await super().tick()
        return 0 if await self.teller.forget_all() else wait


class Teller:
    """What QStash is told by this process; each returns whether there may be more to tell."""

    def __init__(self, process: Process, module: Any) -> None:
        self.pool, self.failure = process.stores.pool, module.TellingFailed
        self.qstash = module.Qstash(process.settings)

    async def close(self) -> None:
        await self.qstash.close()

    async def tell_news(self) -> bool:
        untold = await remotes.claim_untold(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        orphans = await remotes.claim_orphans(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        await asyncio.gather(*map(self.tell, untold), *map(self.forget, orphans))
        return len(untold) == TOLD_AT_ONCE or len(orphans) == TOLD_AT_ONCE

    async def forget_all(self) -> bool:
        known = await remotes.claim_all(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        await asyncio.gather(*map(self.forget, known))
        return len(known) == TOLD_AT_ONCE

    async def tell(self, schedule: Schedule) -> None:
        try:
            await self.qstash.tell(schedule)
        except self.failure as error:
            logger.warning("schedule.not_told", schedule_id=str(schedule.schedule_id), error=str(error))
            await remotes.note_failed(self.pool, schedule, str(error), TELLING)
            return
        await remotes.note_told(self.pool, schedule)

    async def forget(self, schedule_id: UUID) -> None:
        try:
            await self.qstash.forget(schedule_id)
        except self.failure as error:
            logger.warning("schedule.not_forgotten", schedule_id=str(schedule_id), error=str(error))
            return
        await remotes.forget(self.pool, schedule_id)
