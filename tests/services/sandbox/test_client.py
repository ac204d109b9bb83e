import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from services.sandbox.protocol import Job, Sandbox, SandboxFailed
from tests.services.sandbox.conftest import soon


async def test_a_command_answers_with_its_output_and_code(sandbox: Sandbox) -> None:
    done = await sandbox.exec("echo out; echo err >&2; echo $NAME; pwd; exit 3", env={"NAME": "given"}, cwd="/tmp")
    assert (done.exit_code, done.output, done.left_out) == (3, b"out\nerr\ngiven\n/tmp\n", 0)


async def test_a_folder_that_is_not_there_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxFailed, match="/workspace/nowhere is not a folder"):
        await sandbox.exec("true", cwd="nowhere")


async def test_output_is_shown_as_it_comes(sandbox: Sandbox) -> None:
    pieces: list[bytes] = []
    first = asyncio.Event()

    async def show(piece: bytes) -> None:
        pieces.append(piece)
        first.set()

    await sandbox.exec("mkfifo fifo")
    running = asyncio.create_task(sandbox.exec("echo one; read line < fifo; echo two $line", on_output=show))
    await first.wait()
    assert pieces == [b"one\n"]
    await sandbox.exec("echo three > fifo")
    assert (await running).output == b"".join(pieces) == b"one\ntwo three\n"


async def test_endless_output_stays_bounded_here_and_its_ends_are_kept(sandbox: Sandbox) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await sandbox.exec("echo first; head -c 256M /dev/zero; echo; echo last", timeout=100, max_output=10_000)
    assert done.output.startswith(b"first\n")
    assert done.output.endswith(b"last\n")
    assert len(done.output) < 10_100
    assert done.left_out == 256 * 1024**2 + 12 - 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


async def test_a_slow_taker_slows_the_command_down(sandbox: Sandbox) -> None:
    taken = 0
    go_on = asyncio.Event()

    async def take(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)
        await go_on.wait()

    running = asyncio.create_task(
        sandbox.exec("head -c 20M /dev/zero | tee /dev/stderr 2>/tmp/passed; echo over", on_output=take)
    )
    await soon(lambda: taken)
    await asyncio.sleep(0.5)
    passed = int((await sandbox.exec("stat -c %s /tmp/passed")).output)
    assert passed < 4_000_000
    go_on.set()
    done = await running
    assert done.exit_code == 0
    assert taken == 20 * 1024**2 + 5


async def test_a_command_that_takes_too_long_is_killed_and_what_it_said_is_kept(sandbox: Sandbox) -> None:
    done = await sandbox.exec("echo said; sleep 100 & sleep 100", timeout=3.0)
    assert (done.exit_code, done.output) == (None, b"said\n")
    assert (await sandbox.usage()).processes == 1


async def test_cancelling_kills_a_command_with_all_that_it_started(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("(setsid sleep 100 &); sleep 100"))

    async def all_started() -> bool:
        return (await sandbox.usage()).processes > 2

    await soon(all_started)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async def alone() -> bool:
        return (await sandbox.usage()).processes == 1

    await soon(alone)


async def test_many_commands_at_once_do_not_mix(sandbox: Sandbox) -> None:
    done = await asyncio.gather(*(sandbox.exec(f"echo {number}") for number in range(20)))
    assert [each.output for each in done] == [b"%d\n" % number for number in range(20)]


async def ended(sandbox: Sandbox, name: str) -> Job:
    async def look() -> Job | None:
        job = await sandbox.job(name)
        return None if job.running else job

    job: Job = await soon(look)
    return job


async def test_a_job_goes_on_takes_input_and_is_read_from_any_offset(sandbox: Sandbox) -> None:
    started = await sandbox.start_job("echo", "while read line; do echo got $line; done; exit 4")
    assert (started.running, started.exit_code) == (True, None)
    await sandbox.write_job("echo", b"one\ntwo\n")

    async def said() -> bool:
        return (await sandbox.job("echo")).output == b"got one\ngot two\n"

    await soon(said)
    assert (await sandbox.job("echo", offset=8)).output == b"got two\n"
    assert [job.name for job in await sandbox.jobs()] == ["echo"]
    killed = await sandbox.kill_job("echo")
    assert (killed.running, killed.exit_code, killed.output) == (False, 137, b"got one\ngot two\n")
    with pytest.raises(SandboxFailed, match="job echo has ended"):
        await sandbox.write_job("echo", b"more")


async def test_the_output_of_a_job_is_kept_from_its_end_and_its_offsets_stay(sandbox: Sandbox) -> None:
    await sandbox.start_job("loud", "head -c 5M /dev/zero; echo last")
    job = await ended(sandbox, "loud")
    assert job.next_offset == 5 * 1024**2 + 5
    assert len(job.output) <= 1024**2 + 65536
    assert job.output.endswith(b"last\n")
    assert (await sandbox.job("loud", offset=job.next_offset - 5)).output == b"last\n"
    assert (await sandbox.job("loud", offset=job.next_offset)).output == b""


async def test_a_jobs_name_is_free_again_once_it_has_ended(sandbox: Sandbox) -> None:
    await sandbox.start_job("same", "sleep 100")
    with pytest.raises(SandboxFailed, match="job same is already running"):
        await sandbox.start_job("same", "true")
    await sandbox.kill_job("same")
    await sandbox.start_job("same", "exit 5")
    assert (await ended(sandbox, "same")).exit_code == 5
    with pytest.raises(SandboxFailed, match="no job other"):
        await sandbox.job("other")


