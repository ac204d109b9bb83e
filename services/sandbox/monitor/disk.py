"""What a sandbox holds on disk."""

import os
import stat
import sys
from contextlib import suppress

LEAST_FILE = 4096
"""What a file counts at least: empty ones use up the file system too."""
DEEPEST = 250
UNCOUNTABLE = sys.maxsize


def disk_used(folder: str) -> int:
    """Bytes on disk below a folder, whose links are not followed, however they change meanwhile."""
    total = 0
    for path, folders, files, descriptor in os.fwalk(folder):
        if path.count("/") - folder.count("/") > DEEPEST:
            return UNCOUNTABLE
        for name in (*files, *folders):
            with suppress(OSError):
                information = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                once = 1 if stat.S_ISDIR(information.st_mode) else information.st_nlink
                total += max(information.st_blocks * 512, LEAST_FILE) // once
    return total


def nameless(pids: list[int]) -> int:
    """Bytes on disk of files that were deleted and that a process still has open."""
    device, sizes = os.stat("workspace").st_dev, dict[int, int]()
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    information = os.stat(f"/proc/{pid}/fd/{name}")
                    if information.st_nlink == 0 and information.st_dev == device:
                        sizes[information.st_ino] = information.st_blocks * 512
    return sum(sizes.values())
