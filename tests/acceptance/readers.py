"""Many runs, several readers each, that join at random, drop and resume.

Alone: `python -m tests.acceptance.readers --url http://127.0.0.1:8000 --token "$(./dev token)" --runs 200 --at-once 40`
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    async with asyncio.timeout(RUN_SECONDS):
        ending = asyncio.ensure_future(client.get(started.run_id, wait_seconds=60))
        readings = await asyncio.gather(*(read(client, started.run_id, plan, seed) for seed in seeds))
        run = await ending
    assert run["status"] == "completed", run
    compare(readings, plan)
    return Outcome(time.monotonic() - began, list(readings))


def compare(readings: Sequence[Reading], plan: Plan) -> None:
    first = readings[0].events
    check_whole_log(first, "completed")
    assert all(reading.events == first for reading in readings), "readers differ"
    text = "".join(lorem(plan.chunks))
    assert streamed_text(first) == text
    assert [event.content["content"] for event in first if event.stream_status == "complete"] == [text]


async def watch_all(client: Client, plan: Plan) -> list[Outcome]:
    """`plan.runs` runs, `plan.at_once` at a time."""
    chance = random.Random(plan.seed)
    room = asyncio.Semaphore(plan.at_once)

    async def one(seed: float) -> Outcome:
        async with room:
            return await watch_run(client, plan, random.Random(seed))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(chance.random())) for _ in range(plan.runs)]
    return [task.result() for task in tasks]


def table(outcomes: Sequence[Outcome], seconds: float) -> str:
    readings = [reading for outcome in outcomes for reading in outcome.readings]
    took = sorted(outcome.seconds for outcome in outcomes)
    p50, p95 = took[len(took) // 2], took[int(len(took) * 0.95)]
    lines = {
        "runs": f"{len(outcomes)} in {seconds:.1f} s ({len(outcomes) / seconds:.1f} runs/s)",
        "events": f"{sum(len(outcome.readings[0].events) for outcome in outcomes)}",
        "delivered": f"{(total := sum(len(reading.events) for reading in readings))} ({total / seconds:.0f} events/s)",
        "readers": f"{len(readings)}",
        "resumes": f"{sum(reading.connections - 1 for reading in readings)}",
        "cut by the server": f"{sum(reading.cut_by_server for reading in readings)}",
        "seconds with readers": f"p50 {p50:.2f}  p95 {p95:.2f}  max {took[-1]:.2f}",
    }
    return "\n".join(f"{name:<22}{value}" for name, value in lines.items())


async def measure(url: str, token: str, plan: Plan) -> str:
    async with Client(url, token) as client:
        began = time.monotonic()
        outcomes = await watch_all(client, plan)
        return table(outcomes, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start runs, read each with several readers, compare what they saw.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", required=True)
    for name, default in (("runs", 200), ("at-once", 40), ("readers", 3), ("chunks", 200), ("delay-ms", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drops", type=int, default=3, help="at most so many per reader")
    parser.add_argument("--seed", type=int, default=1)
    options = vars(parser.parse_args())
    url, token = options.pop("url"), options.pop("token")
    sys.stdout.write(asyncio.run(measure(url, token, Plan(**options))) + "\n")


if __name__ == "__main__":
    main()
