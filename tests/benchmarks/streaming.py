"""One measurement of streams: a server on its core; its readers, the producer and the stores on the other."""

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import orjson

from services.accounts import ensure_personal
from services.embedded.console import EmbeddedError
from services.embedded.environment import CHECKOUT, for_our_code
from services.tokens import sign_access_token
from tests.acceptance.client import until
from tests.acceptance.operators import START_SECONDS, Deployment, Operated
from tests.benchmarks.processes import LOAD_CORE, SERVER_CORE, Meter, connections, family, pin
from tests.benchmarks.session import Session

Kind = Literal["limit", "longrun", "reference"]
SERVERS = {
    "limit": ("tests.benchmarks.bare_streams:app",),
    "longrun": ("--factory", "api.app:create_app"),
    "reference": ("--factory", "tests.benchmarks.reference.reader:create_app"),
}
OPTIONS = (
    "--host",
    "127.0.0.1",
    "--loop",
    "uvloop",
    "--http",
    "httptools",
    "--no-access-log",
    "--backlog",
    "8192",
    "--timeout-keep-alive",
    "75",
)
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """So many runs with so many readers each, and what is said in each run."""

    runs: int
    readers: int
    per_second: int
    bytes: int

    @property
    def streams(self) -> int:
        return self.runs * self.readers


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies are quantiles in equal steps, in milliseconds; CPU in seconds, memory in bytes."""

    delivered: int
    due: float
    gaps: int
    lost: int
    latencies: Sequence[float]
    cpu: Mapping[str, float]
    seconds: float
    opened_in: float
    memory_per_stream: float
    redis_connections: int
    postgres_connections: int
    answered: int = 0
    refused: int = 0
    answers: Sequence[float] = field(default_factory=list)

    @property
    def cpu_per_event(self) -> float:
        """Microseconds of the server's."""
        return self.cpu["server"] / max(self.delivered, 1) * 1e6


def quantile(values: Sequence[float], share: float) -> float:
    return values[round(share * (len(values) - 1))] if values else float("nan")


