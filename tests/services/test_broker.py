import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from pydantic import SecretStr
from redis.asyncio import Redis

from services import broker as broker_module
from services.broker import RUN_QUEUE, Publisher, StampedConsumer, make_broker, queue_length, run_message
from services.errors import Unavailable
from services.settings import BrokerSettings, RedisSettings, Settings
from tests.conftest import BROKER_REDIS, named, with_path
from tests.proxy import Proxy
from tests.services.runs.seeds import eventually


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


@pytest.fixture(autouse=True)
async def empty_queue() -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(with_path(named("REDIS_URL"), str(BROKER_REDIS)))
    await client.flushdb()
    yield client
    await client.flushdb()
    await client.aclose()


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings)
    publisher.open()
    yield publisher
    await publisher.close()
    assert not publisher.thread.is_alive()


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


def test_a_message_names_its_run_and_carries_no_credentials() -> None:
    sent = message()
    assert set(sent.kwargs) == {"agent_run_id", "thread_id", "instance_id", "project_id", "model_name"}
    assert sent.actor_name == "run_agent_background"
    assert sent.options == {"broker_priority": 7}


async def test_a_message_is_confirmed_on_the_loop_once_the_broker_has_it(publisher: Publisher) -> None:
    confirmed: list[tuple[bool, int]] = []
    for _ in range(50):
        assert publisher.send(message(), lambda ok: confirmed.append((ok, threading.get_ident())))
    await eventually(lambda: len(confirmed) == 50, within=2.5)
    assert set(confirmed) == {(True, threading.get_ident())}
    assert await publisher.call(lambda broker: queue_length(broker, RUN_QUEUE), 1.0) == 50


async def test_a_send_never_waits_for_the_broker_and_says_when_it_failed(settings: Settings) -> None:
    async with Proxy(with_path(named("REDIS_URL"), str(BROKER_REDIS))) as proxy:
        broker = settings.broker.model_copy(update={"redis_url": SecretStr(proxy.url), "outbox_size": 3})
        publisher = Publisher(settings.model_copy(update={"broker": broker}))
        publisher.open()
        answers: dict[bool, int] = defaultdict(int)

        def note(ok: bool) -> None:
            answers[ok] += 1

        proxy.refuse()
        assert publisher.send(message(), note)
        await eventually(lambda: answers[False] == 1, within=10)
        with pytest.raises(Unavailable):
            await publisher.ping(1.0)
        proxy.restore()
        assert publisher.send(message(), note)
        await eventually(lambda: answers[True] == 1, within=5)
        await publisher.close()


async def test_a_full_outbox_refuses_at_once(settings: Settings) -> None:
    publisher = Publisher(settings.model_copy(update={"broker": settings.broker.model_copy(update={"outbox_size": 2})}))
    sent = [publisher.send(message(), lambda ok: None) for _ in range(3)]
    assert sent == [True, True, False]
    with pytest.raises(Unavailable):
        await publisher.ping(0.1)
    publisher.open()
    await publisher.close()


async def test_a_question_that_takes_too_long_is_unavailable(publisher: Publisher) -> None:
    release = threading.Event()
    with pytest.raises(Unavailable):
        await publisher.call(lambda broker: release.wait(5), 0.1)
    release.set()
    assert await publisher.call(lambda broker: 7, 1.0) == 7


async def test_a_question_that_fails_unexpectedly_does_not_end_the_publisher(publisher: Publisher) -> None:
    def breaks(_: Any) -> None:
        raise KeyError("a bug")

    with pytest.raises((KeyError, Unavailable)):
        await publisher.call(breaks, 1.0)
    assert await publisher.call(lambda broker: 7, 1.0) == 7


async def test_closing_sends_what_is_queued(settings: Settings, empty_queue: Redis) -> None:
    publisher = Publisher(settings)
    for _ in range(20):
        publisher.send(message(), lambda ok: None)
    publisher.open()
    await publisher.close()
    assert await empty_queue.llen("dramatiq:agent_runs") == 20


async def test_a_publisher_that_idles_through_an_outage_sends_again_when_rabbitmq_is_back(settings: Settings) -> None:
    async with Proxy(named("RABBITMQ_URL")) as proxy:
        names = {"kind": "rabbitmq", "url": SecretStr(proxy.url), "heartbeat": timedelta(seconds=1)}
        publisher = Publisher(settings.model_copy(update={"broker": settings.broker.model_copy(update=names)}))
        publisher.open()
        await publisher.ping(5.0)
        proxy.refuse()
        await asyncio.sleep(3 * publisher.interval)
        proxy.restore()
        answers: list[bool] = []
        assert publisher.send(message(), answers.append)
        await eventually(lambda: answers == [True], within=10)
        await publisher.call(lambda broker: broker.flush(RUN_QUEUE), 5.0)
        await publisher.close()
