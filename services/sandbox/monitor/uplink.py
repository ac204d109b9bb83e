"""The sandbox's network, where its project has one."""

import json
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any

from .processes import below

START_WITHIN = 10.0


class Uplink:
    """The sandbox's way to the internet, where its project has one: a process outside, which ends with this one.

    Without it the sandbox's network namespace has no way out, so when it dies the sandbox has no network any more.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.process = 0
        self.hold = -1

    def opened(self, program: int) -> bool:
        """Start it for the sandbox below `program`; whether it works."""
        ready, ready_there = os.pipe()
        exit_there, self.hold = os.pipe()
        for descriptor in (ready_there, exit_there):
            os.set_inheritable(descriptor, True)
        uplink = self.config["uplink"]
        told = {"slirp": uplink["slirp"], "libraries": uplink["libraries"], "uid": self.config["uid"]}
        told |= {"pid": below(program)[0], "ready": ready_there, "exit": exit_there}
        command = [sys.executable, "-I", "-S", "-c", uplink["program"], json.dumps(told)]
        log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, log, number) for number in (1, 2)]
        self.process = os.posix_spawn(sys.executable, command, {}, file_actions=streams)
        for descriptor in (log, ready_there, exit_there):
            os.close(descriptor)
        said = os.read(ready, 1) if select.select([ready], [], [], START_WITHIN)[0] else b""
        os.close(ready)
        return said == b"1"

    def watch(self) -> None:
        if self.process and os.waitpid(self.process, os.WNOHANG)[0]:
            self.process = 0
            with open("log", "a") as log:
                log.write("its network has ended: slirp4netns is gone\n")

    def end(self) -> None:
        if self.hold >= 0:
            os.close(self.hold)
        if self.process:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self.process, self.hold = 0, -1
