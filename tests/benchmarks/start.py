"""From a start to its first event, how many starts a second are accepted, and how many short runs a second end."""

import asyncio
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.bare import Bare, bare
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.placed import Placed, placed
from tests.benchmarks.processes import LOAD_CORE, SERVER_CORE
from tests.benchmarks.report import Plot, Report, Row, at, in_ms
from tests.benchmarks.session import Session
from tests.benchmarks.wire import Wire, spread, wires

ECHO = "demo/echo"
SHORT = "demo/lorem?chunks=20&delay_ms=5"
CONNECTIONS = 16
THREADS = 48
PAUSE_SECONDS = 0.05
"""Between two starts: what a worker does after the last event of one is no part of the next."""
PARTS = ("one INSERT", "one confirmed publish and consume", "one RPUSH and PUBLISH, heard")
NOTES = (
    "limit of a start: the sum of its bare parts, one after the other, without HTTP, in the same rounds",
    f"a start: on an idle instance, {PAUSE_SECONDS:g} s after the last event of the run before",
    f"limit of accepting: {CONNECTIONS} at a time, each an INSERT and a confirmed publish",
    "accepting: Longrun's workers stand still meanwhile, its API has the core for itself",
    "runs: started and read to the last event by one client each, so many at a time; API and worker share one core",
    "no reference: the published design has no server that could be measured beside this one",
)


@dataclass(slots=True)
class Found:
    """Seconds of each start of all rounds, and a figure a second for each round."""

    parts: list[tuple[float, float, float]] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    accepted_bare: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    spent: list[list[Row]] = field(default_factory=list)

    @property
    def bare_sums(self) -> list[float]:
        return [sum(parts) for parts in self.parts]


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="of each measurement, in turn (3)")
    parser.add_argument("--starts", type=counted(1), metavar="N", default=100, help="one after the other (100)")
    parser.add_argument("--accepted", type=counted(1), metavar="N", default=400, help=f"{CONNECTIONS} at a time (400)")
    parser.add_argument("--runs", type=counted(1), metavar="N", default=200, help="of 20 chunks, 5 ms apart (200)")
    parser.add_argument("--at-a-time", type=counted(1, THREADS - 1), metavar="N", default=40, help="of these runs (40)")


async def run(session: Session) -> Report:
    options, found = session.options, Found()
    async with placed(session, threads=THREADS) as instance:
        with session.progress.steps("rounds", options.rounds) as told:
            for _ in range(options.rounds):
                if instance.stores:
                    await measure_limit(instance.stores, options.starts, options.accepted, found)
                await measure_starts(instance, options.starts, found)
                await measure_accepting(instance, options.accepted, found)
                await measure_runs(instance, options.runs, options.at_a_time, found)
                told()
    return report(found, options.runs, options.at_a_time)


async def measure_limit(stores: Mapping[str, str], starts: int, accepted: int, found: Found) -> None:
    """On the core of the server, which has nothing to do meanwhile."""
    with moved_to(SERVER_CORE):
        async with bare(stores, CONNECTIONS) as least:
            await least.parts()
            found.parts += [await least.parts() for _ in range(starts)]
            began = time.monotonic()
            await spread([least] * CONNECTIONS, range(accepted), accept)
            found.accepted_bare.append(accepted / (time.monotonic() - began))


async def accept(least: Bare, number: int) -> None:
    await least.accept()


@contextmanager
def moved_to(core: int) -> Iterator[None]:
    """This thread, and those that it starts meanwhile."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})


async def measure_starts(instance: Placed, count: int, found: Found) -> None:
    """One after the other, each until its reader has the last event; one more comes first, to warm up."""
    threads = await instance.threads(count + 1)
    async with wires(instance.url, instance.token, 1) as (wire,):
        await start_and_read(wire, threads[0])
        for thread_id in threads[1:]:
            await asyncio.sleep(PAUSE_SECONDS)
            answered, first = await start_and_read(wire, thread_id)
            found.answers.append(answered)
            found.firsts.append(first)


async def start_and_read(wire: Wire, thread_id: str, model: str = ECHO) -> tuple[float, float]:
    """Seconds from the POST to its answer, and to the first event."""
    moments = [time.monotonic()]
    run_id = await start(wire, thread_id, model)
    moments.append(time.monotonic())
    status, _ = await wire.read(run_id, lambda: moments.append(time.monotonic()))
    assert status == "completed", status
    return moments[1] - moments[0], moments[2] - moments[0]


async def start(wire: Wire, thread_id: str, model: str = ECHO) -> str:
    run_id: str = (await wire.post(f"/thread/{thread_id}/agent/start", {"model_name": model}))["agent_run_id"]
    return run_id


async def measure_accepting(instance: Placed, count: int, found: Found) -> None:
    threads = await instance.threads(count)
    async with wires(instance.url, instance.token, CONNECTIONS) as opened:
        with instance.without_workers():
            began = time.monotonic()
            run_ids = await spread(opened, threads, start)
            found.accepted.append(count / (time.monotonic() - began))
        statuses = await spread(opened, run_ids, status_at_end)
    assert set(statuses) == {"completed"}, statuses


async def status_at_end(wire: Wire, run_id: str) -> str:
    status: str = (await wire.get(f"/agent-run/{run_id}?wait_seconds=60"))["status"]
    return status


async def measure_runs(instance: Placed, count: int, at_a_time: int, found: Found) -> None:
    threads = await instance.threads(count)
    async with wires(instance.url, instance.token, at_a_time) as opened:
        if instance.meter:
            instance.meter.restart()
        began = time.monotonic()
        await spread(opened, threads, start_and_read_short)
        found.ended.append(count / (time.monotonic() - began))
        found.spent.append(instance.spent(count, "CPU of the short runs"))


async def start_and_read_short(wire: Wire, thread_id: str) -> None:
    await start_and_read(wire, thread_id, SHORT)


def report(found: Found, runs: int, at_a_time: int) -> Report:
    parts = zip(*found.parts, strict=True)
    bare_parts = [
        Row(name, "ms", None, at(seconds, 0.5), group="bare parts of a start, p50")
        for name, seconds in zip(PARTS, parts, strict=False)
    ]
    firsts = [
        Row(f"first event, {name}", "ms", at(found.firsts, share), at(found.bare_sums, share), group="a start")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    short = f"{runs} runs of 20 chunks, 5 ms apart, {at_a_time} at a time"
    rows = [
        *bare_parts,
        *firsts,
        Row("answer, p50", "ms", at(found.answers, 0.5), group="a start"),
        Row("accepted starts", "1/s", median(found.accepted), middle(found.accepted_bare), group="many starts"),
        Row("runs ended", "1/s", median(found.ended), group=short),
        *medians(found.spent),
    ]
    title = f"{len(found.firsts)} starts, one after the other; medians of {len(found.ended)} rounds"
    return Report(title, rows, [plot(found)], NOTES)


def plot(found: Found) -> Plot:
    series = [in_ms("limit", found.bare_sums)] if found.parts else []
    series += [in_ms("Longrun, answer", found.answers), in_ms("Longrun, first event", found.firsts)]
    title = "Starts by when their reader had the first event"
    return Plot(title, "ms from POST", "starts (%)", series, logarithmic_x=True)


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def medians(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """Row by row over the rounds."""
    return [
        Row(same[0].name, same[0].unit, median(row.longrun or 0.0 for row in same), group=same[0].group)
        for same in zip(*rounds, strict=True)
    ]


BENCHMARK = Benchmark("start", "from a start to its first event; starts and short runs by the second", add_options, run)
