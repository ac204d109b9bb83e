"""The older part of a long thread, told by the model itself in one message."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from agent import charges, compaction, model_calls, response_processor, thread_manager, tokens
from agent.compaction import Window
from agent.context import RunContext, RunFailed
from agent.history import History, refresh
from agent.llm.request import ModelRequest
from agent.prompt import PROMPTS
from agent.response_processor import Answer
from services.log import logger
from services.messages import Message, NewMessage

PROMPT = (PROMPTS / "summary.md").read_text()
INTRODUCTION = "This is a summary of the conversation before; the messages that it stands for are not shown.\n\n"
WORDS = 1_500
LONGEST_CHARS = 60_000
KEPT_SHARE = 0.35
FEWEST = 8
"""Fewer messages are not worth a call of the model."""


async def summarise(ctx: RunContext, history: History, window: Window) -> None:
    """Have the model summarise all but the newest part, store that, and let it stand for what it covers.

    A model that cannot is no reason to fail: the thread is then shortened without it. Raises: FenceLost.
    """
    covered = covered_part(history.conversation, window, ctx.run.id)
    if len(covered) < FEWEST:
        return
    try:
        answer = await told(ctx, history, covered, window)
    except RunFailed as error:
        logger.warning("summary.failed", agent_run_id=str(ctx.run.id), error=str(error))
        return
    if answer.text.strip():
        await refresh(ctx, history)
        stored = await keep(ctx, answer, covers=last_covered(covered, history.conversation))
        ctx.count(stored)
        history.summarise(stored, ctx.run.id)


def last_covered(covered: list[Message], conversation: list[Message]) -> int:
    """The last position before the first message that the model was not told of: positions are given out early."""
    told = {stored.message_id for stored in covered}
    unknown = next((stored.position for stored in conversation if stored.message_id not in told), None)
    return max((each.position for each in covered if unknown is None or each.position < unknown), default=0)


def covered_part(conversation: list[Message], window: Window, run_id: UUID) -> list[Message]:
    """All but the newest messages that fill a part of the window; it ends where a turn ends.

    A run's newest answer is not in it: what becomes of its calls is still open.
    """
    room, end = window.size * KEPT_SHARE / window.factor, len(conversation)
    while end and room > 0:
        end -= 1
        room -= window.cost(conversation[end])
    end = min(end, len(conversation) - compaction.RECENT)
    while end > 0 and conversation[end].type == "tool":
        end -= 1
    ours = (n for n, stored in enumerate(conversation) if stored.type == "assistant" and stored.agent_run_id == run_id)
    return conversation[: whole_turns(conversation, max(min(end, max(ours, default=end)), 0))]


def whole_turns(conversation: list[Message], end: int) -> int:
    """An end at or before this one with no call before it whose result stands behind it."""
    places = {str(stored.message_id): place for place, stored in enumerate(conversation)}
    place = len(conversation) - 1
    while place >= end:
        end = min(end, places.get(str(conversation[place].metadata.get("assistant_message_id")), end))
        place -= 1
    return end


async def told(ctx: RunContext, history: History, covered: list[Message], window: Window) -> Answer:
    """Raises: RunFailed."""
    inner = Window(window.size, factor=window.factor, costs=window.costs)
    parts = [*([history.summary] if history.summary else []), *covered]
    inner.fit(parts, (compaction.shorten_results, *compaction.last_resorts(inner)))
    shown = thread_manager.to_model(parts, PROMPT.format(words=WORDS), inner.limits)
    said = [*shown, {"role": "user", "content": "Write the summary now."}]
    request = ModelRequest(ctx.run.model_name, said, expected_tokens=sum(map(tokens.of_message, said)))
    answer = Answer()
    async with charges.calling(ctx, request) as asked, aclosing(model_calls.stream(ctx, asked)) as chunks:
        async for chunk in chunks:
            answer = response_processor.fold(answer, chunk)
            if len(answer.text) > LONGEST_CHARS:
                return replace(answer, finish_reason="interrupted")
    return answer


async def keep(ctx: RunContext, answer: Answer, *, covers: int) -> Message:
    known: dict[str, Any] = {"thread_run_id": str(ctx.run.id), "model": ctx.run.model_name, "covers": covers}
    counted = {"usage": answer.usage.counted()} if answer.usage else {}
    content = {"role": "user", "content": INTRODUCTION + answer.text[:LONGEST_CHARS]}
    charge = charges.of_answer(ctx, answer)
    new = NewMessage("summary", content, {**known, **counted}, message_id=uuid4(), charge=charge)
    stored = await thread_manager.store(ctx, new)
    charges.charged(ctx, charge)
    await ctx.log.append(response_processor.completed(stored))
    return stored
