"""Sandboxes on this machine, by bubblewrap: user, pid, network and mount namespaces, and a system call filter."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

from services.log import logger
from services.runs.fence import Fence
from services.sandbox import admission, client, idle, isolation, places, syscalls
from services.sandbox.guest.fences import Fences
from services.sandbox.packing import FOLDER, packed
from services.sandbox.places import Place
from services.sandbox.protocol import Sandbox, SandboxUnavailable, Spec
from services.sandbox.wishes import Wish, no_wish, spec_for
from services.settings import SandboxSettings

BEGIN = "import sys; sys.path.append(sys.argv[1]); from monitor.main import main; main()"
UPLINK = Path(__file__).with_name("uplink.py")
START_WITHIN = 15.0


class Bubblewrap:
    """`protocol.SandboxProvider` for one machine."""

    def __init__(self, settings: SandboxSettings, wish: Wish = no_wish) -> None:
        self.settings, self.wish = settings, wish
        self.root = Path(settings.folder).absolute()

    async def open(self, project_id: UUID, fence: Fence | None = None, spec: Spec | None = None) -> Sandbox:
        place = places.of(self.root, project_id)

        async def start() -> None:
            wanted = spec or spec_for(self.settings, await self.wish(project_id))
            await asyncio.to_thread(self.start, place, fence, wanted)

        opened = client.Client(place.folder, fence, start, place.ended_because)
        await asyncio.to_thread(admission.admit, place, fence)
        await opened.ask("hello")
        return opened

    def start(self, place: Place, fence: Fence | None, spec: Spec) -> None:
        """Start it unless it runs. Blocks for as long as that takes.

        Raises: SandboxUnavailable.
        """
        place.make()
        with place.locked():
            if place.answers():
                return
            configuration = self.configuration(place, spec)
            try:
                said = launched(configuration)
            except subprocess.TimeoutExpired:
                said = f"it said nothing for {START_WITHIN:g} seconds"
            if said != "ready":
                raise SandboxUnavailable(f"No sandbox: it did not start ({said}).")
        logger.info("sandbox.started", project_id=place.folder.name)

    def configuration(self, place: Place, spec: Spec) -> dict[str, object]:
        cores = sorted(os.sched_getaffinity(0))
        first = hash(place.folder.name) % len(cores)
        return {
            "folder": str(place.folder),
            "bwrap": self.program(),
            "arguments": isolation.arguments(spec.memory_bytes),
            "files": isolation.files(network=spec.network),
            "archive": {"path": isolation.AGENT, "content": packed("guest").hex()},
            "browser": self.browser(),
            "uplink": self.uplink() if spec.network else None,
            "seccomp": syscalls.program().hex(),
            "command": isolation.command(),
            "agent": {"processes": self.settings.processes, "fences": Fences(place.recall("fences")).known},
            "uid": places.user_of(UUID(place.folder.name), self.settings.uid_base) if os.geteuid() == 0 else 0,
            "cpus": spec.cpus,
            "memory": spec.memory_bytes,
            "disk": spec.disk_bytes,
            "cores": [cores[(first + each) % len(cores)] for each in range(max(1, round(spec.cpus)))],
        }

    def program(self) -> str:
        """Raises: SandboxUnavailable when there is no bubblewrap."""
        found = self.settings.bwrap or shutil.which("bwrap")
        if not found or not os.access(found, os.X_OK):
            raise SandboxUnavailable("No sandbox: bubblewrap is missing; install it, or name it by SANDBOX_BWRAP.")
        return found

    def browser(self) -> str:
        """Raises: SandboxUnavailable when the folder that is named is none."""
        folder = self.settings.browser and str(Path(self.settings.browser).absolute())
        if folder and not os.path.isdir(folder):
            raise SandboxUnavailable(f"No sandbox: SANDBOX_BROWSER names {folder}, which is no folder.")
        return folder

    def uplink(self) -> dict[str, str]:
        """Raises: SandboxUnavailable when there is no slirp4netns."""
        found = self.settings.slirp or shutil.which("slirp4netns")
        if not found or not os.access(found, os.X_OK):
            raise SandboxUnavailable(
                "No sandbox: this project's has a network, for which slirp4netns is missing; install it, or name it by "
                "SANDBOX_SLIRP, or close the network."
            )
        libraries = [str(path.parent) for path in Path(found).absolute().parents[1].glob("lib/*/libslirp.so.0")]
        return {"slirp": found, "libraries": (libraries or [""])[0], "program": UPLINK.read_text()}

    async def stop(self, project_id: UUID) -> None:
        await asyncio.to_thread(stop, places.of(self.root, project_id))

    async def delete(self, project_id: UUID) -> None:
        await asyncio.to_thread(delete, places.of(self.root, project_id))

    async def reap(self, idle_seconds: float) -> list[UUID]:
        return await idle.end(self.root, idle_seconds)


def launched(configuration: dict[str, object]) -> str:
    """Start a monitor in a session of its own; what it says."""
    process = subprocess.run(  # noqa: S603 - our own file
        [isolation.python(), "-I", "-S", "-c", BEGIN, str(FOLDER)],
        input=json.dumps(configuration).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin"},
        start_new_session=True,
        timeout=START_WITHIN,
        check=False,
    )
    return process.stdout.decode(errors="replace")


def stop(place: Place) -> None:
    if place.folder.is_dir():
        with place.locked():
            place.end()


def delete(place: Place) -> None:
    if place.folder.is_dir():
        with place.locked():
            place.end()
            place.remove()
