"""An instance under measurement: API and workers on one core, its stores and whoever loads it on the other."""

import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment
from tests.benchmarks.processes import LOAD_CORE, SERVER_CORE, Meter, pin
from tests.benchmarks.report import Row
from tests.benchmarks.session import NO_SETTINGS, Session
from tests.benchmarks.wire import Wire, spread, wires

PREPARING = 16
UNLIMITED = {"MAX_CONCURRENT_RUNS": "0", "RATE_LIMIT_PER_MINUTE": "0"}
"""No limits at all: one that is never met is counted all the same, and starts of an account wait for each other."""


@dataclass(frozen=True, slots=True)
class Placed:
    """`stores` and `deployment` are None for an instance that --url names: nothing of it is ours to touch."""

    url: str
    token: str
    stores: Mapping[str, str] | None = None
    deployment: Deployment | None = None
    meter: Meter | None = None

    async def threads(self, count: int, prompt: str = "Hello there") -> list[str]:
        """New threads, each of a project of its own and with a first message."""

        async def make(wire: Wire, number: int) -> str:
            made = await wire.post("/threads", {"name": f"n{number}"}, "application/x-www-form-urlencoded")
            thread_id: str = made["thread_id"]
            await wire.post(f"/threads/{thread_id}/messages/add", {"message": prompt})
            return thread_id

        async with wires(self.url, self.token, PREPARING) as opened:
            return await spread(opened, range(count), make)

    @contextmanager
    def without_workers(self) -> Iterator[None]:
        """The workers stand still: what the API does has the core for itself."""
        groups = [worker.process.pid for worker in self.deployment.workers] if self.deployment else []
        for group in groups:
            os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            for group in groups:
                os.killpg(group, signal.SIGCONT)

    def spent(self, runs: int, group: str) -> list[Row]:
        """The CPU of each process since the meter was restarted, by run."""
        if not self.meter:
            return []
        return [
            Row(f"CPU of {name}, by run", "ms", 1000 * cpu / runs, group=group)
            for name, cpu in self.meter.spent().items()
        ]


@asynccontextmanager
async def placed(session: Session, *, threads: int, settings: Mapping[str, str] = NO_SETTINGS) -> AsyncIterator[Placed]:
    """The instance that --url names, or a private one with one worker process of so many threads."""
    if session.options.url:
        async with session.instance():
            yield Placed(session.options.url, session.options.token)
        return
    stores = await session.stores()
    deployment = session.deployment(stores, {**UNLIMITED, **settings})
    try:
        with session.supervisor.console.step("api", f"and a worker of {threads} threads"):
            api = await deployment.start_api()
            (worker,) = await deployment.start_workers(threads=threads)
        pin(LOAD_CORE, os.getpid())
        pin(SERVER_CORE, api.process.pid, worker.process.pid)
        meter = Meter(**pids_of(session), api=api.process.pid, worker=worker.process.pid)
        async with Client.signed_in(deployment.url, stores["JWT_SECRET"]) as client:
            token = client.http.headers["Authorization"].removeprefix("Bearer ")
        yield Placed(deployment.url, token, stores, deployment, meter)
    except Exception:
        session.show_logs(deployment)
        raise
    finally:
        deployment.close()


def pids_of(session: Session) -> dict[str, int]:
    return {
        child.spec.name: child.process.pid for child in session.supervisor.children if child.process and child.spec.log
    }
