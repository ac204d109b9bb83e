"""Queueing and recovery at a size that no single machine has; the model is held against a small system that it has.

python -m tests.benchmarks.simulate      # writes the tables of docs/scaling.md
"""

import asyncio
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.processes import Meter
from tests.benchmarks.report import Plot, Report, Row, Series, shares
from tests.benchmarks.session import Session
from tests.benchmarks.simulation import scenarios, small
from tests.benchmarks.simulation.fleet import Timing
from tests.benchmarks.simulation.scenarios import SCENARIOS, Outcome, Site, at
from tests.benchmarks.simulation.storm import Storm
from tests.benchmarks.sizing import BUSY, DOCUMENT, LARGE, OPEN_MS, Load, number
from tests.faults.report import write_between

TOLERANCE, LEAST_SECONDS = 0.25, 0.5
READERS_OPENED = 200
QUIET_MODEL = "demo/lorem?chunks=40&delay_ms=250"
FIGURES: dict[str, Callable[[Outcome], float]] = {
    "wait for a driver, p50": lambda found: at(found.waits, 0.5),
    "wait for a driver, p95": lambda found: at(found.waits, 0.95),
    "wait for a driver, longest": lambda found: at(found.waits, 1.0),
    "without a driver after the kill, p50": lambda found: at(found.gaps, 0.5),
    "without a driver after the kill, longest": lambda found: at(found.gaps, 1.0),
}
HOSTS = 5
WORKERS_HERE = ("<!-- simulated workers -->", "<!-- end of simulated workers -->")
READERS_HERE = ("<!-- simulated readers -->", "<!-- end of simulated readers -->")
WORKERS_HEAD = (
    "| | wait for a driver, p50 | p99 | runs that lost theirs | without one, p50 | longest |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |\n"
)
READERS_HEAD = "| | readers | back, p50 | p99 | last after the first |\n| --- | ---: | ---: | ---: | ---: |\n"
NOTES = (
    "Longrun: a small system with durations a tenth of the real ones; reference: the simulation of the same, medians",
    f"The model holds where both differ by less than {LEAST_SECONDS:g} s or {TOLERANCE:.0%}.",
    "Figures of the large site are simulated, with real durations.",
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=counted(10, 100_000), metavar="N", default=1000, help="live runs (1000)")
    parser.add_argument(
        "--readers", type=counted(100, 1_000_000), metavar="N", default=100_000, help="open streams (100000)"
    )
    parser.add_argument("--hosts", type=counted(2, 1000), metavar="N", default=HOSTS, help="hosts of workers (5)")
    parser.add_argument(
        "--small-runs", type=counted(20, 1000), metavar="N", default=80, help="runs of the measured system (80)"
    )


async def run(session: Session) -> Report:
    options = session.options
    plan = small.Plan(runs=options.small_runs)
    async with small.deployed(session, plan) as (deployment, client):
        opening, resident = await opening_cost(deployment, client)
        with session.progress.steps("runs of the small system", plan.runs) as told:
            measured = await small.measure(deployment, client, plan, options.seed, told)
    simulated = await asyncio.to_thread(small.simulate, plan, measured)
    rows = [*compared(measured.outcome, simulated), *costs(opening, resident)]
    outcomes = await asyncio.to_thread(simulate_all, sized(options.runs, options.hosts), options.seed)
    load = replace(LARGE, runs=options.runs, readers=options.readers)
    storms = await asyncio.to_thread(simulate_storms, load, options.seed)
    rows += [row for name, found in outcomes.items() for row in rows_of(name, found)]
    rows += [row for name, back in storms.items() for row in rows_of_storm(name, back)]
    title = f"{options.runs} runs and {options.readers} readers on {options.hosts} hosts of workers, simulated"
    return Report(title, rows, plots(outcomes, storms), NOTES)


