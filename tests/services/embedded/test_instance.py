"""A whole instance: `./dev run` as an operator sees it."""

import asyncio
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import jwt
import pytest

from services.embedded import ports
from services.embedded.child import until
from services.embedded.orphans import descendants, process_table
from tests.services.embedded.conftest import Dev, line_starting
from tests.waiting import eventually


async def running(dev: Dev, folder: Path, port: int, *options: str) -> subprocess.Popen[str]:
    process = dev("run", "--state", folder / "state", "--port", str(port), "--workers", "1", *options)
    assert await line_starting(process, "ready ") == f"ready http://127.0.0.1:{port}"
    return process


def ready(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health/ready", timeout=10) as answer:
        return int(answer.status) == 200


def shows_nothing(port: int) -> bool:
    """Whether the listener of the previews answers, and tells nothing to who asks for none."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
    except urllib.error.HTTPError as answer:
        return answer.code == 404
    except OSError:
        return False
    return False


async def test_it_serves_signs_tokens_refuses_a_second_start_and_stops_clean(dev: Dev, folder: Path) -> None:
    port = ports.pick(set())
    process = await running(dev, folder, port)
    assert await asyncio.to_thread(ready, port)
    await eventually(lambda: shows_nothing(port + 2), within=20)

    tokens = [dev("token", "--state", folder / "state", "--account", name) for name in ("dev", "dev", "other")]
    signed = [(await asyncio.to_thread(token.communicate))[0].strip() for token in tokens]
    assert all(token.count(".") == 2 for token in signed)
    assert subject(signed[0]) == subject(signed[1]) != subject(signed[2])

    second = dev("run", "--state", folder / "state", "--port", str(ports.pick({port})))
    output, _ = await asyncio.to_thread(second.communicate)
    assert second.returncode == 1
    assert f"an instance already runs on {folder / 'state'} (pid {process.pid}, http://127.0.0.1:{port})" in output

    everything = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 30) == 0
    assert not set(everything) & set(process_table())


def subject(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])


@pytest.mark.slow
async def test_a_killed_api_and_killed_workers_are_started_again(dev: Dev, folder: Path) -> None:
    port = ports.pick(set())
    process = await running(dev, folder, port)
    for name in (b"api.app:create_app", b"dramatiq"):
        os.kill(next(pid for pid in descendants(process.pid) if name in command_line(pid)), signal.SIGKILL)
    await line_starting(process, "api is running again")


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_nothing_outlives_a_kill_of_the_instance(dev: Dev, folder: Path) -> None:
    process = await running(dev, folder, ports.pick(set()), "--api-workers", "2")
    everything = descendants(process.pid)
    process.kill()
    async with asyncio.timeout(30):
        await until(lambda: not set(everything) & set(process_table()))
