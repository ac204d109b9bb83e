"""Dead letters: messages that no worker could use. Read, sent again or removed without loading a queue whole."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import pika
import pika.exceptions
import redis
from dramatiq.common import q_name, xq_name
from dramatiq.errors import DecodeError

from services.broker import (
    HEALTH_QUEUE,
    RUN_QUEUE,
    Broken,
    Rabbit,
    RedisQueues,
    StrictEncoder,
    make_broker,
)
from services.errors import NotFound, Unavailable
from services.settings import Settings

QUEUES = (RUN_QUEUE, HEALTH_QUEUE)
"""Those of our actors."""
PAGE = 200
NO_QUEUE = 404
Refused = (pika.exceptions.ProbableAuthenticationError, pika.exceptions.AuthenticationError, redis.AuthenticationError)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message as it died. `content` is None when its bytes are no message of Dramatiq's."""

    queue: str
    handle: Any
    """What its broker knows it by while its box is open."""
    body: bytes
    content: dict[str, Any] | None
    died_at: datetime | None
    reason: str | None
    priority: int | None = None

    @property
    def id(self) -> str:
        """The message's own id, or one made from its bytes."""
        if self.content and "message_id" in self.content:
            return str(self.content["message_id"])
        return f"raw-{hashlib.sha256(self.body).hexdigest()[:16]}"

    @property
    def actor(self) -> str | None:
        return str(self.content["actor_name"]) if self.content else None

    @property
    def target(self) -> str | None:
        """The queue that it may be sent to again: its own, or that queue's delayed half; None when it names another."""
        named = str(self.content["queue_name"]) if self.content else ""
        return named if q_name(named) == self.queue else None


class Box(Protocol):
    """The dead letters of one queue. What is not removed stays, in its order, whatever happens to us."""

    def count(self) -> int: ...

    def letters(self) -> Iterator[DeadLetter]:
        """Oldest first, a page in memory at a time."""

    def replay(self, letter: DeadLetter) -> None:
        """Send a letter that was just read to its target, and remove it once the broker has confirmed that."""

    def remove(self, letter: DeadLetter) -> None:
        """Remove a letter that was just read."""

    def purge(self) -> int:
        """Remove all, unread; how many."""


@contextmanager
def open_box(settings: Settings, queue: str) -> Iterator[Box]:
    """The dead letters of `queue` (its name with or without `.XQ`). Raises: as `answering`."""
    queue = q_name(queue)
    with answering(settings, queue) as broker:
        if isinstance(broker, Rabbit):
            with pika.BlockingConnection(broker.parameters) as connection:
                yield box_of(connection, queue)
        else:
            yield box_of(broker, queue)


def box_of(opened: pika.BlockingConnection | RedisQueues, queue: str) -> Box:
    """Of a broker that answers."""
    return RedisBox(opened, queue) if isinstance(opened, RedisQueues) else RabbitBox(opened, queue)


@contextmanager
def answering(settings: Settings, queue: str) -> Iterator[Rabbit | RedisQueues]:
    """The broker, for whoever asks about `queue`.

    Raises: NotFound for a queue that RabbitMQ does not have (on Redis every name is one), Unavailable when the
    broker does not answer.
    """
    try:
        yield cast(Rabbit | RedisQueues, make_broker(settings))
    except pika.exceptions.UnroutableError as error:
        raise NotFound(f"The message broker has no queue to send to again: {queue!r} or its delayed half.") from error
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != NO_QUEUE:
            raise Unavailable(f"The message broker at {address(settings)} refuses this.") from error
        raise NotFound(f"There are no dead letters of {queue!r}: the message broker has no such queue.") from error
    except Refused as error:
        raise Unavailable(f"The message broker at {address(settings)} refuses our credentials.") from error
    except Broken as error:
        raise Unavailable(f"The message broker at {address(settings)} does not answer.") from error


def address(settings: Settings) -> str:
    """Where the broker is, without credentials."""
    kind = settings.broker.kind
    urls = settings.broker.amqp_url.split(";") if kind == "rabbitmq" else [settings.broker_redis_url]
    default = {"rabbitmq": 5672, "redis": 6379}[kind]
    return ", ".join(f"{parts.hostname}:{parts.port or default}" for parts in map(urlsplit, urls))


