"""Worker processes as operators see them: each says in Redis, for a while, that it is there, and hears of drains."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta

import orjson

from services.redis import Client

PREFIX = "worker:"
DRAIN = b"DRAIN"
PAGE_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Worker:
    """One process. `group_pid` is Dramatiq's master, which a signal goes to: its processes stop together."""

    instance_id: str
    host: str
    pid: int
    group_pid: int
    slots: int
    started_at: str
    leaving: bool = False


def key(instance_id: str) -> str:
    return f"{PREFIX}{instance_id}"


def control(instance_id: str) -> str:
    """The channel on which a worker process hears what operators ask of it."""
    return f"{PREFIX}{instance_id}:control"


async def announce(redis: Client, worker: Worker, ttl: timedelta) -> None:
    """Raises: redis errors."""
    await redis.set(key(worker.instance_id), orjson.dumps(asdict(worker)), px=int(ttl.total_seconds() * 1000))


async def forget(redis: Client, instance_id: str) -> None:
    await redis.unlink(key(instance_id))


async def known(redis: Client) -> list[Worker]:
    """Those that announced themselves lately, by host and group. Raises: redis errors."""
    names = [name async for name in redis.scan_iter(f"{PREFIX}*", count=PAGE_KEYS)]
    said = await redis.mget(names) if names else []
    found = [read(each) for each in said if each]
    return sorted(found, key=lambda worker: (worker.host, worker.group_pid, worker.pid))


def read(said: bytes | str) -> Worker:
    """What a process said of itself; one of a newer version may say more."""
    told = orjson.loads(said)
    return Worker(**{field.name: told[field.name] for field in fields(Worker) if field.name in told})


async def announced(redis: Client, instance_ids: Sequence[str]) -> set[str]:
    """Those of some processes that are there still; it costs no look at every key. Raises: redis errors."""
    said = await redis.mget([key(instance_id) for instance_id in instance_ids])
    return {instance_id for instance_id, each in zip(instance_ids, said, strict=True) if each}


async def ask_to_drain(redis: Client, instance_ids: Sequence[str]) -> int:
    """How many processes heard of it. Raises: redis errors."""
    return sum([int(await redis.publish(control(instance_id), DRAIN)) for instance_id in instance_ids])
