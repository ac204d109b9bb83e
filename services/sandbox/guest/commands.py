"""Commands that somebody waits for, and programs that somebody talks with."""

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

from .background import spawn
from .calls import Call, feed
from .notices import Notices
from .output import Kept
from .paths import WORKSPACE, resolve
from .pipes import devnull, outputs, writing
from .processes import END_WITHIN, KILLED, Processes, Runner, program, shell
from .wire import CHUNK, DATA, Answer

NOTICE_WITHIN = 0.3
STDERR_KEPT = 4000


class Commands:
    def __init__(self, processes: Processes, notices: Notices) -> None:
        self.processes, self.notices = processes, notices

    async def execute(
        self, call: Call, command: str, cwd: str, env: dict[str, str], timeout: float, stream: bool, max_output: int
    ) -> Answer:
        kept, began = Kept(max_output), time.monotonic()
        async with outputs(1) as (output,):
            with devnull() as nothing:
                runner = self.processes.launch(shell(command), resolve(cwd), env, (nothing, output.fd, output.fd))
            output.close_other()
            pumping = spawn(pump(call if stream else None, output.reader, kept))
            in_time = await self.attend(call, runner, timeout, pumping)
            if in_time and runner.ended.result() == KILLED and self.notices.noted_at < began:
                # When the kernel has killed for memory, the monitor knows a moment later.
                await asyncio.sleep(NOTICE_WITHIN)
        await call.result(kept.output + self.notices.since(began))
        return {"exit_code": runner.ended.result() if in_time else None, "left_out": kept.left_out}

    async def attend(self, call: Call, runner: Runner, timeout: float, pumping: asyncio.Task[Any]) -> bool:
        """Wait for a command's end and its output's. Whatever happens, nothing of it runs when this is over."""
        gone = call.gone()
        try:
            await asyncio.wait({runner.ended, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            in_time = runner.ended.done()
            await self.processes.end(runner)
            await asyncio.wait({pumping, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self.processes.end(runner)
            pumping.cancel()
        return in_time

    async def pipe(self, call: Call, argv: list[str], env: dict[str, str]) -> Answer:
        argv = [program(argv[0]), *argv[1:]]
        stdin_read, stdin_write = os.pipe()
        errors = Kept(STDERR_KEPT)
        async with outputs(2) as (output, complaints):
            try:
                runner = self.processes.launch(argv, WORKSPACE, env, (stdin_read, output.fd, complaints.fd))
            except BaseException:
                os.close(stdin_write)
                raise
            finally:
                os.close(stdin_read)
            stdin = await writing(stdin_write)
            output.close_other()
            complaints.close_other()
            complaining = spawn(pump(None, complaints.reader, errors))
            feeding = spawn(feed(call, stdin))
            try:
                await call.answer({})
                pumping = spawn(pump(call, output.reader, Kept(0)))
                await asyncio.wait({runner.ended, feeding}, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done() and feeding.result():
                    await asyncio.wait({runner.ended, call.gone()}, return_when=asyncio.FIRST_COMPLETED)
                in_time = runner.ended.done()
                await self.processes.end(runner)
                await asyncio.wait({pumping}, timeout=END_WITHIN)
            finally:
                await self.processes.end(runner)
                for task in (feeding, complaining):
                    task.cancel()
                stdin.close()
        code = runner.ended.result() if in_time else None
        return {"exit_code": code, "stderr": errors.output.decode(errors="replace")}


async def pump(call: Call | None, reader: asyncio.StreamReader, kept: Kept) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            kept.add(data)
            if call:
                await call.say(DATA, data)