def sized(runs: int, hosts: int) -> Site:
    """As many processes as leave a fifth of the slots free."""
    slots = Site().slots
    processes = -(-runs * 5 // (4 * slots * hosts))
    return replace(Site(), runs=runs, hosts=hosts, processes=processes)


def simulate_all(site: Site, seed: int) -> dict[str, Outcome]:
    return {name: scenarios.simulate(site, befall, Timing(), seed) for name, befall in SCENARIOS.items()}


def simulate_storms(load: Load, seed: int) -> dict[str, list[float]]:
    """One API process dies, or a host with eight of them; `retry` as it is, and drawn around it."""
    storms = {}
    for what, died in (("one API process", 1), ("a host of 8 API processes", 8)):
        for how, jitter in (("retry 3 s", 0.0), ("retry 3 s ± 50 %", 0.5)):
            left = max(load.api_processes - died, 1)
            readers = load.readers * died // (left + died)
            storm = Storm(readers, left, 3.0, jitter, OPEN_MS.value / 1000, BUSY, seed)
            storms[f"{what} dies, {how}"] = storm.back_after()
    return storms


async def opening_cost(deployment: Deployment, client: Client) -> tuple[float, float]:
    """Milliseconds of the API's processor for one stream that is opened, and its resident megabytes before."""
    api = deployment.api
    assert api
    meter = Meter(api=api.process.pid)
    resident = meter.resident("api") / 1e6
    started = await client.initiate(QUIET_MODEL)
    opened = asyncio.Semaphore(0)
    meter.restart()
    reading = [asyncio.create_task(hold_open(client, started.run_id, opened)) for _ in range(READERS_OPENED)]
    for _ in reading:
        await opened.acquire()
    spent = meter.spent()["api"]
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await client.stop(started.run_id)
    return 1000 * spent / READERS_OPENED, resident


async def hold_open(client: Client, run_id: str, opened: asyncio.Semaphore) -> None:
    async with client.stream(run_id) as stream:
        await stream.take(1)
        opened.release()
        await asyncio.sleep(60)


def compared(measured: Outcome, simulated: Sequence[Outcome]) -> list[Row]:
    rows = []
    for name, pick in FIGURES.items():
        real, model = pick(measured), median(map(pick, simulated))
        rows.append(Row(name, "s", real, reference=model, group="a small system, measured and simulated"))
    holds = all(is_near(row.longrun or 0.0, row.reference or 0.0) for row in rows)
    return [*rows, Row("the model holds (1: yes)", "", float(holds), group=rows[0].group)]


def is_near(one: float, other: float) -> bool:
    return abs(one - other) <= max(LEAST_SECONDS, TOLERANCE * one)


def costs(opening: float, resident: float) -> list[Row]:
    group = "what the storms and the sizes are reckoned with"
    return [
        Row("API processor time for opening a stream", "ms", opening, group=group),
        Row("memory of an API process without streams", "MB", resident, group=group),
    ]


def rows_of(name: str, found: Outcome) -> list[Row]:
    simulated = partial(Row, group=name)
    rows = [
        simulated("wait for a driver, p50", "s", at(found.waits, 0.5)),
        simulated("wait for a driver, p99", "s", at(found.waits, 0.99)),
        simulated("runs without a driver at a time, most", "", max(count for _, count in found.waiting)),
    ]
    if found.gaps:
        rows += [
            simulated("runs that lost their driver", "", len(found.gaps)),
            simulated("without a driver, p50", "s", at(found.gaps, 0.5)),
            simulated("without a driver, longest", "s", at(found.gaps, 1.0)),
        ]
    return rows


def rows_of_storm(name: str, back: list[float]) -> list[Row]:
    simulated = partial(Row, group=name)
    first = min(back)
    return [
        simulated("readers who come back", "", len(back)),
        simulated("back, p50", "s", at(back, 0.5)),
        simulated("back, p99", "s", at(back, 0.99)),
        simulated("all back after the first", "s", max(back) - first),
    ]


def plots(outcomes: dict[str, Outcome], storms: dict[str, list[float]]) -> list[Plot]:
    waiting = [
        Series(name, [moment for moment, _ in found.waiting], [float(count) for _, count in found.waiting])
        for name, found in outcomes.items()
    ]
    return [
        Plot("Runs without a driver", "seconds since it happened", "runs", waiting),
        Plot(
            "Readers who are back",
            "seconds since the death",
            "readers (%)",
            [shares(name, back) for name, back in storms.items()],
        ),
    ]


def in_a_document(seed: int = 1) -> tuple[str, str]:
    """What happens to the large load of docs/scaling.md: its workers, its readers."""
    outcomes = simulate_all(sized(LARGE.runs, HOSTS), seed)
    workers = "".join(
        f"| {name} | {seconds(found.waits, 0.5)} | {seconds(found.waits, 0.99)} | {len(found.gaps) or ''} "
        f"| {seconds(found.gaps, 0.5)} | {seconds(found.gaps, 1.0)} |\n"
        for name, found in outcomes.items()
    )
    readers = "".join(
        f"| {name} | {len(back):,} | {seconds(back, 0.5)} | {seconds(back, 0.99)} "
        f"| {number(max(back) - min(back))} s |\n"
        for name, back in simulate_storms(LARGE, seed).items()
    )
    return WORKERS_HEAD + workers, READERS_HEAD + readers


def seconds(some: list[float], share: float) -> str:
    return f"{number(at(some, share))} s" if some else ""


def write(document: Path = DOCUMENT) -> None:
    workers, readers = in_a_document()
    write_between(document, *WORKERS_HERE, workers)
    write_between(document, *READERS_HERE, readers)


BENCHMARK = Benchmark(
    "simulate", "queueing and recovery of a large site, simulated; the model held against a small one", add_options, run
)

if __name__ == "__main__":
    write()
