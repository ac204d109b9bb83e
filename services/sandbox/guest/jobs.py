"""Commands in the background, which outlive the calls that began them."""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable

from .background import spawn
from .calls import Call
from .notices import Notices
from .output import Ring
from .paths import resolve
from .pipes import Output, writing
from .processes import END_WITHIN, Processes, Runner, shell
from .wire import CHUNK, Answer, Failed

MOST_JOBS = 32
MOST_FINISHED = 64
SHOWN_COMMAND = 1000


class Job:
    def __init__(self, name: str, command: str, runner: Runner, stdin: asyncio.StreamWriter) -> None:
        self.name, self.runner, self.stdin = name, runner, stdin
        self.command = command if len(command) <= SHOWN_COMMAND else f"{command[:SHOWN_COMMAND]} [...]"
        self.ring, self.began = Ring(), time.monotonic()
        self.over = asyncio.Event()
        self.exit_code: int | None = None

    @property
    def shown(self) -> Answer:
        return {
            "name": self.name,
            "command": self.command,
            "running": not self.over.is_set(),
            "exit_code": self.exit_code,
            "next_offset": self.ring.end,
        }


class Jobs:
    def __init__(self, processes: Processes, notices: Notices, on_end: Callable[[], None]) -> None:
        self.processes, self.notices, self.on_end = processes, notices, on_end
        self.jobs: OrderedDict[str, Job] = OrderedDict()

    @property
    def running(self) -> int:
        return sum(not job.over.is_set() for job in self.jobs.values())

    def known(self, name: str) -> Job:
        job = self.jobs.get(name)
        if job is None:
            raise Failed(f"there is no job {name}")
        return job

    async def start(self, call: Call, name: str, command: str, cwd: str) -> Answer:
        known = self.jobs.get(name)
        if known and not known.over.is_set():
            raise Failed(f"job {name} is already running")
        if self.running >= MOST_JOBS:
            raise Failed(f"{MOST_JOBS} jobs are running already; kill one before job {name} is started")
        output = await Output.open()
        stdin_read, stdin_write = os.pipe()
        try:
            runner = self.processes.launch(shell(command), resolve(cwd), {}, (stdin_read, output.fd, output.fd))
        except BaseException:
            os.close(stdin_write)
            output.close()
            raise
        finally:
            os.close(stdin_read)
        output.close_other()
        job = self.jobs[name] = Job(name, command, runner, await writing(stdin_write))
        self.jobs.move_to_end(name)
        spawn(self.follow(job, output))
        self.forget_finished()
        return job.shown

    async def follow(self, job: Job, output: Output) -> None:
        pumping = spawn(collect(job, output.reader))
        await job.runner.ended
        await self.processes.kill(self.processes.strays)
        await asyncio.wait({pumping}, timeout=END_WITHIN)
        job.exit_code = job.runner.ended.result()
        job.ring.add(self.notices.since(job.began))
        job.over.set()
        job.stdin.close()
        output.close()
        self.on_end()

    def forget_finished(self) -> None:
        finished = [name for name, job in self.jobs.items() if job.over.is_set()]
        for name in finished[: max(0, len(finished) - MOST_FINISHED)]:
            del self.jobs[name]

    async def show(self, call: Call, name: str, offset: int) -> Answer:
        job = self.known(name)
        shown, output = job.shown, job.ring.since(offset)
        await call.result(output)
        return shown

    async def show_all(self, call: Call) -> Answer:
        return {"jobs": [job.shown for job in self.jobs.values()]}

    async def write(self, call: Call, name: str) -> Answer:
        job = self.known(name)
        if job.over.is_set():
            raise Failed(f"job {name} has ended")
        async for data in call.data():
            job.stdin.write(data)
            try:
                await asyncio.wait_for(job.stdin.drain(), END_WITHIN)
            except TimeoutError:
                raise Failed(f"job {name} does not read its input") from None
            except OSError:
                raise Failed(f"job {name} has closed its input") from None
        return {}

    async def kill(self, call: Call, name: str) -> Answer:
        job = self.known(name)
        if not job.over.is_set():
            await self.processes.end(job.runner)
            await asyncio.wait_for(job.over.wait(), 2 * END_WITHIN)
        return await self.show(call, name, 0)


async def collect(job: Job, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(CHUNK):
        job.ring.add(data)
