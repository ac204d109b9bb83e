"""The lab: private stores, two APIs and several workers, a load on them, and the clock of a recovery."""

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import asyncpg
from pydantic import SecretStr

from services.broker import make_broker, run_message
from services.embedded import ports
from services.settings import BrokerSettings, Settings
from tests.acceptance import operators
from tests.acceptance.client import Client, follow, until
from tests.acceptance.operators import SECRET, Deployment, Operated
from tests.faults.load import Load, Rotation, Watched, accepted
from tests.faults.servers import Servers
from tests.forks import ForkServer
from tests.waiting import eventually

APIS = 2
TABLES = ("agent_runs", "agent_run_event_blocks", "messages", "threads", "projects")
REFUSE_ROWS = "\n".join(
    [
        "CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;",
        *(
            f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION refuse_rows();"
            for table in TABLES
        ),
    ]
)
SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class Scale:
    """Settings of API and workers, and what an outage of so many real seconds lasts here, `longest` at most.

    `boot`: what they take to start beside what they take as an operator starts them.
    """

    names: dict[str, str]
    factor: float = 1.0
    longest: float = math.inf
    boot: float = 1.0

    def seconds(self, real: float) -> float:
        return min(real * self.factor, self.longest)


SCALED = Scale(
    {
        **operators.SCALED,
        "REDIS_SOCKET_TIMEOUT": "0.5s",
        "REDIS_CONNECT_TIMEOUT": "0.5s",
        "REDIS_PING_INTERVAL": "0.5s",
        "POSTGRES_COMMAND_TIMEOUT": "1s",
        "POSTGRES_CONNECT_TIMEOUT": "0.5s",
        "RABBITMQ_HEARTBEAT": "5s",
        "RABBITMQ_BLOCKED_CONNECTION_TIMEOUT": "1s",
        "RABBITMQ_SOCKET_TIMEOUT": "1s",
        "RABBITMQ_STACK_TIMEOUT": "2s",
        "RABBITMQ_CONNECTION_ATTEMPTS": "1",
    },
    factor=0.1,
    longest=6.0,
    boot=0.4,
)
"""A tenth of the real durations; what lasts for minutes, four times as long as a driver may be silent."""
REAL = Scale({})


@dataclass(frozen=True)
class Struck:
    """What a fault says of itself: the runs that must be taken over, and since when (now) a recovery counts."""

    runs: list[Watched] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Recovery:
    """Seconds until all was well, and those after which each struck run was driven again."""

    seconds: float
    taken_over: list[float]


