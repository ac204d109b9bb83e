"""Debian's packages, unpacked into a folder as any user, without installing them."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.embedded.child import Spec, run_to_end, until
from services.embedded.console import EmbeddedError
from services.embedded.environment import for_a_tool

DOWNLOAD_WITHIN = 300.0
Resolve = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[str]]]


async def as_named(packages: Sequence[str], _options: Sequence[str]) -> Sequence[str]:
    """These and no others."""
    return packages


def unchanged(unpacking: Path, target: Path) -> None:
    """Nothing to adapt."""


async def unpack(
    packages: Sequence[str],
    target: Path,
    log: Path,
    *,
    adapt: Callable[[Path, Path], None] = unchanged,
    resolve: Resolve = as_named,
) -> Path:
    """Download `packages` and unpack them into `target`, once; `adapt(unpacking, target)` may change files first.

    `resolve` says which packages these come down to, given apt's options. Returns `target`.
    Raises: EmbeddedError when there is no apt here or the download fails.
    """
    if not is_there(target):
        require_apt(packages[0])
        with lock_beside(target) as lock:
            await until(lambda: is_there(target) or taken(lock))
            if not is_there(target):
                await download_and_unpack(packages, target, log, adapt, resolve)
    return target


def is_there(target: Path) -> bool:
    return target.exists()


def require_apt(package: str) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise EmbeddedError(f"{package} is not installed here and cannot be fetched without apt; install it")


@contextmanager
def lock_beside(target: Path) -> Iterator[int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(target.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def taken(lock: int) -> bool:
    """Take the lock when nobody holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def download_and_unpack(
    packages: Sequence[str], target: Path, log: Path, adapt: Callable[[Path, Path], None], resolve: Resolve
) -> None:
    work = Path(tempfile.mkdtemp(prefix="unpacking-", dir=target.parent))
    try:
        await download(packages, work, log, resolve)
        root = work / "root"
        for package in packages_in(work):
            await run_to_end(tool(["dpkg-deb", "--extract", package, root], work, log))
        adapt(root, target)
        root.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def packages_in(work: Path) -> list[Path]:
    return sorted(work.glob("*.deb"))


async def download(packages: Sequence[str], work: Path, log: Path, resolve: Resolve) -> None:
    """With the machine's package lists, or, when they are missing or stale, with lists of our own, as any user may."""
    try:
        options = private_apt(work, own_lists=False)
        await run_to_end(tool(["apt-get", *options, "download", *await resolve(packages, options)], work, log))
    except EmbeddedError:
        own = private_apt(work, own_lists=True)
        await run_to_end(tool(["apt-get", *own, "update"], work, log))
        await run_to_end(tool(["apt-get", *own, "download", *await resolve(packages, own)], work, log))


def private_apt(work: Path, *, own_lists: bool) -> list[str]:
    """Options that keep apt's files in `work`."""
    for folder in ("cache/archives/partial", "lists/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "-o", f"Dir::Cache={work / 'cache'}", "-o", "APT::Sandbox::User="]
    return options + (["-o", f"Dir::State::Lists={work / 'lists'}"] if own_lists else [])


def tool(argv: Sequence[str | Path], work: Path, log: Path) -> Spec:
    return Spec(name=str(argv[0]), argv=argv, env=for_a_tool(), cwd=work, log=log, ready_within=DOWNLOAD_WITHIN)
