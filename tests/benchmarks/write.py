"""What a worker spends on writing logs, beside the least that writes them and the published design."""

import asyncio
import os
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from statistics import median
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import orjson
from redis.asyncio import Redis

from services.background import stop
from services.embedded.environment import CHECKOUT, for_our_code
from services.runs import keys
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.processes import LOAD_CORE, SERVER_CORE, Meter, connections, pin
from tests.benchmarks.progress import Advance
from tests.benchmarks.report import Plot, Report, Row, Series
from tests.benchmarks.session import Session
from tests.figures import percentile

WATCHED = 8
BATCHES = (10, 1)
WHISPERS = 80
FLOOD_SECONDS = 2.0
SLICE_SECONDS = 2
REFERENCE_SHARE = 0.5
ANSWER_SECONDS = 120.0
KINDS = ("silent", "limit", "longrun", "unarchived", "reference")
SCALED = ("silent", "limit", "longrun")
MEASURED = ("limit", "longrun", "reference")
MICRO, MILLI = 1e6, 1e3
NOTES = (
    "limit: the events encoded, one RPUSH and one PUBLISH for each log that spoke, hiredis on a bare connection, "
    "at the same intervals; no fence, no archive, no bounds",
    "reference: a task for each RPUSH and each PUBLISH, awaited when the load ends; it is loaded for a second a "
    "round, and its CPU counted until it has caught up",
    "CPU of a writer is without what the load itself spends in its process; it includes the archive, whose part is "
    "listed apart, and for Longrun leases and heartbeats",
    "until a reader has it: from `created_at` to the answer of the LRANGE that follows the message",
)
Figures = defaultdict[tuple[str, str], list[float]]


