"""Every list of the API on a database as it is after years, beside its bare statements; and what reads it all."""

import asyncio
import os
import shutil
import time
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import asyncpg
import psutil
from httpx2 import ASGITransport
from pydantic import SecretStr

from api.app import create_app
from services import thread_overview
from services.embedded.console import EmbeddedError
from services.postgres import Connection, Pool, open_pool, prepare_connection
from services.runs.stores import open_stores
from services.settings import (
    AuthSettings,
    BrokerSettings,
    LogSettings,
    PostgresSettings,
    RedisSettings,
    SecretsSettings,
    Settings,
)
from tests.acceptance.client import Client
from tests.benchmarks import filling, plans
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.filling import Sizes
from tests.benchmarks.looks import Look, id_of, largest_account, looks
from tests.benchmarks.plans import Scan, Statement
from tests.benchmarks.processes import LOAD_CORE, SERVER_CORE, Meter, pin
from tests.benchmarks.reference import lists
from tests.benchmarks.report import Plot, Report, Row, shares
from tests.benchmarks.session import Session
from tests.conftest import NO_LIMITS
from tests.figures import percentile
from worker import sweeper

AT_ONCE = 100
EACH = 10
"""Requests or statements of each of those that come at once."""
SLOW_ONES = 3
PROMISED_MS = 20.0
NOTES = (
    "limit: the route's own statements with the same arguments, prepared, over one bare connection, no HTTP",
    "reference: as the design is published, also without HTTP: one statement per part of a thread, each over a "
    "connection of its own; pages by OFFSET in the order of created_at",
)


@dataclass
class Taken:
    """Milliseconds of one look, by round; `reference` where the design says how it would be done."""

    look: Look
    statements: Sequence[Statement]
    longrun: list[list[float]] = field(default_factory=list)
    limit: list[list[float]] = field(default_factory=list)
    reference: list[list[float]] = field(default_factory=list)


def add_options(parser: ArgumentParser) -> None:
    sizes = Sizes()
    most = 100_000_000
    parser.add_argument("--accounts", type=counted(2), metavar="N", default=sizes.accounts, help="accounts (1,000)")
    parser.add_argument("--runs", type=counted(1000, most), metavar="N", default=sizes.runs, help="runs (1,000,000)")
    parser.add_argument(
        "--messages", type=counted(10_000, most), metavar="N", default=sizes.messages, help="messages (10,000,000)"
    )
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=3, help="rounds over all lists (3)")
    parser.add_argument("--requests", type=counted(1), metavar="N", default=15, help="of each list in a round (15)")


async def run(session: Session) -> Report:
    if session.options.url:
        raise EmbeddedError("queries fills a database: it measures private servers only, without --url")
    sizes = Sizes(session.options.accounts, session.options.runs, session.options.messages)
    check_disk(session, sizes)
    stores = await session.stores()
    filled = await fill(session, stores["DATABASE_URL"], sizes)
    return await measure(session, stores, sizes, filled)


def check_disk(session: Session, sizes: Sizes) -> None:
    """Raises: EmbeddedError when the database, with the server's log of its filling, would not fit."""
    free, needed = shutil.disk_usage(session.state.folder).free, sizes.messages * 1200 + sizes.runs * 2000
    if free < needed:
        raise EmbeddedError(f"{needed / 2**30:.0f} GiB of disk are needed and {free / 2**30:.0f} are free: --messages")


async def fill(session: Session, url: str, sizes: Sizes) -> list[Row]:
    conn, began = await asyncpg.connect(url), time.monotonic()
    try:
        await filling.hurry(conn)
        await filling.fill(url, sizes, session.progress)
        await filling.settle(conn)
        size = await conn.fetchval("SELECT pg_database_size(current_database())")
    finally:
        await conn.close()
    seconds = time.monotonic() - began
    session.progress.say(f"filled: {size / 2**30:.1f} GiB in {seconds:.0f} s")
    return [Row("filling", "s", seconds, group="database"), Row("size", "GiB", size / 2**30, group="database")]


async def measure(session: Session, stores: Mapping[str, str], sizes: Sizes, filled: Sequence[Row]) -> Report:
    """On a database that is filled."""
    settings = settings_for(stores)
    taken, found = await planned(settings, sizes)
    for scan in found:
        session.progress.say(f"READS A WHOLE TABLE: {scan}")
    async with bare(settings) as conn, pool_of(settings) as pool:
        postgres = psutil.Process(await conn.fetchval("SELECT pg_backend_pid()")).ppid()
        pin(LOAD_CORE, postgres)
        async with api(session, stores, postgres) as (client, meter):
            cpu = await take_all(session, client, conn, pool, taken, meter)
            at_once = await all_at_once(session, client, [one.look for one in taken])
        whole = await one_round_trip(session, conn, pool)
    return report(sizes, taken, [*filled, *scan_rows(taken, found), *whole, *at_once, *cpu], found)


