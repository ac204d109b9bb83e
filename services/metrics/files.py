"""The metrics of a group of processes, in files that each of them can read: any one answers for all.

A process has one file for each kind of number, and holds the lock of one that says that it lives. Numbers in files
outlive a kill; those of the dead are counted on, in one set of files for all of them, since a counter must not fall.
"""

import fcntl
import mmap
import multiprocessing
import os
import secrets
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from services.log import logger
from services.metrics import values
from services.settings import MetricsSettings

LASTING = ("counter", "histogram")
"""Kinds that outlive their process."""
KIB = 1024
KINDS = {"counter": 256 * KIB, "histogram": 2048 * KIB, "gauge_livesum": 64 * KIB, "gauge_livemax": 64 * KIB}
"""What is taken of the disk for each at once: a number that is written where the disk has no room any more would end
the process (SIGBUS). It is enough for all but the use of many models at many providers."""
MOST_OF_AN_ENTRY = 40
"""Bytes of a number in its file beside its name, and more."""
DEAD = "dead"
Unreadable = (RuntimeError, ValueError, LookupError, TypeError, OSError, struct.error)
"""What prometheus_client raises over a file that is none of its own, or was cut."""
LOCK_SECONDS = 1.0
POLL_SECONDS = 0.01


class Book(MmapedDict):
    """A file of numbers, which grows by room that is really there."""

    def _init_value(self, key: str) -> None:
        """Raises: OSError when there is none."""
        while self._used + len(key.encode()) + MOST_OF_AN_ENTRY > self._capacity:
            room = 2 * self._capacity
            os.posix_fallocate(self._f.fileno(), 0, room)
            self._m = mmap.mmap(self._f.fileno(), room)
            self._capacity = room
        super()._init_value(key)  # type: ignore[no-untyped-call]


class Group:
    """The files of one group, in `folder`; `name` is this process's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, secrets.token_hex(6)
        self.sign_of_life: int | None = None
        self.books: dict[str, MmapedDict] = {}

    def join(self) -> None:
        """Add what the dead have left to the files of the dead, and write into files of our own from now on.

        Raises: OSError when there is no room, or no right to write.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder, fcntl.LOCK_EX) as alone:
            if alone:
                self.bury()
        self.sign_of_life = self.live()
        self.books = {kind: self.made(kind, self.name, []) for kind in KINDS}
        values.write_into(self.books)

    def live(self) -> int:
        """Held until the process ends, however it does; it is there under its name only with the lock on it."""
        unnamed = self.folder / f"{self.name}.new"
        held = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        unnamed.rename(self.folder / f"{self.name}.live")
        return held

    def made(self, kind: str, name: str, metrics: Iterable[Metric]) -> MmapedDict:
        """A file that is there under its name only when it can be read."""
        unnamed = self.folder / f"{kind}_{name}.new"
        with unnamed.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, KINDS[kind])
        book: MmapedDict = Book(str(unnamed))  # type: ignore[no-untyped-call]
        for metric in metrics:
            for sample in metric.samples:
                labels = list(sample.labels), list(sample.labels.values())
                book.write_value(mmap_key(metric.name, sample.name, *labels, metric.documentation), sample.value, 0.0)
        unnamed.rename(self.folder / f"{kind}_{name}.db")
        return book

    def bury(self) -> None:
        """Only while nobody reads: between two steps a number of the dead is there twice."""
        for left in (*self.folder.glob("*.live"), *self.folder.glob("*.db"), *self.folder.glob("*.new")):
            name = left.stem.rpartition("_")[2]
            if name == DEAD or self.lives(name):
                continue
            if left.suffix == ".new" and age(left) < LOCK_SECONDS:
                continue  # somebody is just coming to life
            kind = left.stem.rpartition("_")[0]
            if left.suffix == ".db" and kind in LASTING:
                self.add_to_dead(kind, left)
            left.unlink(missing_ok=True)

    def add_to_dead(self, kind: str, left: Path) -> None:
        dead = self.folder / f"{kind}_{DEAD}.db"
        found = [path for path in (dead, left) if path.exists()]
        self.made(kind, DEAD, merged(found, accumulate=False)).close()

    def lives(self, name: str) -> bool:
        """Whether somebody holds the lock, we ourselves included."""
        try:
            found = os.open(self.folder / f"{name}.live", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(found, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(found)

    def anybody_lives(self) -> bool:
        return any(self.lives(sign.stem) for sign in self.folder.glob("*.live"))

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client's registries: what counts of every process that was, and the gauges of the living."""
        with locked(self.folder, fcntl.LOCK_SH):
            return merged([path for path in self.folder.glob("*.db") if self.counts(path)])

    def counts(self, path: Path) -> bool:
        kind, _, name = path.stem.rpartition("_")
        return kind in LASTING or self.lives(name)

    def leave(self) -> None:
        """Gauges end with the process; what was counted stays."""
        values.write_into({})
        for book in self.books.values():
            book.close()
        if self.sign_of_life is not None:
            os.close(self.sign_of_life)
            self.sign_of_life = None


def merged(found: Iterable[Path], *, accumulate: bool = True) -> list[Metric]:
    """What files say together; one that cannot be read costs no more than itself."""
    names = sorted(map(str, found))
    try:
        return list(MultiProcessCollector.merge(names, accumulate))
    except Unreadable:
        return list(MultiProcessCollector.merge(list(filter(is_readable, names)), accumulate))


def is_readable(name: str) -> bool:
    try:
        MultiProcessCollector.merge([name])
    except Unreadable as error:
        logger.warning("metrics.file_unreadable", file=name, error=repr(error))
        return False
    return True


def age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def locked(folder: Path, kind: int) -> Iterator[bool]:
    """Whether the folder's lock was had; whoever holds it longer than a second is stopped, and is not waited for."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield taken_within(lock, kind, LOCK_SECONDS)
    finally:
        os.close(lock)


def taken_within(lock: int, kind: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True


def group_of(settings: MetricsSettings, role: str) -> Group | None:
    """The group of this process: those of its role that share METRICS_DIR, else of one `--workers` or `--processes`.

    None for a process that is alone: its numbers are in memory.
    """
    if settings.dir:
        return Group(Path(settings.dir) / role)
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return None
    return Group(own_folder() / f"{role}-{parent.pid}-{started_at(parent.pid)}")


def own_folder() -> Path:
    """A folder that nobody else can write to, without what is left of groups that have ended.

    Raises: OSError when somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"longrun-metrics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else")
    for group in folder.iterdir():
        _, _, leader = group.name.partition("-")
        pid, _, started = leader.partition("-")
        if pid.isdecimal() and str(started_at(int(pid))) != started and not Group(group).anybody_lives():
            shutil.rmtree(group, ignore_errors=True)
    return folder


def started_at(pid: int) -> int:
    """When a process began, in ticks since the machine did; 0 when there is none."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0
