import asyncio
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from services.metrics import files, values
from services.metrics.exposition import Exposition, open_exposition
from services.metrics.files import Group, group_of, started_at
from services.metrics.values import Value
from services.settings import MetricsSettings
from tests.services.metrics.reading import Told

Start = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(5)`: a process that has counted ten runs, and drives five."""
    started: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.services.metrics.member", str(tmp_path), str(count)]
        member = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(member)
        assert member.stdout
        assert member.stdout.readline() == b"ready\n"
        return member

    yield start
    for member in started:
        kill(member)


def kill(member: "subprocess.Popen[bytes]") -> None:
    member.kill()
    member.wait()
    if member.stdout:
        member.stdout.close()


async def told_by(folder: Path) -> Told:
    return Told((await Exposition(Group(folder)).text()).decode())


async def test_any_process_answers_for_all_and_a_killed_one_still_counts(tmp_path: Path, start: Start) -> None:
    first, second = start(5), start(7)
    told = await told_by(tmp_path)
    assert told.value("longrun_run_ends_total", status="completed") == 24, "what is counted before joining counts too"
    assert told.value("longrun_run_queue_seconds_count") == 2
    assert told.value("longrun_runs_active") == 12
    assert told.value("longrun_event_loop_lag_seconds") == 7
    kill(second)
    for joined in range(2):
        told = await told_by(tmp_path)
        assert told.value("longrun_run_ends_total") == 24, "a counter never falls"
        assert told.value("longrun_run_queue_seconds_count") == 2 + joined
        assert told.value("longrun_runs_active") == 5, "nobody drives the runs of a dead process"
        start(0)
    assert first.poll() is None


async def test_what_many_dead_processes_have_left_is_kept_in_one_place(tmp_path: Path, start: Start) -> None:
    for _ in range(4):
        kill(start(1))
    start(0)
    assert (await told_by(tmp_path)).value("longrun_run_ends_total") == 8
    told = await told_by(tmp_path)
    assert told.value("longrun_run_queue_seconds_bucket", le="0.25") == 5
    assert told.value("longrun_run_queue_seconds_bucket", le="0.1") == 0
    left = [path.name for path in sorted(tmp_path.glob("*"))]  # noqa: ASYNC240 - a folder of the test's own
    of_dead = {name for name in left if "dead" in name}
    assert of_dead == {"counter_dead.db", "histogram_dead.db"}
    assert len(left) == len(of_dead) + len(files.KINDS) + 2, "files of the dead, ours, two locks"


def taken_by(folder: Path) -> int:
    """Bytes of the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def live_and_die(folder: str, rounds: int, together: int, temporary: Path) -> None:
    command = [sys.executable, "-m", "tests.services.metrics.restarts", folder, str(rounds), str(together)]
    subprocess.run([*command, str(temporary)], check=True, timeout=100)


async def test_a_hundred_restarts_take_no_more_room_than_one_and_no_number_is_lost(tmp_path: Path) -> None:
    folder, together = tmp_path / "worker", 4
    live_and_die(str(folder), 25, together, tmp_path)
    assert taken_by(folder) <= (together + 1) * sum(files.KINDS.values()) + 64 * files.KIB, (
        "theirs, and those of the dead"
    )
    assert len(list(folder.iterdir())) <= together * (len(files.KINDS) + 1) + len(files.LASTING) + 1
    told = await told_by(folder)
    assert told.value("longrun_run_ends_total", status="completed") == 100
    assert told.value("longrun_run_queue_seconds_count") == 100
    assert told.value("longrun_runs_active") == 0


def test_of_masters_that_are_killed_with_their_workers_one_folder_is_left(tmp_path: Path) -> None:
    live_and_die("-", 20, 1, tmp_path)
    [shared] = tmp_path.glob("longrun-metrics-*")
    assert len(list(shared.iterdir())) == 1


def test_the_folder_of_a_master_that_is_gone_stays_while_one_of_its_workers_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    orphaned = files.own_folder() / "worker-1-12345"
    group = Group(orphaned)
    group.join()
    files.own_folder()
    assert orphaned.exists()
    group.leave()
    files.own_folder()
    assert not orphaned.exists()


def test_a_file_that_grows_takes_room_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KINDS", {"counter": 4096})
    group = Group(tmp_path)
    group.join()
    fill(100)
    [book] = tmp_path.glob("counter_*.db")
    assert book.stat().st_size > 4096
    assert book.stat().st_blocks * 512 >= book.stat().st_size, "a hole: to write there may end the process"
    group.leave()


@pytest.mark.parametrize("short", [(os, "posix_fallocate"), (mmap, "mmap")], ids=["disk", "memory"])
async def test_where_there_is_no_room_to_grow_a_number_goes_on_untold(
    short: tuple[ModuleType, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "KINDS", {"counter": 16 * 1024})
    group = Group(tmp_path)
    group.join()
    monkeypatch.setattr(*short, full)
    numbers = fill(300)
    for number in numbers:
        number.inc(1)
    assert {number.get() for number in numbers} == {1}
    told = (await told_by(tmp_path)).values("longrun_filling_total")
    assert 0 < len(told) < 300
    assert set(told) == {1}
    group.leave()


def full(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill(count: int) -> list[Value]:
    names = [str(number) for number in range(count)]
    return [Value("counter", "longrun_filling", "longrun_filling_total", ("a",), (each,), "Says.") for each in names]


def hold(lock: Path) -> "subprocess.Popen[bytes]":
    code = f"import fcntl, os, signal; fcntl.flock(os.open({str(lock)!r}, os.O_RDWR), fcntl.LOCK_EX); print(flush=True)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; os.kill(os.getpid(), signal.SIGSTOP)"], stdout=subprocess.PIPE
    )
    assert holder.stdout
    holder.stdout.readline()
    return holder


async def test_a_stopped_process_that_holds_the_lock_holds_up_no_answer(tmp_path: Path, start: Start) -> None:
    start(3)
    holder = hold(tmp_path / "lock")
    try:
        async with asyncio.timeout(60):
            assert (await told_by(tmp_path)).value("longrun_runs_active") == 3
            start(1)
    finally:
        kill(holder)


async def test_a_file_that_nobody_can_read_costs_only_itself(tmp_path: Path, start: Start) -> None:
    kill(start(2))
    (tmp_path / "counter_0123456789ab.db").write_bytes(b"\xff\xff\xff\x7f" + b"junk" * 100)
    start(0)
    assert (await told_by(tmp_path)).value("longrun_run_ends_total") == 4


def test_processes_of_one_master_are_a_group_and_one_that_is_alone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert group_of(MetricsSettings(), "worker") is None
    shared = group_of(MetricsSettings(dir=str(tmp_path)), "worker")
    assert shared
    assert shared.folder == tmp_path / "worker"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Master:
        pid = os.getpid()

    monkeypatch.setattr("multiprocessing.parent_process", Master)
    left = tmp_path / f"longrun-metrics-{os.getuid()}" / "worker-1-12345"
    left.mkdir(parents=True, mode=0o700)
    left.parent.chmod(0o700)
    found = group_of(MetricsSettings(), "worker")
    assert found
    assert found.folder == left.parent / f"worker-{os.getpid()}-{started_at(os.getpid())}"
    assert not left.exists(), "its master has ended"


async def test_where_no_file_can_be_kept_a_process_tells_of_itself(tmp_path: Path) -> None:
    (tmp_path / "api").write_text("in the way")
    with open_exposition(MetricsSettings(dir=str(tmp_path)), "api") as exposition:
        assert exposition.group is None
        assert "longrun_http_requests_in_progress" in Told((await exposition.text()).decode()).names


@pytest.fixture(autouse=True)
def in_memory() -> Iterator[None]:
    """The numbers of this process go into no file after the test, and are no more than before."""
    count = len(values._every)
    yield
    values.write_into({})
    del values._every[count:]
