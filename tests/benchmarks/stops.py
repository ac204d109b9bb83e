"""How long a stop takes to reach a reader, beside the least that it could take."""

import time
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence

import asyncpg
from redis.asyncio import Redis

from tests.acceptance.stops import Stop, by_kind, last_events, measure
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.progress import Advance
from tests.benchmarks.report import Plot, Report, Row, Series, shares
from tests.benchmarks.session import Instance, Session
from tests.fakes import FakeModel
from tests.figures import percentile

SILENT_MODEL = "openai/script-silent"
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LIMIT_ROUNDS = 300
LIMIT_NOTE = "limit: one row updated and committed, then one PUBLISH, until a subscriber has it"
NO_LIMIT_NOTE = "no limit: the stores of a named instance are not ours to write to"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--stops", type=counted(1), metavar="N", default=300, help="stops in all, the kinds in turn (300)"
    )
    parser.add_argument("--silent", metavar="MODEL", help="a model that never answers; a named instance may have none")


async def run(session: Session) -> Report:
    count, seed = session.options.stops, session.options.seed
    with FakeModel() as fake:
        names = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-of-a-benchmark"}
        async with session.instance(workers=1, settings=names) as instance:
            limit = await measure_limit(session, instance, min(count, LIMIT_ROUNDS))
            with session.progress.steps("stops", count) as told:
                silent = session.options.silent or (SILENT_MODEL if instance.stores else None)
                stops = await measure(instance.client, count, silent, seed, told)
    return report(stops, limit)


async def measure_limit(session: Session, instance: Instance, count: int) -> list[float]:
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


def report(stops: Sequence[Stop], limit: Sequence[float]) -> Report:
    kinds = by_kind(stops)
    rows = [row for kind, some in {**kinds, "all": stops}.items() for row in rows_of(kind, some, limit)]
    series = [in_ms("limit", limit)] if limit else []
    series += [in_ms(kind, last_events(some)) for kind, some in kinds.items()]
    plot = Plot(
        "Stops by when their reader knew", "ms from POST to last event", "stops (%)", series, logarithmic_x=True
    )
    return Report(f"{len(stops)} stops, one after the other", rows, [plot], [LIMIT_NOTE if limit else NO_LIMIT_NOTE])


def rows_of(kind: str, stops: Sequence[Stop], limit: Sequence[float]) -> list[Row]:
    group, heard, answers = f"{kind} ({len(stops)})", last_events(stops), [stop.answer for stop in stops]
    told = [
        Row(f"last event, {name}", "ms", at(heard, share), at(limit, share), group=group)
        for name, share in PERCENTILES.items()
    ]
    return [*told, Row("answer, p50", "ms", at(answers, 0.5), group=group)]


def at(seconds: Sequence[float], share: float) -> float | None:
    """That percentile in milliseconds."""
    return 1000 * percentile(seconds, share) if seconds else None


def in_ms(name: str, seconds: Iterable[float]) -> Series:
    return shares(name, (1000 * value for value in seconds))


BENCHMARK = Benchmark(
    "stops", "from POST to the last event at a reader: before pick-up, in text, in silence", add_options, run
)
