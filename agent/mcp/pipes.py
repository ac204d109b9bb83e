"""MCP over the standard streams of a process in the sandbox: one JSON message per line."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from agent.mcp.watching import Flooded, Watch
from services.log import logger
from services.sandbox.protocol import Pipe

Incoming = MemoryObjectSendStream[SessionMessage | Exception]


@asynccontextmanager
async def streams(opening: AbstractAsyncContextManager[Pipe], watch: Watch) -> AsyncIterator[TransportStreams]:
    """A transport for `mcp.Client`; leaving it ends the process."""
    async with opening as pipe:
        read_in, read_out = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write_in, write_out = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            group.start_soon(read, pipe, read_in, watch)
            group.start_soon(write, pipe, write_out, watch)
            try:
                yield read_out, write_in
            finally:
                for stream in (read_in, read_out, write_in, write_out):
                    stream.close()
                group.cancel_scope.cancel()


async def read(pipe: Pipe, incoming: Incoming, watch: Watch) -> None:
    """Pass on messages until the process ends, is cut off for flooding us, or nobody listens any more."""
    begun: list[bytes] = []
    with incoming:
        try:
            while data := await pipe.read():
                watch.count(len(data))
                *lines, rest = data.split(b"\n")
                if lines:
                    lines[0] = b"".join([*begun, lines[0]])
                    begun = []
                begun.append(rest)
                for line in lines:
                    await pass_on(line, incoming)
            watch.end(pipe.ending or "its process ended")
        except Flooded:
            watch.end()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        except Exception as error:  # noqa: BLE001 - the boundary around a sandbox: however its pipe breaks, it is over
            logger.warning("mcp.pipe_broke", error=repr(error))
            watch.end("its process cannot be reached any more")


async def pass_on(line: bytes, incoming: Incoming) -> None:
    """Many servers also print words of their own where only messages belong: those are dropped."""
    if not line.lstrip().startswith(b"{"):
        return
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        return
    await incoming.send(SessionMessage(message))


async def write(pipe: Pipe, outgoing: MemoryObjectReceiveStream[SessionMessage], watch: Watch) -> None:
    with outgoing:
        async for sent in outgoing:
            watch.asked()
            await pipe.write(sent.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
