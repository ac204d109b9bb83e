"""What the runs of one worker process share."""

import asyncio
from dataclasses import dataclass, field

from httpx2 import AsyncClient

from services.runs.stores import Stores
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class Process:
    settings: Settings
    stores: Stores
    http: AsyncClient
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once: live runs are handed over, new messages go back."""
