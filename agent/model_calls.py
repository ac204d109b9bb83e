"""Calls of models as a run makes them: through the provider of the model, and told to whoever watches."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from agent.context import RunContext
from agent.llm import routing
from agent.llm.chunk import Chunk, Usage
from agent.llm.request import ModelRequest
from services.tracing import UNTRACED, Tracer

MAX_TOLD = 10_000
"""Characters of an answer that are kept to be told."""


def stream(ctx: RunContext, request: ModelRequest) -> AsyncGenerator[Chunk]:
    """The model's answer, chunk by chunk; see `routing.stream` for what it raises."""
    chunks = routing.stream(ctx.settings, ctx.http, request)
    return chunks if ctx.tracer is UNTRACED else told(ctx.tracer, request, chunks)


async def told(tracer: Tracer, request: ModelRequest, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    said = Said()
    with tracer.generation(request.model, request.messages) as step:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if chunk.speaks:
                        step.speaks()
                    said.add(chunk)
                    yield chunk
        finally:
            step.ends(said.output, usage=said.usage.counted() if said.usage else None)


class Said:
    """The beginning of an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.calls: dict[int, dict[str, str]] = {}
        self.usage: Usage | None = None
        self.room = MAX_TOLD

    def add(self, chunk: Chunk) -> None:
        self.usage = chunk.usage or self.usage
        self.text += self.fitting(chunk.text)
        for part in chunk.tool_calls:
            if self.room > 0:
                call = self.calls.setdefault(part.index, {"name": "", "arguments": ""})
                call["name"] += self.fitting(part.name)
                call["arguments"] += self.fitting(part.arguments)
                self.room -= 1

    def fitting(self, text: str) -> str:
        kept = text[: max(self.room, 0)]
        self.room -= len(text)
        return kept

    @property
    def output(self) -> str | dict[str, object]:
        return {"content": self.text, "tool_calls": list(self.calls.values())} if self.calls else self.text
