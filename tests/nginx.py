"""A real nginx with the configuration that we ship: its own, or Debian's, unpacked without installing it."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.embedded import debian, dependencies, ports, probes
from services.embedded.child import Child, Spec
from services.embedded.environment import CHECKOUT, for_a_server
from tests.certificates import write_self_signed

SHIPPED = CHECKOUT / "docs" / "deploy" / "nginx"
CACHE = CHECKOUT / ".longrun" / "cache" / "nginx"
NOT_NEEDED = ("nginx-common", "iproute2")
"""Services of the system and a default configuration."""
REFUSING = "127.0.0.1:1"


@dataclass
class Nginx:
    """nginx in `folder`, before the API processes (and the preview) at these addresses, host:port.

    `changes` replaces words of the shipped files, such as a timeout; each must be there.
    """

    folder: Path
    apis: tuple[str, str]
    preview: str = REFUSING
    changes: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: ports.pick(set()))
    tls_port: int = field(default_factory=lambda: ports.pick(set()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def configuration(self) -> Path:
        return self.folder / "configuration" / "nginx.conf"

    @property
    def access_log(self) -> list[str]:
        return (self.folder / "access.log").read_text().splitlines()

    def write(self) -> None:
        """The shipped files, all that is optional with them, with addresses of this machine."""
        target = self.configuration.parent
        shutil.copytree(SHIPPED, target, dirs_exist_ok=True)
        for optional in ("tls.conf", "previews.conf"):
            (target / optional).rename(target / f"longrun-{optional}")
        for name in ("longrun", "previews"):
            write_self_signed(self.folder, name)
        texts = {path: path.read_text() for path in target.rglob("*.conf")}
        for before, after in {**self.places, **self.changes}.items():
            assert any(before in text for text in texts.values()), f"{before!r} is not in the configuration"
            texts = {path: text.replace(before, after) for path, text in texts.items()}
        for path, text in texts.items():
            path.write_text(text)

    @property
    def places(self) -> dict[str, str]:
        return {
            "/tmp/": f"{self.folder}/",
            "api-1:8000": self.apis[0],
            "api-2:8000": self.apis[1],
            "preview:8002": self.preview,
            "listen 8080": f"listen 127.0.0.1:{self.port}",
            "listen 8443": f"listen 127.0.0.1:{self.tls_port}",
            "listen 8081": f"listen 127.0.0.1:{ports.pick({self.port, self.tls_port})}",
            "/etc/nginx/conf.d": str(self.configuration.parent),
            "/etc/nginx/certificates": str(self.folder),
            "/dev/stdout": str(self.folder / "access.log"),
        }

    def command(self, program: Path, *options: str) -> list[str | Path]:
        user = "user root; " if os.geteuid() == 0 else ""  # its folder is nobody else's
        where = ["-e", "stderr", "-p", str(self.folder), "-c", str(self.configuration)]
        return [program, *where, "-g", f"{user}daemon off;", *options]

    async def spec(self) -> Spec:
        root = await unpacked(self.folder / "apt.log")
        return Spec(
            name="nginx",
            argv=self.command(program_in(root)),
            env=environment(root),
            cwd=self.folder,
            log=self.folder / "nginx.log",
            ready=probes.listening(self.port),
        )

    async def test(self) -> str:
        """What `nginx -t` says. Raises: AssertionError when it refuses the configuration."""
        root = await unpacked(self.folder / "apt.log")
        argv = self.command(program_in(root), "-t")
        done = await asyncio.to_thread(subprocess.run, argv, env=environment(root), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr


@asynccontextmanager
async def running(nginx: Nginx) -> AsyncIterator[Nginx]:
    nginx.write()
    child = Child(await nginx.spec())
    child.start()
    try:
        await child.until_ready()
        yield nginx
    finally:
        await child.stop()


async def unpacked(log: Path) -> Path | None:
    """The folder of Debian's packages; None where the machine has nginx. Raises: EmbeddedError."""
    return None if on_the_machine() else await debian.unpack(["nginx"], CACHE, log, resolve=resolve)


async def resolve(packages: Sequence[str], options: Sequence[str]) -> Sequence[str]:
    return await dependencies.missing(packages, NOT_NEEDED, options)


def on_the_machine() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def program_in(root: Path | None) -> Path:
    return root / "usr/sbin/nginx" if root else Path(on_the_machine() or "nginx")


def environment(root: Path | None) -> dict[str, str]:
    folders = [str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu"))] if root else []
    return for_a_server({"LD_LIBRARY_PATH": ":".join(folders)} if folders else {})


def upstream_of(line: str) -> str:
    """Which API process answered the request of this line of the access log."""
    found = re.search(r"upstream=(?:.*, )?(\S+) ", line)
    assert found, line
    return found[1]
