"""What the sandbox uses of memory and disk."""

import asyncio
import os
import resource
import sys
from contextlib import suppress

from .calls import Call
from .paths import WORKSPACE
from .processes import process_tree
from .wire import Answer

DEEPEST_COUNTED = 250


async def usage(call: Call) -> Answer:
    tree, memory = process_tree(), hidden_memory()
    for pid in tree:
        with suppress(OSError), open(f"/proc/{pid}/statm") as file:
            memory += int((file.read().split() or "00")[1]) * resource.getpagesize()
    return {"memory_bytes": memory, "disk_bytes": await disk_used(), "processes": len(tree)}


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


def memory_kills() -> int:
    """How many processes the kernel has killed here for memory, as control groups of either version say."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with suppress(OSError), open(path) as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return total
