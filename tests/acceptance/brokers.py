"""The broker of a deployment as foreign programs see it: bytes in, counts out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import dramatiq
import pika
from pydantic import SecretStr

from services.broker import RUN_QUEUE, Rabbit, RedisQueues, make_broker, queue_length
from services.dead_letters import open_box
from services.settings import BrokerSettings, Settings
from tests.acceptance.operators import Deployment


class Messages:
    """The run queue of one deployment."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.broker = cast(Rabbit | RedisQueues, make_broker(settings))

    def send(self, *args: Any, actor: str = "run_agent_background", **kwargs: Any) -> None:
        self.broker.enqueue(dramatiq.Message(RUN_QUEUE, actor, args, kwargs, {}))

    def send_bytes(self, body: bytes) -> None:
        if isinstance(self.broker, Rabbit):
            self.broker.channel.basic_publish("", RUN_QUEUE, body, pika.BasicProperties(delivery_mode=2))
        else:
            self.broker.do_enqueue(RUN_QUEUE, str(uuid4()), body)

    def send_fields(self, **changes: Any) -> None:
        """A message with some fields other than they should be."""
        options = {"redis_message_id": str(uuid4())}
        message: dramatiq.Message[Any] = dramatiq.Message(RUN_QUEUE, "run_agent_background", (), {}, options)
        fields = {**message.asdict(), **changes}
        body = json.dumps(fields).encode()
        if isinstance(self.broker, Rabbit):
            self.send_bytes(body)
        else:
            self.broker.do_enqueue(RUN_QUEUE, options["redis_message_id"], body)

    @property
    def waiting(self) -> int:
        return queue_length(self.broker, RUN_QUEUE)

    @property
    def dead(self) -> int:
        with open_box(self.settings, RUN_QUEUE) as box:
            return box.count()


@contextmanager
def messages_of(deployment: Deployment) -> Iterator[Messages]:
    names = deployment.settings
    broker = BrokerSettings(kind="redis", redis_url=SecretStr(names["BROKER_REDIS_URL"]))
    if deployment.broker == "rabbitmq":
        broker = BrokerSettings(kind="rabbitmq", url=SecretStr(names["RABBITMQ_URL"]))
    messages = Messages(Settings(broker=broker))
    yield messages
    messages.broker.close()
