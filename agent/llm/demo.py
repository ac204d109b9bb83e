"""The `demo/…` models: no key, no network, the same text every time."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path

from agent.catalog import DemoModel, demo_model
from agent.llm.chunk import Chunk, Usage
from agent.llm.request import ModelRequest, plain_text

TOUR = (Path(__file__).parent.parent / "prompts" / "demo_tour.md").read_text()
TOUR_DELAY = 0.03
LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore "
    "magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo "
    "consequat. "
)


async def stream(request: ModelRequest) -> AsyncGenerator[Chunk, None]:
    """Answer as the demo that `request.model` names.

    Raises: services.errors.Unprocessable for a name that `agent.catalog` refuses.
    """
    demo = demo_model(request.model)
    spoken = 0
    for text in texts(demo, request):
        yield Chunk(text=text)
        spoken += 1
        await asyncio.sleep(delay(demo))
    heard = sum(len(plain_text(message.get("content")).split()) for message in request.messages)
    yield Chunk(finish_reason="stop", usage=Usage(heard, spoken, heard + spoken))


def texts(demo: DemoModel, request: ModelRequest) -> Iterable[str]:
    if demo.name == "lorem":
        return lorem(demo.chunks)
    return words(request.last_user_text or "(nothing)") if demo.name == "echo" else words(TOUR)


def delay(demo: DemoModel) -> float:
    if demo.name == "lorem":
        return demo.delay_ms / 1000
    return TOUR_DELAY if demo.name == "tour" else 0


def words(text: str) -> Iterator[str]:
    """The words of a text with the white space around them: joined they are the text."""
    return (match.group() for match in re.finditer(r"\s*\S+\s*|\s+", text))


def lorem(count: int) -> Iterator[str]:
    return islice(cycle(words(LOREM)), count)
