"""A deployment that tests share (`system`) or a test's own (`deploy`), checked after each test, stopped at the end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.client import Client
from tests.acceptance.operators import SCALED, Deployment, empty_stores
from tests.conftest import administer, failed, named, used, with_path
from tests.databases import copy_of
from tests.fakes import FakeModel
from tests.forks import ForkServer

Deploy = Callable[..., Awaitable[Deployment]]
Share = Callable[..., Awaitable[Deployment]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has a deployment of its own comes last: the shared one would have to be started again after each."""
    items.sort(key=lambda item: "deploy" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeModel]:
    """The scripted model provider that all workers call."""
    with FakeModel() as fake:
        yield fake


def model_settings(fake: FakeModel) -> dict[str, str]:
    openai = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-of-a-test"}
    anthropic = {"ANTHROPIC_BASE_URL": fake.anthropic_base_url, "ANTHROPIC_API_KEY": "sk-ant-of-a-test"}
    return {**openai, **anthropic, "LLM_IDLE_TIMEOUT": "30s"}


@pytest.fixture(scope="session", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


class Standing:
    """The deployment that most tests share, made when first asked for; never two at a time: they share queues."""

    def __init__(self, template: str, fake: FakeModel, forks: ForkServer | None, folder: Path) -> None:
        self.template, self.fake, self.forks, self.folder = template, fake, forks, folder
        self.usual = {**SCALED, **model_settings(fake)}
        self.deployment: Deployment | None = None
        self.database = ""

    async def at(self, broker: str, others: dict[str, str]) -> Deployment:
        """An API and two live workers with these settings; what the test before killed is started again."""
        names = {**self.usual, **others}
        self.fake.hush()
        if self.deployment and (self.deployment.broker, self.deployment.environment) == (broker, names):
            await self.deployment.refill(workers=2)
            return self.deployment
        await self.close()
        self.database = f"longrun_test_{uuid4().hex[:12]}"
        await administer(copy_of(self.template, self.database))
        folder = self.folder / self.database
        folder.mkdir()
        url = with_path(named("DATABASE_URL"), self.database)
        self.deployment = Deployment(folder, broker, url, names, forks=self.forks)
        await start(self.deployment, workers=2)
        return self.deployment

    async def close(self) -> None:
        if self.deployment:
            self.deployment.close()
            self.deployment = None
            await administer(f"DROP DATABASE {self.database} WITH (FORCE)")


@pytest.fixture(scope="session")
def standing(
    template: str, fake: FakeModel, forks: ForkServer | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    standing = Standing(template, fake, forks, tmp_path_factory.mktemp("standing"))
    try:
        yield standing
    finally:
        asyncio.run(standing.close())


@pytest.fixture
async def share(standing: Standing, broker: str, request: pytest.FixtureRequest) -> AsyncIterator[Share]:
    """`await share(NAME="value")`: the shared deployment, whole before the test, settled after it.

    It is started anew only for settings that the test before did not have.
    """
    shared: list[Deployment] = []
    request.node.stash[used] = shared

    async def share(**names: str) -> Deployment:
        deployment = await standing.at(broker, names)
        shared.append(deployment)
        deployment.begin_test()
        return deployment

    yield share
    await check(request.node, shared)


@pytest.fixture
async def system(share: Share) -> Deployment:
    return await share()


@pytest.fixture
async def deploy(
    standing: Standing,
    broker: str,
    database_url: str,
    fake: FakeModel,
    forks: ForkServer | None,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Deploy]:
    """`await deploy(workers=2, NAME="value")`: a deployment of the test's own, with settings of its own.

    `forked=False` has its processes started by interpreters of their own, as an operator does.
    """
    await standing.close()
    fake.hush()
    deployments: list[Deployment] = request.node.stash.setdefault(used, [])

    async def deploy(
        *,
        workers: int = 2,
        threads: int = 16,
        durations: dict[str, str] = SCALED,
        forked: bool = True,
        **names: str,
    ) -> Deployment:
        settings = {**durations, **model_settings(fake), **names}
        deployment = Deployment(tmp_path, broker, database_url, settings, forks=forks if forked else None)
        deployments.append(deployment)
        await start(deployment, workers=workers, threads=threads)
        return deployment

    try:
        yield deploy
        await check(request.node, deployments)
    finally:
        for deployment in deployments:
            deployment.close()


async def start(deployment: Deployment, *, workers: int, threads: int = 16) -> None:
    await empty_stores(deployment.broker)
    await asyncio.gather(deployment.start_api(), deployment.start_workers(workers, threads=threads))


async def check(node: pytest.Item, deployments: list[Deployment]) -> None:
    if not node.stash.get(failed, False):
        for deployment in deployments:
            await deployment.check_settled()


@pytest.fixture
async def client(system: Deployment) -> AsyncIterator[Client]:
    async with system.client() as client:
        yield client
