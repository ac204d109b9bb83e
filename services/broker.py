"""The message broker: one `make_broker()` for API and workers, and what their consumers do besides."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

import dramatiq
import pika.exceptions
import redis
from dramatiq.broker import Consumer
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.rabbitmq import _RabbitmqConsumer as RabbitmqConsumer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.redis import _RedisConsumer as RedisConsumer
from dramatiq.errors import BrokerError, DecodeError
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from services.log import logger
from services.origin import NOWHERE, Origin
from services.settings import BrokerSettings, Settings

RUN_QUEUE = "agent_runs"
HEALTH_QUEUE = "health"
MAX_PRIORITY = 9

Broken = (
    BrokerError,
    pika.exceptions.AMQPError,
    AMQPConnectorException,
    redis.RedisError,
    OSError,
)
"""What a broken or absent broker raises; AMQPConnectorStackTimeout is no AMQPError (TRAPS 7)."""


FIELDS: dict[str, tuple[type, ...]] = {
    "queue_name": (str,),
    "actor_name": (str,),
    "args": (list,),
    "kwargs": (dict,),
    "options": (dict,),
}
FIELDS_WITH_DEFAULTS: dict[str, tuple[type, ...]] = {"message_id": (str,), "message_timestamp": (int, float)}


class StrictEncoder(dramatiq.JSONEncoder):
    """Refuses JSON that is no message: Dramatiq would take it, and lose a thread or a connection over it."""

    def __init__(self, *, of_redis: bool = False) -> None:
        self.of_redis = of_redis
        """Whether a message must say what the Redis broker knows it by, or it can never be acked."""

    def decode(self, data: bytes) -> dict[str, Any]:
        """Raises: DecodeError."""
        fields = super().decode(data)
        if not is_message(fields) or (self.of_redis and not isinstance(fields["options"].get("redis_message_id"), str)):
            raise DecodeError("this is no message", data, None)
        return fields


def is_message(fields: Any) -> bool:
    if not isinstance(fields, dict):
        return False
    known = FIELDS | {name: types for name, types in FIELDS_WITH_DEFAULTS.items() if name in fields}
    well_typed = fields.keys() == known.keys() and all(isinstance(fields[name], known[name]) for name in known)
    return well_typed and "throws" not in fields["options"]  # an exception class, which JSON cannot hold


class StampedConsumer(RabbitmqConsumer):
    """Acks only what this very channel delivered.

    Delivery tags restart with every channel: the ack of a run begun before a reconnect would take away
    another run's message (TRAPS 1).
    """

    broker: "Rabbit"

    def __next__(self) -> Any:
        message = super().__next__()  # type: ignore[no-untyped-call]
        if message is None:
            return None
        message.consumer = self
        return wanted(message, self)

    def ack(self, message: Any) -> None:
        if self.delivered(message):
            super().ack(message)  # type: ignore[no-untyped-call]

    def nack(self, message: Any) -> None:
        if self.delivered(message):
            super().nack(message)  # type: ignore[no-untyped-call]

    def delivered(self, message: Any) -> bool:
        if message.consumer is self:
            return True
        if message.consumer:
            logger.info("broker.stale_ack_dropped", message_id=message.message_id)
        return False

    def cancel(self) -> None:
        """Stop deliveries, on the connection's own thread (TRAPS 5)."""
        self.connection.add_callback_threadsafe(self.cancel_deliveries)

    def cancel_deliveries(self) -> None:
        for consumer_tag in self.channel.consumer_tags:
            self.channel._impl.basic_cancel(consumer_tag)
            del self.channel._consumer_infos[consumer_tag]  # or pika fails to cancel it again when it closes

    def give_back(self, messages: Sequence[Any]) -> None:
        """Return messages that no thread has begun to their queue; an ack that comes for one later is dropped."""
        mine = [message for message in messages if message.consumer is self]
        for message in mine:
            message.consumer = None
        tags = [message._tag for message in mine]
        self.known_tags.difference_update(tags)
        self.connection.add_callback_threadsafe(lambda: self.requeue_tags(tags))

    def requeue_tags(self, tags: Sequence[int]) -> None:
        for tag in tags:
            self.channel.basic_nack(tag, requeue=True)


