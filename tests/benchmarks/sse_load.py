"""Readers by the thousand in a process of their own: `python -m tests.benchmarks.sse_load`, orders by line on stdin.

`{"do": "open", port, paths, token, ordinary, ordinary_path, every}` opens streams and ordinary connections beside them,
`{"do": "measure"}` begins to count, `{"do": "report"}` says what was counted since. Each order is answered by a line.
"""

import asyncio
import re
import sys
import time
from array import array
from typing import Any, cast

import orjson
import uvloop

FRAME = re.compile(rb'id: (\d+)\ndata: \{"t": ?(\d+)')
CHUNK_END = b"\n\n\r\n"
HEAD_END = b"\r\n\r\n"
CONNECTING_AT_ONCE = 100
OPEN_SECONDS = 30.0
QUANTILES = 200


class Counts:
    """What was seen since the last `clear`."""

    def __init__(self) -> None:
        self.latencies = array("d")
        self.answers = array("d")
        self.gaps = self.lost = self.refused = 0

    def clear(self) -> None:
        self.latencies, self.answers = array("d"), array("d")
        self.gaps = self.refused = 0

    def report(self) -> dict[str, Any]:
        """Latencies in milliseconds, as quantiles in equal steps from the least to the greatest."""
        return {
            "delivered": len(self.latencies),
            "gaps": self.gaps,
            "lost": self.lost,
            "latencies": quantiles(self.latencies),
            "answered": len(self.answers),
            "refused": self.refused,
            "answers": quantiles(self.answers),
        }


def quantiles(values: "array[float]") -> list[float]:
    ordered = sorted(values)
    return [ordered[round(step * (len(ordered) - 1) / QUANTILES)] for step in range(QUANTILES + 1)] if ordered else []


class Reader(asyncio.Protocol):
    """One stream: ids without gaps, and how old each event is when it arrives."""

    __slots__ = ("counts", "expected", "opened", "request", "rest", "transport")

    def __init__(self, counts: Counts, request: bytes) -> None:
        self.counts, self.request = counts, request
        self.opened: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self.expected: int | None = None
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.rest + data if self.rest else data
        if self.opened and not self.open(data):
            return
        if not data.endswith(CHUNK_END):
            self.rest = data
            return
        self.rest = b""
        for number, stamp in FRAME.findall(data):
            event_id = int(number)
            if event_id != self.expected and self.expected is not None:
                self.counts.gaps += 1
            self.expected = event_id + 1
            self.counts.latencies.append((now - int(stamp)) / 1e6)

    def open(self, data: bytes) -> bool:
        head, _, body = data.partition(HEAD_END)
        if not body:
            self.rest = data
            return False
        assert self.opened
        if not head.startswith(b"HTTP/1.1 200"):
            self.opened.set_exception(ConnectionError(head.decode()))
            return False
        self.opened.set_result(None)
        self.opened = None
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.counts.lost += 1
        if self.opened and not self.opened.done():
            self.opened.set_exception(ConnectionError("the server closed the connection"))


class Asker(asyncio.Protocol):
    """One ordinary connection, kept open: it asks the same thing again and again."""

    def __init__(self, counts: Counts, request: bytes) -> None:
        self.counts, self.request = counts, request
        self.asked_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def ask(self) -> None:
        self.asked_at = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 "):
            self.counts.answers.append((time.monotonic() - self.asked_at) * 1000)
            self.counts.refused += not data.startswith(b"HTTP/1.1 200")

    def connection_lost(self, error: Exception | None) -> None:
        self.counts.refused += 1


class Load:
    def __init__(self) -> None:
        self.counts = Counts()
        self.tasks: list[asyncio.Task[None]] = []
        self.kept: list[object] = []

    async def open(self, order: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        waiting, gate = [], asyncio.Semaphore(CONNECTING_AT_ONCE)
        for path in order["paths"]:
            waiting.append(asyncio.create_task(self.connect(gate, order["port"], get(path, order["token"]))))
        await asyncio.gather(*waiting)
        seconds = time.monotonic() - began
        request = get(order["ordinary_path"], order["token"]) if order["ordinary"] else b""
        for number in range(order["ordinary"]):
            offset = number / order["ordinary"] * order["every"]
            asker = await self.plug(order["port"], Asker(self.counts, request))
            self.tasks.append(asyncio.create_task(ask_every(asker, offset, order["every"])))
        return {"seconds": seconds}

    async def connect(self, gate: asyncio.Semaphore, port: int, request: bytes) -> None:
        async with gate, asyncio.timeout(OPEN_SECONDS):
            reader = await self.plug(port, Reader(self.counts, request))
            if reader.opened:
                await reader.opened

    async def plug(self, port: int, protocol: Any) -> Any:
        await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)
        self.kept.append(protocol)
        return protocol

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "open":
            return await self.open(order)
        if order["do"] == "measure":
            self.counts.clear()
            return {}
        return self.counts.report()


async def ask_every(asker: Asker, offset: float, every: float) -> None:
    await asyncio.sleep(offset)
    while True:
        asker.ask()
        await asyncio.sleep(every)


def get(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


async def main() -> None:
    load, orders = Load(), asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
    while line := await orders.readline():
        try:
            answer = await load.obey(orjson.loads(line))
        except (OSError, TimeoutError) as error:
            answer = {"error": repr(error)}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(main())
