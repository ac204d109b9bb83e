"""Commands beside the stores, and that nothing outlives them, however they die."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from services.embedded.child import until
from services.embedded.environment import CHECKOUT
from services.embedded.orphans import descendants, process_table
from services.embedded.supervisor import BURY_EVERY
from tests.services.embedded.conftest import Dev, bare_environment, line_starting

ORPHANS = """
import os, sys, time
from services.embedded.orphans import process_table
def dead():
    return [pid for pid, (parent, _) in process_table(zombies=True).items() if parent == os.getppid()]
for _ in range(20):
    if os.fork() == 0:
        os._exit(0 if os.fork() else time.sleep(0.1) or 0)
    os.wait()
while len(dead()) < 20:
    time.sleep(0.05)
deadline = time.monotonic() + float(sys.argv[1])
while dead() and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(len(dead()))
"""
# A grandchild in a session of its own is what a sweep by process group would miss.
COMMAND = ("sh", "-c", "setsid sleep 300 & echo started $!; wait")


@pytest.fixture
def given(database_url: str, redis_url: str) -> dict[str, str]:
    """Stores that run already, for what is not about their start."""
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


async def started(dev: Dev, folder: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    """The front, and the grandchild of its command."""
    process = dev("with-services", *options, "--state", folder / "state", "--", *COMMAND)
    line = await line_starting(process, "started")
    return process, int(line.split()[1])


async def all_gone(pids: set[int], within: float = 60.0) -> None:
    try:
        async with asyncio.timeout(within):
            await until(lambda: not pids & set(process_table()))
    except TimeoutError:
        pytest.fail(f"still there after {within:.0f} s: {[command_line(pid) for pid in pids & set(process_table())]}")


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize("killed", ["front", "supervisor", "both"])
async def test_nothing_outlives_a_kill_and_the_state_can_be_used_again(dev: Dev, folder: Path, killed: str) -> None:
    process, grandchild = await started(dev, folder)
    everything = descendants(process.pid)
    assert len(everything) > 8
    supervisor = everything[0]
    for pid in {"front": [process.pid], "supervisor": [supervisor], "both": [process.pid, supervisor]}[killed]:
        os.kill(pid, signal.SIGKILL)
    # The one thing that nobody is left to sweep when front and supervisor die in the same instant.
    left = {grandchild} if killed == "both" else set()
    try:
        await all_gone(set(everything) - left)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(process.wait)
    again = dev("with-services", "--state", folder / "state", "--", "true")
    output, _ = await asyncio.to_thread(again.communicate)
    assert again.returncode == 0, output


async def test_nothing_of_rabbitmq_outlives_a_kill(dev: Dev, folder: Path) -> None:
    process, _ = await started(dev, folder, "--rabbitmq")
    everything = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    await all_gone(set(everything))


@pytest.mark.parametrize("times", [1, 2])
async def test_asked_to_stop_once_or_twice_it_stops_everything(dev: Dev, folder: Path, times: int) -> None:
    process, _ = await started(dev, folder)
    everything = descendants(process.pid)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
    assert await asyncio.to_thread(process.wait, 30) == 128 + signal.SIGTERM
    assert not set(everything) & set(process_table())


async def test_orphans_that_end_do_not_pile_up(dev: Dev, given: dict[str, str]) -> None:
    """RabbitMQ starts an epmd every minute, which ends at once: the process table would be full one day."""
    process = dev("with-services", "--", "python", "-c", ORPHANS, str(5 * 2 * BURY_EVERY), **given)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, output


async def test_the_commands_exit_code_is_ours(dev: Dev, given: dict[str, str]) -> None:
    process = dev("with-services", "--", "sh", "-c", "exit 7", **given)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 7, output


async def test_the_command_sees_the_addresses(dev: Dev) -> None:
    process = dev("with-services", "--", "sh", "-c", "env")
    output, _ = await asyncio.to_thread(process.communicate)
    names = dict(line.split("=", 1) for line in output.splitlines() if "=" in line and " " not in line)
    assert names["DATABASE_URL"].startswith("postgresql://longrun:")
    assert names["REDIS_URL"].endswith("/0")
    assert names["BROKER_REDIS_URL"].endswith("/1")
    assert names["BROKER"] == "redis"


async def test_a_given_address_replaces_the_embedded_server(dev: Dev, database_url: str) -> None:
    given = {"DATABASE_URL": database_url, "REDIS_HOST": "cache"}
    process = dev("with-services", "--", "sh", "-c", "echo $DATABASE_URL $REDIS_URL $BROKER_REDIS_URL", **given)
    output, _ = await asyncio.to_thread(process.communicate)
    assert output.splitlines()[-1] == f"{database_url} redis://cache:6379/0 redis://cache:6379/1"
    assert "valkey" not in output


def test_what_is_imported_once_is_compiled_once_whatever_the_environment_says(database_url: str) -> None:
    given = {"DATABASE_URL": database_url, "REDIS_URL": "redis://cache:1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(CHECKOUT / "dev"), "with-services", "--", "sh", "-c", "echo bytecode=${PYTHONDONTWRITEBYTECODE-yes}"]
    ran = subprocess.run(command, env={**bare_environment(), **given}, capture_output=True, text=True, timeout=60)
    assert "bytecode=yes" in ran.stdout.splitlines(), ran.stderr


async def test_an_unknown_command_is_said(dev: Dev, given: dict[str, str]) -> None:
    process = dev("with-services", "--", "no-such-command", **given)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1
    assert "there is no command 'no-such-command'" in output
