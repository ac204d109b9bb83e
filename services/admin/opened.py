"""What commands open. A store that is away, refuses us or is older than we are is told in a sentence."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import asyncpg

from services.errors import Unavailable
from services.postgres import Pool, Unreachable, open_pool
from services.redis import Unreachable as RedisUnreachable
from services.runs.stores import Stores, open_stores
from services.settings import Settings

T = TypeVar("T")

Refused = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
Older = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)


def on_pool(settings: Settings, act: Callable[[Pool], Awaitable[T]]) -> T:
    """Run a command that needs Postgres alone. Raises: Unavailable."""

    async def whole() -> T:
        pool = await open_pool(settings.postgres, min_size=0)
        try:
            return await act(pool)
        finally:
            await pool.close()

    with told(settings):
        return asyncio.run(whole())


def on_stores(settings: Settings, act: Callable[[Stores], Awaitable[T]]) -> T:
    """Run a command that needs what runs live in. Raises: Unavailable."""

    async def whole() -> T:
        async with open_stores(settings, pool_min=0) as stores:
            return await act(stores)

    with told(settings):
        return asyncio.run(whole())


@contextmanager
def told(settings: Settings) -> Iterator[None]:
    where = address(settings)
    try:
        yield
    except BrokenPipeError:
        raise
    except TimeoutError as error:
        raise Unavailable(f"Postgres at {where} cannot be reached, or took too long.") from error
    except Refused as error:
        raise Unavailable(f"Postgres at {where} refuses us: {error}.") from error
    except Older as error:
        raise Unavailable(f"The schema is older than this version ({error}): run python -m migrations.") from error
    except RedisUnreachable as error:
        if isinstance(error, OSError):
            raise Unavailable(f"Postgres at {where} cannot be reached.") from error
        why = str(error).rstrip(".")
        raise Unavailable(f"Redis cannot be reached: {why}.") from error
    except Unreachable as error:
        raise Unavailable(f"Postgres at {where} cannot be reached.") from error


def address(settings: Settings) -> str:
    """Where Postgres is, without credentials."""
    parts = urlsplit(settings.postgres.url.get_secret_value())
    return f"{parts.hostname or 'its socket'}:{parts.port or 5432}{parts.path}"
