"""Deleting folders, however deep and however closed."""

import os
from collections.abc import Iterator
from contextlib import suppress

DEEPEST = 100


def removing(path: str) -> Iterator[None]:
    """Delete a folder with all that is in it, one folder a step; links are not followed."""
    top = opened_folder(path, None)
    try:
        while os.listdir(top):  # what is far down comes up, to be emptied in another round
            yield from emptying(top, 1, top)
    finally:
        os.close(top)
    os.rmdir(path)


def emptying(folder: int, level: int, top: int) -> Iterator[None]:
    with os.scandir(folder) as listed:
        entries = list(listed)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder)
        elif level == DEEPEST:
            os.rename(entry.name, f".{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=top)
        else:
            inner = opened_folder(entry.name, folder)
            try:
                yield from emptying(inner, level + 1, top)
            finally:
                os.close(inner)
            os.rmdir(entry.name, dir_fd=folder)
    yield


def opened_folder(name: str, parent: int | None) -> int:
    """To be emptied: one that was closed to its owner is opened."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, flags, dir_fd=parent)
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o700)
    return descriptor
