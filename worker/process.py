"""What the runs of one worker process share."""

import asyncio
from dataclasses import dataclass, field

from httpx2 import AsyncClient

from agent.browser.driver import Driver
from services.billing.gate import Gate
from services.billing.local import LocalGate
from services.runs.stores import Stores
from services.sandbox.protocol import SandboxProvider
from services.settings import Settings
from services.tracing import UNTRACED, Tracing


@dataclass(frozen=True, slots=True)
class Process:
    settings: Settings
    stores: Stores
    http: AsyncClient
    sandboxes: SandboxProvider | None = None
    gate: Gate = field(default_factory=LocalGate)
    tracing: Tracing = UNTRACED
    browser_driver: Driver = field(default_factory=Driver)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once, when the process is asked to stop: no run is begun here any more."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once, at the same time or after a grace: live runs are handed over."""

    @property
    def begins_runs(self) -> bool:
        return not (self.leaving.is_set() or self.draining.is_set())

    def tell(self, event: asyncio.Event) -> None:
        """Set an event of ours from another thread."""
        self.loop.call_soon_threadsafe(event.set)
