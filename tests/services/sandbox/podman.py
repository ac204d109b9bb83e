"""A Docker-compatible engine of the tests' own: Debian's podman and runc, unpacked, never installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.embedded import debian
from services.embedded.environment import CHECKOUT, for_a_tool

CACHE = CHECKOUT / ".longrun" / "cache" / "podman"
PACKAGES = (
    "podman", "conmon", "runc", "golang-github-containers-common", "golang-github-containers-image", "libgpgme11",
    "libassuan0", "libsubid4", "libglib2.0-0", "libdevmapper1.02.1", "libseccomp2",
)  # fmt: skip
DRIVERS = ("overlay", "vfs")
"""Overlay is quicker; where the folder itself is on an overlay only the other works."""
CONFIGURATION = """
[containers]
seccomp_profile = "{packages}/usr/share/containers/seccomp.json"
default_ulimits = ["nofile=4096:4096", "nproc=512:512"]
[engine]
lock_type = "file"
conmon_path = ["{packages}/usr/bin/conmon"]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
[engine.runtimes]
runc = ["{packages}/usr/sbin/runc"]
[network]
network_backend = "cni"
network_config_dir = "{folder}/networks"
"""
STORAGE = '[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'


class Podman:
    """Everything of it, images and containers included, is in one folder."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self.packages, self.folder = packages, folder
        self.socket = folder / "podman.sock"
        policy = folder / "home/.config/containers/policy.json"
        policy.parent.mkdir(parents=True)
        shutil.copy(packages / "etc/containers/policy.json", policy)
        (folder / "containers.conf").write_text(CONFIGURATION.format(packages=packages, folder=folder))

    @property
    def env(self) -> dict[str, str]:
        return {
            **for_a_tool(),
            "HOME": str(self.folder / "home"),
            "XDG_CONFIG_HOME": str(self.folder / "home/.config"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "LD_LIBRARY_PATH": ":".join(map(str, self.packages.glob("**/lib/*-linux-gnu"))),
            "PATH": f"{self.packages}/usr/bin:{self.packages}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = self.packages / "usr/bin/podman"
        return subprocess.run(
            [program, *arguments], env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def load(self, tar: Path, image: str) -> None:
        """Import an image, with the first storage driver that can."""
        for driver in DRIVERS:
            (self.folder / "storage.conf").write_text(STORAGE.format(driver=driver, folder=self.folder))
            said = self.run("import", tar, image)
            if said.returncode == 0:
                return
            shutil.rmtree(self.folder / "storage", ignore_errors=True)
        raise AssertionError(f"podman takes no image: {said.stderr}")

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The URL of its API; what containers it has are removed at the end."""
        url = f"unix://{self.socket}"
        with (self.folder / "service.log").open("wb") as log:
            service = subprocess.Popen(
                [self.packages / "usr/bin/podman", "system", "service", "--time", "0", url],
                env=self.env,
                cwd=self.folder,  # conmon leaves files where it was started
                stdout=log,
                stderr=log,
            )
        try:
            until_listening(self.socket)
            yield url
        finally:
            self.run("rm", "--all", "--force", "--time", "0")
            service.terminate()
            service.wait(10)


def until_listening(path: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket(socket.AF_UNIX) as made:
            try:
                made.connect(str(path))
            except OSError:
                assert time.monotonic() < deadline, f"nobody listens at {path}"
                time.sleep(0.05)
            else:
                return


async def unpacked(log: Path) -> Path:
    os.makedirs(CACHE.parent, exist_ok=True)
    return await debian.unpack(PACKAGES, CACHE, log)
