"""The state folder of one instance: its ports and secrets, its data and logs, and the lock that makes it single."""

import fcntl
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.embedded import ports
from services.embedded.console import EmbeddedError
from services.embedded.environment import CHECKOUT

DEFAULT = CHECKOUT / ".longrun"
LARGE_LOG = 10 * 1024 * 1024
DATA = ("postgres", "postgres.new", "valkey", "rabbitmq", "sandboxes", "logs", "state.json", "instance.json")


class State:
    """An open state folder; the lock is held until the process ends or `close` is called."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.lock = lock
        self.settled: set[str] = set()
        self.rotated: set[str] = set()
        self.known: dict[str, Any] = read_json(folder / "state.json")
        self.known.setdefault("ports", {})
        self.known.setdefault("password", secrets.token_hex(16))
        self.known.setdefault("jwt_secret", secrets.token_hex(32))
        self.known.setdefault("secrets_key", secrets.token_hex(32))
        self.known.setdefault("api_key_pepper", secrets.token_hex(32))
        self.logs = self.folder_named("logs")
        self.save()

    @property
    def password(self) -> str:
        """The password of every embedded server."""
        return str(self.known["password"])

    @property
    def jwt_secret(self) -> str:
        return str(self.known["jwt_secret"])

    @property
    def secrets_key(self) -> str:
        """What the secrets of agents are encrypted with."""
        return str(self.known["secrets_key"])

    @property
    def api_key_pepper(self) -> str:
        """What the secrets of API keys are hashed with."""
        return str(self.known["api_key_pepper"])

    def folder_named(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """Where `name` logs; a log that has grown large is moved aside first, over the one before."""
        path = self.logs / f"{name}.log"
        if name not in self.rotated and path.exists() and path.stat().st_size > LARGE_LOG:
            path.replace(path.with_suffix(".log.old"))
        self.rotated.add(name)
        return path

    def port(self, name: str) -> int:
        """The port remembered for `name`, or another one when that was taken as we first asked."""
        chosen: dict[str, int] = self.known["ports"]
        if name in self.settled:
            return chosen[name]
        if not (name in chosen and ports.is_free(chosen[name])):
            chosen[name] = ports.pick(set(chosen.values()))
            self.save()
        self.settled.add(name)
        return chosen[name]

    @property
    def outside(self) -> Path | None:
        """The folder for data that a server could not reach in ours."""
        return outside_of(self.known)

    def remember_outside(self, folder: Path) -> None:
        self.known["outside"] = str(folder)
        self.save()

    def save(self) -> None:
        write_private(self.folder / "state.json", self.known)

    def announce(self, pid: int, url: str, names: dict[str, str]) -> None:
        """Write down who runs on this folder, for `./dev token` and for a second start."""
        write_private(self.folder / "instance.json", {"pid": pid, "url": url, "environment": names})

    def close(self) -> None:
        (self.folder / "instance.json").unlink(missing_ok=True)
        os.close(self.lock)

    def destroy(self) -> None:
        """Remove the folder and what it keeps elsewhere."""
        remove_data(self.folder)
        shutil.rmtree(self.folder)


def open_state(folder: Path, *, reset: bool = False) -> State:
    """Lock a state folder, making it when there is none; `reset` removes its data first.

    Raises: EmbeddedError when another instance runs on it or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # 0711: a PostgreSQL that runs as another user than root must be able to pass through.
        folder.chmod(0o711)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedError(f"cannot use the state folder {folder}: {error.strerror} (see --state)") from None
    if not try_lock(lock):
        os.close(lock)
        raise EmbeddedError(already_running(folder))
    if reset:
        remove_data(folder)
    return State(folder, lock)


def try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def already_running(folder: Path) -> str:
    instance = read_json(folder / "instance.json")
    who = f" (pid {instance['pid']}, {instance['url']})" if instance else " (it is still starting)"
    return f"an instance already runs on {folder}{who}; stop it first, or choose another folder with --state"


def running_instance(folder: Path) -> dict[str, Any]:
    """What the instance on `folder` announced: pid, url, environment.

    Raises: EmbeddedError when none is running.
    """
    instance = read_json(folder / "instance.json")
    if not instance or not is_locked(folder):
        raise EmbeddedError(f"no instance is running on {folder}; start one with ./dev run, or name its --state")
    return instance


def is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(lock)
    finally:
        os.close(lock)


def remove_data(folder: Path) -> None:
    """Remove what an instance keeps, and nothing else that may be in the folder."""
    outside = outside_of(read_json(folder / "state.json"))
    for path in [*(folder / name for name in DATA), *([outside] if outside else [])]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def outside_of(known: dict[str, Any]) -> Path | None:
    return Path(known["outside"]) if "outside" in known else None


def read_json(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, json.JSONDecodeError):
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    return {}


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole, readable by its owner only."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)
