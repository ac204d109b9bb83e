import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.broker import RUN_QUEUE, queue_length, run_message
from services.errors import Unavailable
from services.publisher import Publisher
from services.settings import Settings
from tests.conftest import BROKER_REDIS, named, with_path
from tests.proxy import Proxy
from tests.waiting import PATIENT, eventually


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
    return run_message(uuid4(), uuid4(), uuid4(), "demo/echo")


async def test_a_message_is_confirmed_on_the_loop_once_the_broker_has_it(publisher: Publisher) -> None:
    confirmed: list[tuple[bool, int]] = []
    for _ in range(50):
        assert publisher.send(message(), lambda ok: confirmed.append((ok, threading.get_ident())))
    await eventually(lambda: len(confirmed) == 50)
    assert set(confirmed) == {(True, threading.get_ident())}
    assert await publisher.call(lambda broker: queue_length(broker, RUN_QUEUE), PATIENT) == 50


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
        await eventually(lambda: answers[False] == 1)
        with pytest.raises(Unavailable):
            await publisher.ping(1.0)
        proxy.restore()
        assert publisher.send(message(), note)
        await eventually(lambda: answers[True] == 1)
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
        await publisher.call(lambda broker: release.wait(PATIENT), 0.1)
    release.set()
    assert await publisher.call(lambda broker: 7, PATIENT) == 7


async def test_a_question_that_fails_unexpectedly_does_not_end_the_publisher(publisher: Publisher) -> None:
    def breaks(_: Any) -> None:
        raise KeyError("a bug")

    with pytest.raises((KeyError, Unavailable)):
        await publisher.call(breaks, PATIENT)
    assert await publisher.call(lambda broker: 7, PATIENT) == 7


async def test_closing_sends_what_is_queued(settings: Settings, empty_queue: Redis) -> None:
    publisher = Publisher(settings)
    for _ in range(20):
        publisher.send(message(), lambda ok: None)
    publisher.open()
    await publisher.close()
    assert await empty_queue.llen("dramatiq:agent_runs") == 20


@pytest.fixture
async def rabbit() -> AsyncIterator[Proxy]:
    async with Proxy(named("RABBITMQ_URL")) as proxy:
        yield proxy


def by_way_of(rabbit: Proxy, settings: Settings, **names: Any) -> Publisher:
    """A publisher at work that reaches RabbitMQ through a proxy."""
    broker = settings.broker.model_copy(update={"kind": "rabbitmq", "url": SecretStr(rabbit.url), **names})
    publisher = Publisher(settings.model_copy(update={"broker": broker}))
    publisher.open()
    return publisher


async def test_a_publisher_that_idles_through_an_outage_sends_and_asks_again_when_rabbitmq_is_back(
    settings: Settings, rabbit: Proxy
) -> None:
    publisher = by_way_of(rabbit, settings, heartbeat=timedelta(seconds=1))
    await publisher.ping(PATIENT)
    rabbit.refuse()
    await asyncio.sleep(3 * publisher.interval)
    rabbit.restore()
    await publisher.ping(PATIENT)
    answers: list[bool] = []
    assert publisher.send(message(), answers.append)
    await eventually(lambda: answers == [True])
    await publisher.call(lambda broker: broker.flush(RUN_QUEUE), PATIENT)
    await publisher.close()


async def test_a_question_that_met_a_broken_connection_leaves_a_new_one_to_the_next(
    settings: Settings, rabbit: Proxy
) -> None:
    publisher = by_way_of(rabbit, settings)
    await publisher.ping(PATIENT)
    rabbit.cut()
    with pytest.raises(Unavailable):
        await publisher.ping(PATIENT)
    await publisher.ping(PATIENT)
    await publisher.close()


SELECT_OK, DECLARE_OK = 12, 31
"""Bytes of RabbitMQ's last two answers to a question on a new connection."""


async def test_a_connection_that_breaks_while_it_is_asked_for_confirms_does_not_end_the_publisher(
    settings: Settings, rabbit: Proxy
) -> None:
    publisher = by_way_of(rabbit, settings)
    await publisher.ping(PATIENT)
    rabbit.cut()
    with pytest.raises(Unavailable):
        await publisher.ping(PATIENT)
    rabbit.cut_after(1_000_000)
    await publisher.ping(PATIENT)
    assert rabbit.passing
    answers = 1_000_000 - rabbit.passing
    rabbit.cut()
    with pytest.raises(Unavailable):
        await publisher.ping(PATIENT)
    rabbit.cut_after(answers - DECLARE_OK - SELECT_OK + 1)
    with pytest.raises(Unavailable):
        await publisher.ping(PATIENT)
    assert rabbit.passing is None
    await publisher.ping(PATIENT)
    await publisher.close()


async def test_a_publisher_without_heartbeats_idles(settings: Settings) -> None:
    names = {"heartbeat": timedelta(0)}
    publisher = Publisher(settings.model_copy(update={"broker": settings.broker.model_copy(update=names)}))
    publisher.open()
    await publisher.ping(PATIENT)
    before = time.process_time()
    await asyncio.sleep(1.0)
    assert time.process_time() - before < 0.3
    await publisher.close()
