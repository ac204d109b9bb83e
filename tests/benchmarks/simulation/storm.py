"""Readers who come back after an API process has died, in simulated time."""

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from simpy import Environment, Resource
from simpy.events import Event

Steps = Generator[Event, Any, None]


@dataclass(frozen=True, slots=True)
class Storm:
    """`readers` are those of the dead processes; they come back to `processes` others.

    `retry` is what the stream's `retry:` said, `jitter` the share of it by which it is drawn around that. Opening a
    stream takes `open_cpu` seconds of a process's core, of which the live streams leave `1 - busy`.
    """

    readers: int
    processes: int
    retry: float
    jitter: float
    open_cpu: float
    busy: float
    seed: int = 1

    def back_after(self) -> list[float]:
        """For each reader, how many seconds after the death its stream is open again."""
        env, chance = Environment(), random.Random(self.seed)
        cores = [Resource(env) for _ in range(self.processes)]
        back: list[float] = []

        def reader() -> Steps:
            yield env.timeout(self.retry * chance.uniform(1 - self.jitter, 1 + self.jitter))
            with chance.choice(cores).request() as turn:
                yield turn
                yield env.timeout(self.open_cpu / (1 - self.busy))
            back.append(env.now)

        for _ in range(self.readers):
            env.process(reader())
        env.run()
        return back
