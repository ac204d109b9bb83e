"""The agent loop: look at the thread, ask the model, tell the readers, store the answer, make its calls; again."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from agent import attachments, charges, model_calls, response_processor, thread_manager, tool_runner, turns
from agent.calls import ToolCall, result_id
from agent.context import ContextTooLong, Draft, RunContext, RunFailed
from agent.conversation import Conversation
from agent.equipment import equipped
from agent.llm.request import ModelRequest
from agent.native_calls import as_calls
from agent.response_processor import Answer, Reading
from agent.tool_runner import Acting
from agent.tools import offer
from agent.turns import Turn
from services.billing.calls import Charge
from services.messages import Message, NewMessage

MAX_ANSWER_CHARS = 4_000_000

Store = Callable[[RunContext, NewMessage], Awaitable[Message]]


async def run_agent(ctx: RunContext) -> None:
    """Drive one run, turn by turn, to its end; what an earlier attempt stored is where it goes on.

    Raises: RunFailed, RunStopped with the sentence for the user; FenceLost when another attempt owns the run.
    """
    await attachments.place_all(ctx)
    async with equipped(ctx):
        await converse(ctx)


async def converse(ctx: RunContext) -> Turn:
    """Turn by turn with the tools that the run has, to its last turn. Raises: as `run_agent`."""
    conversation = await Conversation.load(ctx)
    turn = await resume(ctx, [each for each in conversation.history.of_run(ctx.run.id) if ctx.is_ours(each)])
    while turn is None or await goes_on(ctx, turn):
        if turn:
            await conversation.refresh()
        turn = await take_turn(ctx, conversation)
    return turn


async def resume(ctx: RunContext, ours: list[Message]) -> Turn | None:
    """The newest turn of an earlier attempt, told again and its open calls settled; None when there was none."""
    for stored in ours:
        ctx.count(stored)
    ctx.answers = turns.count(ours)
    turn = turns.newest(ours)
    if turn is None:
        return None
    await ctx.log.append(*(response_processor.completed(stored) for stored in turn.answer))
    results = {stored.message_id: stored for stored in turn.results}
    for answer, call in turn.calls:
        told = results.get(result_id(answer.message_id, call))
        if told:
            await tool_runner.tell(ctx, call, told)
    settled = [await tool_runner.resume(ctx, answer, call) for answer, call in turn.open_calls]
    return Turn(turn.answer, [*turn.results, *settled])


async def goes_on(ctx: RunContext, turn: Turn) -> bool:
    """Tell that a turn is over, and why if it is the last one."""
    ctx.cut_answers = ctx.cut_answers + 1 if turn.cut else 0
    ending = end_of(ctx, turn)
    reason = ending if turn.calls else None
    await ctx.log.append(response_processor.finished(turn.answer[-1], ctx.run.id, reason))
    return ending is None


def end_of(ctx: RunContext, turn: Turn) -> str | None:
    """Why a turn is the run's last, or None when the model is to see the results of its calls."""
    if not turn.calls:
        return "stop"
    if turn.terminated:
        return "agent_terminated"
    if ctx.answers >= ctx.config.max_iterations:
        return "max_iterations_reached"
    return "max_auto_continues_reached" if ctx.cut_answers > ctx.config.max_auto_continues else None


async def take_turn(ctx: RunContext, conversation: Conversation) -> Turn:
    """Ask the model and make the calls of its answer, which is stored first."""
    ctx.answers += 1
    async with Acting(ctx) as acting:
        answer, reading = await ask_fitting(ctx, conversation, acting)
        calls = reading.take_calls(ended=True)
        if not (calls or answer or reading.answer.text.strip()):
            raise RunFailed(explain_silence(ctx, reading.answer))
        if calls or reading.worth_keeping:
            part_of = {"answer_id": reading.answer_id} if answer else {}
            charge = charges.of_answer(ctx, reading.answer, calls)
            stored = await keep_answer(ctx, reading.answer, calls, charge, **part_of, **conversation.estimated)
            acting.start(stored, calls)
            answer.append(stored)
        else:
            await charges.settle_rest(ctx)
        return Turn(answer, await acting.results())


