"""Stores of the lab's own, each with a power switch: stop, kill, pause, forget."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from services.embedded import postgres, rabbitmq, valkey
from services.embedded.child import Child, Spec
from services.embedded.console import EmbeddedError
from services.embedded.orphans import descendants
from services.embedded.state import State, is_locked, open_state

OUR_DATABASE = 0
DISK_BYTES = 400 << 20


class Server:
    """One server process and what it forked. Started again it keeps its data and its port."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.child = Child(spec)

    @property
    def pids(self) -> list[int]:
        process = self.child.process
        return [process.pid, *descendants(process.pid)] if process and self.child.exit_code is None else []

    async def start(self) -> None:
        """As a supervisor does, again and again: what a killed one has forked may still be in the way for a moment."""
        for pause in (0.5, 1.0):
            with suppress(EmbeddedError):
                await self.start_once()
                return
            await asyncio.sleep(pause)
        await self.start_once()

    async def start_once(self) -> None:
        self.child = Child(self.spec)
        self.child.start()
        await self.child.until_ready()

    async def stop(self) -> None:
        """As an operator stops it."""
        self.resume()
        await self.child.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def kill(self) -> None:
        """kill -9 of all of it at once: nothing is said, flushed or closed."""
        self.signal(signal.SIGKILL)
        if self.child.process:
            await self.child.exited()

    def pause(self) -> None:
        """It keeps its connections and answers nothing, as a machine that swaps or a disk that hangs."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Rabbit(Server):
    """A RabbitMQ node with its command line."""

    @property
    def log(self) -> str:
        """What the node has said so far."""
        assert self.spec.log
        return self.spec.log.read_text(errors="replace")

    @property
    def program(self) -> Path:
        return Path(self.spec.argv[0]).with_name("rabbitmqctl")

    async def kill(self) -> None:
        await super().kill()
        await asyncio.sleep(0.5)  # the port mapper has to notice that the name is free again

    async def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl`, which takes about two seconds. Raises: AssertionError with what it said."""
        done = await asyncio.to_thread(self.run, ["--longnames", "-n", self.spec.env["RABBITMQ_NODENAME"], *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program, *arguments],
            env=dict(self.spec.env),
            cwd=self.spec.cwd,
            capture_output=True,
            text=True,
            timeout=120,
        )


class Disk:
    """Where PostgreSQL keeps its data: a small file system of its own where we may mount one, which can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False

    def mount(self) -> None:
        self.folder.mkdir(parents=True)
        if os.geteuid() != 0:
            return
        unmount_abandoned()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=711", "longrun-lab", str(self.folder)]
        self.mounted = subprocess.run(mounting, capture_output=True).returncode == 0

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(1 << 20))
        with (self.folder / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(1 << 12))

    def free(self) -> None:
        (self.folder / "ballast").unlink()


def unmount_abandoned() -> None:
    """Take away what labs that were killed have left; one that has no state yet is just being made."""
    for line in Path("/proc/mounts").read_text().splitlines():
        source, folder = line.split()[:2]
        if source != "longrun-lab" or not (Path(folder) / "state").exists():
            continue
        if not is_locked(Path(folder) / "state"):
            subprocess.run(["umount", "--lazy", folder], check=True)
            shutil.rmtree(Path(folder).parent, ignore_errors=True)


class Servers:
    """PostgreSQL that keeps what it committed, Valkey and RabbitMQ, on ports and data of the lab's own."""

    def __init__(self, state: State, disk: Disk, disk_state: State, specs: Sequence[Spec]) -> None:
        self.state, self.disk, self.disk_state = state, disk, disk_state
        database, redis, epmd, node = specs
        self.postgres, self.valkey = Server(database), Server(redis)
        self.epmd, self.rabbitmq = Server(epmd), Rabbit(node)

    @classmethod
    async def prepare(cls, folder: Path) -> "Servers":
        """Raises: EmbeddedError."""
        disk = Disk(folder / "disk")
        disk.mount()
        state, disk_state = open_state(folder / "state"), open_state(disk.folder / "state")
        database = await postgres.prepare(disk_state)
        # A killed process loses nothing that the kernel has: only waiting for the disk is left out.
        unsynced = replace(database, argv=[*database.argv, "-c", "fsync=off"])
        specs = [unsynced, valkey.prepare(state, fast=True), *await rabbitmq.prepare(state)]
        return cls(state, disk, disk_state, specs)

    @property
    def all(self) -> Sequence[Server]:
        return (self.postgres, self.valkey, self.epmd, self.rabbitmq)

    @property
    def database_url(self) -> str:
        return postgres.url(self.disk_state.port("postgres"), self.disk_state.password)

    @property
    def redis_url(self) -> str:
        return valkey.url(self.state.port("valkey"), self.state.password, OUR_DATABASE)

    @property
    def rabbitmq_url(self) -> str:
        return rabbitmq.url(self.state.port("rabbitmq"), self.state.password)

    async def forget(self) -> None:
        """Valkey comes back with nothing of what it held."""
        await self.valkey.kill()
        for part in (self.state.folder / "valkey" / "appendonlydir").glob("*"):
            part.unlink()
        await self.valkey.start()

    async def up(self) -> None:
        """Start what does not run, the port mapper before its node."""
        for server in self.all:
            if not server.pids:
                await server.start()
            server.resume()

    async def down(self) -> None:
        for server in reversed(self.all):
            await server.kill()
        self.state.close()
        self.disk_state.close()
        self.disk_state.destroy()
        self.disk.unmount()

    def versions(self) -> dict[str, str]:
        """What runs here, by name."""
        said = {
            "PostgreSQL": subprocess.check_output([self.postgres.spec.argv[0], "--version"], text=True),
            "Valkey": subprocess.check_output([self.valkey.spec.argv[0], "--version"], text=True),
            "RabbitMQ": str(self.rabbitmq.spec.argv[0]),
        }
        found = {name: re.search(r"\d+(\.\d+)+", text) for name, text in said.items()}
        return {name: match[0] for name, match in found.items() if match}
