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


HOLD = """
import asyncio, sys
from services.liveness import shown

async def live() -> None:
    async with shown(sys.argv[1]):
        print("up", flush=True)
        await asyncio.sleep(60)

asyncio.run(live())
"""


def test_what_a_killed_process_has_left_says_nothing_even_when_another_has_its_number(tmp_path: Path) -> None:
    folder = str(tmp_path)
    killed = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert killed.stdout
    assert killed.stdout.readline() == b"up\n"
    assert look(folder).alive
    killed.kill()
    killed.communicate()
    left = tmp_path / str(killed.pid)
    assert left.exists()
    (tmp_path / "notes.txt").touch()
    assert look(folder).says == f"No worker process shows a sign of life in {folder}."
    left.rename(tmp_path / str(os.getpid()))
    os.utime(tmp_path / str(os.getpid()), (1, 1))
    assert look(folder).says == f"No worker process shows a sign of life in {folder}."


async def test_a_process_takes_the_place_of_one_that_was_killed_with_its_number(tmp_path: Path) -> None:
    own = tmp_path / str(os.getpid())
    own.touch()
    os.utime(own, (1, 1))
    async with shown(str(tmp_path)):
        assert look(str(tmp_path)) == liveness.Verdict(True, "1 worker process alive.")
        own.unlink()
        await eventually(lambda: look(str(tmp_path)).alive, says="a file that was tidied away stays away")
    assert os.listdir(tmp_path) == []


async def test_the_command_answers_by_its_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.liveness"]
    asked = {**os.environ, "WORKER_LIVENESS_DIR": str(tmp_path)}
    assert subprocess.run(command, env=asked, capture_output=True, check=False).returncode == 1  # noqa: ASYNC221 - alone
    async with shown(str(tmp_path)):
        answer = subprocess.run(command, env=asked, capture_output=True, check=False, text=True)  # noqa: ASYNC221 - alone
    assert (answer.returncode, answer.stdout) == (0, "1 worker process alive.\n")