class Idle(Consumer):
    """What a worker that leaves consumes when its connection comes back: nothing."""

    def __init__(self, timeout_ms: int) -> None:
        self.seconds = timeout_ms / 1000

    def __next__(self) -> None:
        time.sleep(self.seconds)

    def ack(self, message: Any) -> None:
        """Its channel is gone; the broker delivers it again, which is harmless."""

    nack = ack

    def cancel(self) -> None:
        pass

    def give_back(self, messages: Sequence[Any]) -> None:
        pass


class ReturningConsumer(RedisConsumer):
    """The Redis broker's consumer, which survives what is no message, and can give back what no thread has begun."""

    broker: "RedisQueues"

    def __next__(self) -> Any:
        try:
            message = super().__next__()  # type: ignore[no-untyped-call]
        except DecodeError as error:
            log_not_understood(self.queue_name, "it is no message")
            self.bury(error.data)
            return None
        return message and wanted(message, self)

    def bury(self, body: bytes) -> None:
        """Make a dead letter of what cannot even be asked for its id: look among the few that we have taken."""
        redis, namespace = self.broker.client, self.broker.namespace
        for taken in cast(
            set[bytes], redis.smembers(f"{namespace}:__acks__.{self.broker.broker_id}.{self.queue_name}")
        ):
            if redis.hget(f"{namespace}:{self.queue_name}.msgs", cast(str, taken)) == body:
                self.broker.do_nack(self.queue_name, taken)

    def ack(self, message: Any) -> None:
        if not getattr(message, "given_back", False):
            super().ack(message)  # type: ignore[no-untyped-call]

    def cancel(self) -> None:
        self.prefetch = 0

    def give_back(self, messages: Sequence[Any]) -> None:
        """Return messages that no thread has begun to their queue; an ack that comes for one later is dropped.

        One that could not be returned is unacked then, and given to others when our heartbeat has stopped.
        """
        for message in messages:
            message.given_back = True
        self.requeue(messages)  # type: ignore[no-untyped-call]


def wanted(message: Any, consumer: StampedConsumer | ReturningConsumer) -> Any:
    """The message, or None for what is not for this queue (a dead letter) or comes while the process leaves."""
    if message.queue_name != consumer.queue_name:
        log_not_understood(consumer.queue_name, f"it names the queue {message.queue_name!r}")
        consumer.nack(message)
        return None
    if consumer.broker.leaving:
        consumer.give_back([message])
        return None
    return message


def log_not_understood(queue_name: str, reason: str) -> None:
    logger.error("broker.message_not_understood", queue=queue_name, reason=reason)


OurConsumer = StampedConsumer | ReturningConsumer | Idle


class Leaving:
    leaving = False
    """Set when the process is asked to stop: whatever is still delivered goes back."""


class Rabbit(Leaving, RabbitmqBroker):
    queue_type = "classic"

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        # What exists was declared without a type, and may not be declared otherwise (TRAPS 15).
        return arguments if self.queue_type == "classic" else {**arguments, "x-queue-type": self.queue_type}

    @property
    def consumer_class(self) -> type[StampedConsumer]:
        return StampedConsumer

    def close(self) -> None:
        """Without pika's tracebacks over what the server has closed: threads that send nothing send no heartbeats."""
        pika_says = logging.getLogger("pika")
        level = pika_says.level
        pika_says.setLevel(logging.CRITICAL)
        try:
            super().close()
        finally:
            pika_says.setLevel(level)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        if self.leaving:
            return Idle(timeout)
        return super().consume(queue_name, prefetch, timeout)


class RedisQueues(Leaving, RedisBroker):
    @property
    def consumer_class(self) -> type[ReturningConsumer]:
        return ReturningConsumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        return super().consume(queue_name, 0 if self.leaving else prefetch, timeout)


