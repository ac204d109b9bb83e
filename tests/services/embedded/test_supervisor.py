"""Restarts, endings, and what is said about them."""

import io
import signal
import sys
from pathlib import Path

import pytest

from services.embedded import ports, probes
from services.embedded.child import Spec, run_to_end, until
from services.embedded.console import EmbeddedError
from services.embedded.orphans import process_table
from services.embedded.supervisor import Supervisor, together

SERVE = """
import socket, sys, time
print("serving", flush=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
time.sleep(300)
"""
SPAWN = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "300"]).pid, flush=True)
time.sleep(float(sys.argv[1]))
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
)


def script(tmp_path: Path, source: str, *arguments: str, port: int | None = None, stop_within: float = 5) -> Spec:
    return Spec(
        name="script",
        argv=[sys.executable, "-c", source, *arguments],
        env={},
        cwd=tmp_path,
        log=tmp_path / "script.log",
        ready=probes.listening(port) if port else None,
        stop_within=stop_within,
    )


def said(supervisor: Supervisor) -> str:
    assert isinstance(supervisor.console.stream, io.StringIO)
    return supervisor.console.stream.getvalue()


async def test_a_process_that_dies_is_started_again_and_its_log_shown(supervisor: Supervisor, tmp_path: Path) -> None:
    port = ports.pick(set())
    await supervisor.start(script(tmp_path, SERVE, str(port), port=port))
    supervisor.children[0].signal(signal.SIGKILL)
    await until(lambda: "script is running again" in said(supervisor))
    assert "script died; it is started again in 1 s (signal 9)" in said(supervisor)
    assert "    serving" in said(supervisor)


async def test_what_a_dead_process_left_behind_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    await supervisor.start(script(tmp_path, SPAWN, "0.5"))
    log = tmp_path / "script.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    grandchild = int(log.read_text().split()[0])
    await until(lambda: "died" in said(supervisor))
    assert grandchild not in process_table()


async def test_a_process_that_will_not_stop_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    await supervisor.start(script(tmp_path, STUBBORN, stop_within=0.2))
    log = tmp_path / "script.log"
    await until(lambda: log.exists() and log.read_text() == "up\n")
    process = supervisor.children[0]
    await supervisor.stop_all()
    assert process.exit_code == -signal.SIGKILL


async def test_a_process_that_ends_before_it_is_ready_is_an_error_with_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    with pytest.raises(EmbeddedError, match=r"script ended while it started \(exit code 3\)[\s\S]* no luck"):
        await supervisor.start(script(tmp_path, "print('no luck'); exit(3)", port=ports.pick(set())))


async def test_the_first_failure_of_several_steps_is_raised_bare(tmp_path: Path) -> None:
    failing = script(tmp_path, "exit(1)")
    with pytest.raises(EmbeddedError, match="script failed"):
        await together(run_to_end(failing), run_to_end(script(tmp_path, SPAWN, "300")))
