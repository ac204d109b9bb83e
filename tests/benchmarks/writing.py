"""A process that writes the logs of many runs. It is told what to say on its standard input, a JSON object a line.

`python -m tests.benchmarks.writing KIND`, where the stores are those that the environment names.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import uvloop

from services.runs.events import Event
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.benchmarks.bare_log import BareWriter, shaped
from tests.benchmarks.reference.writer import ReferenceWriter
from tests.services.runs.seeds import Driver, chunk, driving, make_run, with_runs

TICK_SECONDS = 0.001
TEXT = "Twelve words, more or less, "
NEVER = timedelta(hours=1)
PLENTY = 1_000_000


class Writer:
    """The logs of so many runs, and a way to say something in each. This one drops it: what the load itself costs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run_ids: list[UUID] = []
        self.metadata: list[dict[str, Any]] = []

    async def begin(self, stack: AsyncExitStack) -> None:
        """Open what all runs share."""

    async def add_run(self, stack: AsyncExitStack) -> UUID:
        return uuid4()

    async def open(self, stack: AsyncExitStack, runs: int) -> list[str]:
        """Have so many live runs in all; returns the ids of all."""
        while len(self.run_ids) < runs:
            self.run_ids.append(await self.add_run(stack))
            self.metadata.append({"stream_status": "chunk", "thread_run_id": str(self.run_ids[-1])})
        return list(map(str, self.run_ids))

    def event(self, number: int) -> Event:
        content = {"role": "assistant", "content": TEXT}
        return Event("assistant", content, self.metadata[number], is_llm_message=True)

    async def say(self, number: int, *events: Event) -> None:
        """Say these in the log of that run."""

    async def settle(self) -> None:
        """Wait until all that was said is in Redis."""

    async def archive(self) -> None:
        """Wait until all that was said is in Postgres."""


class Bare(Writer):
    async def begin(self, stack: AsyncExitStack) -> None:
        self.writer = BareWriter(self.settings.redis.dsn, self.settings.runs.append_interval.total_seconds())
        await self.writer.open()
        self.thread_id = str(uuid4())

    async def say(self, number: int, *events: Event) -> None:
        for event in events:
            self.writer.say(self.run_ids[number], self.thread_id, event)

    async def settle(self) -> None:
        await self.writer.settle()


class Reference(Writer):
    async def begin(self, stack: AsyncExitStack) -> None:
        self.writer = ReferenceWriter(self.settings.redis.dsn)
        stack.push_async_callback(self.writer.close)
        self.thread_id = str(uuid4())
        self.sequence = 0

    async def say(self, number: int, *events: Event) -> None:
        for event in events:
            now = datetime.now(UTC).isoformat()
            self.writer.say(self.run_ids[number], shaped(event, self.sequence, self.thread_id, now))
            self.sequence += 1

    async def settle(self) -> None:
        await self.writer.settle()


class Longrun(Writer):
    """The runs are claimed and their leases held, as a worker does it; only the agent is missing."""

    stores: Stores

    async def begin(self, stack: AsyncExitStack) -> None:
        self.stores = await stack.enter_async_context(open_stores(self.settings))
        self.drivers: list[Driver] = []

    async def add_run(self, stack: AsyncExitStack) -> UUID:
        made = await make_run(self.stores.pool)
        driver = await stack.enter_async_context(driving(self.stores, made))
        await driver.log.append(chunk(driver.run, TEXT))
        await driver.archived()
        self.drivers.append(driver)
        return driver.run.id

    async def say(self, number: int, *events: Event) -> None:
        await self.drivers[number].log.append(*events)

    async def settle(self) -> None:
        for driver in self.drivers:
            await driver.log.flush()

    async def archive(self) -> None:
        """Its pace stays what it is: nobody asks for it to be sooner."""
        for driver in self.drivers:
            while driver.log.tail:
                driver.log.moved.clear()
                await driver.log.moved.wait()


class Unarchived(Longrun):
    """The same with an archive that does nothing while it is measured."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(with_runs(settings, archive_interval=NEVER))

    async def add_run(self, stack: AsyncExitStack) -> UUID:
        run_id = await super().add_run(stack)
        self.drivers[-1].log.reserved += PLENTY
        return run_id

    async def archive(self) -> None:
        pass


KINDS: dict[str, type[Writer]] = {
    "silent": Writer,
    "limit": Bare,
    "longrun": Longrun,
    "unarchived": Unarchived,
    "reference": Reference,
}


async def load(writer: Writer, *, runs: int, rate: float, seconds: float) -> dict[str, float]:
    """So many events per second and run, evenly spread; `cpu` is counted until all is archived."""
    began, cpu, total, said = time.monotonic(), time.process_time(), int(runs * rate * seconds), 0
    while said < total:
        due = min(total, int((time.monotonic() - began) * runs * rate))
        for number in range(said, due):
            await writer.say(number % runs, writer.event(number % runs))
        said = due
        await asyncio.sleep(TICK_SECONDS)
    took, end = time.monotonic() - began, await ending(writer)
    return {"said": said, "seconds": took, "cpu": time.process_time() - cpu, **end}


async def ending(writer: Writer) -> dict[str, float]:
    """Seconds until all is in Redis, and until all is in Postgres."""
    ended = time.monotonic()
    await writer.settle()
    settled = time.monotonic() - ended
    await writer.archive()
    return {"settled": settled, "archived": time.monotonic() - ended}


async def whisper(writer: Writer, *, events: int) -> dict[str, float]:
    """One event now and then, all of one run."""
    for _ in range(events):
        await writer.say(0, writer.event(0))
        await asyncio.sleep(random.uniform(0.015, 0.035))
    return {"said": events, **await ending(writer)}


async def flood(writer: Writer, *, runs: int, batch: int, seconds: float) -> dict[str, float]:
    """All runs at once, each as fast as it is let, so many events at a time."""
    began = time.monotonic()

    async def pour(number: int) -> int:
        said, events = 0, [writer.event(number)] * batch
        while time.monotonic() - began < seconds:
            await writer.say(number, *events)
            said += batch
            await asyncio.sleep(0)
        return said

    said = sum(await asyncio.gather(*map(pour, range(runs))))
    poured = time.monotonic() - began
    end = await ending(writer)
    return {"said": said, "per_second": said / (poured + end["settled"]), **end}


DEEDS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {"load": load, "whisper": whisper, "flood": flood}


async def obey(writer: Writer, stack: AsyncExitStack, order: dict[str, Any]) -> Any:
    deed = order.pop("do")
    return await writer.open(stack, **order) if deed == "open" else await DEEDS[deed](writer, **order)


async def serve(kind: str, answers: Any) -> None:
    """Obey until the input ends."""
    writer = KINDS[kind](Settings())
    async with AsyncExitStack() as stack:
        await writer.begin(stack)
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer = await obey(writer, stack, orjson.loads(line))
            print(orjson.dumps(answer).decode(), file=answers, flush=True)


def main(arguments: Sequence[str]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what is logged is no answer
    uvloop.run(serve(arguments[0], answers))


if __name__ == "__main__":
    main(sys.argv[1:])
