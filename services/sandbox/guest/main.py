"""The agent's life, from its one argument to the end of its sandbox."""

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys

from .agent import Agent
from .paths import WORKSPACE
from .processes import PR_SET_DUMPABLE, give_up, libc
from .watch import Monitored, Watch
from .wire import CHUNK, Answer

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38


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


async def live(config: Answer) -> None:
    agent = Agent(config)
    await asyncio.start_unix_server(agent.serve, sock=listener(config), limit=2 * CHUNK)
    if "control" in config:
        await Monitored(agent.processes, agent.notices, config["control"]).listen()
    else:
        await Watch(agent.processes, agent.notices, config).keep()


def listener(config: Answer) -> socket.socket:
    """What a monitor has handed down; in a container a socket of our own, for whoever owns its folder outside."""
    if "listen" in config:
        return socket.socket(fileno=config["listen"])
    made = socket.socket(socket.AF_UNIX)
    made.bind(config["bind"])
    os.chmod(config["bind"], 0o666)  # noqa: S103 - its folder is closed to everybody else
    return made