class Piped:
    """A process that takes a line and answers a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(orjson.dumps(order) + b"\n")
        answer: dict[str, Any] = orjson.loads(await self.line())
        if "error" in answer:
            raise EmbeddedError(f"the streams could not be opened: {answer['error']}")
        return answer

    async def line(self) -> bytes:
        assert self.process.stdout
        return await self.process.stdout.readline()


@asynccontextmanager
async def piped(*arguments: str) -> AsyncIterator[Piped]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdin=pipe, stdout=pipe, cwd=CHECKOUT, env=for_our_code({}), limit=2**24
    )
    try:
        yield Piped(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Bench:
    """Measures any of the three servers on the session's stores."""

    session: Session
    addresses: Mapping[str, str]
    user_id: UUID

    @classmethod
    async def open(cls, session: Session) -> "Bench":
        """Raises: EmbeddedError when --url names an instance: its stores are not ours to write to."""
        if session.options.url:
            raise EmbeddedError("this benchmark measures private servers only: leave --url out")
        bench = cls(session, await session.stores(), uuid4())
        pin(LOAD_CORE, os.getpid())
        return bench

    @property
    def token(self) -> str:
        return sign_access_token(self.addresses["JWT_SECRET"], self.user_id, lifetime=timedelta(hours=6))

    async def make_runs(self, count: int) -> list[str]:
        """Runs that nobody drives."""
        conn = await asyncpg.connect(self.addresses["DATABASE_URL"])
        try:
            await ensure_personal(conn, self.user_id)
            rows = await conn.fetch(MAKE_RUNS, self.user_id, count)
        finally:
            await conn.close()
        return [str(row["id"]) for row in rows]

    async def measure(
        self, kind: Kind, shape: Shape, seconds: float, *, ordinary: int = 0, every: float = 10.0
    ) -> Measured:
        """Start the server, open all streams, let it run so long, stop it."""
        deployment = self.session.deployment(self.addresses, {"LOG_LEVEL": "warning"})
        runs = await self.make_runs(shape.runs) if kind != "limit" else [str(uuid4())]
        try:
            server = await start(deployment, kind)
            async with piped("tests.benchmarks.sse_load") as load:
                return await self.observe(kind, shape, seconds, server, load, runs, ordinary, every)
        finally:
            deployment.close()

    async def observe(
        self, kind: Kind, shape: Shape, seconds: float, server: Operated, load: Piped,
        runs: Sequence[str], ordinary: int, every: float,
    ) -> Measured:  # fmt: skip
        pid, stores = server.process.pid, store_pids()
        pin(LOAD_CORE, load.process.pid)
        before = Meter(server=pid).resident("server")
        paths = paths_of(kind, shape, runs)
        opened = await load.ask(
            {"do": "open", "port": server.port, "paths": paths, "token": self.token,
             "ordinary": ordinary, "ordinary_path": f"/api/agent-run/{runs[0]}", "every": every}
        )  # fmt: skip
        async with piped("tests.benchmarks.event_producer", self.addresses["REDIS_URL"]) as producer:
            pin(LOAD_CORE, producer.process.pid)
            if kind != "limit":
                assert producer.process.stdin
                order = {"runs": runs, "per_second": shape.per_second, "bytes": shape.bytes}
                producer.process.stdin.write(orjson.dumps(order) + b"\n")
                await producer.line()
            await asyncio.sleep(SETTLE_SECONDS)
            meter = Meter(server=pid, client=load.process.pid, producer=producer.process.pid, **stores)
            meter.restart()
            await load.ask({"do": "measure"})
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
            cpu = meter.spent()
            took = asyncio.get_running_loop().time() - began
            counted = await load.ask({"do": "report"})
            return Measured(
                due=shape.streams * shape.per_second * took,
                cpu=cpu,
                seconds=took,
                opened_in=opened["seconds"],
                memory_per_stream=(meter.resident("server") - before) / shape.streams,
                redis_connections=connections(pid, urlsplit(self.addresses["REDIS_URL"]).port or 6379),
                postgres_connections=connections(pid, urlsplit(self.addresses["DATABASE_URL"]).port or 5432),
                **counted,
            )


MAKE_RUNS = """
WITH made AS MATERIALIZED (
    SELECT gen_random_uuid() AS project_id, gen_random_uuid() AS thread_id FROM generate_series(1, $2::int)
), projects_made AS (
    INSERT INTO projects (project_id, account_id, name) SELECT project_id, $1, 'benchmark' FROM made
), threads_made AS (
    INSERT INTO threads (thread_id, account_id, project_id) SELECT thread_id, $1, project_id FROM made
)
INSERT INTO agent_runs (account_id, project_id, thread_id, model_name) SELECT $1, project_id, thread_id, 'demo/echo'
FROM made RETURNING id
"""


def paths_of(kind: Kind, shape: Shape, runs: Sequence[str]) -> list[str]:
    """Readers of one run do not come one after another: any server would have it easier with such neighbours."""
    if kind == "limit":
        each = [f"/{number}/{shape.runs}/{shape.per_second}/{shape.bytes}" for number in range(shape.runs)]
    else:
        each = [f"/api/agent-run/{run}/stream" for run in runs]
    return each * shape.readers


def open_files() -> int:
    """How many files a process may have open here; what is started inherits it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def store_pids() -> dict[str, int]:
    """The store processes among our descendants, by name."""
    found: dict[str, int] = {}
    for process in family(os.getpid()):
        for name, sign in (("redis", "valkey"), ("redis", "redis"), ("postgres", "postgres")):
            if sign in process.name():
                found.setdefault(name, process.pid)
    return found


async def start(deployment: Deployment, kind: Kind) -> Operated:
    server = deployment.launch(kind, "uvicorn", *SERVERS[kind], "--port", str(deployment.port), *OPTIONS)
    server.port = deployment.port
    pin(SERVER_CORE, server.process.pid)
    await until(lambda: deployment.answers(server), within=START_SECONDS, every=0.05, says=f"{kind} did not answer")
    pin(SERVER_CORE, server.process.pid)
    return server