def settings_for(stores: Mapping[str, str]) -> Settings:
    return Settings(
        postgres=PostgresSettings(url=SecretStr(stores["DATABASE_URL"])),
        redis=RedisSettings(url=SecretStr(stores["REDIS_URL"])),
        broker=BrokerSettings(kind="redis", redis_url=SecretStr(stores["BROKER_REDIS_URL"])),
        auth=AuthSettings(secret=SecretStr(stores["JWT_SECRET"])),
        log=LogSettings(level="error"),
        limits=NO_LIMITS,
        secrets=SecretsSettings.model_validate({"keys": stores["SECRETS_KEYS"]}),
    )


async def planned(settings: Settings, sizes: Sizes) -> tuple[list[Taken], list[Scan]]:
    """What each look says to the database, and which of that, or of the upkeep, would read a big table whole."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pool: Pool = app.state.resources.pool
        secret = settings.auth.secret.get_secret_value()
        async with Client.signed_in("http://lists", secret, largest_account(), ASGITransport(app)) as client:
            taken = [await said_by(client, pool, look) for look in await looks(pool, sizes)]
    async with open_stores(settings) as opened:
        async with plans.recorded(opened.pool) as upkeep:
            await sweeper.sweep(opened)
        async with opened.pool.acquire() as conn:
            statements = [statement for one in taken for statement in one.statements]
            return taken, await plans.scans(conn, [*statements, *upkeep], filling.BIG)


async def said_by(client: Client, pool: Pool, look: Look) -> Taken:
    async with plans.recorded(pool) as said:
        await ask(client, look)
    return Taken(look, said)


@asynccontextmanager
async def bare(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(settings.postgres.url.get_secret_value())
    try:
        await prepare_connection(conn)
        yield conn
    finally:
        await conn.close()


@asynccontextmanager
async def pool_of(settings: Settings) -> AsyncIterator[Pool]:
    pool = await open_pool(settings.postgres)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def api(session: Session, stores: Mapping[str, str], postgres: int) -> AsyncIterator[tuple[Client, Meter]]:
    """An API without workers: the runs in the database are nobody's."""
    deployment = session.deployment(stores, {"RATE_LIMIT_PER_MINUTE": "0"})
    try:
        with session.supervisor.console.step("api"):
            server = await deployment.start_api()
        pin(SERVER_CORE, server.process.pid)
        pin(LOAD_CORE, os.getpid())
        meter = Meter(API=server.process.pid, Postgres=postgres)
        async with Client.signed_in(deployment.url, stores["JWT_SECRET"], largest_account()) as client:
            yield client, meter
    except Exception:
        session.show_logs(deployment)
        raise
    finally:
        deployment.close()


async def take_all(
    session: Session, client: Client, conn: Connection, pool: Pool, taken: Sequence[Taken], meter: Meter
) -> list[Row]:
    """Limit, Longrun and reference in turns; returns what a request costs in CPU."""
    rounds, count = session.options.rounds, session.options.requests
    spent = dict.fromkeys((*meter.pids, "client"), 0.0)
    with session.progress.steps("lists", rounds * len(taken)) as told:
        for number in range(rounds):
            for one in taken:
                if not number:
                    await ask(client, one.look)
                one.limit.append(await timed(count, partial(replay, conn, one.statements)))
                meter.restart()
                mine = time.process_time()
                one.longrun.append(await timed(count, partial(ask, client, one.look)))
                for name, seconds in {**meter.spent(), "client": time.process_time() - mine}.items():
                    spent[name] += seconds
                if again := lists.way_of(one.look, pool):
                    one.reference.append(await timed(min(count, SLOW_ONES), again))
                told()
    requests = rounds * count * len(taken)
    return [Row(f"CPU of the {name}", "ms/request", 1000 * spent[name] / requests, group="all lists") for name in spent]


