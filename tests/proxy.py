"""A TCP proxy that fails on demand, in the test's own loop: cut, refuse, stall, lead elsewhere, and be well again."""

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Stands before the server that `url` names; `self.url` is the same with our port."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.parts = parts
        self.lead_to(url)
        self.refusing = False
        self.passing: int | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.replies_flowing = asyncio.Event()
        self.replies_flowing.set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        port = self.server.sockets[0].getsockname()[1]
        user, at, _ = self.parts.netloc.rpartition("@")
        return urlunsplit(self.parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.cut()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.close()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection(*self.target)
        self.writers |= {writer, upstream_writer}
        for source, sink, gate in (
            (reader, upstream_writer, self.flowing),
            (upstream_reader, writer, self.replies_flowing),
        ):
            task = asyncio.create_task(self.pump(source, sink, gate))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await gate.wait()
                sink.write(data if gate is self.flowing else self.let_pass(data))
                await sink.drain()
                if self.passing == 0:
                    self.passing = None
                    self.cut()
        sink.close()
        self.writers.discard(sink)

    def let_pass(self, replies: bytes) -> bytes:
        if self.passing is None:
            return replies
        passed = replies[: self.passing]
        self.passing -= len(passed)
        return passed

    def lead_to(self, url: str) -> None:
        """From now on new connections go to the server of `url`; those that are open stay where they are."""
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port)

    def cut_after(self, count: int) -> None:
        """Let `count` more bytes of answers pass, then break every connection, once."""
        self.passing = count

    def cut(self) -> None:
        """Break every connection; new ones are taken."""
        for writer in tuple(self.writers):
            writer.transport.abort()
        self.writers.clear()

    def refuse(self) -> None:
        """Break every connection and take no new one, until `restore`."""
        self.refusing = True
        self.cut()

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self.flowing.clear()

    def lose_replies(self) -> None:
        """Requests arrive, answers do not; cut afterwards and they are lost for good."""
        self.replies_flowing.clear()

    def restore(self) -> None:
        self.refusing = False
        self.flowing.set()
        self.replies_flowing.set()
