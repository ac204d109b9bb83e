"""RunContext: everything one run may touch."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID, uuid4

from httpx2 import AsyncClient

from agent import response_processor
from agent.browser.driver import Driver
from agent.calls import ToolCall
from agent.native_calls import Growing
from agent.tools.base import Registry
from services.billing.calls import ModelCall
from services.billing.gate import Gate
from services.billing.local import LocalGate
from services.known_versions import KnownVersions
from services.messages import Message
from services.postgres import Pool
from services.runs.events import Event
from services.runs.fence import Fence
from services.runs.store import Run
from services.sandbox.protocol import Sandbox, SandboxProvider, SandboxUnavailable
from services.settings import AgentSettings, Settings
from services.tracing import UNTRACED, Tracer


class RunFailed(Exception):
    """The run ends `failed`; the text is the sentence its user reads."""


class ContextTooLong(RunFailed):
    """The model refused a request for its length, before it said anything."""


class RunStopped(Exception):
    """The run ends `stopped`, though nobody asked for it; the text is the reason that its user reads."""


class RunParked(Exception):
    """The run has nothing to do until then: it is given back, holds no worker, and goes on when the time has come."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until.isoformat())
        self.until = until


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
    begun: Sequence[Growing] = ()
    """Calls that came with it: they are not kept, and cost what they cost."""
    message_id: UUID = field(default_factory=uuid4)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How a run goes about its work.

    `max_iterations`: answers that one run may ask for; `max_auto_continues`: how many in a row may be cut off in the
    middle of a call; `max_xml_tool_calls`: after so many an answer is taken for ended (0: no limit);
    `execute_on_stream`: a tool starts as soon as its call is complete, while the model still speaks.
    """

    max_iterations: int = 100
    max_auto_continues: int = 25
    max_xml_tool_calls: int = 0
    execute_on_stream: bool = False
    tool_execution: Literal["sequential", "parallel"] = "sequential"
    xml_results_as: Literal["user", "assistant"] = "user"

    @classmethod
    def of(cls, settings: AgentSettings) -> "AgentConfig":
        return cls(**{known.name: getattr(settings, known.name) for known in fields(cls)})


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
    config: AgentConfig = field(default_factory=AgentConfig)
    gate: Gate = field(default_factory=LocalGate)
    call: ModelCall | None = None
    """The newest call of a model, until it is settled."""
    answers: int = 0
    cut_answers: int = 0
    """How many answers the run has asked for, and how many of them, in a row, ended in the middle of a call."""
    tools: Registry | None = None
    """What the model may call; the standard tools when nothing else was chosen."""
    own_prompt: str = ""
    """What the chosen agent is told of itself, in place of our words."""
    prompt_sections: tuple[str, ...] = ()
    """What the prompt says besides, each under a heading of its own."""
    sandboxes: SandboxProvider | None = None
    opened: "asyncio.Future[Sandbox] | None" = None
    editing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever reads a file in order to change it: calls may be made at the same time."""
    browser_driver: Driver = field(default_factory=Driver)
    browsing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever acts in the browser."""
    tracer: Tracer = UNTRACED
    versions: KnownVersions | None = None
    """What the process knows of agents; None: the database is asked."""
    marks: dict[str, Any] = field(default_factory=dict)
    """Added to the metadata of every message that is stored: which part of its run it belongs to."""

    def is_ours(self, stored: Message) -> bool:
        """Whether a message of the run belongs to the part of it that this is."""
        return self.marks.items() <= stored.metadata.items()

    def count(self, stored: Message) -> None:
        """Add the tokens of one model call to the run's; the rows are the truth, so a resumed run counts them again."""
        for name, tokens in (stored.metadata.get("usage") or {}).items():
            self.usage[name] = self.usage.get(name, 0) + tokens

    async def sandbox(self) -> Sandbox:
        """The project's sandbox, opened at its first use by this attempt.

        Raises: SandboxUnavailable; FenceLost when a later attempt has spoken to it.
        """
        if self.sandboxes is None:
            raise SandboxUnavailable("This worker has no sandbox: nothing can be run and no file kept.")
        if self.opened is None or (self.opened.done() and self.opened.exception()):
            self.opened = asyncio.ensure_future(self.sandboxes.open(self.run.project_id, self.fence))
        return await asyncio.shield(self.opened)


@dataclass(frozen=True, slots=True)
class Calling:
    """What a tool is handed first: the run, and the call that it answers."""

    ctx: RunContext
    call: ToolCall
    answer: Message
    """The stored message that the call is part of."""

    async def tell(self, output: str) -> None:
        """Show readers a piece of what comes out while the tool still works; the model sees the result only."""
        await self.ctx.log.append(response_processor.tool_output(self.call, self.ctx.run.id, output))
