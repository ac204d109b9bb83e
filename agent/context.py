"""RunContext: everything one run may touch."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID, uuid4

from httpx2 import AsyncClient

from services.postgres import Pool
from services.runs.events import Event
from services.runs.fence import Fence
from services.runs.store import Run
from services.settings import Settings


class RunFailed(Exception):
    """The run ends `failed`; the text is the sentence its user reads."""


class Speaker(Protocol):
    """What a run says goes here, in order; awaits only when the log pushes back."""

    def append(self, *events: Event) -> Awaitable[None]: ...


@dataclass(slots=True)
class Draft:
    """Assistant text that was streamed but is not stored yet.

    Whoever stores it does so under `message_id`, so that a stop in the middle of storing cannot store it twice.
    """

    text: str = ""
    reasoning: str = ""
    message_id: UUID = field(default_factory=uuid4)


@dataclass(slots=True)
class RunContext:
    run: Run
    fence: Fence
    log: Speaker
    pool: Pool
    http: AsyncClient
    settings: Settings
    draft: Draft = field(default_factory=Draft)
    usage: dict[str, Any] = field(default_factory=dict)
