"""Whether the worker processes of this machine live: each has a file that follows the turns of its event loop.

It also holds the lock of its file: one that was killed leaves it to whoever is given its number next, in a container
that is started again above all. `python -m services.liveness` looks at them (WORKER_LIVENESS_DIR); status 0: all turn,
1: a sentence says what is wrong.
"""

import asyncio
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.background import repeat, stop
from services.settings import MetricsSettings

INTERVAL_SECONDS = 1.0
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    alive: bool
    says: str


@asynccontextmanager
async def shown(folder: str) -> AsyncIterator[None]:
    """Keep this process's file as young as the loop; without a folder nothing is kept. Raises: OSError."""
    if not folder:
        yield
        return
    path = Path(folder) / str(os.getpid())
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    held = put_up(path)

    async def turn() -> None:
        nonlocal held
        try:
            os.utime(path)
        except FileNotFoundError:  # somebody tidied up
            os.close(held)
            held = put_up(path)
        await asyncio.sleep(INTERVAL_SECONDS)

    task = asyncio.create_task(repeat(turn), name="liveness")
    try:
        yield
    finally:
        await stop([task])
        path.unlink(missing_ok=True)
        os.close(held)


def put_up(path: Path) -> int:
    """A file that has its name only with a lock on it, which is held until the process ends, however it does."""
    held, unnamed = tempfile.mkstemp(dir=path.parent, suffix=".new")
    fcntl.flock(held, fcntl.LOCK_EX)
    os.fchmod(held, 0o644)
    os.rename(unnamed, path)
    return held


def look(folder: str) -> Verdict:
    """What the files of a folder say; those of processes that are gone say nothing."""
    if not folder:
        return Verdict(False, "WORKER_LIVENESS_DIR is not set: workers show no sign of life.")
    ages = dict(ages_in(Path(folder)))
    if not ages:
        return Verdict(False, f"No worker process shows a sign of life in {folder}.")
    blocked = {pid: age for pid, age in ages.items() if age > PATIENCE_SECONDS}
    if blocked:
        pid, age = max(blocked.items(), key=lambda each: each[1])
        return Verdict(False, f"The event loop of process {pid} has not turned for {age:.0f} s.")
    return Verdict(True, f"{len(ages)} worker process{'es' if len(ages) > 1 else ''} alive.")


def ages_in(folder: Path) -> Iterator[tuple[int, float]]:
    """The processes that hold a file, and how many seconds old each is."""
    for path in folder.glob("[0-9]*"):
        with suppress(FileNotFoundError):  # it leaves at this moment
            if path.name.isdecimal() and is_held(path):
                yield int(path.name), time.time() - path.stat().st_mtime


def is_held(path: Path) -> bool:
    """Whether its process is there to hold the lock. Raises: FileNotFoundError."""
    seen = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(seen, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(seen)
    return False


def main() -> int:
    verdict = look(MetricsSettings().liveness_dir)
    print(verdict.says)  # noqa: T201 - the answer of the command
    return 0 if verdict.alive else 1


if __name__ == "__main__":
    sys.exit(main())