class RabbitBox:
    """Reads without acknowledging: what was read and not removed goes back to its place when the connection ends."""

    def __init__(self, connection: pika.BlockingConnection, queue: str) -> None:
        self.queue, self.dead = queue, xq_name(queue)
        self.reading, self.sending = connection.channel(), connection.channel()
        self.sending.confirm_delivery()
        self.sending.queue_declare(self.dead, passive=True)

    def count(self) -> int:
        """Those that are waiting: what another is reading at this moment is not among them."""
        return int(self.sending.queue_declare(self.dead, passive=True).method.message_count)

    def letters(self) -> Iterator[DeadLetter]:
        while True:
            delivered, properties, body = self.reading.basic_get(self.dead)
            if delivered is None:
                return
            yield rabbit_letter(self.queue, delivered.delivery_tag, properties, body)

    def replay(self, letter: DeadLetter) -> None:
        properties = pika.BasicProperties(delivery_mode=2, priority=letter.priority)
        self.sending.basic_publish("", required(letter.target), letter.body, properties, mandatory=True)
        self.remove(letter)

    def remove(self, letter: DeadLetter) -> None:
        self.reading.basic_ack(letter.handle)

    def purge(self) -> int:
        return int(self.sending.queue_purge(self.dead).method.message_count)


def rabbit_letter(queue: str, tag: int, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    [death, *_] = (properties.headers or {}).get("x-death") or [{}]
    return DeadLetter(queue, tag, body, readable(body), death.get("time"), death.get("reason"), properties.priority)


TAKE_BACK = """
local body = redis.call('HGET', KEYS[2], ARGV[1])
if not body then return 0 end
redis.call('HSET', KEYS[4], ARGV[1], body)
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
"""
"""One step: a letter is in its queue or among the dead, never in both, never in neither."""


class RedisBox:
    """Dramatiq's sorted set of dead ids (by time of death) and its hash of their bytes."""

    def __init__(self, broker: RedisQueues, queue: str) -> None:
        self.redis, self.queue = broker.client, queue
        self.namespace = broker.namespace
        self.dead = f"{broker.namespace}:{xq_name(queue)}"
        self.bodies = f"{self.dead}.msgs"
        self.take_back = self.redis.register_script(TAKE_BACK)
        self.removed = 0

    def count(self) -> int:
        return int(cast(int, self.redis.zcard(self.dead)))

    def letters(self) -> Iterator[DeadLetter]:
        read = 0
        self.removed = 0
        while page := cast(list[tuple[bytes, float]], self.page(read - self.removed)):
            read += len(page)
            bodies = cast(list[bytes | None], self.redis.hmget(self.bodies, [key for key, _ in page]))
            for (key, died_ms), body in zip(page, bodies, strict=True):
                yield redis_letter(self.queue, key, body or b"", died_ms)

    def page(self, start: int) -> Any:
        return self.redis.zrange(self.dead, start, start + PAGE - 1, withscores=True)

    def replay(self, letter: DeadLetter) -> None:
        alive = f"{self.namespace}:{required(letter.target)}"
        keys = [self.dead, self.bodies, alive, f"{alive}.msgs"]
        self.removed += int(cast(int, self.take_back(keys=keys, args=[letter.handle])))

    def remove(self, letter: DeadLetter) -> None:
        pipeline = self.redis.pipeline()
        pipeline.zrem(self.dead, letter.handle)
        pipeline.hdel(self.bodies, letter.handle)
        gone, _ = pipeline.execute()
        self.removed += int(gone)

    def purge(self) -> int:
        pipeline = self.redis.pipeline()
        pipeline.zcard(self.dead)
        pipeline.unlink(self.dead, self.bodies)
        count, _ = pipeline.execute()
        return int(count)


def redis_letter(queue: str, key: bytes, body: bytes, died_ms: float) -> DeadLetter:
    died_at = datetime.fromtimestamp(died_ms / 1000, UTC)
    return DeadLetter(queue, key, body, readable(body), died_at, "rejected" if body else "its bytes are gone")


def readable(body: bytes) -> dict[str, Any] | None:
    """What a message says, when it is one that a worker can read."""
    try:
        return StrictEncoder().decode(body)
    except (DecodeError, RecursionError, ValueError):  # json does not say why it takes no number of 5,000 digits
        return None


def required(target: str | None) -> str:
    if target is None:
        raise ValueError("a letter that names no queue of its own cannot be sent again")
    return target
