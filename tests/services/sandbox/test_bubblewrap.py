import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.runs.fence import Fence, FenceLost
from services.sandbox import places, syscalls
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.protocol import SandboxFailed, SandboxUnavailable
from services.sandbox.providers import make_provider
from services.settings import SandboxSettings
from tests.services.sandbox.conftest import soon, start_as
from tests.waiting import eventually

RUN, LATER_RUN = uuid4(), uuid4()


def fence(attempt: int, run_id: UUID = RUN) -> Fence:
    return Fence(run_id, attempt, "worker")


def runs(provider: Bubblewrap, project_id: UUID) -> bool:
    return places.of(provider.root, project_id).monitor() is not None


async def test_a_sandbox_and_its_jobs_outlive_the_process_that_opened_it(
    provider: Bubblewrap, project_id: UUID
) -> None:
    await asyncio.to_thread(start_as, os.geteuid(), provider, project_id)
    found = await provider.open(project_id)
    before = places.of(provider.root, project_id).monitor()
    await found.start_job("long", "echo still here; sleep 100")
    await asyncio.to_thread(start_as, os.geteuid(), provider, project_id)
    again = await Bubblewrap(provider.settings).open(project_id)
    assert places.of(provider.root, project_id).monitor() == before

    async def said() -> bool:
        job = await again.job("long")
        return job.running and job.output == b"still here\n"

    await soon(said)


async def test_it_is_in_a_session_of_its_own_which_no_signal_to_the_openers_group_reaches(
    provider: Bubblewrap, project_id: UUID
) -> None:
    await provider.open(project_id)
    pid = places.of(provider.root, project_id).monitor()
    assert pid
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)


async def test_two_who_open_the_same_project_at_once_start_one_sandbox(provider: Bubblewrap, project_id: UUID) -> None:
    other = Bubblewrap(provider.settings)
    first, second = await asyncio.gather(provider.open(project_id), other.open(project_id))
    await first.write_file("seen", b"by both")
    assert (await second.exec("cat seen; touch /tmp/mark")).output == b"by both"
    assert (await first.exec("ls /tmp")).output == b"mark\n"


