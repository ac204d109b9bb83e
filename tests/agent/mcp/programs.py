"""Servers that are programs: a place to run them in, and one that misbehaves as it is told."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import CancelScope

FAULTY = Path(__file__).with_name("faulty.py")


class ProcessPipe:
    ending = ""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self) -> bytes:
        assert self.process.stdout
        return await self.process.stdout.read(65_536)

    async def write(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        await self.process.stdin.drain()


class Here:
    """As much of a sandbox as a server needs, without one: its programs run as children of the tests."""

    def __init__(self) -> None:
        self.processes: list[asyncio.subprocess.Process] = []

    @asynccontextmanager
    async def pipe(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> AsyncIterator[ProcessPipe]:
        pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        process = await asyncio.create_subprocess_exec(
            *argv, **pipes, env={"PATH": os.environ["PATH"], **(env or {})}, start_new_session=True
        )
        self.processes.append(process)
        try:
            yield ProcessPipe(process)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            with CancelScope(shield=True):  # the SDK's task groups cancel whatever waits, again and again
                assert process.stdout
                await process.stdout.read()
                await process.wait()

    @property
    def running(self) -> int:
        return sum(process.returncode is None for process in self.processes)


def faulty(*how: str, name: str = "faulty", **more: Any) -> dict[str, Any]:
    """The custom server that behaves as it is told."""
    config = {"command": sys.executable, "args": ["-S", "-E", str(FAULTY), *how], "env": more.pop("env", {})}
    return {"name": name, "type": "stdio", "config": config, **more}


def time_server(**more: Any) -> dict[str, Any]:
    """The real mcp-server-time."""
    config = {"command": sys.executable, "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]}
    return {"name": "time", "type": "stdio", "config": config, **more}
