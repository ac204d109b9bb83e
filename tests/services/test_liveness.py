import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services import liveness
from services.liveness import look, shown
from tests.waiting import eventually


async def test_a_process_whose_loop_turns_is_alive_and_one_that_has_left_is_not(tmp_path: Path) -> None:
    folder = str(tmp_path / "alive")
    assert "No worker process" in look(folder).says
    async with shown(folder):
        assert look(folder) == liveness.Verdict(True, "1 worker process alive.")
        own = tmp_path / "alive" / str(os.getpid())
        os.utime(own, (1, 1))
        await eventually(lambda: look(folder).alive, says="the loop turns, and the file does not follow")
    assert not look(folder).alive


async def test_a_loop_that_is_blocked_makes_the_file_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(liveness, "INTERVAL_SECONDS", 0.05)
    async with shown(str(tmp_path)):
        time.sleep(0.5)  # noqa: ASYNC251 - that is what blocks it
        verdict = look(str(tmp_path))
        assert not verdict.alive
        assert f"process {os.getpid()} has not turned" in verdict.says
        await eventually(lambda: look(str(tmp_path)).alive)


def test_what_a_killed_process_has_left_says_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / str(gone.pid)).touch()
    (tmp_path / "notes.txt").touch()
    assert not look(str(tmp_path)).alive
    (tmp_path / str(os.getpid())).touch()
    assert look(str(tmp_path)).alive


def test_the_command_answers_by_its_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.liveness"]
    asked = {**os.environ, "WORKER_LIVENESS_DIR": str(tmp_path)}
    assert subprocess.run(command, env=asked, capture_output=True, check=False).returncode == 1
    (tmp_path / str(os.getpid())).touch()
    answer = subprocess.run(command, env=asked, capture_output=True, check=False, text=True)
    assert (answer.returncode, answer.stdout) == (0, "1 worker process alive.\n")
