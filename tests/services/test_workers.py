from dataclasses import asdict
from datetime import timedelta

import orjson

from services import workers
from services.runs.stores import Stores
from services.workers import Worker

MINUTE = timedelta(minutes=1)


async def test_whether_some_processes_are_there_is_asked_of_them_alone(stores: Stores) -> None:
    redis = stores.shards.home.redis
    for name in ("one", "two", "other"):
        await workers.announce(redis, Worker(name, "host", 1, 1, 7, "2026-01-02T03:04:05+00:00"), MINUTE)
    await workers.forget(redis, "two")
    assert await workers.announced(redis, ["one", "two", "never"]) == {"one"}


async def test_a_process_of_a_newer_version_is_known_by_what_this_one_reads(stores: Stores) -> None:
    redis, worker = stores.shards.home.redis, Worker("new", "host", 1, 1, 7, "2026-01-02T03:04:05+00:00")
    await redis.set(workers.key("new"), orjson.dumps({**asdict(worker), "added": 1}), ex=60)
    assert await workers.known(redis) == [worker]
