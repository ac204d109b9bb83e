"""The agent loop: look at the thread, ask the model, tell the readers, store the answer."""

from contextlib import aclosing
from datetime import UTC, datetime

from agent import response_processor, thread_manager
from agent.context import Draft, RunContext, RunFailed
from agent.llm import routing
from agent.llm.request import ModelRequest
from agent.response_processor import Answer
from services.messages import Message

MAX_ANSWER_CHARS = 4_000_000


async def run_agent(ctx: RunContext) -> None:
    """Drive one run to its natural end.

    Raises: RunFailed with the sentence for the user; FenceLost when another attempt owns the run.
    """
    history = await thread_manager.load_history(ctx)
    ours = [stored for stored in history if stored.agent_run_id == ctx.run.id]
    for stored in ours:
        count_usage(ctx, stored)
    answered = find_answer(ours)
    if answered is None:
        answered = await answer_thread(ctx, history)
    await say_completed(ctx, answered)


def find_answer(ours: list[Message]) -> Message | None:
    """The answer that an earlier attempt at this run stored before it died, unless it was cut short."""
    if not ours or ours[-1].type != "assistant" or ours[-1].metadata.get("interrupted"):
        return None
    return ours[-1]


async def answer_thread(ctx: RunContext, history: list[Message]) -> Message:
    answer = await ask(ctx, make_request(ctx, history))
    if not answer.text.strip():
        raise RunFailed(explain_silence(ctx, answer))
    stored = await thread_manager.store(ctx, response_processor.message(answer, ctx.run.id, ctx.run.model_name))
    count_usage(ctx, stored)
    return stored


def make_request(ctx: RunContext, history: list[Message]) -> ModelRequest:
    """Raises: RunFailed when the thread holds nothing that a model could answer."""
    prompt = thread_manager.system_prompt(datetime.now(UTC).date())
    shown = thread_manager.to_model(history, prompt)
    if all(said["role"] == "system" for said in shown):
        raise RunFailed("There is no message in this thread that could be answered.")
    effort = ctx.run.settings.get("reasoning_effort") if ctx.run.settings.get("enable_thinking") else None
    return ModelRequest(ctx.run.model_name, shown, effort)


async def ask(ctx: RunContext, request: ModelRequest) -> Answer:
    """Fold the model's stream into one answer, telling the readers as it comes (unless `stream` is off)."""
    answer = Answer()
    streamed = ctx.run.settings.get("stream") is not False
    async with aclosing(routing.stream(ctx.settings, ctx.http, request)) as chunks:
        async for chunk in chunks:
            events = response_processor.events(answer, chunk, ctx.run.id, streamed=streamed)
            answer = response_processor.fold(answer, chunk)
            ctx.draft.text, ctx.draft.reasoning = answer.text, answer.reasoning
            if events:
                await ctx.log.append(*events)
            if len(answer.text) + len(answer.reasoning) > MAX_ANSWER_CHARS:
                raise RunFailed(f"{request.model} wrote more than {MAX_ANSWER_CHARS:,} characters in one answer.")
    return answer


def explain_silence(ctx: RunContext, answer: Answer) -> str:
    if answer.finish_reason == "content_filter":
        return f"The provider's content filter withheld the answer of {ctx.run.model_name}."
    if answer.finish_reason == "length":
        return f"{ctx.run.model_name} reached its length limit before it wrote an answer."
    return f"{ctx.run.model_name} ended without an answer."


async def say_completed(ctx: RunContext, stored: Message) -> None:
    await ctx.log.append(response_processor.completed(stored), response_processor.finished(stored, ctx.run.id))
    ctx.draft = Draft()


async def keep_draft(ctx: RunContext) -> None:
    """Store the text that was already streamed when a run was stopped or failed, and tell the readers of the row.

    Does nothing when there is none. Raises: FenceLost.
    """
    if not ctx.draft.text.strip() and not ctx.draft.reasoning.strip():
        return
    draft = Answer(text=ctx.draft.text, reasoning=ctx.draft.reasoning, finish_reason="interrupted")
    kept = response_processor.message(draft, ctx.run.id, ctx.run.model_name, interrupted=True)
    stored = await thread_manager.store(ctx, kept)
    await ctx.log.append(response_processor.completed(stored))
    ctx.draft = Draft()


def count_usage(ctx: RunContext, stored: Message) -> None:
    """Add one answer's tokens to the run's; the stored rows are the truth, so a resumed run counts them again."""
    for name, tokens in (stored.metadata.get("usage") or {}).items():
        ctx.usage[name] = ctx.usage.get(name, 0) + tokens