async def ask_fitting(ctx: RunContext, conversation: Conversation, acting: Acting) -> tuple[list[Message], Reading]:
    """`ask`; a request that the model finds too long is shortened and asked once more."""
    try:
        return await ask(ctx, await conversation.request(), acting)
    except ContextTooLong:
        conversation.shrink()
        return await ask(ctx, await conversation.request(), acting)


async def ask(ctx: RunContext, request: ModelRequest, acting: Acting) -> tuple[list[Message], Reading]:
    """Read the model's answer, telling the readers as it comes (unless `stream` is off).

    With `execute_on_stream` what was said up to a call is stored and the call begun; returned are these messages and
    what came after them.
    """
    streamed = ctx.run.settings.get("stream") is not False
    reading = Reading(ctx.run.id, offer.of_run(ctx), streamed=streamed, max_xml_calls=ctx.config.max_xml_tool_calls)
    kept: list[Message] = []
    async with charges.calling(ctx, request) as asked, aclosing(model_calls.stream(ctx, asked)) as chunks:
        async for chunk in chunks:
            events = reading.read(chunk)
            ctx.draft.text, ctx.draft.reasoning = reading.answer.text, reading.answer.reasoning
            ctx.draft.begun = reading.native.growing
            if events:
                await ctx.log.append(*events)
            if reading.size > MAX_ANSWER_CHARS:
                raise RunFailed(f"{request.model} wrote more than {MAX_ANSWER_CHARS:,} characters in one answer.")
            if ctx.config.execute_on_stream and (calls := reading.take_calls()):
                kept.append(await keep_part(ctx, reading, calls))
                acting.start(kept[-1], calls)
                reading.begin_anew()
            if reading.full:
                break
    return kept, reading


async def keep_part(ctx: RunContext, reading: Reading, calls: list[ToolCall]) -> Message:
    """What was said up to some calls; the whole answer is charged when it ends."""
    stored = await keep_answer(ctx, reading.answer, calls, None, answer_id=reading.answer_id)
    if ctx.call:
        ctx.call.answered += charges.answered(reading.answer, calls)
    return stored


async def keep_answer(
    ctx: RunContext, answer: Answer, calls: list[ToolCall], charge: Charge | None, **metadata: Any
) -> Message:
    new = response_processor.message(answer, ctx.run.id, ctx.run.model_name, calls, **metadata)
    stored = await thread_manager.store(ctx, replace(new, charge=charge))
    charges.charged(ctx, charge)
    ctx.count(stored)
    await ctx.log.append(response_processor.completed(stored))
    ctx.draft = Draft()
    return stored


def explain_silence(ctx: RunContext, answer: Answer) -> str:
    if answer.finish_reason == "content_filter":
        return f"The provider's content filter withheld the answer of {ctx.run.model_name}."
    if answer.finish_reason == "length":
        return f"{ctx.run.model_name} reached its length limit before it wrote an answer."
    return f"{ctx.run.model_name} ended without an answer."


async def keep_draft(ctx: RunContext, store: Store = thread_manager.store) -> None:
    """Store the text that was already streamed when a run was stopped or failed, and tell the readers of the row.

    Does nothing when there is none. Raises: FenceLost.
    """
    if not ctx.draft.text.strip() and not ctx.draft.reasoning.strip():
        return
    draft = Answer(text=ctx.draft.text, reasoning=ctx.draft.reasoning, finish_reason="interrupted")
    kept = response_processor.message(draft, ctx.run.id, ctx.run.model_name, interrupted=True)
    charge = charges.of_answer(ctx, draft, as_calls(ctx.draft.begun))
    stored = await store(ctx, replace(kept, charge=charge))
    charges.charged(ctx, charge)
    await ctx.log.append(response_processor.completed(stored))
    ctx.draft = Draft()
