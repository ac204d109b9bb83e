"""Pipes between the agent and what it started."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .wire import CHUNK


class Output:
    """A pipe: its reader here, its other end for a command."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, fd: int) -> None:
        self.reader, self.transport, self.fd = reader, transport, fd

    @classmethod
    async def open(cls) -> "Output":
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader(limit=CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", buffering=0))
        return cls(reader, transport, write_end)

    def close_other(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.close_other()
        self.transport.close()


@asynccontextmanager
async def outputs(count: int) -> AsyncIterator[tuple[Output, ...]]:
    opened = [await Output.open() for _ in range(count)]
    try:
        yield tuple(opened)
    finally:
        for output in opened:
            output.close()


async def writing(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


class devnull:
    def __enter__(self) -> int:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