async def test_stopping_keeps_the_files_and_deleting_removes_them(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.write_file("kept", b"yes")
    await provider.stop(project_id)
    assert not runs(provider, project_id)
    assert await sandbox.read_file("kept") == b"yes"
    await provider.delete(project_id)
    assert not runs(provider, project_id)
    assert [path.name for path in provider.root.iterdir() if str(project_id) in path.name] == []
    await provider.stop(uuid4())
    await provider.delete(uuid4())


async def test_nothing_of_a_sandbox_is_left_when_its_monitor_is_killed(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.start_job("long", "exec sleep 7654321")
    await eventually(lambda: sleeping("7654321"))
    place = places.of(provider.root, project_id)
    os.kill(place.monitor() or 0, signal.SIGKILL)
    await eventually(lambda: not sleeping("7654321"))
    assert (await sandbox.exec("echo again")).output == b"again\n"


def sleeping(seconds: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes() == f"sleep\0{seconds}\0".encode():
                return True
    return False


async def test_the_reaper_ends_what_is_idle_and_runs_no_job(provider: Bubblewrap) -> None:
    idle, working, fresh = uuid4(), uuid4(), uuid4()
    await provider.open(idle)
    await (await provider.open(working)).start_job("long", "sleep 100")
    await asyncio.sleep(3.0)
    await provider.open(fresh)
    reaped = await provider.reap(2.9)
    assert [each for each in (idle, working, fresh) if each in reaped] == [idle]
    assert (runs(provider, working), runs(provider, fresh)) == (True, True)
    await eventually(lambda: not runs(provider, idle))


async def test_the_reaper_leaves_a_sandbox_that_works_for_somebody(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    begun = asyncio.Event()

    async def hear(_: bytes) -> None:
        begun.set()

    command = "echo begun; until [ -e go ]; do sleep 0.02; done; echo done"
    working = asyncio.create_task(sandbox.exec(command, on_output=hear))
    await begun.wait()
    await asyncio.sleep(0.3)
    assert project_id not in await provider.reap(0.1)
    await sandbox.write_file("go", b"")
    assert (await working).output == b"begun\ndone\n"


async def test_an_older_attempt_is_refused_from_the_moment_a_later_one_opens(
    provider: Bubblewrap, project_id: UUID
) -> None:
    older = await provider.open(project_id, fence(1))
    later = await provider.open(project_id, fence(2))
    with pytest.raises(FenceLost):
        await older.exec("echo late")
    with pytest.raises(FenceLost):
        await older.write_file("late", b"late")
    with pytest.raises(FenceLost):
        await provider.open(project_id, fence(1))
    assert (await later.exec("ls")).output == b""


async def test_a_new_attempt_ends_the_foreground_of_the_older_and_leaves_its_jobs_alone(
    provider: Bubblewrap, project_id: UUID
) -> None:
    older = await provider.open(project_id, fence(1))
    await older.start_job("long", "sleep 100")
    late = "until [ -e go ]; do sleep 0.05; done; echo late > late; sleep 100"
    working = asyncio.create_task(older.exec(late))
    async with older.pipe(["sh", "-c", f"echo ready; {late}"]) as pipe:
        assert await pipe.read() == b"ready\n"
        later = await provider.open(project_id, fence(2))
        assert await pipe.read() == b""
    with pytest.raises(FenceLost):
        await working
    await later.write_file("go", b"")
    await asyncio.sleep(0.3)
    assert (await later.exec("ls; ps -e -o args=")).output.count(b"sleep") == 1
    assert [job.running for job in await later.jobs()] == [True]
    assert await later.stat_file("late") is None


async def test_a_run_that_another_superseded_is_refused_also_by_a_sandbox_that_was_started_anew(
    provider: Bubblewrap, project_id: UUID
) -> None:
    older = await provider.open(project_id, fence(7))
    later = await provider.open(project_id, fence(1, LATER_RUN))
    with pytest.raises(FenceLost):
        await older.exec("echo late")
    await provider.stop(project_id)
    with pytest.raises(FenceLost):
        await older.exec("echo late")
    assert (await later.exec("echo mine")).output == b"mine\n"
    await provider.stop(project_id)
    with pytest.raises(FenceLost):
        await provider.open(project_id, fence(8))


async def test_who_comes_without_a_fence_is_never_refused_and_ends_nothing(
    provider: Bubblewrap, project_id: UUID
) -> None:
    api, run = await provider.open(project_id), await provider.open(project_id, fence(1))
    working = asyncio.create_task(run.exec("sleep 0.3; echo done"))
    await asyncio.sleep(0.1)
    await api.write_file("upload", b"from the API")
    assert (await working).output == b"done\n"
    reading = asyncio.create_task(api.exec("sleep 0.3; cat upload"))
    await asyncio.sleep(0.1)
    await provider.open(project_id, fence(2))
    assert (await reading).output == b"from the API"


async def test_a_fenced_caller_is_told_once_why_a_sandbox_has_ended(provider: Bubblewrap, project_id: UUID) -> None:
    run = await provider.open(project_id, fence(1))
    place = places.of(provider.root, project_id)
    await asyncio.to_thread(place.end)
    (place.folder / "ended").write_text("the sandbox used too much")
    with pytest.raises(SandboxFailed, match="used too much"):
        await run.exec("true")
    assert (await run.exec("echo again")).output == b"again\n"


async def test_a_path_longer_than_a_socket_address_may_be_works(settings: SandboxSettings, folder: Path) -> None:
    deep = folder.joinpath(*["a-long-name-of-a-folder"] * 6)
    provider, project_id = Bubblewrap(settings.model_copy(update={"folder": str(deep)})), uuid4()
    sandbox = await provider.open(project_id)
    assert (await sandbox.exec("echo deep")).output == b"deep\n"
    await provider.delete(project_id)


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/bwrap"])
async def test_without_isolation_nothing_is_run(settings: SandboxSettings, program: str) -> None:
    provider = Bubblewrap(settings.model_copy(update={"bwrap": program}))
    with pytest.raises(SandboxUnavailable, match="No sandbox"):
        await provider.open(uuid4())


async def test_without_libseccomp_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, provider: Bubblewrap, project_id: UUID
) -> None:
    syscalls.program.cache_clear()
    monkeypatch.setattr(syscalls, "pyseccomp", None)
    monkeypatch.setattr(syscalls, "missing", "not found", raising=False)
    with pytest.raises(SandboxUnavailable, match="install libseccomp2"):
        await provider.open(project_id)
    assert not runs(provider, project_id)


async def test_sandboxes_can_be_switched_off(settings: SandboxSettings) -> None:
    provider = make_provider(settings.model_copy(update={"kind": "off"}))
    with pytest.raises(SandboxUnavailable, match="SANDBOX=off"):
        await provider.open(uuid4())
    assert await provider.reap(0) == []


async def test_a_sandbox_keeps_to_as_many_cores_as_it_may_use(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    assert (await sandbox.exec("nproc")).output == b"1\n"
    assert (await sandbox.exec("taskset -p 3 $$")).exit_code == 1
    assert (await sandbox.exec("nproc")).output == b"1\n"


async def test_the_folder_of_the_browser_is_seen_through_closed_ones_and_cannot_be_written(
    settings: SandboxSettings, project_id: UUID, tmp_path: Path
) -> None:
    (tmp_path / "closed" / "browser").mkdir(parents=True)
    (tmp_path / "closed" / "browser" / "said").write_text("here")
    (tmp_path / "closed").chmod(0o700)
    provider = Bubblewrap(settings.model_copy(update={"browser": str(tmp_path / "closed" / "browser")}))
    try:
        looked = await (await provider.open(project_id)).exec("cat /opt/browser/said; touch /opt/browser/new")
    finally:
        await provider.delete(project_id)
    assert looked.output.startswith(b"here")
    assert b"Read-only file system" in looked.output


async def test_a_folder_of_the_browser_that_is_none_is_named(settings: SandboxSettings, project_id: UUID) -> None:
    provider = Bubblewrap(settings.model_copy(update={"browser": "/no/such/folder"}))
    with pytest.raises(SandboxUnavailable, match="SANDBOX_BROWSER"):
        await provider.open(project_id)
