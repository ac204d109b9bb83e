"""What one run's model is asked, turn by turn: prompt, tools and the thread, fitted into its window."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from agent import compaction, history, models, prompt, summary, temporary, thread_manager, tokens
from agent.compaction import Window
from agent.context import RunContext, RunFailed
from agent.history import History
from agent.llm.request import ModelRequest
from agent.tools import offer
from services.messages import Message

MEASURED_AT_ONCE = 250


@dataclass(slots=True)
class Conversation:
    ctx: RunContext
    history: History
    window: Window
    estimated_tokens: int = 0

    @classmethod
    async def load(cls, ctx: RunContext) -> Self:
        """The run's thread as it stands. Raises: what the store raises when its pool is closed."""
        model = models.look_up(ctx.run.model_name)
        window = Window(compaction.size_of_window(model, ctx.settings.models.context_window))
        return cls(ctx, await history.load(ctx), window)

    async def refresh(self) -> None:
        """Take in what was said since."""
        await history.refresh(self.ctx, self.history)

    async def request(self) -> ModelRequest:
        """The next question, within the window; with `enable_context_manager` a summary makes room before words go.

        Raises: RunFailed when the thread holds nothing that a model could answer; FenceLost.
        """
        ctx, window = self.ctx, self.window
        tools, model = offer.of_run(ctx), ctx.run.model_name
        schemas = tools.schemas if offer.natively(model) else ()
        system = prompt.compose(ctx, datetime.now(UTC).date(), tools.examples if offer.in_prompt(model) else "")
        beside = temporary.shown(self.history.beside, models.look_up(model))
        window.fixed = tokens.of_text(system) + tokens.of_tools(schemas) + sum(map(tokens.of_message, beside))
        self.calibrate()
        await self.measure()
        await self.fit()
        shown = thread_manager.to_model(self.spoken, system, window.limits)
        if all(said["role"] == "system" for said in shown):
            raise RunFailed("There is no message in this thread that could be answered.")
        self.estimated_tokens = window.estimate(self.spoken)
        effort = ctx.run.settings.get("reasoning_effort") if ctx.run.settings.get("enable_thinking") else None
        expected = int(self.estimated_tokens * window.factor)
        return ModelRequest(model, [*shown, *beside], effort, schemas, expected)

    @property
    def spoken(self) -> list[Message]:
        """The thread as the model reads it."""
        return [*([self.history.summary] if self.history.summary else []), *self.history.conversation]

    @property
    def estimated(self) -> dict[str, Any]:
        """What is kept beside an answer's usage, to estimate better from then on."""
        return {"prompt_estimate": self.estimated_tokens}

    def calibrate(self) -> None:
        """By the newest answer of the same model whose request was estimated and counted."""
        for stored in reversed(self.history.conversation):
            estimated = stored.metadata.get("prompt_estimate")
            if stored.type == "assistant" and estimated and stored.metadata.get("model") == self.ctx.run.model_name:
                counted = (stored.metadata.get("usage") or {}).get("prompt_tokens")
                self.window.calibrate(estimated, counted or 0)
                return

    async def measure(self) -> None:
        """What each message costs, a few at a time: other runs share the loop."""
        for place, stored in enumerate(self.spoken):
            self.window.measure(stored)
            if place % MEASURED_AT_ONCE == MEASURED_AT_ONCE - 1:
                await asyncio.sleep(0)

    async def fit(self) -> None:
        window = self.window
        if window.fit(self.spoken, (compaction.shorten_results,)):
            return
        if self.ctx.run.settings.get("enable_context_manager"):
            await summary.summarise(self.ctx, self.history, window)
        window.fit(self.spoken, compaction.last_resorts(window))

    def shrink(self) -> None:
        """The model refused the last request for its length."""
        self.window.shrink(self.spoken)
