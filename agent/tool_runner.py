"""Tool calls → results, stored and told."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

from agent import response_processor, thread_manager
from agent.calls import ToolCall
from agent.context import Calling, RunContext, RunFailed, RunStopped
from agent.tools import offer
from agent.tools.arguments import Typed
from agent.tools.base import BadArguments, ToolFailed, ToolResult
from services import metrics
from services.log import logger
from services.messages import Message
from services.runs.fence import FenceLost
from services.sandbox.protocol import SandboxFailed, SandboxUnavailable

MAX_OUTPUT_CHARS = 100_000
INTERRUPTED = (
    "This call was interrupted: whether it took effect is not known. Look before you make it again; "
    "do not repeat what must not happen twice."
)
NOT_MADE = "This call was not made: an earlier one ended the run."


class Acting:
    """The calls of one answer at work: `async with` it; leaving cancels what is not done."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx = ctx
        self.tasks: list[asyncio.Task[list[Message]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def start(self, answer: Message, calls: Sequence[ToolCall]) -> None:
        """Begin calls that are stored in `answer`: all at once, or one after the other behind those begun before."""
        if self.ctx.config.tool_execution == "parallel":
            self.tasks += [asyncio.create_task(self.make_all(answer, [call])) for call in calls]
        elif calls:
            before = self.tasks[-1] if self.tasks else None
            self.tasks.append(asyncio.create_task(self.make_all(answer, calls, before)))

    async def make_all(
        self, answer: Message, calls: Sequence[ToolCall], before: "asyncio.Task[list[Message]] | None" = None
    ) -> list[Message]:
        """The results of these calls and the ones before; after one that ends the run none is made."""
        results = list(await before) if before else []
        for call in calls:
            if any(stored.metadata.get("agent_should_terminate") for stored in results):
                results.append(await keep(self.ctx, answer, call, ToolResult(NOT_MADE, success=False)))
            else:
                results.append(await make(self.ctx, answer, call))
        return results

    async def results(self) -> list[Message]:
        done = await asyncio.gather(*self.tasks)
        if self.ctx.config.tool_execution == "sequential":
            return done[-1] if done else []
        return [stored for results in done for stored in results]


async def make(ctx: RunContext, answer: Message, call: ToolCall) -> Message:
    """Make one call; its stored result."""
    await ctx.log.append(response_processor.tool_started(call, ctx.run.id))
    with ctx.tracer.tool(call.name, call.call_id, call.shown) as step:
        begun = perf_counter()
        result = await run(Calling(ctx, call, answer))
        metrics.tool_seconds.labels(*labels_of(ctx, call, result)).observe(perf_counter() - begun)
        step.ends(result.output, failed=not result.success)
    return await keep(ctx, answer, call, result)


def labels_of(ctx: RunContext, call: ToolCall, result: ToolResult) -> tuple[str, str]:
    """A tool of ours by its name; those of MCP servers have any names."""
    known = offer.of_run(ctx).get(call.name)
    name = "unknown" if known is None else known.name if isinstance(known.arguments, Typed) else "mcp"
    return name, "ok" if result.success else "broke" if result.error else "failed"


async def resume(ctx: RunContext, answer: Message, call: ToolCall) -> Message:
    """Settle a call that an earlier attempt may have begun: made again if that does no harm, else told as it is.

    So is one whose tool is gone: a server that cannot be reached now may have taken it.
    """
    known = offer.of_run(ctx).get(call.name)
    if call.cut or (known and known.repeatable):
        return await make(ctx, answer, call)
    return await keep(ctx, answer, call, ToolResult(INTERRUPTED, success=False))


async def keep(ctx: RunContext, answer: Message, call: ToolCall, result: ToolResult) -> Message:
    role = ctx.config.xml_results_as
    message = response_processor.result_message(call, bounded(result), answer, ctx.run.id, role)
    stored = await thread_manager.store(ctx, message)
    await tell(ctx, call, stored)
    return stored


async def tell(ctx: RunContext, call: ToolCall, stored: Message) -> None:
    await ctx.log.append(response_processor.completed(stored), response_processor.tool_ended(call, stored, ctx.run.id))


async def run(calling: Calling) -> ToolResult:
    """The boundary around a tool: whatever it raises becomes a result that the model reads."""
    ctx, call = calling.ctx, calling.call
    known = offer.of_run(ctx).get(call.name)
    if known is None:
        names = ", ".join(each.name for each in offer.of_run(ctx))
        return ToolResult(f"There is no tool {call.name}; there are: {names}.", success=False)
    try:
        async with asyncio.timeout(known.timeout):
            return await known.run(calling, known.read(call.given))
    except (FenceLost, RunFailed, RunStopped):
        raise
    except (BadArguments, ToolFailed, SandboxFailed, SandboxUnavailable) as refused:
        return ToolResult(str(refused), success=False)
    except TimeoutError:
        return broke(call, f"it took longer than {known.timeout:g} seconds")
    except (Exception, SystemExit) as error:  # in a task of its own the latter would end the loop of all runs
        logger.exception("tool.failed", tool=known.name, tool_call_id=call.call_id)
        return broke(call, f"{type(error).__name__}: {error}")


def broke(call: ToolCall, words: str) -> ToolResult:
    return ToolResult(f"{call.name} broke off: {words}", success=False, error=True)


def bounded(result: ToolResult) -> ToolResult:
    left = len(result.output) - MAX_OUTPUT_CHARS
    if left <= 0:
        return result
    output = f"{result.output[:MAX_OUTPUT_CHARS]}\n[{left} more characters were left out]"
    return ToolResult(output, result.success, result.error, result.terminates)
