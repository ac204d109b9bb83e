"""Many starts at once: each is accepted, and each run ends."""

import time
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.bare import bare
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.placed import Placed, placed
from tests.benchmarks.processes import SERVER_CORE
from tests.benchmarks.report import Plot, Report, Row, at, in_ms
from tests.benchmarks.session import Session
from tests.benchmarks.start import accept, medians, middle, moved_to, start, status_at_end
from tests.benchmarks.wire import Wire, spread, wires

THREADS = 48
POOL = 20
SINCE = "from the beginning of the burst"
NOTES = (
    "answers: seconds from the beginning of the burst, so the time that a start waited for its connection counts",
    "limit: as many bare INSERTs with a confirmed publish, over as many connections of the pool as the API has",
    "ended: until every run is final, from the beginning of the burst; one worker process shares the API's core",
    "no reference: the published design has no server that could be measured beside this one",
)


@dataclass(slots=True)
class Found:
    bare: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    """Seconds of each start from its own POST."""
    accepted_within: list[float] = field(default_factory=list)
    ended_within: list[float] = field(default_factory=list)
    spent: list[list[Row]] = field(default_factory=list)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="bursts (3)")
    parser.add_argument("--starts", type=counted(1), metavar="N", default=1000, help="of each burst (1000)")
    parser.add_argument("--connections", type=counted(1, 1000), metavar="N", default=100, help="they come over (100)")


async def run(session: Session) -> Report:
    options, found = session.options, Found()
    async with placed(session, threads=THREADS) as instance:
        with session.progress.steps("bursts", options.rounds) as told:
            for _ in range(options.rounds):
                if instance.stores:
                    await measure_limit(instance.stores, options.starts, found)
                await measure_burst(instance, options.starts, options.connections, found)
                told()
    return report(found, options.starts, options.connections)


async def measure_limit(stores: Mapping[str, str], count: int, found: Found) -> None:
    with moved_to(SERVER_CORE):
        async with bare(stores, POOL) as least:
            began = time.monotonic()

            async def timed(one: object, number: int) -> float:
                await accept(least, number)
                return time.monotonic() - began

            found.bare += await spread([least] * POOL, range(count), timed)


async def measure_burst(instance: Placed, count: int, connections: int, found: Found) -> None:
    """Raises: AssertionError unless every start is accepted and every run completed."""
    threads = await instance.threads(count)
    async with wires(instance.url, instance.token, connections) as opened:
        if instance.meter:
            instance.meter.restart()
        began = time.monotonic()

        async def ask(wire: Wire, thread_id: str) -> tuple[str, float, float]:
            asked = time.monotonic()
            run_id = await start(wire, thread_id)
            return run_id, time.monotonic() - began, time.monotonic() - asked

        answers = await spread(opened, threads, ask)
        statuses = await spread(opened, [run_id for run_id, *_ in answers], status_at_end)
        found.ended_within.append(time.monotonic() - began)
    assert set(statuses) == {"completed"}, statuses
    found.answers += [since_burst for _, since_burst, _ in answers]
    found.own += [since_post for *_, since_post in answers]
    found.accepted_within.append(max(since_burst for _, since_burst, _ in answers))
    found.spent.append(instance.spent(count, "CPU"))


def report(found: Found, starts: int, connections: int) -> Report:
    answers = [
        Row(f"answer, {name}", "ms", at(found.answers, share), at(found.bare, share), group=SINCE)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("last", 1.0))
    ]
    own = [
        Row(f"answer, {name}", "ms", at(found.own, share), group="from its own POST")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    bare_rate = middle([starts / last for last in lasts(found.bare, starts)])
    rows = [
        *own,
        *answers,
        Row("accepted starts", "1/s", starts / median(found.accepted_within), bare_rate, group=SINCE),
        Row("every run ended within", "s", median(found.ended_within), group=SINCE),
        *medians(found.spent),
    ]
    series = [in_ms(*each) for each in (("limit", found.bare), ("Longrun", found.answers)) if each[1]]
    plot = Plot("Starts by when they were accepted", "ms from the beginning of the burst", "starts (%)", series)
    return Report(f"{starts} starts at once over {connections} connections", rows, [plot], NOTES)


def lasts(seconds: list[float], size: int) -> list[float]:
    """The last of each round's."""
    return [max(seconds[first : first + size]) for first in range(0, len(seconds), size)]


BENCHMARK = Benchmark(
    "burst", "many starts at once over many connections: accepted by when, ended by when", add_options, run
)
