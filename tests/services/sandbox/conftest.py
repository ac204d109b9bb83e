"""Real sandboxes. As root each attack also runs against one that an ordinary user started."""

import asyncio
import os
import shutil
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.sandbox import places, uplink
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.protocol import Sandbox
from services.sandbox.wishes import spec_for
from services.settings import SandboxSettings
from tests.waiting import PATIENT, eventually

ORDINARY = 54321
STARTERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]
MIB = 1024 * 1024
OPENS_NETWORKS = os.geteuid() == 0 or os.access("/dev/net/tun", os.R_OK | os.W_OK)
collect_ignore = [] if os.geteuid() == 0 else ["test_docker.py"]
if not OPENS_NETWORKS:
    collect_ignore.append("test_network.py")


@dataclass
class Shared:
    """A sandbox that the tests of a file use one after the other, as long as it lives."""

    project_id: UUID
    monitor: int | None


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sandboxes-"))
    yield made
    for place in places.all_in(made).values():
        place.end()
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def settings(folder: Path) -> SandboxSettings:
    return SandboxSettings(folder=str(folder), memory_bytes=192 * MIB, disk_bytes=48 * MIB, processes=64)


@pytest.fixture(scope="module")
def provider(settings: SandboxSettings) -> Bubblewrap:
    return Bubblewrap(settings)


@pytest.fixture
def project_id() -> UUID:
    return uuid4()


@pytest.fixture(scope="module")
def shared() -> dict[str, Shared]:
    return {}


@pytest.fixture(params=STARTERS)
def starter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def attacked(starter: str, provider: Bubblewrap, shared: dict[str, Shared]) -> AsyncIterator[Sandbox]:
    """A sandbox that root, or an ordinary user, has started."""
    used = await running(provider, shared, starter)
    sandbox = await provider.open(used.project_id)
    yield sandbox
    await clear(provider, used, sandbox)


@pytest.fixture
async def sandbox(provider: Bubblewrap, shared: dict[str, Shared]) -> AsyncIterator[Sandbox]:
    used = await running(provider, shared, STARTERS[0])
    sandbox = await provider.open(used.project_id)
    yield sandbox
    await clear(provider, used, sandbox)


async def running(provider: Bubblewrap, shared: dict[str, Shared], starter: str) -> Shared:
    """The shared sandbox of that starter; another one when the last has ended."""
    used = shared.get(starter)
    if used and places.of(provider.root, used.project_id).monitor() == used.monitor:
        return used
    project_id = uuid4()
    user = os.geteuid() if starter == STARTERS[0] else ORDINARY
    await asyncio.to_thread(start_as, user, provider, project_id)
    used = shared[starter] = Shared(project_id, places.of(provider.root, project_id).monitor())
    return used


async def clear(provider: Bubblewrap, used: Shared, sandbox: Sandbox) -> None:
    place = places.of(provider.root, used.project_id)
    if place.monitor() == used.monitor:
        for job in await sandbox.jobs():
            await sandbox.kill_job(job.name)
        await sandbox.exec("find /workspace /tmp /dev/shm -mindepth 1 -delete")


def start_as(user: int, provider: Bubblewrap, project_id: UUID) -> None:
    """Have another process, of that user, start a sandbox and end."""
    if os.geteuid() == 0:
        os.chown(provider.root, user, user)
    process = os.fork()
    if process == 0:
        try:
            start_here(user, provider, project_id)
        except BaseException:  # noqa: BLE001 - the fork must not come back to pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0


def start_here(user: int, provider: Bubblewrap, project_id: UUID) -> None:
    if user != os.geteuid():
        uplink.reachable_tun()
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    provider.start(places.of(provider.root, project_id), None, spec_for(provider.settings, None))


async def soon(look: Callable[[], Any], *, within: float = PATIENT) -> Any:
    """`eventually`, for looks into a sandbox."""
    return await eventually(look, within=within)
