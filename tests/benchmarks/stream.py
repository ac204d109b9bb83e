"""What a delivered event costs a server: many readers of one run, and many runs with a reader each."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from statistics import median

from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.progress import Advance
from tests.benchmarks.report import Plot, Report, Row, Series
from tests.benchmarks.session import Session
from tests.benchmarks.streaming import Bench, Kind, Measured, Shape, quantile

KINDS: tuple[Kind, ...] = ("limit", "longrun", "reference")
NOTES = (
    "limit: uvicorn and a bare ASGI application that writes the same frames on a timer, without any store",
    "reference: two pub/sub connections for each reader, LRANGE and JSON for each reader and event",
    "latency: from the producer's stamp in an event (the limit's own) to its arrival at the client",
    "CPU of the others is that of the whole process, by delivered event",
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--readers", type=counted(1, 20_000), metavar="N", default=300, help="readers in all (300)")
    parser.add_argument("--per-second", type=counted(1, 1000), metavar="N", default=20, help="events of a run (20)")
    parser.add_argument("--bytes", type=counted(64, 100_000), metavar="N", default=300, help="of an event (300)")
    parser.add_argument("--seconds", type=counted(1, 600), metavar="N", default=5, help="of each measurement (5)")
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="of which the medians are told (3)")
    parser.add_argument(
        "--scale",
        type=counted(1, 64),
        metavar="N",
        default=1,
        help="also twice, four times, … as many readers, up to N times (1)",
    )


async def run(session: Session) -> Report:
    options, bench = session.options, await Bench.open(session)
    shapes = [shape for scale in scales(options.scale) for shape in shapes_of(options.readers * scale, options)]
    kinds = {shape: KINDS if shape.streams == options.readers else KINDS[:2] for shape in shapes}
    total = options.rounds * sum(map(len, kinds.values()))
    with session.progress.steps("measurements", total) as told:
        rounds = [await one_round(bench, kinds, options.seconds, told) for _ in range(options.rounds)]
    found = {key: [each[key] for each in rounds] for key in rounds[0]}
    rows = [row for shape in shapes for row in rows_of(shape, found)]
    title = f"{options.readers} readers, {options.per_second} events/s of {options.bytes} B"
    return Report(title, rows, [latencies(shape, found) for shape in shapes[:2]] + growth(shapes, found), NOTES)


Found = dict[tuple[Shape, Kind], list[Measured]]


def scales(highest: int) -> list[int]:
    return [2**power for power in range(highest.bit_length()) if 2**power <= highest]


def shapes_of(readers: int, options: Namespace) -> list[Shape]:
    return [
        Shape(1, readers, options.per_second, options.bytes),
        Shape(readers, 1, options.per_second, options.bytes),
    ]


async def one_round(
    bench: Bench, kinds: dict[Shape, tuple[Kind, ...]], seconds: float, told: Advance
) -> dict[tuple[Shape, Kind], Measured]:
    """Every server once, in turn: what disturbs the machine disturbs all of them."""
    found: dict[tuple[Shape, Kind], Measured] = {}
    for shape, some in kinds.items():
        for kind in some:
            found[shape, kind] = await bench.measure(kind, shape, seconds)
            told()
    return found


def rows_of(shape: Shape, found: Found) -> list[Row]:
    def row(name: str, unit: str, figure: Callable[[Measured], float]) -> Row:
        limit, longrun, reference = (middle(found.get((shape, kind)), figure) for kind in KINDS)
        return Row(name, unit, longrun, limit, reference, group=f"{shape.runs} runs, {shape.readers} readers each")

    return [
        row("server's CPU per delivered event", "µs", lambda one: one.cpu_per_event),
        row("latency, p50", "ms", lambda one: quantile(one.latencies, 0.5)),
        row("latency, p99", "ms", lambda one: quantile(one.latencies, 0.99)),
        row("delivered of what was due", "%", lambda one: 100 * one.delivered / one.due),
        row("gaps", "", lambda one: one.gaps),
        row("Redis' CPU per delivered event", "µs", lambda one: by_event(one, "redis")),
        row("producer's CPU per delivered event", "µs", lambda one: by_event(one, "producer")),
        row("client's CPU per delivered event", "µs", lambda one: by_event(one, "client")),
        row("server's connections to Redis", "", lambda one: one.redis_connections),
        row("server's connections to Postgres", "", lambda one: one.postgres_connections),
    ]


def by_event(one: Measured, name: str) -> float:
    return one.cpu.get(name, 0.0) / max(one.delivered, 1) * 1e6


def middle(measured: Sequence[Measured] | None, figure: Callable[[Measured], float]) -> float | None:
    return median(map(figure, measured)) if measured else None


def latencies(shape: Shape, found: Found) -> Plot:
    series = []
    for kind in KINDS:
        values = found[shape, kind][0].latencies
        steps = [100 * step / max(len(values) - 1, 1) for step in range(len(values))]
        series.append(Series({"longrun": "Longrun"}.get(kind, kind), [max(value, 0.01) for value in values], steps))
    title = f"{shape.runs} runs, {shape.readers} readers each: events by when they arrived"
    return Plot(title, "ms after they were said", "events (%)", series, logarithmic_x=True)


def growth(shapes: Sequence[Shape], found: Found) -> list[Plot]:
    """The server's share of its core by the number of readers; a straight line has no knee."""
    if len(shapes) < 4:
        return []
    series = []
    for kind in KINDS[:2]:
        for name, some in (("one run", shapes[::2]), ("a run each", shapes[1::2])):
            shares = [middle(found[shape, kind], lambda one: 100 * one.cpu["server"] / one.seconds) for shape in some]
            label = f"{'Longrun' if kind == 'longrun' else kind}, {name}"
            series.append(Series(label, [shape.streams for shape in some], [share or 0.0 for share in shares]))
    return [Plot("Cost by the number of readers", "readers", "server's core (%)", series)]


BENCHMARK = Benchmark(
    "stream", "what a delivered event costs the API, and how old it is when it arrives", add_options, run
)
