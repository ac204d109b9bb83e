"""A small system, measured and simulated with the same arrivals and the same death of a worker."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median
from uuid import UUID

import orjson

from services.runs.archive import unpack
from tests.acceptance.client import Client
from tests.acceptance.operators import SCALED, Deployment
from tests.benchmarks.progress import Advance
from tests.benchmarks.session import Session
from tests.benchmarks.simulation.fleet import Fleet, Timing
from tests.benchmarks.simulation.scenarios import Outcome, outcome

SETTINGS = {**SCALED, "MAX_CONCURRENT_RUNS": "1000000", "RATE_LIMIT_PER_MINUTE": "1000000"}
TIMING = Timing(heartbeat=0.5, dead_after=1.5, sweep=0.2, resend=0.5)
"""The durations of `SETTINGS`; what is measured here takes the place of the rest."""
ALONE = 5
SEEDS = 25


@dataclass(frozen=True, slots=True)
class Plan:
    """Two workers; one of them is killed after `kill_at` seconds, and another started `back_after` seconds later."""

    runs: int = 80
    per_second: float = 5.0
    slots: int = 8
    chunks: int = 100
    delay_ms: int = 20
    kill_at: float = 6.0
    back_after: float = 5.0

    @property
    def model(self) -> str:
        return f"demo/lorem?chunks={self.chunks}&delay_ms={self.delay_ms}"

    def moments(self, seed: int) -> list[float]:
        chance, moment, moments = random.Random(seed), 0.0, []
        for _ in range(self.runs):
            moment += chance.expovariate(self.per_second)
            moments.append(moment)
        return moments


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened, in seconds since the first run was created; `arrivals` and `lengths` are what is simulated."""

    outcome: Outcome
    arrivals: list[float]
    length: float
    """Of one run that nothing disturbs."""
    pick_up: float
    killed: float
    back: float


@asynccontextmanager
async def deployed(session: Session, plan: Plan) -> AsyncIterator[tuple[Deployment, Client]]:
    """An API and two workers, each a Dramatiq master of its own."""
    deployment = session.deployment(await session.stores(), SETTINGS)
    try:
        await asyncio.gather(deployment.start_api(), deployment.start_workers(2, threads=plan.slots + 1))
        async with Client.signed_in(deployment.url, deployment.settings["JWT_SECRET"]) as client:
            yield deployment, client
    except Exception:
        session.show_logs(deployment)
        raise
    finally:
        deployment.close()


async def measure(deployment: Deployment, client: Client, plan: Plan, seed: int, told: Advance) -> Measured:
    """Start the runs, kill the worker, start another, and read from the rows and logs what came of it."""
    alone = [await run_alone(deployment, client, plan) for _ in range(ALONE)]
    began = time.time()
    starting = asyncio.gather(*(start_at(client, plan, moment, told) for moment in plan.moments(seed)))
    await asyncio.sleep(plan.kill_at)
    deployment.workers[0].signal_group(signal.SIGKILL)
    killed = time.time() - began
    await asyncio.sleep(plan.back_after)
    await deployment.start_workers(1, threads=plan.slots + 1)
    back = time.time() - began
    run_ids = await starting
    await asyncio.gather(*(until_ended(client, run_id) for run_id in run_ids))
    rows = await deployment.rows(
        "SELECT id, created_at, started_at FROM agent_runs WHERE id = ANY($1) ORDER BY created_at",
        [UUID(run_id) for run_id in run_ids],
    )
    gaps = [moment - began - killed for row in rows for moment in await resumed(deployment, row["id"])]
    waits = [(row["started_at"] - row["created_at"]).total_seconds() for row in rows]
    arrivals = [row["created_at"].timestamp() - began for row in rows]
    return Measured(
        Outcome(waits, gaps, []),
        arrivals,
        length=median(length for _, length in alone),
        pick_up=median(pick_up for pick_up, _ in alone),
        killed=killed,
        back=back,
    )


async def start_at(client: Client, plan: Plan, moment: float, told: Advance) -> str:
    await asyncio.sleep(moment)
    started = await client.initiate(plan.model)
    told()
    return started.run_id


async def until_ended(client: Client, run_id: str) -> None:
    while (await client.get(run_id, wait_seconds=60))["status"] == "running":
        pass


async def run_alone(deployment: Deployment, client: Client, plan: Plan) -> tuple[float, float]:
    """Seconds from creation to claim, and from there to the end."""
    started = await client.initiate(plan.model)
    await until_ended(client, started.run_id)
    [row] = await deployment.rows(
        "SELECT created_at, started_at, completed_at FROM agent_runs WHERE id = $1", UUID(started.run_id)
    )
    created, started_at, completed = row["created_at"], row["started_at"], row["completed_at"]
    return (started_at - created).total_seconds(), (completed - started_at).total_seconds()


async def resumed(deployment: Deployment, run_id: UUID) -> list[float]:
    """The moments at which another worker took a run over, as its log says."""
    blocks = await deployment.rows(
        "SELECT events FROM agent_run_event_blocks WHERE agent_run_id = $1 ORDER BY first_id", run_id
    )
    said = [orjson.loads(event) for block in blocks for event in unpack(block["events"]) if b"run_resumed" in event]
    return [datetime.fromisoformat(event["created_at"]).timestamp() for event in said]


def simulate(plan: Plan, measured: Measured) -> Sequence[Outcome]:
    """The same in simulated time, once for each seed: what is left to chance is when beats and sweeps fall."""
    return [simulate_once(plan, measured, seed) for seed in range(SEEDS)]


def simulate_once(plan: Plan, measured: Measured, seed: int) -> Outcome:
    timing = replace(TIMING, pick_up=max(measured.pick_up - TIMING.claim, 0.0), boot=0.0)
    fleet = Fleet(hosts=2, processes=1, slots=plan.slots, timing=timing, seed=seed)
    runs = [(moment, measured.length) for moment in measured.arrivals]
    fleet.env.process(fleet.arrivals(runs, turn=measured.length))
    fleet.env.process(fleet.kill(measured.killed, fleet.workers[:1], measured.back - measured.killed))
    fleet.env.run(until=measured.back + plan.runs * measured.length)
    return outcome(fleet.runs, (), 0.0, fleet.env.now)
