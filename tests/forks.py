"""A process that has imported what APIs and workers import, and becomes one whenever it is asked: a second less each.

Only code of others is kept; each process imports ours for itself, and so holds nothing that another has made.
`python -m tests.forks` serves whoever holds the other end of its standard input.
"""

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
OURS = ("agent", "api", "services")
LIBRARIES = ("uvicorn.__main__", "uvicorn.protocols.http.httptools_impl", "uvloop", "dramatiq.__main__", "faulthandler")
"""What is imported by name, beside what `api.app` and `agent.loop` need."""
POLL_SECONDS = 0.005


class Forked:
    """One of these processes, with as much of `subprocess.Popen` as its operators use."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        if self.returncode is None:
            self.returncode = self.server.ask(ended=self.pid)
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code


class ForkServer:
    def __init__(self) -> None:
        """Begin to import; what is asked meanwhile waits."""
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks"],
                cwd=CHECKOUT,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.answers = self.socket.makefile("rb")

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Forked:
        """`python -m ARGUMENTS`, leader of a session of its own, with its output in `log`."""
        return Forked(self, self.ask(arguments=arguments, env=dict(env), log=str(log)))

    def ask(self, **words: Any) -> Any:
        self.socket.sendall(json.dumps(words).encode() + b"\n")
        answer = self.answers.readline()
        assert answer, "the server of forks has ended"
        return json.loads(answer)

    def close(self) -> None:
        self.answers.close()
        self.socket.close()
        self.process.wait()


@dataclass(frozen=True)
class Start:
    arguments: Sequence[str]
    env: Mapping[str, str]
    log: str


def serve() -> Start | None:
    """What this process is to become, in a fork; None once nobody asks any more."""
    asking = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with asking, asking.makefile("rb") as questions:
        for line in questions:
            asked = json.loads(line)
            if "ended" in asked:
                say(asking, exit_code(asked["ended"]))
            elif not os.fork():
                os.setsid()
                say(asking, os.getpid())
                return Start(**asked)
    return None


def say(asking: socket.socket, answer: int | None) -> None:
    asking.sendall(json.dumps(answer).encode() + b"\n")


def exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(start: Start) -> None:
    """What the interpreter does with these arguments; its end is the end of this process."""
    with open(os.devnull, "rb") as nothing, open(start.log, "ab") as log:
        for stream, opened in enumerate((nothing, log, log)):
            os.dup2(opened.fileno(), stream)
    os.environ.clear()
    os.environ.update(start.env)
    sys.argv = ["-m", *start.arguments[1:]]
    runpy.run_module(start.arguments[0], run_name="__main__", alter_sys=True)


def main() -> None:
    for name in ("api.app", "agent.loop", *LIBRARIES):
        import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    if start := serve():
        become(start)


if __name__ == "__main__":
    main()
