"""Sandboxes as containers of a Docker engine on this machine."""

import asyncio
import json
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from services.log import logger
from services.runs.fence import Fence
from services.sandbox import admission, client, container, idle, places, syscalls
from services.sandbox.engine import Engine
from services.sandbox.isolation import ENVIRONMENT
from services.sandbox.packing import packed
from services.sandbox.places import Place
from services.sandbox.protocol import Sandbox, SandboxUnavailable, Spec
from services.sandbox.wishes import Wish, no_wish, spec_for
from services.settings import SandboxSettings

START_WITHIN = 20.0
END_WITHIN = 1.0
POLL = 0.02
INSPECT_EVERY = 0.5
KILLED = 137


class Docker:
    """`protocol.SandboxProvider` for a Docker engine that sees SANDBOX_DIR under the same path.

    What a container keeps is its volume. The container itself is made anew at each start: there is nothing else in it.
    """

    def __init__(self, settings: SandboxSettings, wish: Wish = no_wish) -> None:
        self.settings, self.wish = settings, wish
        self.root = Path(settings.folder).absolute()
        self.engine = Engine(settings.docker_url)

    async def open(self, project_id: UUID, fence: Fence | None = None, spec: Spec | None = None) -> Sandbox:
        place = places.of(self.root, project_id)

        async def start() -> None:
            wanted = spec or spec_for(self.settings, await self.wish(project_id))
            await asyncio.to_thread(self.start, place, wanted)

        opened = client.Client(place.folder, fence, start, lambda: self.ended_because(place))
        await asyncio.to_thread(admission.admit, place, fence)
        await opened.ask("hello")
        return opened

    def start(self, place: Place, spec: Spec) -> None:
        """Start it unless it runs. Blocks for as long as that takes.

        Raises: SandboxUnavailable.
        """
        place.make()
        with place.locked():
            if place.accepts():
                return
            name = name_of(place)
            self.engine.remove(name)
            self.lay_out(place, spec)
            if not self.engine.create(name, self.configuration(place, spec)):
                self.until_somebody_has(place)
                return
            self.engine.start(name)
            self.until_ready(place)
        logger.info("sandbox.started", project_id=place.folder.name)

    def lay_out(self, place: Place, spec: Spec) -> None:
        """The folder that worker and container share while it starts: the agent makes its socket in it."""
        shared = shared_folder(place)
        begins = {
            "env": ENVIRONMENT,
            "bind": f"{container.SHARED}/s",
            "fences": place.recall("fences"),
            "processes": self.settings.processes,
            "seccomp": syscalls.program().hex(),
            "memory": spec.memory_bytes,
            "disk": spec.disk_bytes,
        }
        try:
            (place.folder / "s").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(shared)
            shared.mkdir()
            (shared / "begin").write_text(json.dumps(begins))
            (shared / "begin").chmod(0o644)
            (shared / "agent").write_bytes(packed("guest"))
            (shared / "agent").chmod(0o644)
            shared.chmod(0o703)
        except OSError as error:
            raise SandboxUnavailable(f"No sandbox: {shared} cannot be made anew ({error.strerror}).") from error

    def configuration(self, place: Place, spec: Spec) -> dict[str, object]:
        user = places.user_of(UUID(place.folder.name), self.settings.uid_base)
        return container.configuration(
            self.settings.image, user, spec, self.settings.processes, str(shared_folder(place)), name_of(place)
        )

    def until_ready(self, place: Place) -> None:
        """Wait for the agent's socket, and take it out of the container's reach: nothing inside can put another
        in its place, or speak to the agent."""
        shared, name = shared_folder(place), name_of(place)
        deadline, inspect_at = time.monotonic() + START_WITHIN, time.monotonic() + INSPECT_EVERY
        while not is_socket(shared / "s") or not accepts(shared):
            now = time.monotonic()
            if now > deadline or (now > inspect_at and not self.runs(name)):
                raise SandboxUnavailable(f"No sandbox: its container did not become ready ({self.why_not(name)}).")
            inspect_at = inspect_at if now <= inspect_at else now + INSPECT_EVERY
            time.sleep(POLL)
        shared.chmod(0o700)
        taken = place.folder / "s.new"
        (shared / "s").rename(taken)
        if not is_socket(taken):  # a link would lead whoever connects to where the container likes
            self.engine.remove(name)
            raise SandboxUnavailable("No sandbox: its container made something else than a socket.")
        taken.rename(place.folder / "s")

    def until_somebody_has(self, place: Place) -> None:
        """Wait for the container that another process is starting."""
        deadline = time.monotonic() + START_WITHIN
        while not place.accepts():
            if time.monotonic() > deadline:
                raise SandboxUnavailable(
                    f"No sandbox: there is another container {name_of(place)}, which does not answer here; "
                    "remove it, and let all workers share SANDBOX_DIR."
                )
            time.sleep(POLL)

    def runs(self, name: str) -> bool:
        state = self.engine.state(name)
        return state is not None and bool(state["Running"])

    def why_not(self, name: str) -> str:
        """What its container said, which is removed."""
        running, said = self.runs(name), self.engine.log(name)
        self.engine.remove(name)
        silent = f"the engine must see {self.root} under the same path" if running else "it ended without a word"
        return said or silent

    def ended_because(self, place: Place) -> str:
        """Why it was ended, for the first who asks; empty for others, and when nobody knows."""
        if not place.folder.is_dir():
            return ""
        with place.locked():
            name = name_of(place)
            state = self.engine.state(name)
            if state is None or state["Running"]:
                return ""
            said = self.engine.log(name)
            self.engine.remove(name)
        if state.get("OOMKilled") and state.get("ExitCode") == KILLED:
            return "the sandbox used more than its memory"
        return said.rpartition("the sandbox ends: ")[2]

    async def stop(self, project_id: UUID) -> None:
        await asyncio.to_thread(self.end, places.of(self.root, project_id))

    async def delete(self, project_id: UUID) -> None:
        await asyncio.to_thread(self.remove, places.of(self.root, project_id))

    def end(self, place: Place) -> None:
        if place.folder.is_dir():
            with place.locked():
                self.engine.remove(name_of(place))

    def remove(self, place: Place) -> None:
        if place.folder.is_dir():
            with place.locked():
                self.engine.remove(name_of(place))
                self.engine.remove_volume(name_of(place))
                place.remove()

    async def reap(self, idle_seconds: float) -> list[UUID]:
        ended = await idle.end(self.root, idle_seconds)
        for project_id in ended:
            await asyncio.to_thread(self.clear, places.of(self.root, project_id))
        return ended

    def clear(self, place: Place) -> None:
        """Remove the container of a sandbox that is about to end, unless somebody has started it again."""
        if not place.folder.is_dir():
            return
        deadline = time.monotonic() + END_WITHIN
        with place.locked():
            while place.accepts():
                if time.monotonic() > deadline:
                    return
                time.sleep(POLL)
            self.engine.remove(name_of(place))


def name_of(place: Place) -> str:
    return f"sandbox_{place.folder.name}"


def shared_folder(place: Place) -> Path:
    return place.folder / "run"


def is_socket(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def accepts(folder: Path) -> bool:
    return Place(folder).accepts()