async def timed(count: int, act: Callable[[], Awaitable[object]]) -> list[float]:
    """Milliseconds of each of `count` acts, one after the other."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await act()
        took.append(1000 * (time.perf_counter() - began))
    return took


async def replay(conn: Connection, statements: Sequence[Statement]) -> None:
    for one in statements:
        await conn.fetch(one.query, *one.arguments)


async def ask(client: Client, look: Look) -> None:
    (await client.http.get(look.path, params=look.asked)).raise_for_status()


async def all_at_once(session: Session, client: Client, all_looks: Sequence[Look]) -> list[Row]:
    """So many people at once, each going through lists of 50 and less."""
    few = [look for look in all_looks if "1,000" not in look.name]
    took: list[float] = []
    failed = 0
    group = f"{AT_ONCE} requests at once"

    async def person(number: int, told: Callable[[], None]) -> None:
        nonlocal failed
        for turn in range(EACH):
            began = time.perf_counter()
            look = few[(number + turn) % len(few)]
            answer = await client.http.get(look.path, params=look.asked)
            failed += answer.status_code != 200
            took.append(1000 * (time.perf_counter() - began))
            told()

    began = time.perf_counter()
    with session.progress.steps("at once", AT_ONCE * EACH) as told:
        await asyncio.gather(*(person(number, told) for number in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    return [
        Row("errors", "", failed, group=group),
        Row("requests", "1/s", len(took) / seconds, group=group),
        Row("p50", "ms", percentile(took, 0.5), group=group),
        Row("p99", "ms", percentile(took, 0.99), group=group),
    ]


async def one_round_trip(session: Session, conn: Connection, pool: Pool) -> list[Row]:
    """A thread with messages, project and runs; then 100 at once on the pool, which has fewer connections."""
    thread_id, account_id = id_of("thread", 50), largest_account()
    group = "a thread with project, messages and runs"

    async def ours(executor: Connection | Pool) -> None:
        await thread_overview.get(executor, account_id, thread_id, runs=1, messages=50)

    async def theirs() -> None:
        await lists.thread_data(pool, thread_id)

    async def many() -> None:
        for _ in range(EACH):
            await ours(pool)

    figures: dict[str, list[float]] = {"limit": [], "longrun": [], "reference": []}
    async with plans.recorded(pool) as said:
        await ours(pool)
    for _ in range(session.options.rounds):
        figures["limit"].append(median(await timed(EACH * 5, partial(replay, conn, said))))
        figures["longrun"].append(median(await timed(EACH * 5, partial(ours, pool))))
        figures["reference"].append(median(await timed(EACH * 5, theirs)))
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(many() for _ in range(AT_ONCE)), return_exceptions=True)
    seconds = time.perf_counter() - began
    errors = sum(isinstance(outcome, BaseException) for outcome in outcomes)
    return [
        Row("statements", "", len(said), 1, 4, group=group),
        Row("p50", "ms", group=group, **{name: median(rounds) for name, rounds in figures.items()}),
        Row(f"{AT_ONCE} at once on the pool, errors", "", errors, group=group),
        Row(f"{AT_ONCE} at once on the pool", "1/s", AT_ONCE * EACH / seconds, group=group),
    ]


def scan_rows(taken: Sequence[Taken], found: Sequence[Scan]) -> list[Row]:
    queries = {statement.query for one in taken for statement in one.statements}
    return [
        Row("statements of the lists", "", len(queries), group="plans"),
        Row("plans that read a big table whole", "", len(found), group="plans"),
    ]


def report(sizes: Sizes, taken: Sequence[Taken], others: Sequence[Row], found: Sequence[Scan]) -> Report:
    rows = [row_of(one) for one in taken]
    late = [row for row in rows if row.longrun is not None and row.longrun > PROMISED_MS]
    notes = [
        *NOTES,
        *(f"READS A WHOLE TABLE: {scan}" for scan in found),
        *(f"OVER {PROMISED_MS:.0f} MS: {row.group}, {row.name}: {row.longrun:.1f}" for row in late),
    ]
    series = [shares(name, (getattr(row, name) for row in rows)) for name in ("limit", "longrun")]
    plot = Plot("Lists by how long they take", "ms (p50)", "lists (%)", series, logarithmic_x=True)
    title = f"{sizes.runs:,} runs and {sizes.messages:,} messages of {sizes.accounts:,} accounts, p50 of each list"
    return Report(title, [*rows, *others], [plot], notes)


def row_of(one: Taken) -> Row:
    longrun, limit = middle(one.longrun), middle(one.limit)
    return Row(one.look.name, "ms", longrun, limit, middle(one.reference), group=one.look.group)


def middle(rounds: Sequence[Sequence[float]]) -> float | None:
    """The median of the rounds' medians."""
    return median(median(took) for took in rounds) if rounds else None


BENCHMARK = Benchmark(
    "queries", "every list of the API with a million runs and ten million messages in the database", add_options, run
)
