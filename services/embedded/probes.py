"""Is a server ready? Each probe is one exchange of its own protocol and answers False on any refusal."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from functools import partial

HOST = "127.0.0.1"
TIMEOUT = 2.0
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
POSTGRES_STARTUP = b"user\x00longrun\x00database\x00longrun\x00\x00"


async def first_bytes(host: str, port: int, request: bytes, count: int) -> bytes:
    """The first `count` bytes (fewer when the server closes) of the answer to `request`; empty when there is none."""
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                return await reader.readexactly(count)
            finally:
                writer.close()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except (OSError, TimeoutError):
        return b""


async def answers(host: str, port: int, request: bytes, expected: bytes) -> bool:
    return await first_bytes(host, port, request, len(expected)) == expected


def postgres(port: int) -> Callable[[], Awaitable[bool]]:
    """Ready once it asks for a password: before that, a start-up packet is answered by an error."""
    body = struct.pack("!i", 3 << 16) + POSTGRES_STARTUP
    return partial(answers, HOST, port, struct.pack("!i", len(body) + 4) + body, b"R")


def valkey(port: int, password: str) -> Callable[[], Awaitable[bool]]:
    """Ready once a PING succeeds: while it loads its file it answers an error."""
    return partial(answers, HOST, port, f"AUTH {password}\r\nPING\r\n".encode(), b"+OK\r\n+PONG\r\n")


def rabbitmq(port: int) -> Callable[[], Awaitable[bool]]:
    """Ready once it opens an AMQP connection: the listener is the last thing that a node starts."""
    return partial(answers, HOST, port, AMQP_HEADER, b"\x01\x00\x00")


def listening(port: int) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            return False
        writer.close()
        return True

    return probe


def http_ok(host: str, port: int, path: str) -> Callable[[], Awaitable[bool]]:
    """Ready once `path` answers 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    return partial(answers, host, port, request, b"HTTP/1.1 200")
