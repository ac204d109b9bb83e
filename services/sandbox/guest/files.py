"""Files of the workspace: read, written, listed and deleted inside, where links lead nowhere else."""

import asyncio
import errno
import json
import os
import stat
from contextlib import suppress

from .calls import Call
from .notices import Notices
from .paths import WORKSPACE, inside
from .removal import removing
from .wire import CHUNK, RESULT, Answer, Failed


async def read(call: Call, path: str, offset: int, limit: int) -> Answer:
    descriptor = opened(inside(path), os.O_RDONLY)
    try:
        regular(descriptor, path)
        while limit > 0 and (data := os.pread(descriptor, min(limit, CHUNK), offset)):
            offset, limit = offset + len(data), limit - len(data)
            await call.say(RESULT, data)
    finally:
        os.close(descriptor)
    return {}


async def write(notices: Notices, call: Call, path: str, mode: int | None) -> Answer:
    target = inside(path)
    if target == WORKSPACE or os.path.isdir(target):
        raise Failed(f"{path} is a folder")
    if notices.disk_full:
        raise Failed(notices.disk_full)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except FileExistsError:
        raise Failed(f"{path} cannot be written: a part of its path is a file") from None
    part = f"{os.path.dirname(target)}/.{os.urandom(8).hex()}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        async for data in call.data():
            write_all(descriptor, data)
            await asyncio.sleep(0)
        os.fchmod(descriptor, (mode_of(target) if mode is None else mode) & 0o777)
        os.rename(part, target)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(descriptor)
    return {}


async def delete(call: Call, path: str) -> Answer:
    target = inside(path)
    if target == WORKSPACE:
        raise Failed("the workspace itself cannot be deleted")
    try:
        information = os.lstat(target)
    except FileNotFoundError:
        raise Failed(f"there is no file {path}") from None
    if not stat.S_ISDIR(information.st_mode):
        os.unlink(target)
        return {}
    for _ in removing(target):
        await asyncio.sleep(0)
    return {}


async def list_folder(call: Call, path: str, depth: int, limit: int) -> Answer:
    found: list[Answer] = []
    waiting = [(inside(path), 1)]
    while waiting and len(found) < limit:
        folder, level = waiting.pop(0)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if level > 1:
                continue
            raise Failed(f"{path} cannot be listed: {error.strerror}") from None
        for entry in entries[: limit - len(found)]:
            with suppress(OSError):
                found.append(described(entry.path, entry.stat(follow_symlinks=False)))
                if level < depth and entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, level + 1))
        await asyncio.sleep(0)
    await call.result(json.dumps(found).encode())
    return {}


async def look_at(call: Call, path: str) -> Answer:
    target = inside(path)
    try:
        return {"file": described(target, os.stat(target))}
    except (FileNotFoundError, NotADirectoryError):
        return {"file": None}


def opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Failed(f"there is no file {path}") from None
        raise Failed(f"{path} cannot be opened: {error.strerror}") from None


def regular(descriptor: int, path: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise Failed(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}")


def mode_of(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0o644


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def described(path: str, information: os.stat_result) -> Answer:
    is_dir = stat.S_ISDIR(information.st_mode)
    return {"path": path, "is_dir": is_dir, "size": information.st_size, "modified": information.st_mtime}
