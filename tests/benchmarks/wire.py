"""HTTP/1.1 over one kept connection, with next to nothing of its own in what is measured."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import orjson

FINAL = b'"type":"status","status":"'
FIRST = b"id: 0\ndata: "
END_OF_BODY = b"0\r\n\r\n"
READ_BYTES = 64 * 1024

W = TypeVar("W")
Q = TypeVar("Q")
A = TypeVar("A")


class Wire:
    """One connection to an API at `url`, signed in with `token`; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, token: str) -> None:
        self.reader, self.writer = reader, writer
        self.headers = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"

    @classmethod
    async def open(cls, url: str, token: str) -> Self:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        return cls(reader, writer, address.netloc, token)

    def close(self) -> None:
        self.writer.close()

    async def post(self, path: str, body: Mapping[str, Any], content_type: str = "application/json") -> dict[str, Any]:
        """The JSON of a 200. Raises: AssertionError with the answer on any other status."""
        data = orjson.dumps(body) if content_type == "application/json" else form(body)
        head = f"Content-Type: {content_type}\r\nContent-Length: {len(data)}\r\n"
        self.writer.write(f"POST /api{path} HTTP/1.1\r\n{self.headers}{head}\r\n".encode() + data)
        return await self.answer()

    async def get(self, path: str) -> dict[str, Any]:
        """As `post`."""
        self.writer.write(f"GET /api{path} HTTP/1.1\r\n{self.headers}\r\n".encode())
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        body = await self.reader.readexactly(content_length(head))
        assert head.startswith(b"HTTP/1.1 200 "), head + body
        answer: dict[str, Any] = orjson.loads(body)
        return answer

    async def read(self, run_id: str, first: Callable[[], None] = lambda: None) -> tuple[str, float]:
        """Read a run's stream to its end: its final status, and when the last event came (`time.monotonic()`).

        `first` is called once the first event is here.
        """
        self.writer.write(f"GET /api/agent-run/{run_id}/stream HTTP/1.1\r\n{self.headers}\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        seen, heard_at, begun = b"", 0.0, False
        while not seen.endswith(END_OF_BODY):
            data = await self.reader.read(READ_BYTES)
            assert data, f"the stream of {run_id} broke"
            seen = (seen + data)[-READ_BYTES:]
            if not begun and FIRST in seen:
                begun = True
                first()
            if FINAL in data or (not heard_at and FINAL in seen):
                heard_at = time.monotonic()
        assert heard_at, f"the stream of {run_id} ended without a last event"
        status = seen.rpartition(FINAL)[2].partition(b'"')[0]
        return status.decode(), heard_at


def form(fields: Mapping[str, Any]) -> bytes:
    return "&".join(f"{name}={value}" for name, value in fields.items()).encode()


def content_length(head: bytes) -> int:
    lines = dict(line.partition(b":")[::2] for line in head.lower().split(b"\r\n"))
    return int(lines.get(b"content-length", b"0"))


@asynccontextmanager
async def wires(url: str, token: str, count: int) -> AsyncIterator[list[Wire]]:
    """So many connections, open for as long as the context lasts."""
    opened = [await Wire.open(url, token) for _ in range(count)]
    try:
        yield opened
    finally:
        for wire in opened:
            wire.close()


async def spread(opened: Sequence[W], questions: Sequence[Q], ask: Callable[[W, Q], Awaitable[A]]) -> list[A]:
    """The answer to each question, in their order; every one of the opened asks as soon as it is free."""
    waiting = list(enumerate(questions))[::-1]
    answers: dict[int, A] = {}

    async def work(one: W) -> None:
        while waiting:
            number, question = waiting.pop()
            answers[number] = await ask(one, question)

    async with asyncio.TaskGroup() as group:
        for one in opened:
            group.create_task(work(one))
    return [answers[number] for number in range(len(questions))]
