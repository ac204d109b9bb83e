"""One sandbox from its start to its end, watched from outside."""

import json
import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import Any, NoReturn

from .cgroups import Cgroups
from .endings import Ended, Stopped, refuse
from .inside import Inside
from .limits import DiskLimit, MemoryLimit
from .processes import below
from .uplink import Uplink

POLL = 0.25
START_WITHIN = 10.0

Config = dict[str, Any]


class Life:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.control, self.inner = socket.socketpair()
        self.program = 0
        self.buffer = b""
        self.cgroups = Cgroups(config)
        self.memory = MemoryLimit(config["memory"], self.cgroups, self.tell)
        self.limits = (self.memory, DiskLimit(config["disk"], self.tell))
        self.uplink = Uplink(config)

    def live(self) -> None:
        why = ""
        try:
            self.start()
            self.watch()
        except Stopped:
            pass
        except Ended as ended:
            why = str(ended)
        except Exception as error:  # noqa: BLE001 - the boundary of this process: the next call is told
            why = f"its monitor failed ({error!r})"
        finally:
            self.finish(why)

    def start(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink("ended")
        listener = listen()
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.cgroups.make()
        self.program = os.fork()
        if self.program == 0:
            try:
                self.cgroups.enter()
                Inside(self.config, listener, self.inner, log).become()
            except OSError as error:
                os.write(log, f"{error}\n".encode())
            os._exit(126)
        self.inner.close()
        listener.close()
        self.until_ready()

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while not self.heard(0.05):
            if self.gone() or time.monotonic() > deadline:
                self.give_up()
        if self.config["uplink"] and not self.uplink.opened(self.program):
            self.give_up()
        os.write(1, b"ready")
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        os.close(nothing)

    def give_up(self) -> NoReturn:
        self.kill()
        self.cgroups.remove()
        with open("log", "rb") as file:
            said = file.read(2000).decode(errors="replace").strip()
        refuse(said or "it did not become ready")

    def heard(self, seconds: float) -> bool:
        """Wait for what the agent says; whether it said that it is ready."""
        ready = False
        if not select.select([self.control], [], [], seconds)[0]:
            return ready
        data = self.control.recv(4096)
        if not data:
            time.sleep(0.01)  # it has ended; so will the program, in a moment
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            ready = ready or "ready" in said
            self.memory.hidden = int(said.get("hidden", self.memory.hidden))
        return ready

    def tell(self, **what: str) -> None:
        with suppress(OSError):
            self.control.sendall(json.dumps(what).encode() + b"\n")

    def gone(self) -> bool:
        return os.waitpid(self.program, os.WNOHANG)[0] != 0

    def watch(self) -> None:
        while not self.gone():
            self.heard(POLL)
            self.uplink.watch()
            for limit in self.limits:
                limit.watch(self.program)
        if self.cgroups.killed():
            raise Ended(self.memory.why)

    def kill(self) -> None:
        self.uplink.end()
        with suppress(OSError, ChildProcessError):
            os.kill(self.program, signal.SIGKILL)
            os.waitpid(self.program, 0)

    def finish(self, why: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink("s")
        if why:
            with open("ended", "w") as file:
                file.write(why)
        if self.program:
            self.control.close()
            for pid in below(self.program):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.kill()
        self.cgroups.remove()


def listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink("s")
    listener.bind("s")  # relative: a path in a socket's address has at most 107 bytes
    os.chmod("s", 0o600)
    listener.listen(128)
    return listener