class Writing:
    """A process of `tests.benchmarks.writing`, on the server's core."""

    def __init__(self, kind: str, process: asyncio.subprocess.Process) -> None:
        self.kind, self.process, self.pid = kind, process, process.pid
        self.run_ids: list[UUID] = []

    async def ask(self, **order: Any) -> Any:
        """Raises: AssertionError when it died of what was asked; it has said why on its standard error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(orjson.dumps(order) + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await self.process.stdout.readline()
        assert line, f"the writer {self.kind!r} died"
        return orjson.loads(line)

    async def open(self, runs: int) -> None:
        self.run_ids = list(map(UUID, await self.ask(do="open", runs=runs)))


class Measuring:
    """One benchmark: its stores, its figures by name and kind, and how far it is."""

    def __init__(self, session: Session, stores: Mapping[str, str], told: Advance) -> None:
        self.options, self.stores, self.told = session.options, stores, told
        self.figures: Figures = defaultdict(list)
        self.servers = {
            child.spec.name: child.process.pid
            for child in session.supervisor.children
            if child.process and child.spec.name in ("postgres", "valkey")
        }

    def note(self, kind: str, **figures: float) -> None:
        for name, figure in figures.items():
            self.figures[name, kind].append(figure)

    async def round(self) -> None:
        """Everything once, by processes and on a Redis that begin anew."""
        async with AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(writing(kind, self.stores)) for kind in KINDS]
            for runs in self.sizes()[:-1]:
                await self.load_each([writer for writer in writers if writer.kind in SCALED], runs)
            for number in range(max(self.options.seconds // SLICE_SECONDS, 1)):
                await self.load_each(
                    [writer for writer in writers if not number or writer.kind != "reference"], runs=self.options.runs
                )
            for writer in writers:
                if writer.kind in MEASURED:
                    await self.whisper(writer)
            for writer in writers:
                if writer.kind in ("limit", "longrun"):
                    await self.flood(writer)
        async with Redis.from_url(self.stores["REDIS_URL"], protocol=2) as redis:
            await redis.flushdb()

    def sizes(self) -> list[int]:
        return sizes(self.options.runs)

    async def load_each(self, writers: Sequence[Writing], runs: int) -> None:
        """One after the other for a short while: what else the machine does meets all of them alike."""
        for writer in writers:
            await writer.open(runs)
            await self.load(writer, runs)

    async def load(self, writer: Writing, runs: int) -> None:
        seconds = min(SLICE_SECONDS, self.options.seconds) * (REFERENCE_SHARE if writer.kind == "reference" else 1)
        meter = Meter(**self.servers)
        async with watching(self.stores["REDIS_URL"], writer.run_ids[:WATCHED]) as latencies:
            done = await writer.ask(do="load", runs=runs, rate=self.options.rate, seconds=seconds)
        for name, cpu in {**meter.spent(), "writer": done["cpu"]}.items():
            self.note(writer.kind, **{f"{name} at {runs}": MICRO * cpu / done["said"]})
        if runs == self.options.runs:
            self.note(writer.kind, settled=MILLI * done["settled"], archived=done["archived"])
            self.note(writer.kind, rate=done["said"] / done["seconds"])
            self.note(writer.kind, connections=connections(writer.pid, urlsplit(self.stores["REDIS_URL"]).port or 0))
            self.note_latencies(writer.kind, "load", latencies)
        self.told()

    def note_latencies(self, kind: str, name: str, latencies: Sequence[float]) -> None:
        if latencies:
            self.note(kind, **{f"{name} p50": MILLI * percentile(latencies, 0.5)})
            self.note(kind, **{f"{name} p99": MILLI * percentile(latencies, 0.99)})

    async def whisper(self, writer: Writing) -> None:
        async with watching(self.stores["REDIS_URL"], writer.run_ids[:1]) as latencies:
            await writer.ask(do="whisper", events=WHISPERS)
        self.note_latencies(writer.kind, "idle", latencies)
        self.told()

    async def flood(self, writer: Writing) -> None:
        for batch in BATCHES:
            done = await writer.ask(do="flood", runs=self.options.runs, batch=batch, seconds=FLOOD_SECONDS)
            self.note(
                writer.kind, **{f"flood of {batch}": done["per_second"], f"archived of {batch}": done["archived"]}
            )
            self.told()

    def of(self, name: str, kind: str) -> float | None:
        found = self.figures.get((name, kind))
        return median(found) if found else None

    def row(self, title: str, unit: str, name: str, group: str) -> Row:
        return Row(title, unit, self.of(name, "longrun"), self.of(name, "limit"), self.of(name, "reference"), group)

    def cpu(self, runs: int, kind: str) -> float | None:
        """Microseconds per event in the process, less those that the load itself takes there; round by round."""
        name = f"writer at {runs}"
        pairs = zip(self.figures.get((name, kind), ()), self.figures[name, "silent"], strict=False)
        return median(found) if (found := [whole - load for whole, load in pairs]) else None


@asynccontextmanager
async def writing(kind: str, stores: Mapping[str, str]) -> AsyncIterator[Writing]:
    command = (sys.executable, "-m", "tests.benchmarks.writing", kind)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, cwd=CHECKOUT, env=for_our_code(stores)
    )
    assert process.stdin
    try:
        pin(SERVER_CORE, process.pid)
        yield Writing(kind, process)
        process.stdin.close()
        async with asyncio.timeout(ANSWER_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def watching(redis_url: str, run_ids: Sequence[UUID]) -> AsyncIterator[list[float]]:
    """A reader of these runs; in the list, seconds from an event's `created_at` until it had it."""
    seen: list[float] = []
    by_channel = {keys.news(run_id).encode(): keys.responses(run_id) for run_id in run_ids}
    async with Redis.from_url(redis_url, protocol=2) as redis, redis.pubsub() as pubsub:
        if by_channel:
            await pubsub.subscribe(*by_channel)
        ends = {responses: await redis.llen(responses) for responses in by_channel.values()}

        async def read() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    responses = by_channel[message["channel"]]
                    found = await redis.lrange(responses, ends[responses], -1)
                    ends[responses] += len(found)
                    now = time.time()
                    seen.extend(now - said_at(event) for event in found)

        reading = asyncio.create_task(read())
        try:
            yield seen
        finally:
            await stop([reading])


