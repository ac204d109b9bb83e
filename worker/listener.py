"""The metrics of workers over HTTP: one process of those that share a port answers for all, another when it dies."""

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.background import Background, repeat, stop
from services.log import logger
from services.metrics.exposition import CONTENT_TYPE, may_read
from services.settings import MetricsSettings

AGAIN_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
HEAD_BYTES = 16 * 1024
MOST_CONNECTIONS = 16
PHRASES = {200: "OK", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 431: "Headers Too Large"}

Text = Callable[[], Awaitable[bytes]]


class Listener:
    """Answers GET /metrics at METRICS_HOST:METRICS_PORT with `text`, as soon as the port is to be had."""

    def __init__(self, settings: MetricsSettings, text: Text, group: Path | None) -> None:
        self.settings, self.text, self.group = settings, text, group
        self.connections = Background()
        self.task: asyncio.Task[None] | None = None
        self.server: asyncio.Server | None = None
        self.turn: int | None = None
        self.told = False

    def open(self) -> None:
        if self.settings.port:
            self.task = asyncio.create_task(repeat(self.try_to_listen), name="metrics listener")

    async def close(self) -> None:
        """At once: uvloop's server waits for its connections, of which one may say nothing."""
        if self.server:
            self.server.close()
        await self.connections.close()
        await stop([self.task] if self.task else [])
        if self.turn is not None:
            os.close(self.turn)

    async def try_to_listen(self) -> None:
        """Wait for our turn in the group, then for the port, then for ever."""
        if not self.take_turn():
            await asyncio.sleep(AGAIN_SECONDS)
            return
        try:
            self.server = await asyncio.start_server(
                self.accept, self.settings.host, self.settings.port, limit=HEAD_BYTES
            )
        except OSError as error:
            self.tell(error)
            await asyncio.sleep(AGAIN_SECONDS)
            return
        logger.info("metrics.listening", host=self.settings.host, port=self.settings.port)
        await self.server.serve_forever()

    def take_turn(self) -> bool:
        """One of a group waits for the port; the kernel gives its turn to another when it ends, however it does."""
        if self.group is None or self.turn is not None:
            return True
        turn = os.open(self.group / "listener", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(turn)
            return False
        self.turn = turn
        return True

    def tell(self, error: OSError) -> None:
        """Once: another group has the port, so nobody hears of this one."""
        if not self.told:
            logger.warning("metrics.port_taken", port=self.settings.port, error=str(error))
        self.told = True

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.connections.tasks) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self.connections.spawn(self.serve(reader, writer))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, and the end of the connection."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                writer.write(await self.answer(reader, writer.get_extra_info("peername")))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()  # it went away, or takes too long, or we leave
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, peer: tuple[str, int]) -> bytes:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return response(431)
        request, *lines = head.split("\r\n")
        method, path = (*request.split(" "), "", "")[:2]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if not may_read(self.settings, peer[0], headers):
            return response(401 if self.settings.token.get_secret_value() else 404)
        if path.partition("?")[0] != "/metrics":
            return response(404)
        if method not in ("GET", "HEAD"):
            return response(405)
        return response(200, await self.text(), without_body=method == "HEAD")


def response(status: int, body: bytes = b"", *, without_body: bool = False) -> bytes:
    said = body if status == 200 else f"{PHRASES[status]}\n".encode()
    head = [
        f"HTTP/1.1 {status} {PHRASES[status]}",
        f"Content-Type: {CONTENT_TYPE if status == 200 else 'text/plain'}",
        f"Content-Length: {len(said)}",
        "Connection: close",
        "Cache-Control: no-store",
        *(["WWW-Authenticate: Bearer"] if status == 401 else []),
        *(["Allow: GET, HEAD"] if status == 405 else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if without_body else said)
