"""The `demo/…` models: no key, no network, the same every time."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from agent.catalog import DemoModel, demo_model
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.llm.request import ModelRequest, plain_text

TOUR = (Path(__file__).parent.parent / "prompts" / "demo_tour.md").read_text()
STOPS = tuple(part.removeprefix("\n") for part in re.split("<!--.*-->", TOUR))
TASKS = {
    "tasks": [
        {"title": "Say hello", "status": "done"},
        {"title": "Show a tool call", "status": "in_progress"},
        {"title": "Write a file", "status": "pending"},
        {"title": "Ask a question", "status": "pending"},
    ]
}
FILE = {"file_path": "hello.md", "file_contents": "# Hello\n\nThis file was written by Longrun's demo.\n"}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (("task_list", TASKS), ("create_file", FILE))
"""What is called at the end of each stop but the last."""
CALL_PIECE_CHARS = 16
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
    calls = False
    for chunk in chunks(demo, request):
        yield chunk
        spoken += 1
        calls = calls or bool(chunk.tool_calls)
        await asyncio.sleep(delay(demo))
    heard = sum(len(plain_text(message.get("content")).split()) for message in request.messages)
    yield Chunk(finish_reason="tool_calls" if calls else "stop", usage=Usage(heard, spoken, heard + spoken))


def chunks(demo: DemoModel, request: ModelRequest) -> Iterator[Chunk]:
    if demo.name == "tour":
        return tour(request)
    texts = lorem(demo.chunks) if demo.name == "lorem" else words(request.last_user_text or "(nothing)")
    return (Chunk(text=text) for text in texts)


def tour(request: ModelRequest) -> Iterator[Chunk]:
    """A text and a tool call at each stop; with the result at hand the next one, and at the last a question."""
    stop = min(results_at_hand(request), len(CALLS))
    yield from (Chunk(text=text) for text in words(STOPS[stop]))
    if stop == len(CALLS):
        return
    name, given = CALLS[stop]
    arguments = json.dumps(given)
    yield Chunk(tool_calls=(ToolCallPart(0, f"call_tour_{stop}", name),))
    for start in range(0, len(arguments), CALL_PIECE_CHARS):
        yield Chunk(tool_calls=(ToolCallPart(0, arguments=arguments[start : start + CALL_PIECE_CHARS]),))


def results_at_hand(request: ModelRequest) -> int:
    """How many results came since the person last said something."""
    roles = [message["role"] for message in request.messages]
    return roles[len(roles) - roles[::-1].index("user") :].count("tool") if "user" in roles else 0


def delay(demo: DemoModel) -> float:
    if demo.name == "lorem":
        return demo.delay_ms / 1000
    return TOUR_DELAY if demo.name == "tour" else 0


def words(text: str) -> Iterator[str]:
    """The words of a text with the white space around them: joined they are the text."""
    return (match.group() for match in re.finditer(r"\s*\S+\s*|\s+", text))


def lorem(count: int) -> Iterator[str]:
    return islice(cycle(words(LOREM)), count)
