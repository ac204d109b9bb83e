"""Real containers. Making them is root's: as an ordinary user these are not collected (`conftest.collect_ignore`)."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.runs.fence import Fence, FenceLost
from services.sandbox import places
from services.sandbox.docker import Docker
from services.sandbox.protocol import Sandbox, SandboxFailed, SandboxUnavailable
from services.sandbox.providers import make_provider
from services.settings import SandboxSettings
from tests.services.sandbox import images, podman
from tests.services.sandbox.conftest import MIB, soon

IMAGE = "localhost/guest:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[podman.Podman]:
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    made = podman.Podman(asyncio.run(podman.unpacked(folder / "apt.log")), folder)
    images.write(folder / "image.tar")
    made.load(folder / "image.tar", IMAGE)
    with made.serving():
        yield made
    made.run("unmount", "--all", "--force")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def settings(engine: podman.Podman) -> SandboxSettings:
    return SandboxSettings(
        kind="docker",
        folder=str(engine.folder / "sandboxes"),
        docker_url=f"unix://{engine.socket}",
        image=IMAGE,
        memory_bytes=192 * MIB,
        disk_bytes=48 * MIB,
        processes=64,
    )


@pytest.fixture(scope="module")
def provider(settings: SandboxSettings) -> Docker:
    return Docker(settings)


@pytest.fixture(scope="module")
def shared_project() -> UUID:
    return uuid4()


@pytest.fixture
async def sandbox(provider: Docker, shared_project: UUID) -> AsyncIterator[Sandbox]:
    """One that the tests of this file use one after the other."""
    opened = await provider.open(shared_project)
    yield opened
    await opened.exec("find /workspace /tmp -mindepth 1 -delete")


def fence(attempt: int, run_id: UUID) -> Fence:
    return Fence(run_id, attempt, "worker")


def containers(engine: podman.Podman, project_id: UUID) -> list[str]:
    said = engine.run("ps", "--all", "--format", "{{.ID}} {{.Names}}", "--filter", f"name=sandbox_{project_id}")
    return said.stdout.splitlines()


async def test_commands_files_and_jobs_work_as_in_any_sandbox(sandbox: Sandbox) -> None:
    await sandbox.write_file("notes/a.txt", b"one\n")
    finished = await sandbox.exec("cat notes/a.txt; id -u > /tmp/me; exit 3")
    assert (finished.exit_code, finished.output) == (3, b"one\n")
    await sandbox.start_job("long", "echo ready; sleep 100")

    async def said() -> bool:
        return (await sandbox.job("long")).output == b"ready\n"

    await soon(said)
    async with sandbox.pipe(["cat"]) as pipe:
        await pipe.write(b"through")
        assert await pipe.read() == b"through"
    assert not (await sandbox.kill_job("long")).running


async def test_what_runs_inside_has_no_rights_and_can_write_only_its_workspace_and_tmp(sandbox: Sandbox) -> None:
    status = (await sandbox.exec("cat /proc/self/status")).output.decode()
    held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (held["CapEff"], held["CapBnd"], held["NoNewPrivs"], held["Seccomp"]) == ("0" * 16, "0" * 16, "1", "2")
    assert int(held["Uid"].split()[0]) >= 1000
    for path in ("/x", "/usr/x", "/etc/x", "/run/sandbox/x"):
        assert (await sandbox.exec(f"touch {path}")).exit_code != 0, path
    assert (await sandbox.exec("touch /tmp/x /workspace/x")).exit_code == 0


async def test_it_has_no_network_and_cannot_reach_its_own_agent(sandbox: Sandbox) -> None:
    interfaces = (await sandbox.exec("cat /proc/net/dev")).output.decode().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert (await sandbox.exec("ls /run/sandbox")).exit_code != 0


@pytest.mark.parametrize(
    "call",
    ["unshare(0x10000000)", "ptrace(0, 0, 0, 0)", "memfd_create(b'x', 0)", "socket(40, 1, 0)", "socket(16, 3, 0)"],
)
async def test_calls_that_the_engines_own_filter_lets_through_are_refused(sandbox: Sandbox, call: str) -> None:
    finished = await sandbox.exec(f"""python3 -c "import ctypes; print(ctypes.CDLL(None).{call})" """)
    assert finished.output == b"-1\n"


async def test_a_command_that_takes_too_much_memory_is_killed_and_told_why(sandbox: Sandbox) -> None:
    finished = await sandbox.exec("exec python3 -c 'x = bytearray(400 * 2**20)'")
    assert finished.exit_code == 137
    assert b"more than its 192 MiB of memory" in finished.output
    assert (await sandbox.exec("echo alive")).output == b"alive\n"


async def test_a_workspace_that_is_full_takes_nothing_until_files_are_deleted(sandbox: Sandbox) -> None:
    fill = "dd if=/dev/zero of=a bs=1M count=30 2>/dev/null; dd if=/dev/zero of=b bs=1M count=30 2>/dev/null; sleep 20"
    finished = await sandbox.exec(fill)
    assert finished.exit_code == 137
    assert b"more than its 48 MiB" in finished.output
    with pytest.raises(SandboxFailed, match="delete files first"):
        await sandbox.write_file("c", b"more")
    await sandbox.delete_file("a")

    async def writes() -> bool:
        return (await sandbox.exec("echo again > c")).exit_code == 0

    await soon(writes)


async def test_a_fork_bomb_ends_at_the_limit_of_processes(sandbox: Sandbox) -> None:
    counted = await sandbox.exec("for i in $(seq 1 200); do sleep 20 & done 2>&1; wait", timeout=1.0)
    assert counted.exit_code is None or b"Resource temporarily unavailable" in counted.output
    assert (await sandbox.usage()).processes < 64
    assert (await sandbox.exec("echo alive")).output == b"alive\n"


async def test_a_job_outlives_whoever_opened_the_sandbox_which_is_found_again(
    provider: Docker, engine: podman.Podman, shared_project: UUID, sandbox: Sandbox
) -> None:
    await sandbox.start_job("kept", "sleep 100")
    before = containers(engine, shared_project)
    again = await Docker(provider.settings).open(shared_project)
    assert (await again.job("kept")).running
    assert containers(engine, shared_project) == before
    assert [line.split()[1] for line in before] == [f"sandbox_{shared_project}"]
    await again.kill_job("kept")


async def test_two_who_open_at_once_start_one_and_stopping_keeps_what_deleting_removes(
    provider: Docker, engine: podman.Podman
) -> None:
    project_id = uuid4()
    first, second = await asyncio.gather(provider.open(project_id), Docker(provider.settings).open(project_id))
    await first.exec(
        "touch /tmp/mark; mkdir -p .local/bin; echo false > .local/bin/python3; chmod +x .local/bin/python3"
    )
    assert (await second.exec("ls /tmp")).output == b"mark\n"
    assert len(containers(engine, project_id)) == 1
    await provider.stop(project_id)
    assert containers(engine, project_id) == []
    assert (await second.exec("ls /tmp; cat .local/bin/python3")).output == b"false\n"
    await provider.delete(project_id)
    assert containers(engine, project_id) == []
    assert str(project_id) not in engine.run("volume", "ls").stdout
    assert list(provider.root.glob(f"{project_id}*")) == []
    await provider.stop(project_id)
    await provider.delete(project_id)


async def test_later_attempts_win_also_in_a_container_that_was_started_anew(provider: Docker) -> None:
    project_id, run, later_run = uuid4(), uuid4(), uuid4()
    older = await provider.open(project_id, fence(7, run))
    later = await provider.open(project_id, fence(1, later_run))
    with pytest.raises(FenceLost):
        await older.exec("echo late")
    await provider.stop(project_id)
    with pytest.raises(FenceLost):
        await older.exec("echo late")
    assert (await later.exec("echo mine")).output == b"mine\n"
    with pytest.raises(FenceLost):
        await provider.open(project_id, fence(8, run))


async def test_the_reaper_ends_what_is_idle_and_its_container_goes(
    provider: Docker, engine: podman.Podman, shared_project: UUID, sandbox: Sandbox
) -> None:
    await sandbox.start_job("long", "sleep 100")
    idle = uuid4()
    await provider.open(idle)
    await asyncio.sleep(0.2)
    reaped = await provider.reap(0.1)
    assert idle in reaped
    assert shared_project not in reaped
    assert containers(engine, idle) == []
    await sandbox.kill_job("long")


async def test_a_container_that_was_killed_is_started_again_by_the_next_call(
    provider: Docker, engine: podman.Podman, shared_project: UUID, sandbox: Sandbox
) -> None:
    assert engine.run("kill", f"sandbox_{shared_project}").returncode == 0
    assert (await sandbox.exec("echo again")).output == b"again\n"


async def test_what_is_missing_is_said(settings: SandboxSettings) -> None:
    changed = settings.model_copy(update={"image": "localhost/nothing:1"})
    with pytest.raises(SandboxUnavailable, match=r"no image localhost/nothing:1.*SANDBOX_IMAGE"):
        await make_provider(changed).open(uuid4())


async def test_an_image_that_lets_nobody_write_to_the_workspace_is_named_as_the_reason(
    engine: podman.Podman, settings: SandboxSettings, tmp_path: Path
) -> None:
    images.write(tmp_path / "closed.tar", workspace=0o755)
    engine.load(tmp_path / "closed.tar", "localhost/closed:1")
    provider = Docker(settings.model_copy(update={"image": "localhost/closed:1"}))
    project_id = uuid4()
    with pytest.raises(SandboxUnavailable, match="cannot write to /workspace"):
        await provider.open(project_id)
    assert containers(engine, project_id) == []
    await provider.delete(project_id)
    assert not places.of(provider.root, project_id).folder.exists()
