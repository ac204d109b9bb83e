import time
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import dramatiq
import pytest
from pydantic import SecretStr

from services.broker import Rabbit, RedisQueues, make_broker, run_message
from services.settings import BrokerSettings
from tests.conftest import BROKER_REDIS, named, with_path
from tests.usual import settings_with


class Graveyard:
    """A queue of one test's own on a real broker, and ways to let messages of it die."""

    def __init__(self, kind: str) -> None:
        self.queue = f"buried_{uuid4().hex[:8]}"
        self.url = named("RABBITMQ_URL") if kind == "rabbitmq" else with_path(named("REDIS_URL"), str(BROKER_REDIS))
        field = "url" if kind == "rabbitmq" else "redis_url"
        self.settings = settings_with(broker=BrokerSettings.model_validate({"kind": kind, field: SecretStr(self.url)}))
        self.broker = cast(Rabbit | RedisQueues, make_broker(self.settings))
        self.broker.declare_queue(self.queue)

    def message(self, **changes: Any) -> dramatiq.Message[Any]:
        run = run_message(uuid4(), uuid4(), uuid4(), "demo/echo", priority=7)
        return run.copy(queue_name=self.queue, **changes)

    def bury(self, count: int = 1, **changes: Any) -> list[str]:
        """Let so many messages die as a worker does; their ids, in order."""
        ids = [self.broker.enqueue(self.message(**changes)).message_id for _ in range(count)]
        self.let_die(count)
        return ids

    def bury_bytes(self, body: bytes) -> None:
        """Let something die that is no message; on RabbitMQ a consumer's refusal, on Redis its place among the dead."""
        if isinstance(self.broker, Rabbit):
            self.broker.declare_queue(self.queue, ensure=True)
            self.broker.channel.basic_publish("", self.queue, body)
            self.let_die(1)
        else:
            self.broker.do_enqueue(self.queue, str(uuid4()), body)
            consumer = self.broker.consume(self.queue, 1, 20)
            while next(consumer) is None and self.broker.client.llen(f"dramatiq:{self.queue}"):
                pass

    def let_die(self, count: int) -> None:
        if isinstance(self.broker, Rabbit):
            for _ in range(count):
                method, _, _ = self.broker.channel.basic_get(self.queue)
                self.broker.channel.basic_nack(method.delivery_tag, requeue=False)
            return
        consumer = self.broker.consume(self.queue, 1, 20)
        for _ in range(count):
            while (message := next(consumer)) is None:
                pass
            consumer.nack(message)
            time.sleep(0.002)  # deaths in one millisecond have no order

    def taken(self) -> list[tuple[str, int | None]]:
        """The ids and priorities of the messages that wait in the queue, which are taken from it."""
        found: list[tuple[str, int | None]] = []
        if isinstance(self.broker, Rabbit):
            while (got := self.broker.channel.basic_get(self.queue, auto_ack=True))[0]:
                found.append((dramatiq.Message.decode(got[2]).message_id, got[1].priority))
            return found
        consumer = self.broker.consume(self.queue, 1, 20)
        while message := next(consumer):
            found.append((message.message_id, message.options["broker_priority"]))
            consumer.ack(message)
        return found

    def close(self) -> None:
        if isinstance(self.broker, Rabbit):
            for suffix in ("", ".DQ", ".XQ"):
                self.broker.channel.queue_delete(f"{self.queue}{suffix}")
        else:
            for key in self.broker.client.scan_iter(f"dramatiq:*{self.queue}*"):
                self.broker.client.delete(key)
        self.broker.close()


@pytest.fixture(params=["redis", "rabbitmq"])
def graveyard(request: pytest.FixtureRequest) -> Iterator[Graveyard]:
    graveyard = Graveyard(request.param)
    yield graveyard
    graveyard.close()
