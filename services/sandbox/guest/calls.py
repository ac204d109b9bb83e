"""One connection of the agent's socket, seen from the agent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from .wire import CHUNK, END, JSON, RESULT, Answer, frame, read_frame


class Call:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.asked: Answer = {}
        self.fenced = False
        self.leaving: asyncio.Future[Any] | None = None

    async def say(self, kind: bytes, payload: bytes) -> None:
        self.writer.write(frame(kind, payload))
        await self.writer.drain()

    async def answer(self, content: Answer) -> None:
        await self.say(JSON, json.dumps(content).encode())

    async def result(self, content: bytes) -> None:
        """Say bytes of any length, before the answer."""
        for start in range(0, len(content), CHUNK):
            await self.say(RESULT, content[start : start + CHUNK])

    async def data(self) -> AsyncIterator[bytes]:
        """What the caller sends, up to its end. Raises: asyncio.IncompleteReadError when it goes away before."""
        while True:
            kind, payload = await read_frame(self.reader)
            if kind == END:
                return
            yield payload

    def gone(self) -> "asyncio.Future[Any]":
        """Done when the caller has closed the connection; nothing else reads from it any more."""
        if self.leaving is None:
            self.leaving = asyncio.ensure_future(self.until_gone())
        return self.leaving

    async def until_gone(self) -> None:
        with suppress(OSError):
            while await self.reader.read(CHUNK):
                pass


async def feed(call: Call, writer: asyncio.StreamWriter) -> bool:
    """Pass on what the caller sends; whether it ended its side, rather than went away."""
    try:
        async for data in call.data():
            writer.write(data)
            await writer.drain()
    except asyncio.IncompleteReadError:
        return False
    except OSError:
        await call.gone()
        return False
    if writer.can_write_eof():
        with suppress(OSError):
            writer.write_eof()
    return True
