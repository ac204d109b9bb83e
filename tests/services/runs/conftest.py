from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.proxy import Proxy


@pytest.fixture
async def other(settings: Settings, redis: Redis) -> AsyncIterator[Stores]:
    """The rooms of a second process."""
    async with open_stores(settings) as stores:
        yield stores


@pytest.fixture
async def redis_proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.redis.dsn) as proxy:
        yield proxy


@pytest.fixture
async def postgres_proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.postgres.url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
async def far(settings: Settings, redis: Redis, redis_proxy: Proxy) -> AsyncIterator[Stores]:
    """The rooms of a process that reaches Redis through `redis_proxy`, with a second's patience."""
    async with open_stores(reaching_redis_by(redis_proxy, settings)) as stores:
        yield stores
        redis_proxy.restore()


def reaching_redis_by(proxy: Proxy, settings: Settings) -> Settings:
    changes = {"url": SecretStr(proxy.url), "socket_timeout": "1s", "connect_timeout": "1s"}
    redis = settings.redis.model_validate({**settings.redis.model_dump(), **changes})
    return settings.model_copy(update={"redis": redis})


@pytest.fixture
async def far_from_postgres(settings: Settings, redis: Redis, postgres_proxy: Proxy) -> AsyncIterator[Stores]:
    """The rooms of a process that reaches Postgres through `postgres_proxy`."""
    async with open_stores(reaching_postgres_by(postgres_proxy, settings)) as stores:
        yield stores
        postgres_proxy.restore()


def reaching_postgres_by(proxy: Proxy, settings: Settings) -> Settings:
    postgres = settings.postgres.model_copy(update={"url": SecretStr(proxy.url)})
    return settings.model_copy(update={"postgres": postgres})
