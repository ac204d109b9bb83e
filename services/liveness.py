"""Whether the worker processes of this machine live: each has a file that follows the turns of its event loop.

`python -m services.liveness` looks at them (WORKER_LIVENESS_DIR); status 0: all turn, 1: a sentence says what is wrong.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    path.touch()

    async def turn() -> None:
        path.touch()
        await asyncio.sleep(INTERVAL_SECONDS)

    task = asyncio.create_task(repeat(turn), name="liveness")
    try:
        yield
    finally:
        await stop([task])
        path.unlink(missing_ok=True)


def look(folder: str) -> Verdict:
    """What the files of a folder say; those of processes that are gone say nothing."""
    if not folder:
        return Verdict(False, "WORKER_LIVENESS_DIR is not set: workers show no sign of life.")
    ages = {pid: age for pid, age in ages_in(Path(folder)) if Path(f"/proc/{pid}").exists()}
    if not ages:
        return Verdict(False, f"No worker process shows a sign of life in {folder}.")
    blocked = {pid: age for pid, age in ages.items() if age > PATIENCE_SECONDS}
    if blocked:
        pid, age = max(blocked.items(), key=lambda each: each[1])
        return Verdict(False, f"The event loop of process {pid} has not turned for {age:.0f} s.")
    return Verdict(True, f"{len(ages)} worker process{'es' if len(ages) > 1 else ''} alive.")


def ages_in(folder: Path) -> list[tuple[int, float]]:
    """The processes that have a file, and how many seconds old each is."""
    if not folder.is_dir():
        return []
    return [(int(path.name), time.time() - path.stat().st_mtime) for path in folder.iterdir() if path.name.isdecimal()]


def main() -> int:
    verdict = look(MetricsSettings().liveness_dir)
    print(verdict.says)  # noqa: T201 - the answer of the command
    return 0 if verdict.alive else 1


if __name__ == "__main__":
    sys.exit(main())
