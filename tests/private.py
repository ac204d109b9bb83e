"""Servers of one test's own, for what no other test may see."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from services.embedded import valkey
from services.embedded.child import Child
from services.embedded.state import State, open_state

PASSWORD = "the-same-for-all"


@dataclass(frozen=True)
class Valkey:
    """A server that may be stopped and started again; `admin` speaks to it directly."""

    url: str
    child: Child
    admin: Redis

    async def kill(self) -> None:
        """As kill -9 does, with its disk."""
        self.child.signal(signal.SIGKILL)
        await self.child.exited()
        for left in self.child.spec.cwd.glob("appendonlydir/*"):
            left.unlink()

    async def start_again(self) -> None:
        self.child.start()
        await self.child.until_ready()

    async def replicate(self, master: "Valkey") -> None:
        """Become a replica of `master`, with all that it holds."""
        host, port = address(master.url)
        await master.admin.config_set("repl-diskless-sync-delay", 0)
        await self.admin.config_set("primaryauth", PASSWORD)
        await self.admin.execute_command("REPLICAOF", host, port)

    async def promote(self) -> None:
        await self.admin.execute_command("REPLICAOF", "NO", "ONE")

    async def in_step(self) -> bool:
        info = await self.admin.info("replication")
        return bool(info.get("master_link_status") == "up" and not info.get("master_sync_in_progress"))


def address(url: str) -> tuple[str, int]:
    host, port = url.rpartition("@")[2].split("/")[0].split(":")
    return host, int(port)


@asynccontextmanager
async def private_valkey(database: int = 0) -> AsyncIterator[Valkey]:
    folder = Path(tempfile.mkdtemp(prefix="longrun-valkey-"))
    state = open_state(folder / "state")
    try:
        async with started(state, database) as server:
            yield server
    finally:
        state.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def started(state: State, database: int) -> AsyncIterator[Valkey]:
    state.known["password"] = PASSWORD
    child = Child(valkey.prepare(state, fast=True))
    child.start()
    try:
        await child.until_ready()
        url = valkey.url(state.port("valkey"), PASSWORD, database)
        async with Redis.from_url(url) as admin:
            yield Valkey(url, child, admin)
    finally:
        await child.stop()
