"""The folders of sandboxes: one per project, with its workspace, its socket, its locks and what is known of it."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from services.sandbox.guest import removal
from services.sandbox.protocol import SandboxUnavailable

LOCK_WITHIN = 30.0
END_WITHIN = 5.0
POLL = 0.01
USERS, USERS_IN_A_CONTAINER = 40_000_000, 30_000


@dataclass(frozen=True, slots=True)
class Place:
    """One project's folder, `{SANDBOX_DIR}/{project_id}`."""

    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def make(self) -> None:
        """Raises: SandboxUnavailable when it cannot be written."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.workspace.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SandboxUnavailable(f"No sandbox: {self.folder} cannot be made ({error.strerror}).") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time starts, ends or removes a sandbox."""
        with locked(self.folder.parent / f"{self.folder.name}.lock"):
            yield

    def monitor(self) -> int | None:
        """The pid of what runs it; None when it does not run."""
        with suppress(FileNotFoundError):
            alive = os.open(self.folder / "alive", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(os.pread(alive, 20, 0) or 0)
            finally:
                os.close(alive)
        return None

    def answers(self) -> bool:
        """Whether it runs and takes calls. Waits while it is about to end."""
        while self.monitor() is not None:
            if self.accepts():
                return True
            time.sleep(POLL)
        return False

    def accepts(self) -> bool:
        descriptor = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX) as made:
            try:
                made.settimeout(END_WITHIN)
                made.connect(f"/proc/self/fd/{descriptor}/s")
            except OSError:
                return False
            finally:
                os.close(descriptor)
        return True

    def end(self) -> None:
        """End its processes and wait until they are gone."""
        deadline, number = time.monotonic() + END_WITHIN, signal.SIGTERM
        while self.signal(number):
            time.sleep(POLL)
            if time.monotonic() > deadline:
                number = signal.SIGKILL

    def signal(self, number: signal.Signals) -> bool:
        """Send its monitor a signal; whether it still runs."""
        pid = self.monitor()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid is not None

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            for _ in removal.removing(str(self.folder)):
                pass
        (self.folder.parent / f"{self.folder.name}.lock").unlink(missing_ok=True)

    def ended_because(self) -> str:
        """Why it was ended, for the first who asks; empty for others, and when nobody knows."""
        ended = self.folder / "ended"
        with suppress(FileNotFoundError):
            why = ended.read_text()
            ended.unlink()
            return why
        return ""

    def recall(self, name: str) -> dict[str, Any]:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            known: dict[str, Any] = json.loads((self.folder / name).read_text())
            return known
        return {}

    def remember(self, name: str, content: dict[str, Any]) -> None:
        fresh = self.folder / f"{name}.new"
        fresh.write_text(json.dumps(content))
        fresh.replace(self.folder / name)


def of(root: Path, project_id: UUID) -> Place:
    return Place(root / str(project_id))


def all_in(root: Path) -> dict[UUID, Place]:
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(ValueError):
            found[UUID(folder.name)] = Place(folder)
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Raises: SandboxUnavailable when somebody holds it for too long."""
    deadline = time.monotonic() + LOCK_WITHIN
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if taken(lock) and is_still(path, lock):
                yield
                return
        finally:
            os.close(lock)
        if time.monotonic() > deadline:
            raise SandboxUnavailable(f"No sandbox: {path.name} has been held for {LOCK_WITHIN:.0f} seconds.")
        time.sleep(POLL)


def taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise
    return True


def is_still(path: Path, lock: int) -> bool:
    """Whether nobody removed the file that we have locked."""
    with suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(lock).st_ino
    return False


def user_of(project_id: UUID, base: int) -> int:
    """The user id that is this project's: the same for ever, and hardly ever another's as well."""
    first, count = (base, USERS) if is_mapped(base + USERS) else (USERS_IN_A_CONTAINER, USERS_IN_A_CONTAINER)
    return first + project_id.int % count


def is_mapped(user: int) -> bool:
    """Whether this user namespace knows that user; those of containers often end at 65535."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        start, _, count = map(int, line.split())
        if start <= user < start + count:
            return True
    return False
