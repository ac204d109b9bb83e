"""What AGENT steps do: a question in the thread, and the agent's turns until it has answered."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from agent import charges, loop, response_processor, thread_manager
from agent.catalog import resolve_model
from agent.context import Draft, RunContext, RunFailed
from agent.tools import offer
from agent.tools.base import Registry
from agent.tools.standard import ALWAYS
from agent.turns import Turn
from agent.workflows.configs import AgentConfig
from agent.workflows.failures import StepFailed
from services.errors import Unprocessable
from services.messages import Message, NewMessage

MAX_TEXT_CHARS = 100_000


async def take(
    ctx: RunContext,
    prompt_id: UUID,
    told: AgentConfig,
    prompt: str,
    step_id: str,
    visit: str,
    usage: dict[str, Any],
) -> dict[str, Any]:
    """`{text}`: what the agent said last. It goes on from what an earlier attempt stored.

    `usage` is told what it costs, whatever comes of it. Raises: StepFailed; RunStopped, FenceLost.
    """
    if not prompt.strip():
        raise StepFailed("The prompt is empty.", again=False, harmless=True)
    marks = {"workflow_step": step_id, "workflow_visit": visit}
    turn_ctx = context_of(ctx, told, marks)
    asked = NewMessage("user", {"role": "user", "content": prompt}, message_id=prompt_id)
    await ctx.log.append(response_processor.completed(await thread_manager.store(turn_ctx, asked)))
    try:
        turn = await loop.converse(turn_ctx)
    except RunFailed as failed:
        await loop.keep_draft(turn_ctx)
        await charges.settle_rest(turn_ctx)
        raise StepFailed(str(failed)) from failed
    finally:
        usage.update(turn_ctx.usage)
        ctx.draft, ctx.call = turn_ctx.draft, turn_ctx.call  # whoever ends the run keeps and settles what is left
    return {"text": said(turn)[:MAX_TEXT_CHARS]}


def context_of(ctx: RunContext, told: AgentConfig, marks: dict[str, Any]) -> RunContext:
    """A context whose messages, usage and limits are this step's."""
    config = replace(ctx.config, max_iterations=told.max_iterations or ctx.config.max_iterations)
    run = replace(ctx.run, model_name=model_of(ctx, told.model_name)) if told.model_name else ctx.run
    return replace(
        ctx,
        run=run,
        draft=Draft(),
        usage={},
        config=config,
        call=None,
        answers=0,
        cut_answers=0,
        tools=chosen(offer.of_run(ctx), told.tools),
        marks=marks,
    )


def model_of(ctx: RunContext, name: str) -> str:
    """Raises: StepFailed for one that is gone since the workflow was written."""
    try:
        return resolve_model(ctx.settings, name)
    except Unprocessable as error:
        raise StepFailed(str(error), again=False, harmless=True) from error


def chosen(tools: Registry, names: Sequence[str] | None) -> Registry:
    """Those that are named and those that every agent has."""
    if names is None:
        return tools
    wanted = {name.replace("-", "_") for name in names} | {known.name for known in ALWAYS}
    return Registry.of(known for known in tools if known.name in wanted)


def said(turn: Turn) -> str:
    """The words of the last answer, or those that it handed to the call that ended it."""
    words = "\n".join(text_of(stored) for stored in turn.answer).strip()
    if words:
        return words
    given = (call.shown for _, call in turn.calls)
    return next((str(each["text"]) for each in given if isinstance(each, dict) and each.get("text")), "")


def text_of(stored: Message) -> str:
    content = stored.content.get("content") if isinstance(stored.content, dict) else None
    return content if isinstance(content, str) else ""
