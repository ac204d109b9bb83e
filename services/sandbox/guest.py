"""The agent inside a sandbox: its first process, which runs commands and touches files for whoever connects.

Only the standard library, since the system's python3 runs this one file. Each connection is one call: a JSON frame
asks, data frames go both ways, a JSON frame answers. Closing the connection ends what the call had begun.
"""

import asyncio
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

JSON, DATA, END, RESULT, BEGUN = b"J", b"D", b"E", b"R", b"B"
HEADER = struct.Struct(">cI")
CHUNK = 64 * 1024
LARGEST_FRAME = 1024 * 1024
RING = 1024 * 1024
MOST_JOBS = 32
MOST_FINISHED = 64
MOST_CONNECTIONS = 256
SHOWN_COMMAND = 1000
DEEPEST, DEEPEST_COUNTED = 100, 250
MOST_SUPERSEDED = 1000
END_WITHIN = 5.0
NOTICE_WITHIN = 0.3
KILLED = 128 + signal.SIGKILL
STDERR_KEPT = 4000
MEMORY_POLL, DISK_POLL = 0.1, 0.5
MIB = 1024 * 1024
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
WORKSPACE = "/workspace"
DEFAULT_AGAIN = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHELL = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"

Answer = dict[str, Any]


class Failed(Exception):
    """What was asked cannot be done; the text says what."""


class Lost(Exception):
    """A later attempt, or another run, drives this project."""


