"""What an agent's code leaves in its workspace to harm whoever comes next, and what it does to the answers."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from uuid import UUID, uuid4

import pytest

from services.sandbox import bubblewrap, places
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.client import file_of
from services.sandbox.protocol import Sandbox, SandboxFailed, SandboxUnavailable
from tests.services.sandbox.conftest import MIB, ORDINARY, soon, start_as
from tests.waiting import PATIENT

DEEP = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n"


async def test_folders_deeper_than_any_recursion_end_nothing_and_can_be_deleted(
    provider: Bubblewrap, project_id: UUID
) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.write_file("deep.py", DEEP.encode())
    assert (await sandbox.exec("python3 deep.py")).exit_code in (0, 137)
    before = places.of(provider.root, project_id).monitor()
    assert (await sandbox.usage()).processes == 1
    await provider.stop(project_id)
    await provider.open(project_id)
    await asyncio.sleep(1.0)  # its monitor counts the files at least once
    assert places.of(provider.root, project_id).monitor() not in (None, before)
    await sandbox.delete_file("d")
    assert await sandbox.stat_file("d") is None


async def test_a_sandbox_with_deep_folders_is_removed(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.exec(f'python3 -c "{DEEP}"')
    await provider.delete(project_id)
    assert not places.of(provider.root, project_id).folder.exists()


async def test_a_workspace_that_was_closed_is_opened_again(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.exec("echo kept > kept; chmod 000 /workspace")
    assert (await sandbox.exec("cat kept")).output == b"kept\n"
    await sandbox.exec("chmod 000 /workspace")
    await provider.stop(project_id)
    assert await (await provider.open(project_id)).read_file("kept") == b"kept\n"


@pytest.mark.parametrize("modified", [-1e15, 1e15])
def test_a_file_from_a_time_that_no_calendar_has_is_described(modified: float) -> None:
    described = {"path": "/workspace/then", "is_dir": False, "size": 1, "modified": modified}
    assert file_of(described).modified.year in (1970, 9999)


async def test_a_name_that_is_no_utf8_is_listed_as_text(sandbox: Sandbox) -> None:
    await sandbox.exec(r"touch $'caf\xe9'")
    (found,) = await sandbox.list_files()
    assert found.path == "/workspace/caf\ufffd"


async def test_a_path_that_no_file_can_have_is_refused_at_once(sandbox: Sandbox) -> None:
    async with asyncio.timeout(PATIENT):
        with pytest.raises(SandboxFailed, match="is not inside"):
            await sandbox.read_file("half \ud800")


async def test_a_reaper_that_asks_often_ends_what_is_idle_all_the_same(provider: Bubblewrap, project_id: UUID) -> None:
    await provider.open(project_id)

    async def reaped() -> bool:
        return project_id in await provider.reap(0.8)

    await soon(reaped)


async def test_a_project_of_ten_thousand_runs_still_starts(provider: Bubblewrap, project_id: UUID) -> None:
    place = places.of(provider.root, project_id)
    place.make()
    place.remember("fences", {"run": str(uuid4()), "attempt": 1, "superseded": [str(uuid4()) for _ in range(10_000)]})
    assert (await (await provider.open(project_id)).exec("echo started")).output == b"started\n"


async def test_jobs_with_long_commands_are_listed(sandbox: Sandbox) -> None:
    for number in range(12):
        await sandbox.start_job(f"job{number}", f"true {'x' * 100_000}")
    assert len(await sandbox.jobs()) == 12


async def test_a_question_that_is_too_large_is_refused_as_what_it_is(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxFailed, match="too large"):
        await sandbox.exec("x" * 2 * MIB)


async def test_files_without_content_are_bounded_too(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.exec("mkdir many && cd many && seq 20000 | xargs touch", timeout=30)

    async def refused() -> bool:
        done = await sandbox.exec("true")
        return b"delete files first" in done.output

    await soon(refused, within=40.0)


async def test_files_that_have_no_name_any_more_are_counted(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    hide = 'for n in 1 2 3; do exec 3>f; head -c 30M /dev/zero >&3; rm f; eval "exec 1$n>&3"; done; sleep 15; echo over'
    done = await sandbox.exec(f"bash -c '{hide}'", timeout=25)
    assert done.exit_code == 137
    assert b"delete files first" in done.output


async def test_folders_that_were_closed_are_removed_by_whoever_started_them(
    provider: Bubblewrap, project_id: UUID
) -> None:
    await asyncio.to_thread(start_as, ORDINARY if os.geteuid() == 0 else os.geteuid(), provider, project_id)
    sandbox = await provider.open(project_id)
    await sandbox.exec("mkdir -p a/b/c; touch a/b/c/f; chmod 000 a/b; chmod 500 a")
    await provider.stop(project_id)
    place = places.of(provider.root, project_id)
    owner = place.folder.stat().st_uid
    assert await asyncio.to_thread(succeeds_as, owner, place.remove)
    assert not place.folder.exists()


def succeeds_as(user: int, work: Callable[[], None]) -> bool:
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os.setresuid(user, user, user)
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


async def test_connections_to_a_port_leave_the_sandbox_room_to_work(sandbox: Sandbox) -> None:
    serve = "import socket,time; s=socket.create_server(('127.0.0.1',8123),backlog=4000); time.sleep(60)"
    await sandbox.start_job("server", f'python3 -c "{serve}"')

    async def answers() -> bool:
        with suppress(SandboxFailed):
            async with await sandbox.connect(8123):
                return True
        return False

    await soon(answers)
    async with AsyncExitStack() as stack:

        async def connect_often() -> None:
            for _ in range(400):
                await stack.enter_async_context(await sandbox.connect(8123))

        with pytest.raises(SandboxFailed, match="too many connections"):
            await connect_often()
        assert (await sandbox.exec("echo works")).output == b"works\n"


async def test_a_monitor_that_never_speaks_is_no_sandbox(
    provider: Bubblewrap, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "BEGIN", "import time; time.sleep(20)")
    monkeypatch.setattr(bubblewrap, "START_WITHIN", 0.2)
    with pytest.raises(SandboxUnavailable, match="did not start"):
        await provider.open(project_id)
