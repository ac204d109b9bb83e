"""Alive, and ready."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from api.deps import ResourcesDep
from api.errors import Unreachable
from services import schema
from services.errors import Unavailable
from services.runs.shards import Shard, Shards
from services.schema import SchemaBehind

router = APIRouter(prefix="/health", tags=["health"])

DEADLINE_SECONDS = 2.0


class Alive(BaseModel):
    status: str
    timestamp: datetime
    instance_id: str


class Dependency(BaseModel):
    ok: bool
    latency_ms: float
    error: str | None = None


class Readiness(Alive):
    dependencies: dict[str, Dependency]


@router.get("")
async def alive(resources: ResourcesDep) -> Alive:
    return Alive(status="ok", timestamp=datetime.now(UTC), instance_id=resources.stores.instance_id)


@router.get("/ready", responses={503: {"model": Readiness}})
async def ready(resources: ResourcesDep, response: Response) -> Readiness:
    """Each dependency and its latency; 503 when one is down, or the schema is older than the code.

    Of several Redis servers one that answers will do.
    """
    stores = resources.stores
    postgres, migrations, broker, *servers = await asyncio.gather(
        check("Postgres", resources.pool.fetchval("SELECT 1")),
        check("Postgres", schema.require_current(resources.pool)),
        check("The message broker", stores.dispatch.ping(DEADLINE_SECONDS)),
        *(check("Redis", shard.redis.ping()) for shard in stores.shards.each),
    )
    redis = {label(stores.shards, shard): found for shard, found in zip(stores.shards.each, servers, strict=True)}
    ok = postgres.ok and migrations.ok and broker.ok and any(server.ok for server in servers)
    whole = ok and all(server.ok for server in servers)
    if not ok:
        response.status_code = 503
        response.headers["Retry-After"] = Unavailable.headers["Retry-After"]
    return Readiness(
        status="ok" if whole else "degraded" if ok else "unavailable",
        timestamp=datetime.now(UTC),
        instance_id=resources.stores.instance_id,
        dependencies={"postgres": postgres, "migrations": migrations, **redis, "broker": broker},
    )


def label(shards: Shards, shard: Shard) -> str:
    return "redis" if len(shards.each) == 1 else f"redis {shard.name}"


async def check(name: str, question: Awaitable[Any]) -> Dependency:
    started = perf_counter()
    error = None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await question
    except TimeoutError:
        error = f"{name} did not answer within {DEADLINE_SECONDS:g} s."
    except SchemaBehind as behind:
        error = str(behind)
    except (Unavailable, RedisError, *Unreachable):
        error = f"{name} cannot be reached."
    return Dependency(ok=error is None, latency_ms=round((perf_counter() - started) * 1000, 1), error=error)
