"""Real servers, a database and an empty Redis per test. `./dev test` starts the servers and names them here."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import hypothesis
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.contextvars import clear_contextvars
from xdist.remote import Producer

from services.postgres import Pool, open_pool
from services.redis import open_redis
from services.runs.stores import Stores, open_stores
from services.sandbox.protocol import SandboxProvider
from services.sandbox.providers import make_provider
from services.settings import BrokerSettings, LimitSettings, PostgresSettings, RedisSettings, RunSettings, Settings
from tests import databases
from tests.databases import Databases
from tests.forks import ForkServer
from tests.lanes import FromBothEnds, OwnStores, stores_of_this_lane
from tests.usual import settings_with

if TYPE_CHECKING:
    from tests.acceptance.operators import Deployment

LANE = int(os.environ.get("TEST_LANE", "0"))
"""Which of the processes that share the servers of the tests this is."""
OUR_REDIS, BROKER_REDIS = 14 - 2 * LANE, 15 - 2 * LANE
"""Database numbers of the tests' own: those of a developer's instance and of other lanes stay untouched."""
DEPLOYED_REDIS, DEPLOYED_BROKER = OUR_REDIS - 8, BROKER_REDIS - 8
"""Those of the deployments: one that stands by between two tests would take the messages of the second."""

NO_LIMITS = LimitSettings(max_concurrent_runs=0, rate_limit_per_minute=0)
"""For all tests that are not about limits."""


SLOW_SECONDS = 600
"""How long a slow test may take that does not say: it shares two cores with two lanes."""

hypothesis.settings.register_profile("shared cores", deadline=None)
hypothesis.settings.load_profile("shared cores")
"""How long an example takes is up to whatever else is tested beside it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run only the tests marked slow: real durations")
    parser.addoption("--table", metavar="FILE", help="write what the faults came to into the table of this document")


lane = pytest.StashKey[OwnStores | None]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[lane] = stores_of_this_lane()
    config.addinivalue_line("markers", "slow: real durations; run with --slow")


def pytest_unconfigure(config: pytest.Config) -> None:
    if own := config.stash.get(lane, None):
        own.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = bool(config.getoption("--slow"))
    parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        if slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
        parts[slow].append(item)
    config.hook.pytest_deselected(items=parts[not wanted])
    items[:] = parts[wanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    if own := session.config.stash.get(lane, None):
        own.ready()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FromBothEnds:
    return FromBothEnds(config, log)


used = pytest.StashKey[list["Deployment"]]()
failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the logs of the processes of its test."""
    report = yield
    if report.failed:
        item.stash[failed] = True
        for deployment in item.stash.get(used, []):
            report.sections += deployment.logs()
    return report


def named(variable: str) -> str:
    """The address of a server. A missing one fails the test: nothing is skipped."""
    url = os.environ.get(variable)
    assert url, f"{variable} is not set: run the tests with ./dev test"
    return url


def with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


@pytest.fixture(scope="session")
def template() -> Iterator[str]:
    """A migrated database that every test's own is copied from."""
    name = f"longrun_template_{uuid4().hex[:12]}"
    asyncio.run(administer(f"CREATE DATABASE {name}"))
    environment = {**os.environ, "DATABASE_URL": with_path(named("DATABASE_URL"), name)}
    subprocess.run([sys.executable, "-m", "migrations"], env=environment, check=True, capture_output=True)
    yield name
    asyncio.run(administer(f"DROP DATABASE {name} WITH (FORCE)"))


async def administer(*statements: str) -> None:
    await databases.administer(named("DATABASE_URL"), *statements)


@pytest.fixture(scope="session")
def forks(request: pytest.FixtureRequest) -> Iterator[ForkServer | None]:
    """Whence deployments have their processes; slow tests start each as an operator does."""
    if request.config.getoption("--slow"):
        yield None
        return
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def copies(template: str) -> Iterator[Databases]:
    copies = Databases(named("DATABASE_URL"), template)
    yield copies
    copies.close()


@pytest.fixture(autouse=True)
def nobody_speaks() -> None:
    """What a test before has bound to lines of the log is not said in those of this one."""
    clear_contextvars()


@pytest.fixture
def database_url(copies: Databases) -> Iterator[str]:
    """A database that holds nothing but the schema, whatever the test before did to its own."""
    with copies.lent() as name:
        yield with_path(named("DATABASE_URL"), name)


@pytest.fixture
def redis_url() -> str:
    return with_path(named("REDIS_URL"), str(OUR_REDIS))


@pytest.fixture(scope="session")
def usual() -> Settings:
    """The Redis broker, durations a tenth of the real ones, and no limits."""
    return settings_with(
        postgres=PostgresSettings(pool_min=1, pool_max=10),
        redis=RedisSettings(ping_interval=timedelta(seconds=1)),
        broker=BrokerSettings(kind="redis"),
        runs=scaled_runs(),
        limits=NO_LIMITS,
    )


@pytest.fixture
def settings(usual: Settings, database_url: str, redis_url: str) -> Settings:
    """The usual ones, with both stores of the test."""
    broker_url = SecretStr(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    return usual.model_copy(
        update={
            "postgres": usual.postgres.model_copy(update={"url": SecretStr(database_url)}),
            "redis": usual.redis.model_copy(update={"url": SecretStr(redis_url)}),
            "broker": usual.broker.model_copy(update={"redis_url": broker_url}),
        }
    )


def scaled_runs() -> RunSettings:
    """All but `close_after`, the time that whoever closes a run has for it: most tests have nobody who tries again."""
    return RunSettings(
        lock_ttl=timedelta(seconds=1.5),
        heartbeat_interval=timedelta(seconds=0.5),
        dead_after=timedelta(seconds=1.5),
        sweep_interval=timedelta(seconds=0.2),
        resend_after=timedelta(seconds=0.5),
        archive_interval=timedelta(seconds=0.1),
    )


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    pool = await open_pool(settings.postgres)
    yield pool
    await pool.close()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """Our Redis database, emptied before; afterwards every key that is left must have a TTL."""
    client = open_redis(settings.redis)
    await client.flushdb()
    yield client
    assert not await keys_without_ttl(client)
    await client.flushdb()
    await client.aclose()


async def keys_without_ttl(client: Redis) -> list[bytes]:
    return [key async for key in client.scan_iter(count=1000) if await client.ttl(key) == -1]


@pytest.fixture
async def sandboxes(settings: Settings, tmp_path: Path) -> AsyncIterator[SandboxProvider]:
    """Real sandboxes in a folder of the test's own; none runs after it."""
    folder = tmp_path / "sandboxes"
    provider = make_provider(settings.sandbox.model_copy(update={"folder": str(folder)}))
    yield provider
    for known in folder.glob("*-*-*-*-*"):
        if known.is_dir():
            await provider.delete(UUID(known.name))


@pytest.fixture
async def stores(settings: Settings, redis: Redis) -> AsyncIterator[Stores]:
    """The rooms of one process, opened as API and workers open them."""
    async with open_stores(settings) as stores:
        yield stores
