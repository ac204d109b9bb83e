"""Nothing outlives `./dev`: the sweep of what got away from its parent (Linux)."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Have orphaned descendants, daemonised ones too, become children of this process instead of init's."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def process_table(*, zombies: bool = False) -> dict[int, tuple[int, int]]:
    """Every process that is not a zombie, or every one that is: pid → (parent, session)."""
    table: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # The name in brackets may itself hold spaces and brackets.
            state, parent, _group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if (state in "ZX") == zombies:
                table[int(entry.name)] = (int(parent), int(session))
    return table


def dead_children() -> set[int]:
    """Children of this process that have ended and whose end nobody has asked for."""
    return {pid for pid, (parent, _) in process_table(zombies=True).items() if parent == os.getpid()}


def descendants(root: int) -> list[int]:
    """The live descendants of `root`, nearest first."""
    table = process_table()
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, (parent, _) in table.items() if parent in frontier}
        found += sorted(frontier)
    return found


def kill_session(session: int) -> None:
    """SIGKILL whatever is left of the session that a dead child led."""
    for pid, (_, its_session) in process_table().items():
        if its_session == session:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def sweep(grace: float = 0.0) -> None:
    """Wait up to `grace` seconds for all descendants of this process to end, then SIGKILL until none is left."""
    deadline = time.monotonic() + grace
    while remaining := descendants(os.getpid()):
        if time.monotonic() >= deadline:
            for pid in remaining:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.02)
    reap()


def bury(pids: set[int]) -> None:
    """Take these dead children off the process table."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