def said_at(event: bytes | str) -> float:
    return datetime.fromisoformat(orjson.loads(event)["created_at"]).timestamp()


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=counted(1), metavar="N", default=256, help="live runs (256)")
    parser.add_argument("--rate", type=counted(1), metavar="N", default=50, help="events per second of each (50)")
    parser.add_argument(
        "--seconds", type=counted(1), metavar="N", default=6, help="how long each is loaded in a round, by turns (6)"
    )
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="the medians of which count (3)")


def sizes(runs: int) -> list[int]:
    """A quarter, a half, the whole."""
    return sorted({max(runs // 4, 1), max(runs // 2, 1), runs})


async def run(session: Session) -> Report:
    stores = await session.stores()
    pin(LOAD_CORE, os.getpid())
    slices = max(session.options.seconds // SLICE_SECONDS, 1)
    scaled, loads = len(SCALED) * len(sizes(session.options.runs)[:-1]), slices * (len(KINDS) - 1) + 1
    steps = session.options.rounds * (scaled + loads + len(MEASURED) + 2 * len(BATCHES))
    with session.progress.steps("phases", steps) as told:
        measuring = Measuring(session, stores, told)
        for _ in range(session.options.rounds):
            await measuring.round()
    return report(measuring)


def report(measuring: Measuring) -> Report:
    options = measuring.options
    title = f"{options.runs} live runs in one process, {options.rate} events/s each"
    plot = Plot("CPU of a writer by live runs", "runs", "% of a core", [line(measuring, kind) for kind in MEASURED[:2]])
    return Report(title, [*loaded(measuring), *others(measuring), *scaled(measuring)], [plot], NOTES)


def loaded(measuring: Measuring) -> list[Row]:
    runs = measuring.options.runs
    group = f"{runs} runs, {measuring.options.rate} events/s of each"
    whole, without = measuring.cpu(runs, "longrun"), measuring.cpu(runs, "unarchived")
    archive = whole - without if whole is not None and without is not None else None
    return [
        Row("CPU per event", "µs", whole, measuring.cpu(runs, "limit"), measuring.cpu(runs, "reference"), group),
        Row("CPU per event, the archive's part", "µs", archive, group=group),
        Row("CPU per event of the load itself", "µs", measuring.of(f"writer at {runs}", "silent"), group=group),
        measuring.row("CPU per event in Redis", "µs", f"valkey at {runs}", group),
        measuring.row("CPU per event in Postgres", "µs", f"postgres at {runs}", group),
        measuring.row("events said", "events/s", "rate", group),
        measuring.row("until a reader has it, p50", "ms", "load p50", group),
        measuring.row("until a reader has it, p99", "ms", "load p99", group),
        measuring.row("all in Redis after the last", "ms", "settled", group),
        Row("all in Postgres after the last", "s", measuring.of("archived", "longrun"), group=group),
        measuring.row("Redis connections of the process", "", "connections", group),
    ]


def others(measuring: Measuring) -> list[Row]:
    idle = [
        measuring.row(f"until a reader has it, {share}", "ms", f"idle {share}", "one run that speaks now and then")
        for share in ("p50", "p99")
    ]
    floods = [
        measuring.row(f"in batches of {batch}", "events/s", f"flood of {batch}", "as fast as it goes")
        for batch in BATCHES
    ]
    return [*idle, *floods]


def scaled(measuring: Measuring) -> list[Row]:
    group = "CPU per event by live runs"
    return [
        Row(f"{runs} runs", "µs", measuring.cpu(runs, "longrun"), measuring.cpu(runs, "limit"), group=group)
        for runs in measuring.sizes()
    ]


def line(measuring: Measuring, kind: str) -> Series:
    """Percent of a core, by how many runs."""
    sizes = measuring.sizes()
    spent = [(measuring.cpu(runs, kind) or 0.0) * runs * measuring.options.rate / MICRO * 100 for runs in sizes]
    return Series("Longrun" if kind == "longrun" else kind, [float(runs) for runs in sizes], spent)


BENCHMARK = Benchmark("write", "what a worker spends on writing the logs of many live runs", add_options, run)
