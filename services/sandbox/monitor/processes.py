"""Processes of a sandbox and what they hold, as /proc tells it."""

import os
import resource
from contextlib import suppress

PAGE = resource.getpagesize()


def below(root: int) -> list[int]:
    """All processes below `root`: orphans in a pid namespace come to its first process, which is below it too."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    waiting += (children := [int(each) for each in file.read().split()])
                    found += children
    return found


def commands(root: int) -> list[int]:
    """All processes below `root` but the agent, which is the first one."""
    return below(root)[1:]


def resident(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
        return int(fields[1]) * PAGE if fields else 0
    return 0


def proportional(pid: int, otherwise: int) -> int:
    """Its share of the memory that it has mapped; one that has just ended holds none."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (ProcessLookupError, FileNotFoundError):
        return 0
    except OSError:
        return otherwise
