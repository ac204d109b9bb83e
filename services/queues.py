"""How many messages wait at the broker, are with workers, and died. Blocking."""

from dataclasses import dataclass
from datetime import datetime
from typing import cast

import dramatiq
import pika
import pika.exceptions
from dramatiq.common import dq_name, xq_name

from services.broker import Rabbit, RedisQueues
from services.dead_letters import NO_QUEUE, QUEUES, Box, answering, box_of
from services.errors import NotFound
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class Queue:
    """`ready` wait for a worker, `delayed` for their time; `taken` are with workers (None: RabbitMQ keeps that to
    itself), `consumers` are the processes that listen (None: unknown on Redis). `missing`: no worker declared it yet.
    """

    name: str
    ready: int
    delayed: int
    taken: int | None
    consumers: int | None
    dead: int
    oldest_dead_at: datetime | None
    missing: bool = False


def look(settings: Settings) -> list[Queue]:
    """The queues of our actors. Raises: Unavailable."""
    return [look_at(settings, name) for name in QUEUES]


def look_at(settings: Settings, name: str) -> Queue:
    try:
        with answering(settings, name) as broker:
            if isinstance(broker, RedisQueues):
                return on_redis(broker, name, box_of(broker, name))
            with pika.BlockingConnection(broker.parameters) as connection:
                return on_rabbit(connection, name)
    except NotFound:
        return Queue(name, 0, 0, None, None, 0, None, missing=True)


def on_rabbit(connection: pika.BlockingConnection, name: str) -> Queue:
    ready = connection.channel().queue_declare(name, passive=True).method
    dead, oldest = 0, None
    if count_of(connection, f"{name}.XQ"):
        dead, oldest = dead_of(box_of(connection, name))
    return Queue(
        name, ready.message_count, count_of(connection, dq_name(name)), None, ready.consumer_count, dead, oldest
    )


def count_of(connection: pika.BlockingConnection, queue: str) -> int:
    """None of a queue that is not there: the others are looked at all the same."""
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).method.message_count)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != NO_QUEUE:
            raise
        return 0
    finally:
        if channel.is_open:
            channel.close()


def on_redis(broker: RedisQueues, name: str, box: Box) -> Queue:
    redis, namespace = broker.client, broker.namespace
    beating = cast(list[bytes], redis.zrange(f"{namespace}:__heartbeats__", 0, -1))
    taken = sum(int(cast(int, redis.scard(f"{namespace}:__acks__.{who.decode()}.{name}"))) for who in beating)
    ready, delayed = (int(cast(int, redis.llen(f"{namespace}:{queue}"))) for queue in (name, dq_name(name)))
    dead, oldest = dead_of(box)
    return Queue(name, ready, delayed, taken, None, dead, oldest)


def dead_of(box: Box) -> tuple[int, datetime | None]:
    count = box.count()
    oldest = next(box.letters(), None) if count else None
    return count, oldest.died_at if oldest else None


def lengths(broker: dramatiq.Broker) -> dict[tuple[str, str], int]:
    """How many messages are `ready`, `delayed` and `dead`, by queue and state; by the broker's own connection.

    Nothing is read: to look at a dead letter of RabbitMQ is to take it from others for a moment.
    """
    names = {(name, "ready"): name for name in QUEUES}
    names |= {(name, "delayed"): dq_name(name) for name in QUEUES}
    names |= {(name, "dead"): xq_name(name) for name in QUEUES}
    return {key: length(broker, queue) for key, queue in names.items()}


def length(broker: dramatiq.Broker, queue: str) -> int:
    if isinstance(broker, Rabbit):
        return count_of(broker.connection, queue)
    redis, key = cast(RedisQueues, broker).client, f"{cast(RedisQueues, broker).namespace}:{queue}"
    return int(cast(int, redis.zcard(key) if queue == xq_name(queue) else redis.llen(key)))
