"""What is done when a sandbox takes more than it may."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from .cgroups import Cgroups
from .disk import DEEPEST, LEAST_FILE, UNCOUNTABLE, disk_used, nameless
from .endings import Ended
from .processes import below, commands, proportional, resident

DISK_POLL = 0.5
DISK_AT_LEAST_EVERY = 30.0
OVER_FOR = 4
MIB = 1024 * 1024


class MemoryLimit:
    """Bytes of all processes and of what belongs to none; the largest command is killed, then the sandbox ended."""

    def __init__(self, limit: int, cgroups: Cgroups, tell: Callable[..., None]) -> None:
        self.limit, self.cgroups, self.tell = limit, cgroups, tell
        self.why = f"the sandbox used more than its {limit // MIB} MiB of memory"
        self.hidden = 0
        """Bytes that no process has mapped, as the agent tells."""
        self.over = 0

    def watch(self, program: int) -> None:
        """Raises: Ended."""
        if self.cgroups.killed():
            self.tell(notice=f"killed: {self.why}")
        if self.hidden > self.limit * 0.8:  # only segments that outlive their makers come to that much
            raise Ended(self.why)
        sizes = {pid: resident(pid) for pid in below(program)}
        if sum(sizes.values()) + self.hidden > self.limit:  # what is shared was counted for each that shares it
            sizes = {pid: proportional(pid, size) for pid, size in sizes.items()}
        if sum(sizes.values()) + self.hidden <= self.limit:
            self.over = 0
            return
        self.over += 1
        biggest = max(commands(program), key=lambda pid: sizes.get(pid, 0), default=0)
        if self.over > OVER_FOR or sizes.get(biggest, 0) < self.limit // 20:
            raise Ended(self.why)
        self.tell(notice=f"killed: {self.why}")
        with suppress(ProcessLookupError):
            os.kill(biggest, signal.SIGKILL)


class DiskLimit:
    """Bytes below the workspace; over it every command is killed, and the agent writes nothing more."""

    def __init__(self, limit: int, tell: Callable[..., None]) -> None:
        self.limit, self.tell = limit, tell
        self.full = False
        self.seen, self.seen_at, self.free = 0, 0.0, 0
        self.pause = DISK_POLL

    def watch(self, program: int) -> None:
        """Files are counted when the file system has grown enough for the limit to be passed, and now and then."""
        now = time.monotonic()
        if now - self.seen_at < self.pause:
            return
        room = os.statvfs("workspace")
        free = room.f_bfree * room.f_frsize + room.f_ffree * LEAST_FILE
        fresh = self.seen_at and now - self.seen_at < DISK_AT_LEAST_EVERY
        if fresh and not self.full and self.seen + self.free - free < self.limit * 0.9:
            return
        self.seen, self.free = disk_used("workspace") + nameless(commands(program)), free
        self.seen_at = time.monotonic()
        self.pause = max(DISK_POLL, 5 * (self.seen_at - now))
        self.judge(program)

    def judge(self, program: int) -> None:
        full = self.seen > self.limit
        if full == self.full:
            return
        self.full = full
        why = f"the workspace holds {self.seen // MIB} MiB, more than its {self.limit // MIB} MiB: delete files first"
        if self.seen >= UNCOUNTABLE:
            why = f"the workspace has folders in folders, more than {DEEPEST} deep: delete them first"
        self.tell(disk_full=why if full else "", notice=f"killed: {why}")
        if full:
            for pid in commands(program):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
