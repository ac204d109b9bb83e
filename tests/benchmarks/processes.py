"""Processes under measurement: each on its core, its CPU and memory counted apart from the others'."""

import os
import time
from contextlib import suppress

import psutil

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
"""What is measured has the first usable core for itself, what loads it shares the last; they may be the same."""
CPUCLOCK_SCHED = 2
"""What Linux calls the clock of the time for which a process was scheduled (linux/posix-timers.h)."""


def pin(core: int, *pids: int) -> None:
    """Put processes with all their threads and children on this core; those that come later inherit it."""
    for pid in pids:
        for process in family(pid):
            with suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    with suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, {core})


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


class Meter:
    """What named processes (with all that they forked) spend and hold."""

    def __init__(self, **pids: int) -> None:
        self.pids = pids
        self.before = self.cpu()

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each since it began, user and system, of its threads and living children.

        As they are at the end: the look for children goes before, since it takes as long as there are processes.
        """
        families = {name: family(pid) for name, pid in self.pids.items()}
        return {name: sum(map(cpu_seconds, processes)) for name, processes in families.items()}

    def restart(self) -> None:
        self.before = self.cpu()

    def spent(self) -> dict[str, float]:
        """CPU seconds of each since the last `restart`."""
        return {name: seconds - self.before[name] for name, seconds in self.cpu().items()}

    def resident(self, name: str) -> int:
        """Bytes of resident memory."""
        return sum(process.memory_info().rss for process in family(self.pids[name]))


def cpu_seconds(process: psutil.Process) -> float:
    """By the process's own clock, in nanoseconds where /proc counts ticks of ten milliseconds.

    Nothing for one that has ended since it was listed.
    """
    with suppress(OSError):
        return time.clock_gettime(cpu_clock(process.pid))
    return 0.0


def cpu_clock(pid: int) -> int:
    """What clock_getcpuclockid(3) answers, which Python has for threads only."""
    return (~pid << 3) | CPUCLOCK_SCHED


def connections(pid: int, port: int) -> int:
    """How many connections a process (with all that it forked) has to a local server that listens on `port`."""
    return sum(
        1
        for process in family(pid)
        for connection in process.net_connections("tcp")
        if connection.raddr and connection.raddr.port == port and connection.status == psutil.CONN_ESTABLISHED
    )
