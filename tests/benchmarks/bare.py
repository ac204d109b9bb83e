"""The least that a start costs: one INSERT, one confirmed publish and consume, one RPUSH and PUBLISH."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast
from uuid import uuid4

import asyncpg
import pika
import redis as blocking_redis
from redis.asyncio import Redis

QUEUE = "limit_of_starts"
EVENTS = f"{QUEUE}:events"
BODY = b'{"agent_run_id": "%s", "thread_id": "00000000-0000-0000-0000-000000000000", "model_name": "demo/echo"}'
EVENT = b'{"type": "status", "content": "%s"}' % (b"x" * 200)
INSERT = f"INSERT INTO {QUEUE} (id, settings) VALUES ($1, $2)"
PATIENCE = 5.0


class Broker(Protocol):
    def publish(self, body: bytes) -> None:
        """Returns once the broker has it."""
        ...

    def close(self) -> None: ...


class Rabbit:
    def __init__(self, url: str, inbox: "queue.Queue[bytes]") -> None:
        self.sender, self.receiver = (pika.BlockingConnection(pika.URLParameters(url)) for _ in range(2))
        self.channel = self.sender.channel()
        self.channel.confirm_delivery()
        self.channel.queue_declare(QUEUE, durable=True)
        self.properties = pika.BasicProperties(delivery_mode=2)
        self.inbox = inbox
        self.thread = threading.Thread(target=self.consume, daemon=True)
        self.thread.start()

    def publish(self, body: bytes) -> None:
        self.channel.basic_publish("", QUEUE, body, self.properties)

    def consume(self) -> None:
        channel = self.receiver.channel()
        channel.basic_qos(prefetch_count=100)

        def take(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            self.inbox.put(body)
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(QUEUE, take)
        channel.start_consuming()

    def close(self) -> None:
        self.receiver.add_callback_threadsafe(self.receiver.close)
        self.channel.queue_delete(QUEUE)
        self.sender.close()


class RedisList:
    def __init__(self, url: str, inbox: "queue.Queue[bytes]") -> None:
        self.sender, self.receiver = (blocking_redis.Redis.from_url(url, protocol=2) for _ in range(2))
        self.inbox, self.open = inbox, True
        self.thread = threading.Thread(target=self.consume, daemon=True)
        self.thread.start()

    def publish(self, body: bytes) -> None:
        self.sender.lpush(QUEUE, body)

    def consume(self) -> None:
        while self.open:
            if taken := self.receiver.brpop([QUEUE], timeout=1):
                self.inbox.put(cast(bytes, taken[1]))

    def close(self) -> None:
        self.open = False
        self.thread.join(PATIENCE)
        self.sender.close()
        self.receiver.close()


class Bare:
    """`parts` of one start in their order; `accept` is what must have happened before a start may be answered."""

    def __init__(
        self, pool: asyncpg.Pool, redis: Redis, heard: Any, broker: Broker, inbox: "queue.Queue[bytes]"
    ) -> None:
        self.pool, self.redis, self.heard, self.broker, self.inbox = pool, redis, heard, broker, inbox
        self.sending = ThreadPoolExecutor(1, "limit")

    async def parts(self) -> tuple[float, float, float]:
        """Seconds of the INSERT, of publish and consume, and of RPUSH and PUBLISH until a subscriber has it."""
        moments = [time.monotonic()]
        await self.insert()
        moments.append(time.monotonic())
        moments.append(moments[-1] + self.publish_and_consume())
        began = time.monotonic()
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.rpush(EVENTS, EVENT)
        pipeline.publish(QUEUE, "new")
        await pipeline.execute()
        assert await self.heard.get_message(timeout=PATIENCE), "the subscriber heard nothing"
        return moments[1] - moments[0], moments[2] - moments[1], time.monotonic() - began

    async def insert(self) -> None:
        await self.pool.execute(INSERT, uuid4(), '{"stream": true}')

    def publish_and_consume(self) -> float:
        began = time.monotonic()
        self.broker.publish(BODY % uuid4().hex.encode())
        self.inbox.get(timeout=PATIENCE)
        return time.monotonic() - began

    async def accept(self) -> None:
        await self.insert()
        body = BODY % uuid4().hex.encode()
        await asyncio.get_running_loop().run_in_executor(self.sending, self.broker.publish, body)


@asynccontextmanager
async def bare(stores: Mapping[str, str], connections: int) -> AsyncIterator[Bare]:
    """On the measured stores, in a table, a queue and a list of its own."""
    make: dict[bool, Callable[..., Broker]] = {True: Rabbit, False: RedisList}
    inbox: queue.Queue[bytes] = queue.Queue()
    url = stores.get("RABBITMQ_URL", stores["BROKER_REDIS_URL"])
    async with (
        asyncpg.create_pool(stores["DATABASE_URL"], min_size=1, max_size=connections, reset=unchanged) as pool,
        Redis.from_url(stores["REDIS_URL"], protocol=2) as redis,
        redis.pubsub() as heard,
    ):
        await pool.execute(
            f"CREATE TABLE {QUEUE} (id uuid PRIMARY KEY, settings jsonb, created_at timestamptz DEFAULT now())"
        )
        await heard.subscribe(QUEUE)
        await heard.get_message(timeout=PATIENCE)
        broker = make["RABBITMQ_URL" in stores](url, inbox)
        try:
            yield Bare(pool, redis, heard, broker, inbox)
        finally:
            broker.close()
            await redis.delete(EVENTS)
            await pool.execute(f"DROP TABLE {QUEUE}")


async def unchanged(conn: asyncpg.Connection) -> None:
    """Nothing was set on the connection: asking for a reset at each release would be a round trip more."""
