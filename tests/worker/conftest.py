from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from services.http import open_client
from services.runs.stores import open_stores
from services.settings import Settings
from tests.conftest import BROKER_REDIS, named, with_path
from worker.process import Process


@pytest.fixture(autouse=True)
async def empty_queue() -> AsyncIterator[None]:
    """The broker's own database, emptied before and after."""
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    await client.flushdb()
    yield
    await client.flushdb()
    await client.aclose()


@asynccontextmanager
async def open_process(settings: Settings) -> AsyncIterator[Process]:
    """A worker process without its sweeper and its broker's threads."""
    async with open_stores(settings) as stores, open_client(settings) as http:
        yield Process(settings, stores, http)


@pytest.fixture
async def process(settings: Settings, redis: Redis) -> AsyncIterator[Process]:
    async with open_process(settings) as opened:
        yield opened


@pytest.fixture
async def second(settings: Settings, redis: Redis) -> AsyncIterator[Process]:
    async with open_process(settings) as opened:
        yield opened