async def test_what_a_job_leaves_over_ends_with_it(sandbox: Sandbox) -> None:
    await sandbox.start_job("parent", "(setsid sleep 100 &); exit 0")
    assert (await ended(sandbox, "parent")).exit_code == 0
    assert (await sandbox.usage()).processes == 1


async def test_a_pipe_carries_both_ways_and_ends_with_its_context(sandbox: Sandbox) -> None:
    async with sandbox.pipe(["cat"]) as pipe:
        await pipe.write(b"x" * 300_000)
        received = b""
        while len(received) < 300_000:
            received += await pipe.read()
        assert received == b"x" * 300_000

    async def alone() -> bool:
        return (await sandbox.usage()).processes == 1

    await soon(alone)


async def test_the_end_of_a_pipes_program_is_the_end_of_its_output(sandbox: Sandbox) -> None:
    async with sandbox.pipe(["sh", "-c", "echo $NAME; echo complaint >&2"], env={"NAME": "given"}) as pipe:
        assert await pipe.read() == b"given\n"
        assert await pipe.read() == b""
    with pytest.raises(SandboxFailed, match="no program nothing-like-it"):
        async with sandbox.pipe(["nothing-like-it"]):
            pass


async def test_a_port_inside_is_reached(sandbox: Sandbox) -> None:
    await sandbox.write_file("index.html", b"a page")
    await sandbox.start_job("server", "python3 -m http.server 8000 --bind 127.0.0.1")

    async def page() -> bytes:
        with suppress(SandboxFailed):
            async with await sandbox.connect(8000) as connection:
                await connection.write(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join([piece async for piece in pieces(connection)])
        return b""

    assert (await soon(page)).endswith(b"a page")
    with pytest.raises(SandboxFailed, match="nothing answers on port 8001"):
        async with await sandbox.connect(8001):
            pass


async def pieces(connection) -> AsyncIterator[bytes]:  # type: ignore[no-untyped-def]
    while piece := await connection.read():
        yield piece


async def test_files_are_written_read_listed_and_deleted(sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/a/b/file.txt", b"0123456789", mode=0o755)
    assert await sandbox.read_file("a/b/file.txt", offset=2, limit=3) == b"234"
    assert (await sandbox.exec("stat -c '%a %U' a/b/file.txt")).output == b"755 agent\n"
    assert [info.path for info in await sandbox.list_files()] == ["/workspace/a"]
    listed = await sandbox.list_files("a", depth=5)
    assert [(info.path, info.is_dir) for info in listed] == [
        ("/workspace/a/b", True),
        ("/workspace/a/b/file.txt", False),
    ]
    found = await sandbox.stat_file("a/b/file.txt")
    assert found
    assert (found.size, found.is_dir) == (10, False)
    await sandbox.delete_file("a")
    assert await sandbox.list_files() == []
    assert await sandbox.stat_file("a/b/file.txt") is None


async def test_a_large_file_arrives_piece_by_piece_and_whole(sandbox: Sandbox) -> None:
    piece = os.urandom(1024 * 1024)

    async def content() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield piece

    await sandbox.write_file("large", content())
    assert await sandbox.read_file("large", limit=20_000_000) == piece * 12


async def test_a_file_whose_writing_breaks_off_is_as_it_was(sandbox: Sandbox) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError("the upload broke off")

    await sandbox.write_file("file", b"before")
    with pytest.raises(ConnectionError):
        await sandbox.write_file("file", broken())
    assert await sandbox.read_file("file") == b"before"

    async def alone() -> bool:
        return [info.path for info in await sandbox.list_files()] == ["/workspace/file"]

    await soon(alone)


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "/workspace/../etc/passwd", "/workspacex", "a\0b"])
async def test_a_path_out_of_the_workspace_is_refused_by_name(sandbox: Sandbox, path: str) -> None:
    for call in (sandbox.read_file(path), sandbox.write_file(path, b""), sandbox.delete_file(path)):
        with pytest.raises(SandboxFailed, match="is not inside /workspace"):
            await call


async def test_what_is_no_file_is_refused_and_never_waited_for(sandbox: Sandbox) -> None:
    await sandbox.exec("mkfifo fifo; mkdir folder; ln -s /dev/zero zero")
    for path, why in (("fifo", "not a file"), ("folder", "a folder"), ("zero", "not a file"), ("none", "no file")):
        with pytest.raises(SandboxFailed, match=why):
            await sandbox.read_file(path)
    with pytest.raises(SandboxFailed, match="is a folder"):
        await sandbox.write_file("folder", b"")
    with pytest.raises(SandboxFailed, match="part of its path is a file"):
        await sandbox.write_file("fifo/below", b"")
    with pytest.raises(SandboxFailed, match="no file none"):
        await sandbox.delete_file("none")
    with pytest.raises(SandboxFailed, match="workspace itself"):
        await sandbox.delete_file("/workspace")


async def test_a_listing_is_bounded(sandbox: Sandbox) -> None:
    await sandbox.exec("for i in $(seq 50); do mkdir -p d$i/e; done")
    assert len(await sandbox.list_files(depth=3, limit=30)) == 30
    assert len(await sandbox.list_files(depth=2)) == 100


async def test_usage_counts_memory_disk_and_processes(sandbox: Sandbox) -> None:
    await sandbox.write_file("large", b"x" * 3_000_000)
    await sandbox.start_job("long", "exec sleep 100")
    usage = await sandbox.usage()
    assert usage.disk_bytes >= 3_000_000
    assert usage.processes == 2
    assert usage.memory_bytes > 5_000_000
