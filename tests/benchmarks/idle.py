"""As many streams as one API process may hold, each with an event a second, and ordinary requests beside them."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from statistics import median

from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.progress import Advance
from tests.benchmarks.report import Plot, Report, Row, Series
from tests.benchmarks.session import Session
from tests.benchmarks.streaming import Bench, Kind, Measured, Shape, open_files, quantile

SPARE_FILES = 500
NOTES = (
    "limit: uvicorn and a bare ASGI application that writes the same frames on a timer, without any store",
    "reference: two pub/sub connections for each reader; with fewer readers, since it needs two files more for each",
    "memory: what the server's resident memory grew by, from before the first stream to after the last event",
    "ordinary requests: GET /agent-run/{id} on connections of their own that stay open; of the limit, none",
)
KINDS: tuple[Kind, ...] = ("limit", "longrun", "reference")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--streams", type=counted(1, 60_000), metavar="N", default=10_000, help="at once (10,000)")
    parser.add_argument("--seconds", type=counted(1, 3600), metavar="N", default=60, help="of each measurement (60)")
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="of which the medians are told (3)")
    parser.add_argument("--bytes", type=counted(64, 100_000), metavar="N", default=300, help="of an event (300)")
    parser.add_argument(
        "--ordinary", type=counted(0, 10_000), metavar="N", default=1000, help="ordinary connections beside them (1000)"
    )
    parser.add_argument(
        "--reference", type=counted(0, 10_000), metavar="N", default=500, help="readers of the reference (500; 0: none)"
    )


async def run(session: Session) -> Report:
    options, bench = session.options, await Bench.open(session)
    streams = min(options.streams, open_files() - options.ordinary - SPARE_FILES)
    if streams < options.streams:
        session.progress.say(f"only {streams} streams: this shell allows {open_files()} open files (ulimit -n)")
    shapes = [Shape(1, streams, 1, options.bytes), Shape(streams, 1, 1, options.bytes)]
    kinds = KINDS if options.reference else KINDS[:2]
    with session.progress.steps("measurements", options.rounds * len(shapes) * len(kinds)) as told:
        rounds = [await one_round(bench, shapes, kinds, told) for _ in range(options.rounds)]
    found = {key: [each[key] for each in rounds] for key in rounds[0]}
    rows = [row for shape in shapes for row in rows_of(shape, found)]
    return Report(f"{streams} streams with an event a second", rows, [plot(found)], NOTES)


Found = dict[tuple[Shape, Kind], list[Measured]]


async def one_round(
    bench: Bench, shapes: Sequence[Shape], kinds: Sequence[Kind], told: Advance
) -> dict[tuple[Shape, Kind], Measured]:
    options, found = bench.session.options, dict[tuple[Shape, Kind], Measured]()
    for shape in shapes:
        for kind in kinds:
            smaller = Shape(min(shape.runs, options.reference), min(shape.readers, options.reference), 1, shape.bytes)
            found[shape, kind] = await bench.measure(
                kind,
                smaller if kind == "reference" else shape,
                options.seconds,
                ordinary=options.ordinary if kind == "longrun" else 0,
            )
            told()
    return found


def rows_of(shape: Shape, found: Found) -> list[Row]:
    def row(name: str, unit: str, figure: Callable[[Measured], float]) -> Row:
        limit, longrun, reference = (
            median(map(figure, some)) if (some := found.get((shape, kind))) else None for kind in KINDS
        )
        return Row(name, unit, longrun, limit, reference, group=f"{shape.runs} runs, {shape.readers} readers each")

    def asked(name: str, unit: str, figure: Callable[[Measured], float]) -> Row:
        figures = median(map(figure, found[shape, "longrun"]))
        return Row(name, unit, figures, group=f"{shape.runs} runs, {shape.readers} readers each")

    return [
        row("delivered of what was due", "%", lambda one: 100 * one.delivered / one.due),
        row("gaps", "", lambda one: one.gaps),
        row("streams lost", "", lambda one: one.lost),
        row("latency, p50", "ms", lambda one: quantile(one.latencies, 0.5)),
        row("latency, p99", "ms", lambda one: quantile(one.latencies, 0.99)),
        row("resident memory per stream", "KB", lambda one: one.memory_per_stream / 1000),
        row("opened in", "s", lambda one: one.opened_in),
        row("server's share of its core", "%", lambda one: 100 * one.cpu["server"] / one.seconds),
        row("server's CPU per delivered event", "µs", lambda one: one.cpu_per_event),
        row("Redis' share of a core", "%", lambda one: 100 * one.cpu.get("redis", 0.0) / one.seconds),
        row("producer's share of a core", "%", lambda one: 100 * one.cpu.get("producer", 0.0) / one.seconds),
        row("client's share of a core", "%", lambda one: 100 * one.cpu.get("client", 0.0) / one.seconds),
        row("server's connections to Redis", "", lambda one: one.redis_connections),
        row("server's connections to Postgres", "", lambda one: one.postgres_connections),
        asked("ordinary requests answered", "", lambda one: one.answered),
        asked("ordinary requests refused", "", lambda one: one.refused),
        asked("ordinary request, p50", "ms", lambda one: quantile(one.answers, 0.5)),
        asked("ordinary request, p99", "ms", lambda one: quantile(one.answers, 0.99)),
    ]


def plot(found: Found) -> Plot:
    series = []
    for (shape, kind), measured in found.items():
        values = measured[0].latencies
        steps = [100 * step / max(len(values) - 1, 1) for step in range(len(values))]
        name = f"{'Longrun' if kind == 'longrun' else kind}, {shape.runs} runs"
        series.append(Series(name, [max(value, 0.01) for value in values], steps))
    return Plot("Events by when they arrived", "ms after they were said", "events (%)", series, logarithmic_x=True)


BENCHMARK = Benchmark("idle", "ten thousand streams on one API process: delay, memory, connections", add_options, run)
