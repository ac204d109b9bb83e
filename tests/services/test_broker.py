import logging
import socket
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed
from pydantic import SecretStr

from services import broker as broker_module
from services.broker import RUN_QUEUE, StampedConsumer, make_broker, queue_length, run_message
from services.settings import BrokerSettings, RedisSettings, Settings
from tests.conftest import named


class Channel:
    """A channel that only notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def basic_ack(self, tag: int) -> None:
        self.calls.append(("ack", tag))

    def basic_nack(self, tag: int, requeue: bool) -> None:
        self.calls.append(("requeue" if requeue else "nack", tag))


def consumer() -> StampedConsumer:
    """A consumer as after its connection was made."""
    made = StampedConsumer.__new__(StampedConsumer)
    made.channel = Channel()
    made.connection = SimpleNamespace(add_callback_threadsafe=lambda call: call())
    made.known_tags = set()
    made.logger = SimpleNamespace(warning=lambda *_, **__: None, debug=lambda *_, **__: None)
    return made


def delivery(by: StampedConsumer, tag: int) -> Any:
    by.known_tags.add(tag)
    return SimpleNamespace(consumer=by, _tag=tag, message_id="m", queue_name=RUN_QUEUE)


def message() -> Any:
    return run_message(uuid4(), uuid4(), uuid4(), "demo/echo", priority=7)


def test_an_ack_of_an_earlier_channel_is_dropped() -> None:
    before, after = consumer(), consumer()
    old, new = delivery(before, 1), delivery(after, 1)
    after.ack(old)
    after.nack(old)
    assert after.channel.calls == []
    after.ack(new)
    assert after.channel.calls == [("ack", 1)]


def test_the_broker_is_named_and_never_guessed(settings: Settings) -> None:
    assert isinstance(make_broker(settings), RedisBroker)
    rabbit = make_broker(Settings(broker=BrokerSettings(kind="rabbitmq", url=SecretStr("amqp://u:p@h:1/v"))))
    assert isinstance(rabbit, RabbitmqBroker)
    assert rabbit.confirm_delivery
    assert rabbit.max_priority == 9


def test_an_address_gets_our_limits_unless_it_names_its_own() -> None:
    url = broker_module.connection_url("amqp://h/v?heartbeat=7", BrokerSettings(kind="rabbitmq"))
    assert "heartbeat=7" in url
    assert url.count("heartbeat=") == 1
    for name in ("connection_attempts", "blocked_connection_timeout", "socket_timeout", "stack_timeout"):
        assert f"{name}=" in url


def test_the_brokers_redis_is_another_database_than_ours() -> None:
    settings = Settings(
        redis=RedisSettings(url=SecretStr("redis://h:1/4")),
        broker=BrokerSettings(kind="redis", redis_url=SecretStr("")),
    )
    assert settings.broker_redis_url == "redis://h:1/5"


@pytest.mark.parametrize(
    ("ours", "brokers"),
    [
        ("redis://h:1/4?client_name=a%20b", "redis://h:1/5?client_name=a+b"),
        ("redis://h:1?db=4", "redis://h:1/5"),
        ("unix:///run/redis.sock?db=4", "unix:///run/redis.sock?db=5"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=1"),
    ],
)
def test_the_brokers_redis_is_another_database_however_ours_is_named(ours: str, brokers: str) -> None:
    settings = Settings(
        redis=RedisSettings(url=SecretStr(ours)), broker=BrokerSettings(kind="redis", redis_url=SecretStr(""))
    )
    assert settings.broker_redis_url == brokers
    pool = cast(RedisBroker, make_broker(settings)).client.connection_pool
    assert pool.connection_kwargs["db"] in (1, 5)
    assert pool.max_connections == settings.broker.redis_pool_size


def test_a_message_names_its_run_and_carries_no_credentials() -> None:
    sent = message()
    assert set(sent.kwargs) == {"agent_run_id", "thread_id", "instance_id", "project_id", "model_name", "attempt"}
    assert sent.actor_name == "run_agent_background"
    assert sent.options == {"broker_priority": 7}


def test_a_quorum_queue_takes_and_gives_messages_and_is_no_classic_one() -> None:
    url, queue = SecretStr(named("RABBITMQ_URL")), f"quorum_{uuid4().hex[:8]}"
    quorum = make_broker(Settings(broker=BrokerSettings(kind="rabbitmq", url=url, queue_type="quorum")))
    classic = make_broker(Settings(broker=BrokerSettings(kind="rabbitmq", url=url)))
    assert isinstance(quorum, RabbitmqBroker)
    quorum.declare_queue(queue)
    try:
        sent = quorum.enqueue(message().copy(queue_name=queue))
        assert queue_length(quorum, queue) == 1
        with pytest.raises(ConnectionClosed, match="PRECONDITION_FAILED"):
            queue_length(classic, queue)
        with closing(quorum.consume(queue, prefetch=1, timeout=20_000)) as consumer:
            received = next(consumer)
            assert received
            assert received.message_id == sent.message_id
            consumer.ack(received)
    finally:
        for suffix in ("", ".DQ", ".XQ"):
            quorum.channel.queue_delete(f"{queue}{suffix}")
        quorum.close()
        classic.close()


def test_connections_that_the_server_has_closed_are_closed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Those of threads that send nothing send no heartbeats either: every worker that leaves has some."""
    url = SecretStr(named("RABBITMQ_URL"))
    broker = cast(RabbitmqBroker, make_broker(Settings(broker=BrokerSettings(kind="rabbitmq", url=url))))
    assert broker.channel.is_open
    broker.connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
    broker.close()
    assert [record for record in caplog.records if record.name.startswith("pika")] == []
    logging.getLogger("pika.adapters").warning("said later")
    assert [record.getMessage() for record in caplog.records] == ["said later"]
