"""Faults at random under a load that goes on: one after the other, or two at a time."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tests.faults.catalogue import FAULTS, Fault
from tests.faults.lab import Lab, Recovery
from tests.faults.load import Tally

CHUNKS = 180
STAGGER_SECONDS = 2.0
FINISH_SECONDS = 300.0

PARTS = {"messages": "RabbitMQ", "duplicate": "RabbitMQ", "workers'": "worker", "a": "worker"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """`runs` are spread over the faults: as many begin before each. `pairs` has two faults overlap."""

    runs: int = 200
    readers: int = 3
    faults: int = 40
    run_seconds: float = 90.0
    seed: int = 1
    pairs: bool = False
    gap_seconds: float = 3.0
    """From one recovery to the next fault."""
    among: Sequence[str] = tuple(FAULTS)


@dataclass(frozen=True)
class Blow:
    """One fault (or two at a time) and what came after."""

    name: str
    at: float
    recovery: Recovery


@dataclass
class Storm:
    plan: Plan
    blows: list[Blow] = field(default_factory=list)
    seconds: float = 0.0
    tally: Tally | None = None

    @property
    def taken_over(self) -> list[float]:
        """Seconds after which runs of dead or stopping workers went on elsewhere."""
        return [seconds for blow in self.blows for seconds in blow.recovery.taken_over]


async def rage(lab: Lab, plan: Plan, say: Say) -> Storm:
    """Strike `plan.faults` times, each at least `gap_seconds` after the last has recovered; then check every run.

    Raises: AssertionError on whatever was lost, doubled or left open.
    """
    storm, chance, began = Storm(plan), random.Random(plan.seed), time.monotonic()
    load = lab.new_load(chunks=CHUNKS, delay_ms=int(plan.run_seconds / CHUNKS * 1000), readers=plan.readers)
    load.may_give_up = plan.pairs
    while len(storm.blows) < plan.faults:
        faults = draw(plan, chance)
        await lab.whole(max(fault.spare_apis for fault in faults), max(fault.spare_workers for fault in faults))
        await load.begin(max(plan.runs * (len(storm.blows) + 1) // plan.faults - len(load.watched), 0))
        name = " + ".join(fault.name for fault in faults)
        at = time.monotonic() - began
        recovery = await strike(lab, faults)
        storm.blows.append(Blow(name, at, recovery))
        say(f"{at:7.1f} s  recovered after {recovery.seconds:5.1f} s  {name}  ({len(load.live)} runs live)")
        await asyncio.sleep(plan.gap_seconds)
    await lab.whole()
    storm.tally = await load.finish(FINISH_SECONDS)
    await lab.deployment.check_settled(within=60)
    storm.seconds = time.monotonic() - began
    return storm


def draw(plan: Plan, chance: random.Random) -> list[Fault]:
    """One fault, or two that strike different parts of the system."""
    if not plan.pairs:
        return [FAULTS[chance.choice(plan.among)]]
    among = [name for name in plan.among if not FAULTS[name].alone]
    first = chance.choice(among)
    return [FAULTS[first], FAULTS[chance.choice([name for name in among if part(name) != part(first)])]]


def part(name: str) -> str:
    """What a fault strikes; messages are lost and doubled in RabbitMQ, which must be there for it."""
    word = name.split()[0]
    return PARTS.get(word, word)


async def strike(lab: Lab, faults: Sequence[Fault]) -> Recovery:
    async with AsyncExitStack() as stack:
        entering = []
        for fault in faults:
            entering.append(asyncio.create_task(stack.enter_async_context(fault.strike(lab))))
            await asyncio.sleep(STAGGER_SECONDS if len(faults) > 1 else 0)
        struck = await asyncio.gather(*entering)
        recoveries = [await lab.recovery(one) for one in struck]
    return max(recoveries, key=lambda recovery: recovery.seconds)
