"""What requests and runs do, told to whoever watches: Langfuse and a collector if they are set, else nobody."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from services.origin import Origin
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


class Passage(Protocol):
    """A request that is being answered, or a message on its way to the broker."""

    @property
    def traceparent(self) -> str:
        """What belongs below it says so by this; empty when nobody watches."""

    def over(self, *, failed: bool, **told: str | int) -> None: ...


class Tracing(Protocol):
    """What one process tells with. Nothing of it waits, and nothing of it raises."""

    def request(self, method: str, came_from: Origin) -> Passage: ...

    def message(self, run: Run) -> Passage: ...

    def attempt(self, run: Run) -> AbstractContextManager[Tracer]: ...


class Unpassed:
    """A request or a message that nobody watches."""

    traceparent = ""

    def over(self, *, failed: bool, **told: str | int) -> None: ...


UNPASSED = Unpassed()


class Unasked:
    """Nobody watches requests and messages."""

    def request(self, method: str, came_from: Origin) -> Passage:
        return UNPASSED

    def message(self, run: Run) -> Passage:
        return UNPASSED


class Untraced(Unasked):
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


class Both:
    """Two who watch runs, of whom the second watches requests and messages too."""

    def __init__(self, first: Tracing, second: Tracing) -> None:
        self.first, self.second = first, second
        self.request, self.message = second.request, second.message

    @contextmanager
    def attempt(self, run: Run) -> Iterator[Tracer]:
        with self.first.attempt(run) as one, self.second.attempt(run) as other:
            yield BothTracers(one, other)


class BothTracers:
    def __init__(self, first: Tracer, second: Tracer) -> None:
        self.first, self.second = first, second

    @contextmanager
    def generation(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
        with self.first.generation(model, messages) as one, self.second.generation(model, messages) as other:
            yield BothSteps(one, other)

    @contextmanager
    def tool(self, name: str, call_id: str, arguments: Any) -> Iterator[Step]:
        with self.first.tool(name, call_id, arguments) as one, self.second.tool(name, call_id, arguments) as other:
            yield BothSteps(one, other)

    def ended(self, status: str, error: str | None = None) -> None:
        self.first.ended(status, error)
        self.second.ended(status, error)


class BothSteps:
    def __init__(self, first: Step, second: Step) -> None:
        self.first, self.second = first, second

    def speaks(self) -> None:
        self.first.speaks()
        self.second.speaks()

    def ends(self, output: Any, *, usage: Mapping[str, int] | None = None, failed: bool = False) -> None:
        self.first.ends(output, usage=usage, failed=failed)
        self.second.ends(output, usage=usage, failed=failed)


@asynccontextmanager
async def open_tracing(settings: Settings, *, of_runs: bool = True) -> AsyncIterator[Tracing]:
    """What this process tells with; leaving it takes a second for each who watches at most.

    `of_runs`: whether it drives any; Langfuse has nothing to watch where nobody does.
    """
    watching: list[Tracing] = []
    async with AsyncExitStack() as stack:
        # Imported when they are set only: OpenTelemetry costs 5 MB and 0.3 s, in which the loop must not stand still.
        if of_runs and settings.langfuse.in_use:
            langfuse = await asyncio.to_thread(import_module, "services.langfuse")
            watching.append(langfuse.LangfuseTracing(settings))
            stack.push_async_callback(watching[-1].close)  # type: ignore[attr-defined]
        if settings.opentelemetry.in_use:
            spans = await asyncio.to_thread(import_module, "services.spans")
            watching.append(spans.SpanTracing(settings))
            stack.push_async_callback(watching[-1].close)  # type: ignore[attr-defined]
        yield Both(*watching) if len(watching) > 1 else watching[0] if watching else UNTRACED
