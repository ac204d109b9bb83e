"""A TCP proxy in front of a store: takes it away (refuses or hangs) and brings it back, while the store itself runs."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from tests.waiting import PATIENT


class Proxy:
    """Forwards a free port to the server of `url`; `self.url` is that URL by way of the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname, f"{url} names no host"
        self.target = (parts.hostname, parts.port or {"amqp": 5672, "redis": 6379}.get(parts.scheme, 5432))
        self.parts = parts
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, name="proxy", daemon=True)
        self.server: asyncio.Server | None = None
        self.connections: set[asyncio.StreamWriter] = set()
        self.flowing = asyncio.Event()

    @property
    def url(self) -> str:
        credentials, at, _ = self.parts.netloc.rpartition("@")
        return urlunsplit(self.parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def __enter__(self) -> Self:
        self.thread.start()
        self.flow()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self.call(self.finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    def up(self) -> None:
        """Listen, on the same port as before."""
        self.call(self.listen())

    def down(self) -> None:
        """Refuse connections and break those that exist."""
        self.call(self.refuse())

    def hang(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self.loop.call_soon_threadsafe(self.flowing.clear)

    def flow(self) -> None:
        self.loop.call_soon_threadsafe(self.flowing.set)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENT)

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self.forward, "127.0.0.1", self.port, reuse_address=True)
        self.port = self.server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        if self.server:
            self.server.close()
        for writer in tuple(self.connections):
            writer.transport.abort()

    async def finish(self) -> None:
        """Let the tasks of broken connections end before the loop does."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            back, onward = await asyncio.open_connection(*self.target)
            self.connections.add(onward)
            await asyncio.gather(self.pump(reader, onward), self.pump(back, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in filter(None, (writer, onward)):
                self.connections.discard(end)
                end.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()
