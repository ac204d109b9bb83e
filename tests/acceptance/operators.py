"""API and workers started as operators start them: separate processes, settings in the environment, logs in files."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import pika
import pika.exceptions
from httpx2 import AsyncClient, TransportError
from redis.asyncio import Redis

from services.broker import HEALTH_QUEUE, RUN_QUEUE
from services.embedded import ports
from tests.acceptance.client import Client, until
from tests.conftest import DEPLOYED_BROKER, DEPLOYED_REDIS, keys_without_ttl, named, with_path
from tests.forks import Forked, ForkServer
from tests.waiting import PATIENT, eventually

CHECKOUT = Path(__file__).parents[2]
SECRET = "the-secret-of-the-acceptance-tests-only"
SCALED = {
    "RUN_LOCK_TTL": "1.5s",
    "RUN_HEARTBEAT_INTERVAL": "0.5s",
    "RUN_DEAD_AFTER": "1.5s",
    "RUN_SWEEP_INTERVAL": "0.2s",
    "RUN_RESEND_AFTER": "0.5s",
    "RUN_CLOSE_AFTER": "0.5s",
    "RUN_ARCHIVE_INTERVAL": "0.1s",
    "STREAM_SILENCE": "0.5s",
}
"""A tenth of the real durations."""
LASTING = {**SCALED, "RUN_LOCK_TTL": "15s", "RUN_DEAD_AFTER": "15s"}
"""For tests in which no worker dies: one that is held up for seconds keeps its runs, and is known to be there."""
NO_LIMITS = {"MAX_CONCURRENT_RUNS": "0", "RATE_LIMIT_PER_MINUTE": "0", "STREAM_MAX_STREAMS_PER_USER": "0"}
"""One account does what many would: limits are set by the tests that are about them."""
REAL: dict[str, str] = {}
START_SECONDS = EXIT_SECONDS = 60.0
LOG_TAIL_BYTES = 12_000
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@dataclass
class Operated:
    """One started process, leader of its own process group."""

    name: str
    process: "subprocess.Popen[bytes] | Forked"
    log: Path
    port: int = 0
    """Where an API listens."""
    leaving: bool = False
    """Whether it was told to end; it may take a moment."""
    begun: int = 0
    """How long its log was when the test began."""

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def said(self, pattern: str) -> int:
        """How many lines of the log `pattern` is found in; what it said in the tests before does not count."""
        lines = self.log.read_bytes()[self.begun :].decode(errors="replace").splitlines()
        return sum(bool(re.search(pattern, line)) for line in lines)

    @property
    def instances(self) -> list[str]:
        """The instance ids of a worker's processes, once they are ready."""
        return re.findall(r"worker\.ready.*?instance_id=(\w+)", self.text)

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """To this process only, as `docker stop` and systemd's KillMode=mixed do."""
        self.leaving |= number in ENDING
        os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        """To the process and all it forked, as Ctrl-C and systemd's default do."""
        self.leaving |= number in ENDING
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def exited(self, within: float = EXIT_SECONDS) -> int:
        """The exit code. How long it takes is asked by tests that are about that."""
        await eventually(lambda: not self.running, within=within, says=f"{self.name} did not exit")
        return self.process.wait()

    def end(self) -> None:
        self.signal_group(signal.SIGKILL)
        self.process.wait()


