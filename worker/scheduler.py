"""Fires schedules, in every worker: those that are due by themselves, or by keeping what QStash knows up to date."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, Protocol

from agent import firing
from agent.firing import Held
from services import metrics
from services.log import logger
from services.postgres import Unreachable
from services.schedules import claims, remotes, store
from services.schedules.claims import Due
from services.schedules.store import Schedule
from worker.process import Process

Clock = Callable[[], datetime]
Step = Callable[[], Awaitable[float | None]]
"""Does what is to be done; seconds until there is more, None when nobody knows of any."""

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

    @property
    def steps(self) -> Sequence[Step]:
        """Each is done over and over beside the others: no call of QStash makes what is fired here late."""
        ...

    async def close(self) -> None: ...


async def keep_scheduling(process: Process) -> None:
    backend = await backend_of(process)
    longest = process.settings.schedules.poll_interval.total_seconds()
    try:
        async with asyncio.TaskGroup() as group:
            for step in backend.steps:
                group.create_task(keep_at(step, longest))
    finally:
        await backend.close()


async def keep_at(step: Step, longest: float) -> None:
    while True:
        wait = await attempt(step)
        await asyncio.sleep(longest if wait is None else min(max(wait, SHORTEST_SECONDS), longest))


async def attempt(step: Step) -> float | None:
    try:
        return await step()
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

    @property
    def steps(self) -> Sequence[Step]:
        return (self.tick,)

    async def close(self) -> None:
        """It has opened nothing."""

    async def now(self) -> datetime | None:
        if self.clock:
            return self.clock()
        return await store.moment(self.process.stores.pool) - self.late if self.late else None

    async def tick(self) -> float | None:
        """Fire what is due, batch by batch; what a worker claims and does not fire is others' after a while."""
        settings, pool = self.process.settings.schedules, self.process.stores.pool
        most = settings.concurrency * BATCH_PER_SLOT
        while self.process.begins_runs:
            batch = await claims.take(pool, most=most, lease=settings.claim, at=await self.now())
            if not batch:
                break
            await asyncio.gather(*map(self.fire, batch))
        if not self.process.begins_runs:
            return None
        return await claims.seconds_to_next(pool, await self.now())

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
            await claims.postpone(self.process.stores.pool, due.schedule_id, until, await self.now())
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

    @property
    def steps(self) -> Sequence[Step]:
        return self.overdue.tick, self.teller.tell_news

    async def close(self) -> None:
        await self.teller.close()


class Leaving(Local):
    """Schedules that QStash woke once, and has to forget: it would deliver for years what nobody takes any more."""

    def __init__(self, process: Process, module: Any) -> None:
        super().__init__(process)
        self.teller = Teller(process, module)

    @property
    def steps(self) -> Sequence[Step]:
        return self.tick, self.teller.forget_all

    async def close(self) -> None:
        await self.teller.close()


class Teller:
    """What QStash is told by this process, some at a time; one that it does not hear is told again after a while."""

    def __init__(self, process: Process, module: Any) -> None:
        self.pool, self.failure = process.stores.pool, module.TellingFailed
        self.qstash = module.Qstash(process.settings)

    async def close(self) -> None:
        await self.qstash.close()

    async def tell_news(self) -> float | None:
        untold = await remotes.claim_untold(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        orphans = await remotes.claim_orphans(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        heard = await asyncio.gather(*map(self.tell, untold), *map(self.forget, orphans))
        return until_more(heard, max(len(untold), len(orphans)))

    async def forget_all(self) -> float | None:
        known = await remotes.claim_all(self.pool, most=TOLD_AT_ONCE, lease=TELLING)
        return until_more(await asyncio.gather(*map(self.forget, known)), len(known))

    async def tell(self, schedule: Schedule) -> bool:
        """Whether QStash has heard it."""
        try:
            await self.qstash.tell(schedule)
        except self.failure as error:
            logger.warning("schedule.not_told", schedule_id=str(schedule.schedule_id), error=str(error))
            await remotes.note_failed(self.pool, schedule, str(error), TELLING)
            return False
        await remotes.note_told(self.pool, schedule)
        return True

    async def forget(self, known: remotes.Known) -> bool:
        """Whether QStash has heard it."""
        try:
            await self.qstash.forget(known.schedule_id)
        except self.failure as error:
            logger.warning("schedule.not_forgotten", schedule_id=str(known.schedule_id), error=str(error))
            return False
        await remotes.forget(self.pool, known)
        return True


def until_more(heard: Sequence[bool], claimed: int) -> float | None:
    """At once when there may be more to tell, and QStash listens: one that refuses is not asked as fast as it can."""
    return 0 if claimed == TOLD_AT_ONCE and all(heard) else None
