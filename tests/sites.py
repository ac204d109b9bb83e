"""Small web servers on loopback, with every way to misbehave."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext

HANG = 3600.0


@dataclass(frozen=True)
class Page:
    """What one path answers. `drip`: the body comes byte by byte, so many seconds apart."""

    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: float = 0.0
    hangs: bool = False
    endless: bool = False
    """The body is repeated until the reader hangs up."""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Site:
    port: int
    pages: dict[str, Page]
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies that were handed to the network."""
    scheme: str = "http"

    @property
    def paths(self) -> list[str]:
        return [each.path for each in self.asked]

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            asked = await read_request(reader)
            self.asked.append(asked)
            page = self.pages.get(asked.path) or self.pages.get(asked.path.partition("?")[0])
            await self.answer(page or Page(b"nothing here", status=404), writer)
        writer.close()

    async def answer(self, page: Page, writer: asyncio.StreamWriter) -> None:
        if page.hangs:
            await asyncio.sleep(HANG)
        told = {"Content-Type": page.content_type, "Connection": "close", **page.headers}
        if not page.endless:
            told.setdefault("Content-Length", str(len(page.body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        writer.write(f"HTTP/1.1 {page.status} Scripted\r\n{head}\r\n".encode())
        pieces = [page.body] if not page.drip else [page.body[n : n + 1] for n in range(len(page.body))]
        while True:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                await asyncio.sleep(page.drip)
            if not page.endless:
                return


def redirect(location: str, body: bytes = b"") -> Page:
    return Page(body, status=302, headers={"Location": location})


async def read_request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(start.split()[1], headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def site(pages: Mapping[str, Page], *, ssl: SSLContext | None = None) -> AsyncIterator[Site]:
    serving = Site(0, dict(pages), scheme="https" if ssl else "http")
    talks: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talks.add(task)
        task.add_done_callback(talks.discard)
        await serving.converse(reader, writer)

    server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=ssl)
    serving.port = server.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
