"""Commands and all that they start: each ends wholly, or the sandbox does."""

import asyncio
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .paths import passable
from .wire import Failed

END_WITHIN = 5.0
KILLED = 128 + signal.SIGKILL
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
DEFAULT_AGAIN = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHELL = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"

libc = ctypes.CDLL(None, use_errno=True)


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


def children() -> set[int]:
    own = os.getpid()
    with suppress(OSError), open(f"/proc/{own}/task/{own}/children", "rb") as file:
        if not (listed := file.read()).strip():
            return set()
        del listed
    return {pid for pid, parent in process_tree().items() if parent == own}


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def shell(command: str) -> list[str]:
    return [SHELL, "-lc", command]


def program(name: str) -> str:
    if "/" in name:
        return name
    for folder in os.environ["PATH"].split(":"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    raise Failed(f"there is no program {name}")


def give_up(why: str) -> None:
    print(f"the sandbox ends: {why}", file=sys.stderr, flush=True)  # noqa: T201 - its log
    os._exit(3)
