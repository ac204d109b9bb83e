"""Breaks off what pages are at, past Playwright: it cannot connect while one of them loads or computes without end."""

import asyncio
import base64
import os
import re
from contextlib import suppress

import orjson

from agent.browser.chromium import Endpoint
from services.sandbox.protocol import Pipe, Sandbox, SandboxFailed

WITHIN = 4.0
ANSWER_WITHIN = 1.5
MOST_BYTES = 256 * 1024
MOST_PAGES = 50
LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d{1,9})")
ASKED = ({"id": 1, "method": "Page.stopLoading"}, {"id": 2, "method": "Page.getFrameTree"})
LAST = b'"id":2,'


async def calm(sandbox: Sandbox, endpoint: Endpoint) -> None:
    """Have every page stop loading, and close those whose script does not end, as far as that is done in a while."""
    with suppress(TimeoutError, SandboxFailed):
        async with asyncio.timeout(WITHIN):
            found = await pages(sandbox, endpoint)
            await asyncio.gather(*(stop(sandbox, endpoint, page) for page in found), return_exceptions=True)


async def pages(sandbox: Sandbox, endpoint: Endpoint) -> list[str]:
    """The ids of all pages, as the browser lists them."""
    async with await sandbox.connect(endpoint.port) as pipe:
        await pipe.write(b"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head, body = await answer(pipe)
        while len(body) < length_of(head) and (data := await pipe.read()):
            body += data
    with suppress(orjson.JSONDecodeError, AttributeError, TypeError):
        targets = orjson.loads(body)
        found = [str(each.get("id")) for each in targets if each.get("type") == "page"]
        return [page for page in found if page.isalnum()][:MOST_PAGES]
    return []


async def stop(sandbox: Sandbox, endpoint: Endpoint, page: str) -> None:
    """Have a page stop loading; one that does not even answer is closed."""
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    async with await sandbox.connect(endpoint.port) as pipe:
        await pipe.write(f"GET /devtools/page/{page} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\n\r\n".encode())
        _, said = await answer(pipe)
        for asked in ASKED:
            await pipe.write(frame(orjson.dumps(asked)))
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN):
                while LAST not in said and len(said) < MOST_BYTES and (data := await pipe.read()):
                    said += data
    if LAST not in said:
        async with await sandbox.connect(endpoint.port) as pipe:
            await pipe.write(f"GET /json/close/{page} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            await answer(pipe)


def frame(text: bytes) -> bytes:
    """A text of less than 126 bytes as one frame of a WebSocket's client, masked with zeros."""
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


async def answer(pipe: Pipe) -> tuple[bytes, bytes]:
    """The head of an HTTP answer, and what has come of its body."""
    come = b""
    while b"\r\n\r\n" not in come and len(come) < MOST_BYTES and (data := await pipe.read()):
        come += data
    head, _, body = come.partition(b"\r\n\r\n")
    return head, body


def length_of(head: bytes) -> int:
    found = LENGTH.search(head)
    return min(int(found[1]), MOST_BYTES) if found else 0
