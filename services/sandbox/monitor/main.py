"""The monitor's life: from its configuration on standard input to the end of its sandbox."""

import fcntl
import json
import os
import signal
import sys
from typing import NoReturn

from .endings import Stopped, refuse
from .life import Config, Life


def main() -> None:
    config: Config = json.load(sys.stdin)
    os.chdir(config["folder"])
    alive = hold_alive()
    if os.fork():
        os._exit(0)
    os.ftruncate(alive, 0)
    os.pwrite(alive, str(os.getpid()).encode(), 0)
    signal.signal(signal.SIGTERM, stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Life(config).live()


def hold_alive() -> int:
    """The lock that says that this sandbox runs, and the pid to stop it with."""
    alive = os.open("alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse("another one runs already")
    return alive


def stop(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the next one would break off the end
    raise Stopped
