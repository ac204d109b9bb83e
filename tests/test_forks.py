"""A forked process is what an interpreter of its own would have been."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forks import CHECKOUT, Forked, ForkServer
from tests.waiting import eventually

OURS = ("agent", "api", "services", "worker", "migrations")


def described() -> dict[str, Any]:
    """What a program can tell of the process that it runs in."""
    return {
        "arguments": sys.argv,
        "path": sys.path,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) <= sys.stderr.fileno()),
        "more files": len(os.listdir("/proc/self/fd")),
        "input": sys.stdin.read(),
        "threads": threading.active_count(),
        "ours": sorted(name for name in sys.modules if name.partition(".")[0] in OURS),
        "package": __spec__ and __spec__.name,
    }


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def started(server: ForkServer, folder: Path, *arguments: str) -> Forked:
    (folder / "log").touch()
    return server.start(arguments, {**os.environ, "GIVEN": "yes"}, folder / "log")


def test_it_finds_the_same_around_it(server: ForkServer, tmp_path: Path) -> None:
    own = subprocess.run(
        [sys.executable, "-m", "tests.test_forks", "one", "two"],
        cwd=CHECKOUT,
        env={**os.environ, "GIVEN": "yes"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=True,
    )
    assert started(server, tmp_path, "tests.test_forks", "one", "two").wait() == 0
    assert json.loads((tmp_path / "log").read_text()) == json.loads(own.stdout)


def test_its_exit_code_and_words_are_the_programs(server: ForkServer, tmp_path: Path) -> None:
    assert started(server, tmp_path, "services.embedded", "fly").wait() == 2
    assert "there is no command 'fly'" in (tmp_path / "log").read_text()
    assert started(server, tmp_path, "no_such_module").wait() == 1
    assert "No module named no_such_module" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
async def test_a_signal_to_it_or_its_group_ends_it(
    server: ForkServer, tmp_path: Path, number: int, send: Callable[[int, int], None]
) -> None:
    forked = started(server, tmp_path, "tests.test_forks", "wait")
    await eventually((tmp_path / "log").read_text, within=30)
    assert forked.poll() is None
    send(forked.pid, number)
    assert forked.wait() == forked.poll() == -number


if __name__ == "__main__":
    print(json.dumps(described()), flush=True)  # noqa: T201 - what this program is for
    if "wait" in sys.argv:
        signal.pause()
