"""The faults: what is done to a running system, and what must be seen to once it has recovered.

Each is an async generator: what it yields says which runs must be taken over and since when the recovery counts;
what comes after is checked or mended once the system has recovered. Seconds are real ones, scaled by the lab.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from tests.acceptance.operators import Operated
from tests.faults.lab import APIS, Lab, Struck
from tests.waiting import eventually

TAKE_OVER, HAND_OVER, BACK = 20.0, 2.0, 20.0
"""Promises in seconds: a dead worker's runs, an asked worker's runs, a store that is back."""

CONSUMER_TIMED_OUT = "has timed out waiting for delivery acknowledgement"
RESCUE = r"sweeper\.sent.*driver dead"

Striking = Callable[[Lab], AsyncIterator[Struck]]
Strike = Callable[[Lab], AbstractAsyncContextManager[Struck]]


@dataclass(frozen=True)
class Fault:
    """`within`: real seconds until the system must have recovered.

    A run must last for `outage` (real seconds, scaled), for `starts`: what servers take to start, never scaled, and
    for `boots`: what APIs and workers take to start and to leave. `spare_apis` and `spare_workers` stand by before it
    is struck. What one that is struck `alone` checks of its own is true only while nothing else is broken.
    `done_by` another is all that it does: with scaled durations that one stands for both.
    """

    name: str
    strike: Strike
    within: float
    outage: float
    starts: float
    boots: float
    spare_apis: int
    spare_workers: int
    alone: bool
    done_by: str


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    within: float,
    *,
    outage: float = 0.0,
    starts: float = 0.0,
    boots: float = 0.0,
    spare_apis: int = 0,
    spare_workers: int = 0,
    alone: bool = False,
    done_by: str = "",
) -> Callable[[Striking], Strike]:
    def register(function: Striking) -> Strike:
        strike = asynccontextmanager(function)
        FAULTS[name] = Fault(name, strike, within, outage, starts, boots, spare_apis, spare_workers, alone, done_by)
        return strike

    return register


@fault("worker SIGKILL", TAKE_OVER)
async def worker_killed(lab: Lab) -> AsyncIterator[Struck]:
    worker, runs = await lab.busiest()
    worker.signal_group(signal.SIGKILL)
    yield Struck(runs)


async def asked_to_stop(lab: Lab, ask: Callable[[Operated], None]) -> AsyncIterator[Struck]:
    worker, runs = await lab.busiest()
    ask(worker)
    yield Struck(runs)
    assert await worker.exited() == 0, worker.text[-2000:]


@fault("worker SIGTERM", HAND_OVER)
async def worker_asked_to_stop(lab: Lab) -> AsyncIterator[Struck]:
    async for struck in asked_to_stop(lab, lambda worker: worker.signal(signal.SIGTERM)):
        yield struck


@fault("worker SIGTERM twice", HAND_OVER)
async def worker_asked_twice(lab: Lab) -> AsyncIterator[Struck]:
    def ask(worker: Operated) -> None:
        worker.signal(signal.SIGTERM)
        time.sleep(0.05)
        worker.signal(signal.SIGTERM)

    async for struck in asked_to_stop(lab, ask):
        yield struck


@fault("worker group SIGTERM", HAND_OVER)
async def worker_group_asked(lab: Lab) -> AsyncIterator[Struck]:
    async for struck in asked_to_stop(lab, lambda worker: worker.signal_group(signal.SIGTERM)):
        yield struck


@fault("worker SIGSTOP 60 s, then CONT", TAKE_OVER, outage=60)
async def worker_stopped_and_continued(lab: Lab) -> AsyncIterator[Struck]:
    """A zombie: it wakes up with runs in hand that another worker drives by now."""
    worker, runs = await lab.busiest()
    worker.signal_group(signal.SIGSTOP)
    since = time.monotonic()
    await asyncio.sleep(lab.seconds(60))
    worker.signal_group(signal.SIGCONT)
    yield Struck(runs, since)
    await eventually(lambda: worker.said("lease.lost") >= len(runs), within=60, says="the zombie was not told")


@fault("API SIGKILL", BACK)
async def api_killed(lab: Lab) -> AsyncIterator[Struck]:
    lab.deployment.apis[0].signal_group(signal.SIGKILL)
    yield Struck()


@fault("API rolling restart", BACK, boots=4, spare_apis=2)
async def apis_replaced(lab: Lab) -> AsyncIterator[Struck]:
    for old in lab.deployment.apis[:APIS]:
        old.signal(signal.SIGTERM)
        await old.exited()
    yield Struck()


@fault("workers' rolling restart", HAND_OVER, boots=10)
async def workers_replaced(lab: Lab) -> AsyncIterator[Struck]:
    """Each is replaced before it goes, so that there are slots for all runs."""
    for old in lab.deployment.workers[: lab.workers]:
        await lab.deployment.start_workers(threads=lab.threads)
        old.signal(signal.SIGTERM)
        assert await old.exited() == 0, old.text[-2000:]
    yield Struck()


@fault("RabbitMQ restart", BACK, starts=8, done_by="RabbitMQ down for 2 min")
async def rabbitmq_restarted(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.rabbitmq.restart()
    yield Struck()


@fault("RabbitMQ kill -9", BACK, starts=6)
async def rabbitmq_killed(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.rabbitmq.kill()
    await lab.servers.rabbitmq.start()
    yield Struck()


@fault("RabbitMQ connections closed under live runs", BACK, starts=3)
async def rabbitmq_connections_closed(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.rabbitmq.ctl("close_all_connections", "a fault of the lab")
    yield Struck()


@fault("RabbitMQ consumer_timeout below a run's length", BACK, outage=15, starts=5)
async def rabbitmq_consumer_timeout(lab: Lab) -> AsyncIterator[Struck]:
    """Every unacked message of a channel is delivered again while its run is live."""
    node, ctl = lab.servers.rabbitmq, lab.servers.rabbitmq.ctl
    before = node.log.count(CONSUMER_TIMED_OUT)
    await ctl("eval", consumer_timeout(int(lab.seconds(10) * 1000), tick_ms=500))
    await lab.load.begin(2)  # the messages of the others were given up with their channels
    await eventually(lambda: node.log.count(CONSUMER_TIMED_OUT) > before, within=60, every=0.2)
    await ctl("eval", consumer_timeout(86_400_000, tick_ms=60_000))
    yield Struck()


def consumer_timeout(timeout_ms: int, tick_ms: int) -> str:
    """Sets the limit and closes all connections: it counts for new channels only."""
    names = {"consumer_timeout": timeout_ms, "channel_tick_interval": tick_ms}
    limits = [f"application:set_env(rabbit,{name},{value})" for name, value in names.items()]
    close = '[rabbit_networking:close_connection(Each,"a new limit") || Each <- rabbit_networking:connections()]'
    return ",".join([*limits, close]) + "."


@fault("RabbitMQ memory alarm while publishing", BACK, outage=10, starts=5, alone=True)
async def rabbitmq_memory_alarm(lab: Lab) -> AsyncIterator[Struck]:
    """Publishers are blocked: starting goes on, what was accepted begins when the alarm is over."""
    await lab.servers.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1")
    began = time.monotonic()
    accepted = await asyncio.gather(*(lab.client.initiate() for _ in range(5)))
    assert time.monotonic() - began < 10.0, "a start waits for the broker"
    await asyncio.sleep(lab.seconds(10))
    await lab.servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    since = time.monotonic()
    yield Struck(since=since)
    await lab.all_completed([run.run_id for run in accepted])


@fault("RabbitMQ down for 2 min", BACK, outage=120, starts=6, alone=True)
async def rabbitmq_down(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.rabbitmq.stop()
    began = time.monotonic()
    accepted = [await lab.client.initiate() for _ in range(5)]
    assert time.monotonic() - began < 10.0, "a start waits for the broker"
    await asyncio.sleep(lab.seconds(120))
    assert {(await lab.client.get(run.run_id))["phase"] for run in accepted} == {"queued"}
    await lab.servers.rabbitmq.start()
    yield Struck()
    await lab.all_completed([run.run_id for run in accepted])


@fault("Redis restart with its data", BACK)
async def redis_restarted(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.valkey.restart()
    yield Struck()


@fault("Redis restart without its data", BACK)
async def redis_forgets(lab: Lab) -> AsyncIterator[Struck]:
    lab.deployment.flushed = True
    await lab.servers.forget()
    yield Struck()


@fault("Redis FLUSHALL", BACK)
async def redis_flushed(lab: Lab) -> AsyncIterator[Struck]:
    lab.deployment.flushed = True
    async with lab.deployment.redis() as redis:
        await redis.flushall()
    yield Struck()


@fault("Redis pause 10 s", BACK, outage=10)
async def redis_paused(lab: Lab) -> AsyncIterator[Struck]:
    lab.servers.valkey.pause()
    await asyncio.sleep(lab.seconds(10))
    lab.servers.valkey.resume()
    yield Struck()


@fault("Redis kill -9", BACK)
async def redis_killed(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.valkey.kill()
    await lab.servers.valkey.start()
    yield Struck()


@fault("Redis at maxmemory (noeviction) for 10 s", BACK, outage=10)
async def redis_full(lab: Lab) -> AsyncIterator[Struck]:
    async with lab.deployment.redis() as redis:
        await redis.config_set("maxmemory", 1)
        await asyncio.sleep(lab.seconds(10))
        await redis.config_set("maxmemory", 0)
    yield Struck()


@fault("Postgres restart", BACK)
async def postgres_restarted(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.postgres.restart()
    yield Struck()


@fault("Postgres kill -9", BACK)
async def postgres_killed(lab: Lab) -> AsyncIterator[Struck]:
    await lab.servers.postgres.kill()
    await lab.servers.postgres.start()
    yield Struck()


@fault("Postgres pause 10 s", BACK, outage=10)
async def postgres_paused(lab: Lab) -> AsyncIterator[Struck]:
    lab.servers.postgres.pause()
    await asyncio.sleep(lab.seconds(10))
    lab.servers.postgres.resume()
    yield Struck()


@fault("Postgres full disk for 10 s", BACK, outage=10)
async def postgres_disk_full(lab: Lab) -> AsyncIterator[Struck]:
    async with lab.full_disk():
        await asyncio.sleep(lab.seconds(10))
    yield Struck()


@fault("duplicate messages", BACK, alone=True)
async def messages_doubled(lab: Lab) -> AsyncIterator[Struck]:
    """Of live runs, of a run that has ended and of one that nobody knows."""
    ended = await lab.client.initiate()
    await lab.client.get(ended.run_id, wait_seconds=30)
    runs = [one.started.run_id for one in lab.load.live]
    before = await lab.attempts([*runs, ended.run_id])
    await lab.send([*runs, *runs, ended.run_id, str(uuid4())])
    yield Struck()
    assert await lab.attempts([*runs, ended.run_id]) == before, "a second copy was begun"


@fault("messages lost", BACK, boots=3)
async def messages_lost(lab: Lab) -> AsyncIterator[Struck]:
    """Every worker hands over, the queue loses everything, new workers come."""
    old = lab.deployment.workers
    runs = await lab.driven_by(*old)
    for worker in old:
        worker.signal(signal.SIGTERM)
    for worker in old:
        await worker.exited()
    await lab.servers.rabbitmq.ctl("purge_queue", "agent_runs")
    await lab.deployment.start_workers(lab.workers, threads=lab.threads)
    yield Struck(runs)


@fault("a sweeping worker dies", TAKE_OVER * 2, outage=20, spare_workers=1)
async def sweeper_killed(lab: Lab) -> AsyncIterator[Struck]:
    """One worker is killed, then the one that has just begun to rescue its runs."""
    first, runs = await lab.busiest()
    first.signal_group(signal.SIGKILL)
    since = time.monotonic()

    before = {one.name: one.said(RESCUE) for one in lab.deployment.workers}

    def look() -> Operated | None:
        return next((one for one in lab.deployment.workers if one.said(RESCUE) > before[one.name]), None)

    rescuer = await eventually(look, within=120, says="nobody rescues")
    assert rescuer
    runs += await lab.driven_by(rescuer)
    rescuer.signal_group(signal.SIGKILL)
    yield Struck(runs, since)