@dataclass
class Lab:
    servers: Servers
    deployment: Deployment
    scale: Scale
    workers: int
    threads: int
    client: Client = field(init=False)
    load: Load = field(init=False)

    def seconds(self, real: float) -> float:
        """How long an outage of `real` seconds lasts here."""
        return self.scale.seconds(real)

    @asynccontextmanager
    async def signed_in(self) -> AsyncIterator[None]:
        """A client that any of the APIs serves, on the event loop of whoever asks."""
        rotation = Rotation(lambda: [api.port for api in self.deployment.apis])
        async with Client.signed_in("http://127.0.0.1", SECRET, transport=rotation) as self.client:
            self.load = Load(self.client)
            yield

    async def whole(self, spare_apis: int = 0, spare_workers: int = 0) -> None:
        """Start whatever a fault has ended, end what is too many, and have so many more stand by."""
        await self.servers.up()
        apis, workers = APIS + spare_apis, self.workers + spare_workers
        for surplus in (*self.deployment.apis[apis:], *self.deployment.workers[workers:]):
            surplus.end()
        await asyncio.gather(
            *(self.deployment.start_api(ports.pick(set())) for _ in range(apis - len(self.deployment.apis))),
            self.deployment.start_workers(workers - len(self.deployment.workers), threads=self.threads),
        )

    def new_load(self, *, chunks: int, delay_ms: int, readers: int) -> Load:
        self.load = Load(self.client, chunks, delay_ms, readers)
        return self.load

    async def driven_by(self, *workers: Operated) -> list[Watched]:
        """The runs of the load that these workers drive now."""
        rows = await self.deployment.rows(
            "SELECT id FROM agent_runs WHERE status = 'running' AND instance_id = ANY($1)",
            [instance for worker in workers for instance in worker.instances],
        )
        ids = {str(row["id"]) for row in rows}
        return [one for one in self.load.live if one.started.run_id in ids]

    async def busiest(self) -> tuple[Operated, list[Watched]]:
        """The worker that drives the most runs of the load, and those."""

        async def look() -> tuple[Operated, list[Watched]] | None:
            driven = [(worker, await self.driven_by(worker)) for worker in self.deployment.workers]
            worker, runs = max(driven, key=lambda pair: len(pair[1]))
            return (worker, runs) if runs else None

        return cast(tuple[Operated, list[Watched]], await until(look, within=SETTLE_SECONDS, says="no run is live"))

    async def all_completed(self, run_ids: Sequence[str]) -> None:
        runs = await asyncio.gather(*(self.client.get(run_id, wait_seconds=60) for run_id in run_ids))
        assert {run["status"] for run in runs} == {"completed"}, runs

    async def attempts(self, run_ids: Sequence[str]) -> list[int]:
        return [(await self.client.get(run_id))["attempt"] for run_id in run_ids]

    async def send(self, run_ids: Sequence[str]) -> None:
        """Messages for these runs, as a publisher that repeats itself would send them."""
        url = self.servers.rabbitmq_url
        settings = Settings(broker=BrokerSettings(kind="rabbitmq", url=SecretStr(url)))
        broker = make_broker(settings)
        for run_id in run_ids:
            await asyncio.to_thread(broker.enqueue, run_message(UUID(run_id), uuid4(), uuid4(), "demo/echo"))
        await asyncio.to_thread(broker.close)

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """Postgres has no room: its disk is full, or, where we may not mount one, it says so of every new row."""
        if self.servers.disk.mounted:
            await asyncio.to_thread(self.servers.disk.fill)
            assert await self.refuses_rows(), "the disk is not full"
            yield
            self.servers.disk.free()
            return
        await self.deployment.execute(REFUSE_ROWS)
        yield
        await self.deployment.execute("DROP FUNCTION refuse_rows CASCADE")

    async def refuses_rows(self) -> bool:
        try:
            await self.deployment.execute(
                "CREATE TABLE too_large AS SELECT repeat(n::text, 999) FROM generate_series(1, 99999) n"
            )
        except asyncpg.DiskFullError:
            return True
        return False

    async def probe(self) -> float:
        """Seconds until a new run, accepted after however many tries, has completed."""
        began = time.monotonic()
        started = await accepted(self.client.initiate)
        events = await follow(self.client, started.run_id, SETTLE_SECONDS)
        assert events[-1].final == "completed", events[-1]
        return time.monotonic() - began

    async def recovery(self, struck: Struck) -> Recovery:
        """Once every struck run was taken over, every other one went on and a new one completed."""
        probing = asyncio.create_task(self.probe())
        others = [one for one in self.load.watched if one not in struck.runs]
        resumed = [await taken_over(one, struck.since) - struck.since for one in struck.runs]
        gone_on = [await went_on(one, struck.since) - struck.since for one in others]
        return Recovery(max([*resumed, *gone_on, await probing]), resumed)


async def taken_over(run: Watched, since: float) -> float:
    return await moment(run, lambda: run.seen_since(since, "run_resumed"), "is not taken over")


async def went_on(run: Watched, since: float) -> float:
    return await moment(run, lambda: run.seen_since(since) or (since if run.over else None), "does not go on")


async def moment(run: Watched, look: Callable[[], float | None], what: str) -> float:
    return cast(float, await eventually(look, within=SETTLE_SECONDS, says=f"run {run.started.run_id} {what}"))


@asynccontextmanager
async def open_lab(
    folder: Path, scale: Scale, *, workers: int, threads: int = 16, forks: ForkServer | None = None
) -> AsyncIterator[Lab]:
    """Stores, two APIs and so many workers; each worker has one process of `threads` - 1 runs."""
    servers = await Servers.prepare(folder)
    names = {**scale.names, "RABBITMQ_URL": servers.rabbitmq_url}
    deployment = Deployment(folder, "rabbitmq", servers.database_url, names, redis_url=servers.redis_url, forks=forks)
    try:
        await servers.up()
        await migrate(servers.database_url)
        yield Lab(servers, deployment, scale, workers, threads)
    finally:
        deployment.close()
        await servers.down()


async def migrate(database_url: str) -> None:
    environment = {**os.environ, "DATABASE_URL": database_url}
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "migrations"], env=environment, check=True, capture_output=True
    )
