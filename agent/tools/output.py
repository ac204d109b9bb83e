"""What a command prints: shown as it comes, and kept bounded for its result."""

import asyncio
import codecs
from contextlib import suppress
from types import TracebackType
from typing import Self

from agent.context import Calling

SHOW_SECONDS = 0.2
LONG_SHOW_SECONDS = 1.0
QUICK_PIECES = 50
"""After so many pieces they come more slowly: the log of a run holds only so many events."""
MAX_SHOWN_CHARS = 64_000
NO_MORE_SHOWN = "\n[more output comes, which is not shown while the command runs]\n"
HEAD_CHARS, TAIL_CHARS = 15_000, 25_000


class Screen:
    """Shows readers what a command prints: a few pieces per second, and so much in all. `async with` it.

    Taking never waits for the readers: a slow log does not slow the command.
    """

    def __init__(self, calling: Calling) -> None:
        self.calling = calling
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.waiting = ""
        self.room = MAX_SHOWN_CHARS
        self.pieces = 0
        self.ended = asyncio.Event()
        self.showing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.showing = asyncio.create_task(self.keep_showing())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.showing
        if error:
            self.showing.cancel()
            await asyncio.gather(self.showing, return_exceptions=True)
            return
        self.add(self.decoder.decode(b"", final=True))
        self.ended.set()
        await self.showing

    async def take(self, data: bytes) -> None:
        if self.room:
            self.add(self.decoder.decode(data))

    def add(self, text: str) -> None:
        if len(text) > self.room:
            text = text[: self.room] + NO_MORE_SHOWN
        self.waiting += text
        self.room = max(0, self.room - len(text))

    async def keep_showing(self) -> None:
        while not self.ended.is_set():
            await self.show()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), self.pause)
        await self.show()

    @property
    def pause(self) -> float:
        return SHOW_SECONDS if self.pieces < QUICK_PIECES else LONG_SHOW_SECONDS

    async def show(self) -> None:
        text, self.waiting = self.waiting, ""
        if text:
            self.pieces += 1
            await self.calling.tell(text)


def shortened(output: bytes) -> str:
    """Its beginning and its end, and how much is missing between them."""
    text = output.decode(errors="replace")
    missing = len(text) - HEAD_CHARS - TAIL_CHARS
    if missing <= 0:
        return text
    return f"{text[:HEAD_CHARS]}\n[... {missing} characters left out ...]\n{text[-TAIL_CHARS:]}"