def make_broker(settings: Settings, middleware: list[dramatiq.Middleware] | None = None) -> dramatiq.Broker:
    """RabbitMQ with confirms, or Redis when BROKER says so; never guessed.

    `middleware` replaces Dramatiq's defaults (none for processes that only send).
    """
    broker = settings.broker
    if broker.kind == "redis":
        return RedisQueues(  # type: ignore[no-untyped-call]
            url=with_parameters(settings.broker_redis_url, {"max_connections": broker.redis_pool_size}),
            middleware=middleware or [],
            namespace=broker.redis_namespace,
            heartbeat_timeout=int(broker.redis_heartbeat_timeout.total_seconds() * 1000),
            maintenance_chance=broker.redis_maintenance_chance,
        )
    rabbit = Rabbit(
        url=[connection_url(url, broker) for url in broker.amqp_url.split(";")],
        middleware=middleware or [],
        confirm_delivery=True,
        max_priority=MAX_PRIORITY if broker.queue_type == "classic" else None,
    )
    rabbit.queue_type = broker.queue_type
    return rabbit


def connection_url(url: str, broker: BrokerSettings) -> str:
    """`url` with our limits, which a parameter that it names itself overrides."""
    limits = {
        "connection_attempts": broker.connection_attempts,
        "retry_delay": broker.retry_delay.total_seconds(),
        "heartbeat": int(broker.heartbeat.total_seconds()),
        "blocked_connection_timeout": broker.blocked_connection_timeout.total_seconds(),
        "socket_timeout": broker.socket_timeout.total_seconds(),
        "stack_timeout": broker.stack_timeout.total_seconds(),
    }
    return with_parameters(url, limits)


def with_parameters(url: str, parameters: Mapping[str, object]) -> str:
    """`url` with those of the parameters that it does not name itself."""
    address, _, query = url.partition("?")
    ours = urlencode({name: value for name, value in parameters.items() if f"{name}=" not in query})
    return f"{address}?{query}&{ours}" if query and ours else f"{address}?{query or ours}"


def queue_length(broker: dramatiq.Broker, queue_name: str) -> int:
    """Messages that wait in a queue, those delivered and not yet acked left out. Blocking."""
    if isinstance(broker, RedisBroker):
        return int(cast(int, broker.client.llen(f"{broker.namespace}:{queue_name}")))
    rabbit = cast(RabbitmqBroker, broker)
    rabbit.declare_queue(queue_name, ensure=True)
    return int(rabbit._declare_queue(queue_name).method.message_count)


def workflow_message(
    *,
    execution_id: str,
    workflow_id: str,
    workflow_name: str,
    triggered_by: str,
    run_id: UUID,
    priority: int = 5,
    came_from: Origin = NOWHERE,
) -> dramatiq.Message[Any]:
    """The message that wakes a worker for an execution. The definition stays where it is: it may hold secrets."""
    arguments = {
        "execution_id": execution_id,
        "workflow_id": workflow_id,
        "workflow_name": workflow_name,
        "workflow_definition": {},
        "variables": {},
        "triggered_by": triggered_by,
        "agent_run_id": str(run_id),
        **came_from.words,
    }
    return to_run("run_workflow_background", arguments, priority)


def run_message(
    run_id: UUID,
    thread_id: UUID,
    project_id: UUID,
    model_name: str,
    *,
    priority: int = 5,
    attempt: int | None = None,
    came_from: Origin = NOWHERE,
) -> dramatiq.Message[Any]:
    """The message that wakes a worker for an agent run; the row is the truth, the rest informs.

    `attempt`: of the row at the sending. With 0 a worker tries to claim before it looks.
    `came_from`: for those who read logs and traces.
    """
    arguments = {
        "agent_run_id": str(run_id),
        "thread_id": str(thread_id),
        "instance_id": "",
        "project_id": str(project_id),
        "model_name": model_name,
        "attempt": attempt,
        **came_from.words,
    }
    return to_run("run_agent_background", arguments, priority)


def to_run(actor: str, arguments: dict[str, Any], priority: int) -> dramatiq.Message[Any]:
    options = {"broker_priority": priority}
    return dramatiq.Message(queue_name=RUN_QUEUE, actor_name=actor, args=(), kwargs=arguments, options=options)
