"""State folders and supervisors for the launchers' tests."""

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.embedded.console import Console
from services.embedded.environment import CHECKOUT
from services.embedded.state import State, open_state
from services.embedded.supervisor import Supervisor

Dev = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass through, unlike `tmp_path`."""
    path = Path(tempfile.mkdtemp(prefix="longrun-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def state(folder: Path) -> Iterator[State]:
    opened = open_state(folder / "state")
    yield opened
    opened.close()


@pytest.fixture
async def supervisor(folder: Path) -> AsyncIterator[Supervisor]:
    """Stopped before `folder`, where its servers keep their data, is removed."""
    running = Supervisor(Console(io.StringIO()))
    yield running
    await running.stop_all()


@pytest.fixture
def dev(folder: Path) -> Iterator[Dev]:
    """Starts `./dev` commands without its shell part; stops what is still alive before `folder` is removed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **names: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.embedded", *map(str, arguments)],
            env={**bare_environment(), **names},
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        with process, suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)


def bare_environment() -> dict[str, str]:
    """Ours without the addresses of the servers that these tests run beside."""
    ours = (
        "DATABASE_URL",
        "REDIS_",
        "BROKER",
        "RABBITMQ_",
        "JWT_SECRET",
        "SECRETS_KEYS",
        "API_KEY_PEPPER",
        "PUBLIC_URL",
        "SANDBOX_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(CHECKOUT)}


async def line_starting(process: subprocess.Popen[str], start: str, within: float = 60.0) -> str:
    """The first line of output that starts so, read without holding up the loop."""
    assert process.stdout

    def read() -> str:
        seen = []
        for line in process.stdout or ():
            seen.append(line)
            if line.startswith(start):
                return line.strip()
        pytest.fail(f"ended without {start!r}:\n{''.join(seen)}")

    return await asyncio.wait_for(asyncio.to_thread(read), within)
