"""What a browser's end of the wire may have the driver do: it is not in the sandbox."""

import asyncio

import pytest

from agent.browser.driver import Driver
from agent.browser.wire import wired
from agent.context import RunContext
from services.sandbox.protocol import Sandbox
from tests.agent.browser.conftest import listening

ANSWERS = """
import socket
listener = socket.create_server(("127.0.0.1", 8001))
while True:
    peer, _ = listener.accept()
    if peer.recv(65536):
        peer.sendall({answer!r})
    peer.close()
"""


async def answering(sandbox: Sandbox, answer: bytes) -> None:
    """Have something in the sandbox answer thus in place of a browser."""
    await sandbox.write_file("/workspace/answers.py", ANSWERS.format(answer=answer).encode())
    await sandbox.start_job("answers", "exec python3 answers.py")
    await listening(sandbox, 8001)


@pytest.mark.parametrize("before", ["", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_browser_cannot_send_the_driver_to_a_server_beside_the_worker(
    ctx: RunContext, sandbox: Sandbox, driver: Driver, before: str
) -> None:
    visits = list[str]()

    async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append("a visit")
        writer.close()

    beside = await asyncio.start_server(visited, "127.0.0.1", 0)
    port = beside.sockets[0].getsockname()[1]
    moved = f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n"
    await answering(sandbox, f"{before}{moved}".encode())
    socket = driver.socket()
    async with beside, wired(sandbox, 8001, socket), driver.used() as playwright:
        with pytest.raises(Exception, match="WebSocket error"):
            await playwright.chromium.connect_over_cdp(f"ws+unix:{socket}:/devtools/browser/1", timeout=60_000)
    assert visits == []