def frame(kind: bytes, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def json_frame(content: Answer) -> bytes:
    return frame(JSON, json.dumps(content).encode())


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Raises: asyncio.IncompleteReadError at the end of the connection; ValueError for a frame that is too large."""
    kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > LARGEST_FRAME:
        raise ValueError(f"a frame of {length} bytes is too large")
    return kind, await reader.readexactly(length)


class Kept:
    """The beginning and the end of an output, bounded."""

    def __init__(self, limit: int) -> None:
        self.head_size, self.tail_size = limit - limit // 2, limit // 2
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.head_size - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > 2 * self.tail_size + CHUNK:
            del self.tail[: len(self.tail) - self.tail_size]

    @property
    def left_out(self) -> int:
        return max(0, self.total - self.head_size - self.tail_size)

    @property
    def output(self) -> bytes:
        tail = bytes(self.tail[-self.tail_size :]) if self.tail_size else b""
        if self.left_out:
            return bytes(self.head) + b"\n[... %d bytes left out ...]\n" % self.left_out + tail
        return bytes(self.head) + tail


class Ring:
    """The last bytes of a job's output; offsets count from its first byte."""

    def __init__(self) -> None:
        self.kept, self.start = bytearray(), 0

    def add(self, data: bytes) -> None:
        self.kept += data
        surplus = len(self.kept) - RING
        if surplus > CHUNK:
            del self.kept[:surplus]
            self.start += surplus

    def since(self, offset: int) -> bytes:
        return bytes(self.kept[max(0, offset - self.start) :])

    @property
    def end(self) -> int:
        return self.start + len(self.kept)


# Processes


def process_tree() -> dict[int, int]:
    """Every process that is not a zombie: pid → parent."""
    tree = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in b"ZX":
                    tree[int(name)] = int(parent)
    return tree


def below(roots: set[int]) -> set[int]:
    tree, found, frontier = process_tree(), set[int](), roots
    while frontier:
        frontier = {pid for pid, parent in tree.items() if parent in frontier} - found
        found |= frontier
    return found


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def become(argv: list[str], cwd: str, env: dict[str, str], streams: tuple[int, int, int], full: bool) -> None:
    """In a fork: run a command. What it orphans comes to it, and when it ends to the agent, which kills it."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # before the agent, or anything outside
        file.write("1000")
    for number in DEFAULT_AGAIN:
        signal.signal(number, signal.SIG_DFL)
    for target, source in enumerate([os.dup(each) for each in streams]):
        os.dup2(source, target)
    os.closerange(3, 65536)
    if full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        os.chdir(cwd)
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())


class Runner:
    """The first process of one command."""

    def __init__(self, pid: int, ended: "asyncio.Future[Any]") -> None:
        self.pid, self.ended = pid, ended


class Processes:
    def __init__(self) -> None:
        self.runners: dict[int, Runner] = {}
        self.loop = asyncio.get_running_loop()
        self.loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.full = False

    def launch(self, argv: list[str], cwd: str, env: dict[str, str], streams: tuple[int, int, int]) -> Runner:
        """Raises: Failed when there is no such folder or too many processes run."""
        if not os.path.isdir(cwd):
            raise Failed(f"{cwd} is not a folder")
        if not all(map(passable, (*argv, *env, *env.values()))):
            raise Failed("a command cannot hold a NUL or half a character")
        try:
            pid = os.fork()
        except OSError as error:
            raise Failed(f"no process could be started: {error.strerror} (too many run already?)") from error
        if pid == 0:
            try:
                become(argv, cwd, {**os.environ, **env}, streams, self.full)
            finally:
                os._exit(127)
        runner = self.runners[pid] = Runner(pid, self.loop.create_future())
        return runner

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                runner = self.runners.pop(pid, None)
                if runner:
                    code = os.waitstatus_to_exitcode(status)
                    runner.ended.set_result(code if code >= 0 else 128 - code)

    async def end(self, runner: Runner) -> None:
        """Kill a command with all that it started; when that cannot be done the whole sandbox ends."""
        await self.kill(lambda: set() if runner.ended.done() else {runner.pid})
        await self.kill(self.strays)

    async def kill(self, roots: Callable[[], set[int]]) -> None:
        """Kill `roots` and all below, until there are none. They are stopped first: none forks away from the kill."""
        deadline, stopped = time.monotonic() + END_WITHIN, set[int]()
        while tops := roots():
            found = tops | below(tops)
            send(found - stopped, signal.SIGSTOP)
            if found <= stopped or len(found) == 1:
                send(found, signal.SIGKILL)
            if time.monotonic() > deadline:
                give_up("processes could not be killed")
            stopped = found
            await asyncio.sleep(0.001)

    def strays(self) -> set[int]:
        return {pid for pid in children() if pid not in self.runners}


def children() -> set[int]:
    own = os.getpid()
    with suppress(OSError), open(f"/proc/{own}/task/{own}/children", "rb") as file:
        if not (listed := file.read()).strip():
            return set()
        del listed
    return {pid for pid, parent in process_tree().items() if parent == own}


def give_up(why: str) -> None:
    print(f"the sandbox ends: {why}", file=sys.stderr, flush=True)  # noqa: T201 - its log
    os._exit(3)


# Calls


class Fences:
    """Which attempt of which run may speak; one run at a time drives a project."""

    def __init__(self, known: Answer) -> None:
        self.run: str | None = known.get("run")
        self.attempt: int = known.get("attempt", 0)
        latest = known.get("superseded", [])[-MOST_SUPERSEDED:]  # it is part of an argument of the agent's process
        self.superseded = OrderedDict[str, None]((run, None) for run in latest)

    @property
    def known(self) -> Answer:
        return {"run": self.run, "attempt": self.attempt, "superseded": list(self.superseded)}

    def admit(self, run: str, attempt: int) -> bool:
        """Whether this fence is new. Raises: Lost when a later one was heard."""
        if run in self.superseded or (run == self.run and attempt < self.attempt):
            raise Lost(f"attempt {attempt} of run {run} no longer drives this project")
        if (run, attempt) == (self.run, self.attempt):
            return False
        if self.run and run != self.run:
            self.superseded[self.run] = None
            if len(self.superseded) > MOST_SUPERSEDED:
                self.superseded.popitem(last=False)
        self.run, self.attempt = run, attempt
        return True


class Call:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.asked: Answer = {}
        self.fenced = False
        self.leaving: asyncio.Future[Any] | None = None

    async def say(self, kind: bytes, payload: bytes) -> None:
        self.writer.write(frame(kind, payload))
        await self.writer.drain()

    async def answer(self, content: Answer) -> None:
        await self.say(JSON, json.dumps(content).encode())

    async def data(self) -> AsyncIterator[bytes]:
        """What the caller sends, up to its end. Raises: asyncio.IncompleteReadError when it goes away before."""
        while True:
            kind, payload = await read_frame(self.reader)
            if kind == END:
                return
            yield payload

    def gone(self) -> "asyncio.Future[Any]":
        """Done when the caller has closed the connection; nothing else reads from it any more."""
        if self.leaving is None:
            self.leaving = asyncio.ensure_future(self.until_gone())
        return self.leaving

    async def until_gone(self) -> None:
        with suppress(OSError):
            while await self.reader.read(CHUNK):
                pass


class Job:
    def __init__(self, name: str, command: str, runner: Runner, stdin: asyncio.StreamWriter) -> None:
        self.name, self.runner, self.stdin = name, runner, stdin
        self.command = command if len(command) <= SHOWN_COMMAND else f"{command[:SHOWN_COMMAND]} [...]"
        self.ring, self.began = Ring(), time.monotonic()
        self.over = asyncio.Event()
        self.exit_code: int | None = None

    def shown(self, offset: int) -> Answer:
        return {
            "name": self.name,
            "command": self.command,
            "running": not self.over.is_set(),
            "exit_code": self.exit_code,
            "next_offset": self.ring.end,
        }


class Agent:
    def __init__(self, config: Answer) -> None:
        self.processes = Processes()
        self.fences = Fences(config["fences"])
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.calls: dict[asyncio.Task[Any], Call] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.heard = time.monotonic()
        self.notice, self.noticed = "", -1.0
        self.disk_full = ""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call, from its question to its answer."""
        call, task = Call(reader, writer), asyncio.current_task()
        assert task
        try:
            kind, payload = await read_frame(reader)
            call.asked = json.loads(payload)
            if kind != JSON or call.asked.get("op") not in OPERATIONS:
                raise Failed(f"there is no operation {call.asked.get('op')!r}")
            await self.heed(call)
            self.calls[task] = call
            await call.say(BEGUN, b"")
            await self.perform(call)
        except Lost as error:
            await self.refuse(call, "fence", str(error))
        except (Failed, OSError) as error:
            await self.refuse(call, "failed", str(error))
        except asyncio.IncompleteReadError:
            pass
        except asyncio.CancelledError:
            await self.refuse(call, "fence", "a later attempt drives this project")
        except Exception as error:  # noqa: BLE001 - the boundary of one call: its caller waits for an answer
            await self.refuse(call, "failed", f"the sandbox cannot do this: {error}")
        finally:
            self.calls.pop(task, None)
            if call.asked.get("op") not in ("status", "end_when_idle"):
                self.heard = time.monotonic()
            self.spawn(self.let_go(call))

    async def let_go(self, call: Call) -> None:
        """Close once the caller has: closing before it has sent all would take the answer from it."""
        await call.gone()
        call.writer.close()

    async def refuse(self, call: Call, kind: str, text: str) -> None:
        with suppress(OSError):
            await call.answer({"error": kind, "text": text})

    async def heed(self, call: Call) -> None:
        """The fence of a call. A new one ends what older ones have in the foreground; jobs go on."""
        if not call.asked.get("fence"):
            return
        call.fenced = True
        run, attempt = call.asked["fence"]
        if not self.fences.admit(run, attempt):
            return
        older = [task for task, other in self.calls.items() if other.fenced]
        for task in older:
            task.cancel()
        if older:
            await asyncio.wait(older, timeout=END_WITHIN)

    async def perform(self, call: Call) -> None:
        operation = getattr(self, f"do_{call.asked['op']}")
        if not os.access(WORKSPACE, os.R_OK | os.W_OK | os.X_OK):
            os.chmod(WORKSPACE, 0o700)  # a command closed it
        answer = await operation(call, **call.asked.get("with", {}))
        await call.answer(answer)
        if answer.get("ended"):
            give_up("it was idle")

    async def do_hello(self, call: Call) -> Answer:
        return {}

    async def do_status(self, call: Call) -> Answer:
        return {"idle": self.idle, "jobs": self.running_jobs}

    async def do_end_when_idle(self, call: Call, seconds: float) -> Answer:
        """Ends the sandbox, once this is answered, unless somebody spoke to it or a job runs."""
        busy = self.running_jobs or self.idle < seconds or len(self.calls) > 1
        return {"ended": not busy}

    @property
    def idle(self) -> float:
        return time.monotonic() - self.heard

    @property
    def running_jobs(self) -> int:
        return sum(not job.over.is_set() for job in self.jobs.values())

    # Commands

    async def do_exec(
        self, call: Call, command: str, cwd: str, env: dict[str, str], timeout: float, stream: bool, max_output: int
    ) -> Answer:
        kept, began = Kept(max_output), time.monotonic()
        async with self.streams(1) as (output,):
            with devnull() as nothing:
                runner = self.processes.launch(shell(command), resolve(cwd), env, (nothing, output.fd, output.fd))
            output.close_other()
            pumping = self.spawn(self.pump(call if stream else None, output.reader, kept))
            in_time = await self.attend(call, runner, timeout, pumping)
            if in_time and runner.ended.result() == KILLED and self.noticed < began:
                await asyncio.sleep(
                    NOTICE_WITHIN
                )  # when the kernel killed for memory, the monitor knows a moment later
        for start in range(0, len(result := kept.output + self.notes(began)), CHUNK):
            await call.say(RESULT, result[start : start + CHUNK])
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

    async def pump(self, call: Call | None, reader: asyncio.StreamReader, kept: Kept) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                kept.add(data)
                if call:
                    await call.say(DATA, data)

    def notes(self, began: float) -> bytes:
        """What a command is told that was killed, or could not write, for what the sandbox used since then."""
        told = [self.notice] if self.noticed >= began else [self.disk_full] if self.disk_full else []
        return "".join(f"\n[{each}]\n" for each in told).encode()

    @asynccontextmanager
    async def streams(self, count: int) -> AsyncIterator[tuple["Output", ...]]:
        outputs = [await Output.open() for _ in range(count)]
        try:
            yield tuple(outputs)
        finally:
            for output in outputs:
                output.close()

    async def do_pipe(self, call: Call, argv: list[str], env: dict[str, str]) -> Answer:
        argv = [program(argv[0]), *argv[1:]]
        stdin_read, stdin_write = os.pipe()
        errors = Kept(STDERR_KEPT)
        async with self.streams(2) as (output, complaints):
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
            complaining = self.spawn(self.pump(None, complaints.reader, errors))
            feeding = self.spawn(feed(call, stdin))
            try:
                await call.answer({})
                pumping = self.spawn(self.pump(call, output.reader, Kept(0)))
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

    async def do_start_job(self, call: Call, name: str, command: str, cwd: str) -> Answer:
        known = self.jobs.get(name)
        if known and not known.over.is_set():
            raise Failed(f"job {name} is already running")
        if self.running_jobs >= MOST_JOBS:
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
        self.spawn(self.follow(job, output))
        self.forget_finished()
        return job.shown(0)

    async def follow(self, job: Job, output: "Output") -> None:
        pumping = self.spawn(self.collect(job, output.reader))
        await job.runner.ended
        await self.processes.kill(self.processes.strays)
        await asyncio.wait({pumping}, timeout=END_WITHIN)
        job.exit_code = job.runner.ended.result()
        job.ring.add(self.notes(job.began))
        job.over.set()
        job.stdin.close()
        output.close()
        self.heard = time.monotonic()

    async def collect(self, job: Job, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            job.ring.add(data)

    def forget_finished(self) -> None:
        finished = [name for name, job in self.jobs.items() if job.over.is_set()]
        for name in finished[: max(0, len(finished) - MOST_FINISHED)]:
            del self.jobs[name]

    def known(self, name: str) -> Job:
        job = self.jobs.get(name)
        if job is None:
            raise Failed(f"there is no job {name}")
        return job

    async def do_job(self, call: Call, name: str, offset: int) -> Answer:
        job = self.known(name)
        shown, output = job.shown(offset), job.ring.since(offset)
        for start in range(0, len(output), CHUNK):
            await call.say(RESULT, output[start : start + CHUNK])
        return shown

    async def do_jobs(self, call: Call) -> Answer:
        return {"jobs": [job.shown(0) for job in self.jobs.values()]}

    async def do_write_job(self, call: Call, name: str) -> Answer:
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

    async def do_kill_job(self, call: Call, name: str) -> Answer:
        job = self.known(name)
        if not job.over.is_set():
            await self.processes.end(job.runner)
            await asyncio.wait_for(job.over.wait(), 2 * END_WITHIN)
        return await self.do_job(call, name, 0)

    # Files

    async def do_read_file(self, call: Call, path: str, offset: int, limit: int) -> Answer:
        descriptor = opened(inside(path), os.O_RDONLY)
        try:
            regular(descriptor, path)
            while limit > 0 and (data := os.pread(descriptor, min(limit, CHUNK), offset)):
                offset, limit = offset + len(data), limit - len(data)
                await call.say(RESULT, data)
        finally:
            os.close(descriptor)
        return {}

    async def do_write_file(self, call: Call, path: str, mode: int | None) -> Answer:
        target = inside(path)
        if target == WORKSPACE or os.path.isdir(target):
            raise Failed(f"{path} is a folder")
        if self.disk_full:
            raise Failed(self.disk_full)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except FileExistsError:
            raise Failed(f"{path} cannot be written: a part of its path is a file") from None
        part = f"{os.path.dirname(target)}/.{os.urandom(8).hex()}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            async for data in call.data():
                write_all(descriptor, data)
                await asyncio.sleep(0)
            os.fchmod(descriptor, (mode_of(target) if mode is None else mode) & 0o777)
            os.rename(part, target)
        except BaseException:
            os.unlink(part)
            raise
        finally:
            os.close(descriptor)
        return {}

    async def do_delete_file(self, call: Call, path: str) -> Answer:
        target = inside(path)
        if target == WORKSPACE:
            raise Failed("the workspace itself cannot be deleted")
        try:
            information = os.lstat(target)
        except FileNotFoundError:
            raise Failed(f"there is no file {path}") from None
        if not stat.S_ISDIR(information.st_mode):
            os.unlink(target)
            return {}
        for _ in removing(target):
            await asyncio.sleep(0)
        return {}

    async def do_list_files(self, call: Call, path: str, depth: int, limit: int) -> Answer:
        found: list[Answer] = []
        waiting = [(inside(path), 1)]
        while waiting and len(found) < limit:
            folder, level = waiting.pop(0)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if level > 1:
                    continue
                raise Failed(f"{path} cannot be listed: {error.strerror}") from None
            for entry in entries[: limit - len(found)]:
                with suppress(OSError):
                    found.append(described(entry.path, entry.stat(follow_symlinks=False)))
                    if level < depth and entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, level + 1))
            await asyncio.sleep(0)
        return await self.long_answer(call, found)

    async def long_answer(self, call: Call, content: Any) -> Answer:
        text = json.dumps(content).encode()
        for start in range(0, len(text), CHUNK):
            await call.say(RESULT, text[start : start + CHUNK])
        return {}

    async def do_stat_file(self, call: Call, path: str) -> Answer:
        target = inside(path)
        try:
            return {"file": described(target, os.stat(target))}
        except (FileNotFoundError, NotADirectoryError):
            return {"file": None}

    # The rest

    async def do_usage(self, call: Call) -> Answer:
        tree, memory = process_tree(), hidden_memory()
        for pid in tree:
            with suppress(OSError), open(f"/proc/{pid}/statm") as file:
                memory += int((file.read().split() or "00")[1]) * resource.getpagesize()
        return {"memory_bytes": memory, "disk_bytes": await disk_used(), "processes": len(tree)}

    async def do_connect(self, call: Call, port: int) -> Answer:
        if sum(each.asked["op"] == "connect" for each in self.calls.values()) > MOST_CONNECTIONS:
            raise Failed(f"port {port} is not reached: too many connections are open")
        try:
            reader, writer = await connection(port)
        except OSError as error:
            raise Failed(f"nothing answers on port {port}: {error.strerror or error}") from None
        feeding = self.spawn(feed(call, writer))
        try:
            await call.answer({})
            pumping = self.spawn(self.pump(call, reader, Kept(0)))
            await asyncio.wait({pumping, feeding}, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and feeding.result():
                await asyncio.wait({pumping, call.gone()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            feeding.cancel()
            writer.close()
        return {}


OPERATIONS = {name.removeprefix("do_") for name in vars(Agent) if name.startswith("do_")}


class Output:
    """A pipe: its reader here, its other end for a command."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, fd: int) -> None:
        self.reader, self.transport, self.fd = reader, transport, fd

    @classmethod
    async def open(cls) -> "Output":
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader(limit=CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", buffering=0))
        return cls(reader, transport, write_end)

    def close_other(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.close_other()
        self.transport.close()


async def writing(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def feed(call: Call, writer: asyncio.StreamWriter) -> bool:
    """Pass on what the caller sends; whether it ended its side, rather than went away."""
    try:
        async for data in call.data():
            writer.write(data)
            await writer.drain()
    except asyncio.IncompleteReadError:
        return False
    except OSError:
        await call.gone()
        return False
    if writer.can_write_eof():
        with suppress(OSError):
            writer.write_eof()
    return True


class devnull:
    def __enter__(self) -> int:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def shell(command: str) -> list[str]:
    return [SHELL, "-lc", command]


def program(name: str) -> str:
    if "/" in name:
        return name
    for folder in os.environ["PATH"].split(":"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    raise Failed(f"there is no program {name}")


async def connection(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return await asyncio.open_connection("::1", port)


def resolve(path: str) -> str:
    return os.path.normpath(os.path.join(WORKSPACE, path))


def inside(path: str) -> str:
    """The absolute path. Raises: Failed when it leaves the workspace; a link may, within the sandbox's own view."""
    resolved = resolve(path)
    if not passable(path) or (resolved != WORKSPACE and not resolved.startswith(WORKSPACE + "/")):
        raise Failed(f"{path!r} is not inside {WORKSPACE}")
    return resolved


def passable(text: str) -> bool:
    """Whether the kernel takes it: it holds neither a NUL nor half a character."""
    with suppress(UnicodeEncodeError):
        return b"\0" not in os.fsencode(text)
    return False


def opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Failed(f"there is no file {path}") from None
        raise Failed(f"{path} cannot be opened: {error.strerror}") from None


def regular(descriptor: int, path: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise Failed(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}")


def mode_of(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0o644


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def removing(path: str) -> Iterator[None]:
    """Delete a folder with all that is in it, one folder a step; links are not followed."""
    top = opened_folder(path, None)
    try:
        while os.listdir(top):  # what is far down comes up, to be emptied in another round
            yield from emptying(top, 1, top)
    finally:
        os.close(top)
    os.rmdir(path)


def emptying(folder: int, level: int, top: int) -> Iterator[None]:
    with os.scandir(folder) as listed:
        entries = list(listed)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder)
        elif level == DEEPEST:
            os.rename(entry.name, f".{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=top)
        else:
            inner = opened_folder(entry.name, folder)
            try:
                yield from emptying(inner, level + 1, top)
            finally:
                os.close(inner)
            os.rmdir(entry.name, dir_fd=folder)
    yield


def opened_folder(name: str, parent: int | None) -> int:
    """To be emptied: one that was closed to its owner is opened."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, flags, dir_fd=parent)
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o700)
    return descriptor


def described(path: str, information: os.stat_result) -> Answer:
    is_dir = stat.S_ISDIR(information.st_mode)
    return {"path": path, "is_dir": is_dir, "size": information.st_size, "modified": information.st_mtime}


def hidden_memory() -> int:
    """Memory that no process has mapped: files on tmpfs, System V segments."""
    total = 0
    for folder in ("/tmp", "/dev/shm"):
        with suppress(OSError):
            room = os.statvfs(folder)
            total += (room.f_blocks - room.f_bfree) * room.f_frsize
    with suppress(OSError), open("/proc/sysvipc/shm") as file:
        total += sum(int(line.split()[14]) for line in file.readlines()[1:])
    return total


async def disk_used() -> int:
    """Bytes on disk below the workspace, whose links are not followed; no bounds for folders too deep to count."""
    total = 0
    for path, _, files, descriptor in os.fwalk(WORKSPACE):
        if path.count("/") > DEEPEST_COUNTED:
            return sys.maxsize
        for name in files:
            with suppress(OSError):
                total += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
        await asyncio.sleep(0)
    return total


class Watch:
    """In a container, which has no monitor: the engine holds memory, and the agent itself the sum of the files."""

    def __init__(self, agent: Agent, config: Answer) -> None:
        self.agent, self.disk, self.memory = agent, config["disk"], config["memory"]
        self.kills = memory_kills()

    async def keep(self) -> None:
        measure_at = 0.0
        while True:
            before, self.kills = self.kills, memory_kills()
            if self.kills > before:
                self.note(f"killed: the sandbox used more than its {self.memory // MIB} MiB of memory")
            if (now := time.monotonic()) >= measure_at:
                self.judge_disk(await disk_used())
                measure_at = time.monotonic() + max(DISK_POLL, 5 * (time.monotonic() - now))
            await asyncio.sleep(MEMORY_POLL)

    def judge_disk(self, used: int) -> None:
        full, agent = used > self.disk, self.agent
        if full and not agent.disk_full:
            why = f"the workspace holds {used // MIB} MiB, more than its {self.disk // MIB} MiB: delete files first"
            self.note(f"killed: {why}")
            agent.disk_full = why
            send(below({os.getpid()}), signal.SIGKILL)
        elif not full:
            agent.disk_full = ""
        agent.processes.full = full

    def note(self, what: str) -> None:
        self.agent.notice, self.agent.noticed = what, time.monotonic()


def memory_kills() -> int:
    """How many processes the kernel has killed here for memory, as control groups of either version say."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with suppress(OSError), open(path) as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return total


class Monitor:
    """The process outside that watches the sandbox's memory and disk; when it goes the sandbox ends."""

    def __init__(self, agent: Agent, descriptor: int) -> None:
        self.agent = agent
        self.socket = socket.socket(fileno=descriptor)

    async def listen(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self.socket)
        writer.write(b'{"ready": true}\n')
        self.agent.spawn(self.report(writer))
        while line := await reader.readline():
            told = json.loads(line)
            if "notice" in told:
                self.agent.notice, self.agent.noticed = told["notice"], time.monotonic()
            if "disk_full" in told:
                self.agent.disk_full = told["disk_full"]
                self.agent.processes.full = bool(told["disk_full"])
        give_up("its monitor is gone")

    async def report(self, writer: asyncio.StreamWriter) -> None:
        said = 0
        while True:
            now = hidden_memory()
            if now != said:
                writer.write(json.dumps({"hidden": now}).encode() + b"\n")
                await writer.drain()
                said = now
            await asyncio.sleep(0.25)


async def live(config: Answer) -> None:
    agent = Agent(config)
    await asyncio.start_unix_server(agent.serve, sock=listener(config), limit=2 * CHUNK)
    if "control" in config:
        await Monitor(agent, config["control"]).listen()
    else:
        await Watch(agent, config).keep()


def listener(config: Answer) -> socket.socket:
    """What a monitor has handed down; in a container a socket of our own, for whoever owns its folder outside."""
    if "listen" in config:
        return socket.socket(fileno=config["listen"])
    made = socket.socket(socket.AF_UNIX)
    made.bind(config["bind"])
    os.chmod(config["bind"], 0o666)  # noqa: S103 - its folder is closed to everybody else
    return made


def configuration(given: str) -> Answer:
    """JSON, or the path of a file with it."""
    if given.startswith("/"):
        with open(given) as file:
            given = file.read()
    config: Answer = json.loads(given)
    return config


def refuse_calls(program: bytes) -> None:
    """Have a filter of system calls judge what this process and all that it starts call, beside the engine's own."""
    held = ctypes.create_string_buffer(program, len(program))
    pointed = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointed, 0, 0):
        give_up(f"its filter of system calls is not taken ({os.strerror(ctypes.get_errno())})")


def main() -> None:
    config = configuration(sys.argv[1])
    os.environ.update(config.get("env", {}))
    if not os.access(WORKSPACE, os.W_OK):
        give_up(f"user {os.getuid()} cannot write to {WORKSPACE}")
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # commands of the same user can neither read nor write this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name in ("listen", "control"):
        if name in config:
            os.set_inheritable(config[name], False)
    resource.setrlimit(resource.RLIMIT_NPROC, (config["processes"], config["processes"]))
    if "seccomp" in config:
        refuse_calls(bytes.fromhex(config["seccomp"]))
    asyncio.run(live(config))


libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    main()
