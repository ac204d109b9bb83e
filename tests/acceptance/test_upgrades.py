"""An upgrade of a system at work: from an earlier release's schema and code to these, one process after the other."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from httpx2 import AsyncBaseTransport, AsyncHTTPTransport, Limits, Request, Response, TransportError

from services.embedded import ports
from tests.acceptance.client import Client
from tests.acceptance.conftest import Standing
from tests.acceptance.operators import CHECKOUT, SCALED, SECRET, Deployment, Operated, empty_stores
from tests.acceptance.releases import INSTALLED, migrate, newest_migration, unpack
from tests.conftest import administer, named, used, with_path
from tests.faults.load import Load
from tests.nginx import Nginx, running

APIS, WORKERS = 2, 2
RUNS, STARTERS = 8, 4
SILENT_SECONDS = 15.0
"""A hand-over and a reconnect, times five: what a reader may wait while its driver and its API process are replaced."""
LOOKED_AT = ("/threads", "/agent-runs", "/agent-runs/active", "/agents", "/workflows", "/projects", "/health/ready")
LOOK_EVERY_SECONDS = 0.1


@dataclass
class Answers(AsyncBaseTransport):
    """Every answer that a client got, and what it should not have got."""

    inner: AsyncHTTPTransport = field(
        default_factory=lambda: AsyncHTTPTransport(verify=False, limits=Limits(max_connections=None))
    )
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def handle_async_request(self, request: Request) -> Response:
        asked = f"{request.method} {request.url.path}"
        try:
            answer = await self.inner.handle_async_request(request)
        except TransportError as error:
            self.wrong.append(f"{asked}: {error!r}")
            raise
        self.statuses[answer.status_code] += 1
        may_come_again = answer.status_code == 503 and answer.headers.get("retry-after", "").isdecimal()
        if answer.status_code >= 500 and not may_come_again:
            self.wrong.append(f"{asked}: {answer.status_code} {dict(answer.headers)}")
        return answer

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class Upgraded:
    """One system, its old processes and its new ones."""

    old: Deployment
    new: Deployment
    ports: Sequence[int]

    @property
    def operated(self) -> list[Operated]:
        return [*self.old.operated, *self.new.operated]

    async def begin(self) -> None:
        await migrate(self.old.checkout, self.old.database_url)
        await asyncio.gather(*(self.old.start_api(port) for port in self.ports), self.old.start_workers(WORKERS))

    async def replace_worker(self, old: Operated) -> None:
        """As a supervisor does: the new one begins while the old one hands over."""
        old.signal(signal.SIGTERM)
        await self.new.start_workers(1)
        assert await old.exited() == 0, old.text

    async def replace_api(self, old: Operated) -> None:
        old.signal(signal.SIGTERM)
        await old.exited()
        await self.new.start_api(old.port)


@pytest.fixture
async def upgraded(standing: Standing, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Upgraded]:
    await standing.close()
    await empty_stores("rabbitmq")
    database = f"longrun_upgraded_{uuid4().hex[:12]}"
    await administer(f"CREATE DATABASE {database}")
    url = with_path(named("DATABASE_URL"), database)
    installed = unpack(INSTALLED, tmp_path / "installed")
    old = Deployment(made(tmp_path / "old"), "rabbitmq", url, SCALED, checkout=installed)
    new = Deployment(made(tmp_path / "new"), "rabbitmq", url, SCALED)
    request.node.stash[used] = [old, new]
    first = ports.pick(set())
    try:
        yield Upgraded(old, new, ports=[first, ports.pick({first})])
    finally:
        for deployment in (old, new):
            deployment.close()
        await administer(f"DROP DATABASE {database} WITH (FORCE)")


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@asynccontextmanager
async def looking(client: Client) -> AsyncIterator[None]:
    """Meanwhile somebody looks at every list, again and again."""

    async def look_on() -> None:
        while True:
            for path in LOOKED_AT:
                await client.http.get(path)
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    task = asyncio.create_task(look_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), task.exception()


@pytest.mark.slow
async def test_an_upgrade_under_load_loses_no_run_and_answers_nothing_worse_than_come_again(
    upgraded: Upgraded, tmp_path: Path
) -> None:
    """Expand the schema, then a worker, an API, a worker, an API: every mixture of old and new is there for a while."""
    await upgraded.begin()
    answers = Answers()
    addresses = (f"127.0.0.1:{upgraded.ports[0]}", f"127.0.0.1:{upgraded.ports[1]}")
    async with AsyncExitStack() as stack:
        nginx = await stack.enter_async_context(running(Nginx(made(tmp_path / "nginx"), addresses)))
        client = await stack.enter_async_context(Client.signed_in(nginx.url, SECRET, transport=answers))
        load = Load(client, chunks=900, delay_ms=60, readers=2)
        await load.begin(RUNS)
        await load.flowing()
        async with AsyncExitStack() as busy:
            await busy.enter_async_context(looking(client))
            for _ in range(STARTERS):
                await busy.enter_async_context(load.asking())
            await migrate(CHECKOUT, upgraded.new.database_url)
            for worker, api in zip(upgraded.old.workers, upgraded.old.apis, strict=True):
                await upgraded.replace_worker(worker)
                await upgraded.replace_api(api)
            assert load.live, "the runs ended before the upgrade did"
        tally = await load.finish(within=300)
        await upgraded.new.check_settled()
    print(f"{tally}; {dict(answers.statuses)}")  # noqa: T201 - the measured figures
    assert not answers.wrong, answers.wrong
    assert tally.attempts > 1, "no run went from one release's worker to another's"
    assert tally.silence < SILENT_SECONDS
    assert tally.asked > 10 * tally.refused
    assert tally.void == 0
    assert len(upgraded.new.apis) == APIS
    complaints = [process.name for process in upgraded.operated if process.said(r"\[(error|critical) ")]
    assert not complaints
    rows = await upgraded.new.rows("SELECT version_num FROM alembic_version")
    assert [row["version_num"] for row in rows] == [newest_migration(CHECKOUT)]
