"""How long a stop takes to reach a reader, beside the least that it could take: one run, and many at once."""

import asyncio
import time
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg
from redis.asyncio import Redis

from tests.acceptance.client import Client
from tests.acceptance.stops import Stop, by_kind, last_events, measure
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.placed import Placed, placed
from tests.benchmarks.progress import Advance
from tests.benchmarks.report import Plot, Report, Row, Series, at, in_ms
from tests.benchmarks.session import Session
from tests.benchmarks.start import start
from tests.benchmarks.wire import Wire, wires
from tests.fakes import FakeModel

SILENT_MODEL = "openai/script-silent"
TEXT = "demo/lorem?chunks=2000&delay_ms=50"
THREADS = 120
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LIMIT_ROUNDS = 300
LIMIT_NOTE = "limit: one row updated and committed, then one PUBLISH, until a subscriber has it"
NO_LIMIT_NOTE = "no limit: the stores of a named instance are not ours to write to"
NOTES = (
    "one live run: in mid-text or in silence; a run before pick-up needs no worker",
    "at once: each run streams text to a reader of its own, at 20 events a second; seconds from the first POST on",
)

Ways = dict[str, list[float]]


@dataclass(slots=True)
class Found:
    """`together` has the seconds to each reader's last event, by the way in which all runs were stopped."""

    limit: list[float] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    together: Ways = field(default_factory=dict)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--stops", type=counted(1), metavar="N", default=300, help="stops in all, the kinds in turn (300)"
    )
    parser.add_argument("--at-once", type=counted(1, THREADS - 1), metavar="N", default=100, help="live runs (100)")
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="of stopping that many (3)")
    parser.add_argument("--silent", metavar="MODEL", help="a model that never answers; a named instance may have none")


async def run(session: Session) -> Report:
    count, found = session.options.stops, Found()
    with FakeModel() as fake:
        names = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-of-a-benchmark"}
        async with placed(session, threads=THREADS, settings=names) as instance:
            found.limit = await measure_limit(session, instance, min(count, LIMIT_ROUNDS))
            with session.progress.steps("stops", count) as told:
                silent = session.options.silent or (SILENT_MODEL if instance.stores else None)
                async with Client(instance.url, instance.token) as client:
                    found.stops = await measure(client, count, silent, session.options.seed, told)
            with session.progress.steps("many at once", session.options.rounds) as told:
                for _ in range(session.options.rounds):
                    await measure_together(instance, session.options.at_once, found.together)
                    told()
    return report(found, session.options.at_once)


async def measure_limit(session: Session, instance: Placed, count: int) -> list[float]:
    """Nothing when the stores are not ours to write to."""
    if not instance.stores:
        return []
    with session.progress.steps("limit", count) as told:
        return await commit_and_publish(instance.stores, count, told)


async def commit_and_publish(stores: Mapping[str, str], count: int, told: Advance) -> list[float]:
    """Seconds of each of `count` rounds: one commit, one PUBLISH, heard on another connection."""
    conn = await asyncpg.connect(stores["DATABASE_URL"])
    await conn.execute("CREATE TABLE limit_of_stops AS SELECT clock_timestamp() AS stopped_at")
    async with Redis.from_url(stores["REDIS_URL"], protocol=2) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe("limit_of_stops")
        await pubsub.get_message(timeout=1.0)
        rounds = []
        for _ in range(count):
            began = time.monotonic()
            await conn.execute("UPDATE limit_of_stops SET stopped_at = clock_timestamp()")
            await redis.publish("limit_of_stops", "STOP")
            heard = await pubsub.get_message(timeout=1.0)
            rounds.append(time.monotonic() - began)
            assert heard, "the subscriber heard nothing"
            told()
    await conn.execute("DROP TABLE limit_of_stops")
    await conn.close()
    return rounds


async def measure_together(instance: Placed, count: int, found: Ways) -> None:
    """Stop so many live runs with one request, then as many with a request each."""
    found.setdefault("one request", []).extend(await stop_together(instance, count, stop_all))
    found.setdefault("a request each", []).extend(await stop_together(instance, count, stop_each))


async def stop_together(
    instance: Placed, count: int, ask: Callable[[Sequence[Wire], Sequence[str]], Awaitable[None]]
) -> list[float]:
    """Seconds from the first POST to the last event of each run."""
    threads = await instance.threads(count)
    async with (
        wires(instance.url, instance.token, count) as readers,
        wires(instance.url, instance.token, count) as askers,
    ):
        run_ids = await asyncio.gather(*(start(*each, TEXT) for each in zip(askers, threads, strict=True)))
        live = [asyncio.Event() for _ in run_ids]
        reading = [
            asyncio.create_task(wire.read(run_id, begun.set))
            for wire, run_id, begun in zip(readers, run_ids, live, strict=True)
        ]
        await asyncio.gather(*(begun.wait() for begun in live))
        began = time.monotonic()
        await ask(askers, run_ids)
        ends = await asyncio.gather(*reading)
    assert {status for status, _ in ends} == {"stopped"}, ends
    return [heard_at - began for _, heard_at in ends]


async def stop_all(askers: Sequence[Wire], run_ids: Sequence[str]) -> None:
    await askers[0].post("/agent-runs/stop", {"ids": list(run_ids)})


async def stop_each(askers: Sequence[Wire], run_ids: Sequence[str]) -> None:
    paths = [f"/agent-run/{run_id}/stop" for run_id in run_ids]
    await asyncio.gather(*(wire.post(path, {}) for wire, path in zip(askers, paths, strict=True)))


def report(found: Found, at_once: int) -> Report:
    kinds = by_kind(found.stops)
    live = [stop for stop in found.stops if stop.kind != "before pick-up"]
    groups = {**kinds, "one live run": live, "all": found.stops}
    rows = [row for kind, some in groups.items() if some for row in rows_of(kind, some, found.limit)]
    rows += [
        Row(f"last event, {name}", "ms", at(seconds, share), group=f"{at_once} live runs at once, {way}")
        for way, seconds in found.together.items()
        for name, share in PERCENTILES.items()
    ]
    title = f"{len(found.stops)} stops, one after the other; {at_once} at once"
    return Report(title, rows, [plot(found, kinds)], [LIMIT_NOTE if found.limit else NO_LIMIT_NOTE, *NOTES])


def rows_of(kind: str, stops: Sequence[Stop], limit: Sequence[float]) -> list[Row]:
    group, heard, answers = f"{kind} ({len(stops)})", last_events(stops), [stop.answer for stop in stops]
    told = [
        Row(f"last event, {name}", "ms", at(heard, share), at(limit, share), group=group)
        for name, share in PERCENTILES.items()
    ]
    return [*told, Row("answer, p50", "ms", at(answers, 0.5), group=group)]


def plot(found: Found, kinds: Mapping[str, Sequence[Stop]]) -> Plot:
    series: list[Series] = [in_ms("limit", found.limit)] if found.limit else []
    series += [in_ms(kind, last_events(some)) for kind, some in kinds.items()]
    series += [in_ms(f"at once, {way}", seconds) for way, seconds in found.together.items()]
    title = "Stops by when their reader knew"
    return Plot(title, "ms from POST to last event", "stops (%)", series, logarithmic_x=True)


BENCHMARK = Benchmark("stop", "from POST to the last event at a reader: one run, and many at once", add_options, run)
