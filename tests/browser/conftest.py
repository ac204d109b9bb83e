"""Debian's Chromium, and a deployment that the tests of this folder share."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
from playwright.async_api import Browser, BrowserContext, Route, async_playwright, expect
from redis.asyncio import Redis

from services.embedded import chromium
from tests.acceptance.client import Client
from tests.acceptance.conftest import model_settings
from tests.acceptance.operators import SCALED, Deployment
from tests.browser.pages import BLANK, PATIENT_MS, Console, Reader, open_console
from tests.browser.tasks import Tasks
from tests.conftest import administer, failed, named, used, with_path
from tests.databases import copy_of
from tests.fakes import FakeModel, Talk
from tests.forks import ForkServer

REDIS, BROKER = 8, 9
"""Database numbers of this folder's own: the deployment of the acceptance tests may stand by."""
UNHURRIED = {"RUN_LOCK_TTL": "8s", "RUN_DEAD_AFTER": "8s", "LLM_IDLE_TIMEOUT": "60s"}
"""A worker or a model that other lanes hold up for seconds is neither dead nor silent: pages count attempts."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The machine's Chromium, or Debian's, unpacked."""
    if found := next(filter(None, map(shutil.which, chromium.ON_THE_MACHINE)), None):
        return found
    return str(asyncio.run(chromium.unpacked(tmp_path_factory.mktemp("chromium") / "apt.log")) / "chromium")


@pytest.fixture
async def browser(program: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """One person's browser: its tabs share what tabs share."""
    expect.set_options(timeout=PATIENT_MS)
    context = await browser.new_context()
    context.set_default_timeout(PATIENT_MS)
    await context.route("**/blank", serve_blank)
    yield context
    await context.close()


async def serve_blank(route: Route) -> None:
    await route.fulfill(content_type="text/html", body=BLANK)


@pytest.fixture(scope="package")
def fake_model() -> Iterator[FakeModel]:
    """Behind `openai/…` of the deployment."""
    with FakeModel() as fake:
        yield fake


@pytest.fixture(scope="package")
def standing_by(
    fake_model: FakeModel, template: str, forks: ForkServer | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    database, folder = f"longrun_test_{uuid4().hex[:12]}", tmp_path_factory.mktemp("browser")
    url = with_path(named("REDIS_URL"), str(REDIS))
    names = {**SCALED, "BROKER_REDIS_URL": with_path(url, str(BROKER))}
    names |= model_settings(fake_model) | UNHURRIED
    with asyncio.Runner() as runner:
        runner.run(administer(copy_of(template, database)))
        runner.run(empty(url, with_path(url, str(BROKER))))
        deployment = Deployment(
            folder, "redis", with_path(named("DATABASE_URL"), database), names, redis_url=url, forks=forks
        )
        try:
            yield deployment
        finally:
            deployment.close()
            runner.run(administer(f"DROP DATABASE {database} WITH (FORCE)"))


async def empty(*urls: str) -> None:
    for url in urls:
        async with Redis.from_url(url, protocol=2) as redis:
            await redis.flushdb()


@pytest.fixture
async def system(
    standing_by: Deployment, fake_model: FakeModel, request: pytest.FixtureRequest
) -> AsyncIterator[Deployment]:
    """An API and two workers, whole before the test, settled after it."""
    request.node.stash[used] = [standing_by]
    fake_model.hush()
    await standing_by.refill(workers=2)
    standing_by.begin_test()
    yield standing_by
    if not request.node.stash.get(failed, False):
        await standing_by.check_settled()


@pytest.fixture
async def client(system: Deployment) -> AsyncIterator[Client]:
    async with system.client() as client:
        yield client


@pytest.fixture
def talk(system: Deployment, fake_model: FakeModel) -> Iterator[Talk]:
    """Makes models of the deployment that talk until the test has heard enough, or is over."""
    yield fake_model.talk
    fake_model.hush()


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    tasks = Tasks()
    yield tasks
    tasks.end()


@pytest.fixture
async def reader(system: Deployment, client: Client, context: BrowserContext) -> Reader:
    """The client of a page, in the hands of the same person as `client`."""
    return await Reader.open(context, system.url, client.token)


@pytest.fixture
async def console(system: Deployment, client: Client, context: BrowserContext) -> AsyncIterator[Console]:
    console = await open_console(context, system.url, client.token)
    yield console
    assert console.errors == []
