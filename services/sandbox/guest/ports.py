"""Connections to what listens inside."""

import asyncio

from .background import spawn
from .calls import Call, feed
from .commands import pump
from .output import Kept
from .wire import Answer, Failed

MOST_CONNECTIONS = 256


class Ports:
    def __init__(self) -> None:
        self.connected = 0

    async def connect(self, call: Call, port: int) -> Answer:
        if self.connected >= MOST_CONNECTIONS:
            raise Failed(f"port {port} is not reached: too many connections are open")
        self.connected += 1
        try:
            return await exchange(call, port)
        finally:
            self.connected -= 1


async def exchange(call: Call, port: int) -> Answer:
    """Pass on what either side says, until one has gone."""
    try:
        reader, writer = await connection(port)
    except OSError as error:
        raise Failed(f"nothing answers on port {port}: {error.strerror or error}") from None
    feeding = spawn(feed(call, writer))
    try:
        await call.answer({})
        pumping = spawn(pump(call, reader, Kept(0)))
        await asyncio.wait({pumping, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done() and feeding.result():
            await asyncio.wait({pumping, call.gone()}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        feeding.cancel()
        writer.close()
    return {}


async def connection(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return await asyncio.open_connection("::1", port)
