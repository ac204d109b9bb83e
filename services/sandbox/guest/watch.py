"""Limits that the agent hears of from its monitor or, in a container, which has none, looks after itself."""

import asyncio
import json
import os
import signal
import socket
import time

from .background import spawn
from .notices import Notices
from .processes import Processes, below, give_up, send
from .usage import disk_used, hidden_memory, memory_kills
from .wire import Answer

MEMORY_POLL, DISK_POLL, REPORT_POLL = 0.1, 0.5, 0.25
MIB = 1024 * 1024


class Monitored:
    """The process outside watches memory and disk, and is told what it cannot see; when it goes the sandbox ends."""

    def __init__(self, processes: Processes, notices: Notices, descriptor: int) -> None:
        self.processes, self.notices = processes, notices
        self.socket = socket.socket(fileno=descriptor)

    async def listen(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self.socket)
        writer.write(b'{"ready": true}\n')
        spawn(self.report(writer))
        while line := await reader.readline():
            told = json.loads(line)
            if "notice" in told:
                self.notices.note(told["notice"])
            if "disk_full" in told:
                self.notices.disk_full = told["disk_full"]
                self.processes.full = bool(told["disk_full"])
        give_up("its monitor is gone")

    async def report(self, writer: asyncio.StreamWriter) -> None:
        said = 0
        while True:
            now = hidden_memory()
            if now != said:
                writer.write(json.dumps({"hidden": now}).encode() + b"\n")
                await writer.drain()
                said = now
            await asyncio.sleep(REPORT_POLL)


class Watch:
    """In a container the engine holds memory, and the agent itself the sum of the files."""

    def __init__(self, processes: Processes, notices: Notices, config: Answer) -> None:
        self.processes, self.notices = processes, notices
        self.disk, self.memory = config["disk"], config["memory"]
        self.kills = memory_kills()

    async def keep(self) -> None:
        measure_at = 0.0
        while True:
            before, self.kills = self.kills, memory_kills()
            if self.kills > before:
                self.notices.note(f"killed: the sandbox used more than its {self.memory // MIB} MiB of memory")
            if (now := time.monotonic()) >= measure_at:
                self.judge_disk(await disk_used())
                measure_at = time.monotonic() + max(DISK_POLL, 5 * (time.monotonic() - now))
            await asyncio.sleep(MEMORY_POLL)

    def judge_disk(self, used: int) -> None:
        full = used > self.disk
        if full and not self.notices.disk_full:
            why = f"the workspace holds {used // MIB} MiB, more than its {self.disk // MIB} MiB: delete files first"
            self.notices.note(f"killed: {why}")
            self.notices.disk_full = why
            send(below({os.getpid()}), signal.SIGKILL)
        elif not full:
            self.notices.disk_full = ""
        self.processes.full = full
