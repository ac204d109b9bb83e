"""What the model calls of a run cost its account: reserved before each, settled with the message that it came to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson

from agent import models, thread_manager, tokens
from agent.calls import ToolCall
from agent.catalog import split
from agent.context import RunContext, RunFailed, RunStopped
from agent.llm.request import ModelRequest
from agent.native_calls import as_calls
from agent.response_processor import Answer
from services import metrics
from services.billing.calls import Charge, ModelCall
from services.billing.prices import in_credits
from services.log import logger

CUT = ("interrupted", "xml_tool_limit_reached")
"""How an answer ends that we did not hear to its end: what was counted by then is not all of it."""
PASSING_SECONDS = 1.0
"""How long to wait before asking again, while other calls of the account hold its last credits."""


@asynccontextmanager
async def calling(ctx: RunContext, request: ModelRequest) -> AsyncIterator[ModelRequest]:
    """A call of the run's model, asked for no more than was reserved; one that fails costs nothing.

    Raises: RunStopped when the account may not have another answer; FenceLost.
    """
    most = models.look_up(request.model).max_output
    call = ModelCall(request.model, request.expected_tokens, most)
    await reserve(ctx, call)
    try:
        yield replace(request, max_output=most) if ctx.gate.bills else request
    except RunFailed:
        call.failed = True
        raise


async def reserve(ctx: RunContext, call: ModelCall) -> None:
    """Raises: RunStopped with the reason; FenceLost."""
    ctx.call = call if ctx.gate.bills else None
    while not (verdict := await ctx.gate.reserve(ctx.pool, ctx.fence, call)).allowed:
        if not verdict.passing:
            ctx.call = None
            raise RunStopped(verdict.message)
        logger.info("run.waits_for_credits", agent_run_id=str(ctx.run.id))
        await asyncio.sleep(PASSING_SECONDS)


def of_answer(ctx: RunContext, answer: Answer, made: Sequence[ToolCall] = ()) -> Charge | None:
    """What the call under way is settled with, when this is what it came to."""
    if ctx.call is None:
        return None
    if answer.usage and answer.finish_reason not in CUT:
        return ctx.gate.charge(ctx.call, answer.usage.counted(), 0)
    return ctx.gate.charge(ctx.call, None, answered(answer, made))


def charged(ctx: RunContext, charge: Charge | None) -> None:
    """The call was settled with the message that was stored just now."""
    if charge:
        ctx.call = None
        count(charge)


def count(charge: Charge) -> None:
    full_name = models.unalias(charge.model_name)
    provider, _ = split(full_name)
    metrics.model_cost.labels(provider, models.family(full_name)).inc(in_credits(charge.cost))


def answered(answer: Answer, made: Sequence[ToolCall] = ()) -> int:
    """About how many tokens an answer is."""
    arguments = (orjson.dumps(call.shown).decode() for call in made)
    return sum(map(tokens.of_text, (answer.text, answer.reasoning, *arguments)))


async def settle_rest(ctx: RunContext) -> None:
    """Settle a call that ended without a message of its own: it costs what readers saw of it, else nothing.

    Waits while Postgres is away. Raises: FenceLost.
    """
    call = ctx.call
    if call is None:
        return
    begun = as_calls(ctx.draft.begun)
    charge = ctx.gate.charge(call, None, answered(Answer(), begun)) if call.answered or begun else None
    await thread_manager.patiently(ctx, lambda conn: ctx.gate.settle(conn, ctx.fence, call, charge))
    ctx.call = None
    if charge:
        count(charge)