@dataclass
class Deployment:
    """APIs and workers on a database of their own. `environment` overrides what the stores' fixtures say."""

    folder: Path
    broker: str
    database_url: str
    environment: dict[str, str] = field(default_factory=dict)
    operated: list[Operated] = field(default_factory=list)
    redis_url: str = field(default_factory=lambda: with_path(named("REDIS_URL"), str(DEPLOYED_REDIS)))
    """The store itself, whatever stands between it and the deployment."""
    port: int = field(default_factory=lambda: ports.pick(set()))
    forks: ForkServer | None = None
    """Whence processes come sooner than from the start of an interpreter."""
    checkout: Path = CHECKOUT
    """The code that its processes run, of which `forks` knows only this one."""
    flushed: bool = False
    """Set by a test that empties Redis: a log that was complete before is then only in the archive."""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the test began: what `check_settled` looks at."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        stores = {
            "BROKER": self.broker,
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "BROKER_REDIS_URL": with_path(self.redis_url, str(DEPLOYED_BROKER)),
            "JWT_SECRET": SECRET,
            "LOG_FORMAT": "console",
            **NO_LIMITS,
        }
        if self.broker == "rabbitmq" and "RABBITMQ_URL" not in self.environment:
            stores["RABBITMQ_URL"] = named("RABBITMQ_URL")
        return {**stores, **self.environment}

    def client(self, user_id: UUID | None = None) -> Client:
        return Client.signed_in(self.url, SECRET, user_id)

    def launch(self, name: str, *arguments: str, forked: bool = True) -> Operated:
        log = self.folder / f"{name}-{len(self.operated)}.log"
        log.touch()
        started = Operated(log.stem, self.process(arguments, log, self.forks if forked else None), log)
        self.operated.append(started)
        return started

    def process(
        self, arguments: Sequence[str], log: Path, forks: ForkServer | None
    ) -> "subprocess.Popen[bytes] | Forked":
        env = {**os.environ, "PYTHONPATH": str(self.checkout), **self.settings}
        if forks:
            return forks.start(arguments, env, log)
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.checkout,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def start_api(self, port: int | None = None) -> Operated:
        """An API on `port` (the deployment's own), once it answers."""
        port = port or self.port
        options = ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
        api = self.launch(
            "api", "uvicorn", "--factory", "api.app:create_app", *options, "--no-access-log",
            "--timeout-graceful-shutdown", "5",
        )  # fmt: skip
        api.port = port
        await until(lambda: self.answers(api), within=START_SECONDS, every=0.05, says="the API did not answer")
        return api

    async def answers(self, api: Operated) -> bool:
        assert api.running, f"{api.name} exited:\n{api.text}"
        async with AsyncClient(trust_env=False, verify=False) as http:
            try:
                return (await http.get(f"http://127.0.0.1:{api.port}/api/health")).status_code == 200
            except TransportError:
                return False

    def launch_worker(self, *, processes: int = 1, threads: int = 16) -> Operated:
        size = ["--processes", str(processes), "--threads", str(threads)]
        return self.launch("worker", "dramatiq", "worker", *size, "--worker-shutdown-timeout", "86400000")

    @property
    def workers(self) -> list[Operated]:
        """Those that run."""
        return [one for one in self.operated if one.name.startswith("worker") and one.running]

    @property
    def apis(self) -> list[Operated]:
        """Those that run."""
        return [one for one in self.operated if one.name.startswith("api") and one.running]

    @property
    def api(self) -> Operated | None:
        return next(iter(self.apis), None)

    async def refill(self, workers: int) -> None:
        """Start what an earlier test has killed, end what it has added."""
        for leaving in [one for one in self.operated if one.leaving and one.running]:
            leaving.end()
        for surplus in self.workers[workers:]:
            surplus.end()
        if not self.api:
            await self.start_api()
        await self.start_workers(workers - len(self.workers))

    def begin_test(self) -> None:
        self.flushed, self.since = False, datetime.now(UTC)
        for one in self.operated:
            one.begun = one.log.stat().st_size

    async def start_workers(self, count: int = 1, *, processes: int = 1, threads: int = 16) -> list[Operated]:
        """So many workers, each a Dramatiq master of its own, once all are ready."""
        workers = [self.launch_worker(processes=processes, threads=threads) for _ in range(count)]
        for worker in workers:
            await self.ready(worker, processes)
        return workers

    async def ready(self, worker: Operated, processes: int = 1) -> None:
        def look() -> bool:
            assert worker.running, f"{worker.name} exited:\n{worker.text}"
            return worker.said("Worker process is ready for action") >= processes

        await eventually(look, within=START_SECONDS, every=0.05, says=f"{worker.name} was not ready")

    async def driver_of(self, run_id: str, within: float = PATIENT) -> Operated:
        """The worker that drives a run now."""

        async def look() -> Operated | None:
            rows = await self.rows("SELECT instance_id FROM agent_runs WHERE id = $1", UUID(run_id))
            instance_id = rows[0]["instance_id"]
            return next((one for one in self.operated if instance_id in one.instances), None)

        found = await until(look, within=within, says="no worker drives the run")
        assert found
        return found

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """Straight from the database, whatever stands between it and the deployment."""
        conn = await asyncpg.connect(self.database_url)
        try:
            rows: list[asyncpg.Record] = await conn.fetch(query, *values)
            return rows
        finally:
            await conn.close()

    async def execute(self, statements: str) -> None:
        conn = await asyncpg.connect(self.database_url)
        try:
            await conn.execute(statements)
        finally:
            await conn.close()

    def redis(self) -> Redis:
        return Redis.from_url(self.redis_url, protocol=2)

    async def check_settled(self, within: float = 60.0) -> None:
        """What must be true after every test: all runs closed, logs and archives whole, every key with a TTL."""
        await until(self.all_closed, within=within, says="not every run was closed")
        runs = await self.rows(
            """
            SELECT run.id, run.event_count, run.archived_events,
                   (SELECT sum(event_count) FROM agent_run_event_blocks WHERE agent_run_id = run.id) AS stored
            FROM agent_runs run WHERE created_at >= $1
            """,
            self.since,
        )
        async with self.redis() as redis:
            for run in runs:
                listed = await redis.llen(f"agent_run:{run['id']}:responses")
                assert run["event_count"] == run["archived_events"] == run["stored"], dict(run)
                assert listed == run["event_count"] or (self.flushed and listed == 0), (listed, dict(run))
            assert not await keys_without_ttl(redis)
            locks = [key async for key in redis.scan_iter("agent_run_lock:*", count=1000)]
            await until(lambda: redis_has_none(redis, locks), within=PATIENT, says=f"locks are left: {locks}")

    async def all_closed(self) -> bool:
        """The archive of a run that ended a moment ago is complete within its interval."""
        open_runs = await self.rows("SELECT id, status FROM agent_runs WHERE closed_at IS NULL")
        return not open_runs

    def close(self) -> None:
        for process in self.operated:
            process.end()

    def logs(self) -> list[tuple[str, str]]:
        """The end of each process's log, for the report of a test that failed."""
        return [(f"log of {one.name}", one.text[-LOG_TAIL_BYTES:]) for one in self.operated]


async def redis_has_none(redis: Redis, keys: list[bytes]) -> bool:
    return not keys or not await redis.exists(*keys)


async def empty_stores(broker: str) -> None:
    """No key and no message of an earlier deployment."""
    for number in (DEPLOYED_REDIS, DEPLOYED_BROKER):
        async with Redis.from_url(with_path(named("REDIS_URL"), str(number)), protocol=2) as redis:
            await redis.flushdb()
    if broker == "rabbitmq":
        delete_queues()


def delete_queues() -> None:
    """The queues as Dramatiq names them; a broken consumer may hold them for a moment."""
    parts = urlsplit(named("RABBITMQ_URL"))
    connection = pika.BlockingConnection(pika.URLParameters(urlunsplit(parts)))
    deadline = time.monotonic() + 5.0
    for queue in (RUN_QUEUE, HEALTH_QUEUE):
        for suffix in ("", ".DQ", ".XQ"):
            while True:
                deleted = connection.channel().queue_delete(f"{queue}{suffix}")
                if deleted or time.monotonic() > deadline:
                    break
    connection.close()
