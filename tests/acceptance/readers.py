"""Many runs, several readers each, that join at random, drop and resume."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.llm.demo import lorem
from tests.acceptance.client import Client, Event, check_whole_log, streamed_text

RUN_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    runs: int = 200
    at_once: int = 40
    readers: int = 3
    chunks: int = 200
    delay_ms: int = 5
    drops: int = 3
    seed: int = 1

    @property
    def model(self) -> str:
        return f"demo/lorem?chunks={self.chunks}&delay_ms={self.delay_ms}"

    @property
    def run_seconds(self) -> float:
        """How long a run takes at least."""
        return self.chunks * self.delay_ms / 1000


@dataclass
class Reading:
    """What one reader saw, over all of its connections."""

    events: list[Event] = field(default_factory=list)
    connections: int = 0
    cut_by_server: int = 0

    @property
    def after(self) -> int | None:
        return self.events[-1].id if self.events else None

    @property
    def over(self) -> bool:
        return bool(self.events) and self.events[-1].final is not None


@dataclass(frozen=True)
class Outcome:
    """One run and its readers; seconds are from POST to the last event at the last reader that was there."""

    seconds: float
    readings: list[Reading]


async def read(client: Client, run_id: str, plan: Plan, chance: random.Random) -> Reading:
    """Read a run from anywhere to its end, dropping the connection now and then."""
    await asyncio.sleep(chance.uniform(0, 1.5 * plan.run_seconds))
    reading, drops = Reading(), chance.randint(0, plan.drops)
    while not reading.over:
        patience = chance.randint(1, plan.chunks // 2) if drops else None
        drops -= patience is not None
        await read_once(client, run_id, reading, patience)
        if patience is not None:
            await asyncio.sleep(chance.uniform(0, 0.3))
    async with client.stream(run_id, reading.after) as stream:
        assert stream.status == 204, f"{stream.status} after the last event"
    return reading


async def read_once(client: Client, run_id: str, reading: Reading, patience: int | None) -> None:
    """One connection, dropped after `patience` events (None: never)."""
    reading.connections += 1
    before = len(reading.events)
    async with client.stream(run_id, reading.after) as stream:
        assert stream.status == 200, stream.status
        async for event in stream:
            assert event.id == len(reading.events), f"event {event.id} came as number {len(reading.events)}"
            reading.events.append(event)
            if len(reading.events) - before == patience:
                return
        assert len(stream.parser.retries) == 1, "retry is said once"
    reading.cut_by_server += not reading.over


async def watch_run(client: Client, plan: Plan, chance: random.Random) -> Outcome:
    """Start a run, read it with all readers, and compare what they saw."""
    began = time.monotonic()
    started = await client.initiate(plan.model)
    seeds = [random.Random(chance.random()) for _ in range(plan.readers)]
    async with asyncio.timeout(RUN_SECONDS + 5 * plan.run_seconds):
        ending = asyncio.ensure_future(ended(client, started.run_id))
        readings = await asyncio.gather(*(read(client, started.run_id, plan, seed) for seed in seeds))
        run = await ending
    assert run["status"] == "completed", run
    compare(readings, plan)
    return Outcome(time.monotonic() - began, list(readings))


async def ended(client: Client, run_id: str) -> dict[str, Any]:
    """The run once it has ended."""
    while True:
        run = await client.get(run_id, wait_seconds=60)
        if run["status"] != "running":
            return run


def compare(readings: Sequence[Reading], plan: Plan) -> None:
    first = readings[0].events
    check_whole_log(first, "completed")
    assert all(reading.events == first for reading in readings), "readers differ"
    text = "".join(lorem(plan.chunks))
    assert streamed_text(first) == text
    assert [event.content["content"] for event in first if event.stream_status == "complete"] == [text]


async def watch_all(client: Client, plan: Plan, told: Callable[[], None] = lambda: None) -> list[Outcome]:
    """`plan.runs` runs, `plan.at_once` at a time; `told` is called after each."""
    chance = random.Random(plan.seed)
    room = asyncio.Semaphore(plan.at_once)

    async def one(seed: float) -> Outcome:
        async with room:
            outcome = await watch_run(client, plan, random.Random(seed))
            told()
            return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(chance.random())) for _ in range(plan.runs)]
    return [task.result() for task in tasks]
