"""Gates: so many at a time for each name; whoever waits holds nothing else meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(slots=True)
class Gate:
    places: asyncio.Semaphore
    used: int = 0
    """By how many, those who wait included: at 0 it is forgotten."""


@dataclass(slots=True)
class Gates(Generic[Name]):
    at_once: int
    patience_seconds: float
    gates: dict[Name, Gate] = field(default_factory=dict)

    @asynccontextmanager
    async def through(self, name: Name) -> AsyncIterator[None]:
        """One of `at_once` places for the length of the block, first come, first served.

        Raises: TimeoutError when none is free in time.
        """
        gate = self.gates.setdefault(name, Gate(asyncio.Semaphore(self.at_once)))
        gate.used += 1
        try:
            async with asyncio.timeout(self.patience_seconds):
                await gate.places.acquire()
            try:
                yield
            finally:
                gate.places.release()
        finally:
            gate.used -= 1
            if not gate.used:
                del self.gates[name]
