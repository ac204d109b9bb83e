"""What a run does, told to whoever watches: Langfuse when it has keys, else nobody at no cost."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from services.runs.store import Run
from services.settings import Settings


class Step(Protocol):
    """A model call or a tool call under way. An exception that leaves its `with` marks it as failed."""

    def speaks(self) -> None:
        """Something of the answer came; the first time counts."""

    def ends(self, output: Any, *, usage: Mapping[str, int] | None = None, failed: bool = False) -> None:
        """What came of it; `usage` as the row of the answer has it."""


class Tracer(Protocol):
    """One attempt at a run. What it is handed may be large and may hold secrets: it bounds and removes."""

    def generation(self, model: str, messages: Sequence[Mapping[str, Any]]) -> AbstractContextManager[Step]: ...

    def tool(self, name: str, call_id: str, arguments: Any) -> AbstractContextManager[Step]: ...

    def ended(self, status: str, error: str | None = None) -> None:
        """How the attempt ended, with the sentence for the user if it failed."""


class Tracing(Protocol):
    """What one process tells with. Nothing of it waits, and nothing of it raises."""

    def attempt(self, run: Run) -> AbstractContextManager[Tracer]: ...


class Untraced:
    """Nobody watches: every room of tracing in one, empty."""

    def attempt(self, run: Run) -> Self:
        return self

    def generation(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Self:
        return self

    def tool(self, name: str, call_id: str, arguments: Any) -> Self:
        return self

    def speaks(self) -> None: ...

    def ends(self, output: Any, *, usage: Mapping[str, int] | None = None, failed: bool = False) -> None: ...

    def ended(self, status: str, error: str | None = None) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


UNTRACED = Untraced()


@asynccontextmanager
async def open_tracing(settings: Settings) -> AsyncIterator[Tracing]:
    """What this process tells with; leaving it takes a second at most."""
    if not settings.langfuse.in_use:
        yield UNTRACED
        return
    # Imported with keys only: OpenTelemetry costs 5 MB and 0.3 s, in which the loop must not stand still.
    langfuse = await asyncio.to_thread(import_module, "services.langfuse")
    tracing = langfuse.LangfuseTracing(settings)
    try:
        yield tracing
    finally:
        await tracing.close()
