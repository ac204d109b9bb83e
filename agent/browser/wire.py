"""A Unix socket of ours behind which a port of the sandbox is, for as long as one action lasts."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.runs.fence import FenceLost
from services.sandbox.protocol import Pipe, Sandbox, SandboxFailed, SandboxUnavailable

CHUNK = 64 * 1024
MOST_BYTES = 16 * 1024 * 1024
"""What a browser may send in one action: it is hostile, and what reads it is not in the sandbox."""
MOST_HEAD = 16 * 1024
OFFERED = re.compile(rb"(?i)\r\nsec-websocket-extensions:[^\r]*")
"""Compression: what is read would not be what was counted."""
ACCEPTED = re.compile(rb"(?i)\r\nsec-websocket-accept: *([0-9a-z+/=]{28})\r\n")
SWITCHING = b"HTTP/1.1 101 "
OPENED = b"%sSwitching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n"


class Wire:
    def __init__(self, sandbox: Sandbox, port: int) -> None:
        self.sandbox, self.port = sandbox, port
        self.received = 0
        self.failure: Exception | None = None
        """What the sandbox said against it."""
        self.ways: set[asyncio.Task[None]] = set()

    @property
    def flooded(self) -> bool:
        return self.received > MOST_BYTES

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with await self.sandbox.connect(self.port) as pipe:
                await self.join(pipe, reader, writer)
        except asyncio.IncompleteReadError:
            return  # the driver has gone again
        except (FenceLost, SandboxFailed, SandboxUnavailable, OSError) as error:
            self.failure = error  # whoever is at our end reads that it is over
        finally:
            writer.close()

    async def join(self, pipe: Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ways = {asyncio.create_task(self.up(pipe, reader)), asyncio.create_task(self.down(pipe, writer))}
        self.ways |= ways
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            ended = await asyncio.gather(*ways, return_exceptions=True)
            self.ways -= ways
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def up(self, pipe: Pipe, reader: asyncio.StreamReader) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        await pipe.write(OFFERED.sub(b"", asked))
        while data := await reader.read(CHUNK):
            await pipe.write(data)

    async def down(self, pipe: Pipe, writer: asyncio.StreamWriter) -> None:
        writer.write(await self.opened(pipe))
        while data := await pipe.read():
            self.received += len(data)
            if self.flooded:
                return
            writer.write(data)
            await writer.drain()

    async def opened(self, pipe: Pipe) -> bytes:
        """How the WebSocket opens, in words of our own: the driver would go where another answer sends it.

        Raises: SandboxFailed when it is no browser that answers.
        """
        come = b""
        while b"\r\n\r\n" not in come and len(come) < MOST_HEAD and (data := await pipe.read()):
            come += data
        if not come:
            return b""
        self.received += len(come)
        head, _, rest = come.partition(b"\r\n\r\n")
        accepted = ACCEPTED.search(head + b"\r\n")
        if not head.startswith(SWITCHING) or not accepted:
            raise SandboxFailed("What answers in place of the browser is none.")
        return OPENED % (SWITCHING, accepted[1]) + rest

    def cut(self) -> None:
        for way in self.ways:
            way.cancel()


@asynccontextmanager
async def wired(sandbox: Sandbox, port: int, socket: Path) -> AsyncIterator[Wire]:
    """Listen on `socket` and pass everything to the port and back."""
    wire = Wire(sandbox, port)
    server = await asyncio.start_unix_server(wire.serve, socket)
    try:
        yield wire
    finally:
        server.close()
        socket.unlink(missing_ok=True)  # noqa: ASYNC240 - one entry of a folder in memory or cache
        wire.cut()
