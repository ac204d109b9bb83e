import asyncio
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from types import FrameType
from typing import Any, cast
from unittest.mock import patch
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.middleware import SkipMessage
from dramatiq.worker import ConsumerThread, _WorkQueueItem
from pydantic import SecretStr

from services.broker import (
    OurConsumer,
    Rabbit,
    RedisQueues,
    StampedConsumer,
    make_broker,
    queue_length,
    run_message,
)
from services.settings import BrokerSettings, Settings
from tests.conftest import named
from tests.waiting import PATIENT, eventually
from worker import drain as drain_module
from worker import runtime as runtime_module
from worker.drain import Drain, return_to_queue, take_no_more
from worker.process import Process
from worker.runtime import Runtime

PREFETCH = 3


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Rabbit | RedisQueues]:
    kind = settings.broker
    if request.param == "rabbitmq":
        kind = BrokerSettings(kind="rabbitmq", url=SecretStr(named("RABBITMQ_URL")))
    broker = cast(Rabbit | RedisQueues, make_broker(settings.model_copy(update={"broker": kind})))
    yield broker
    if isinstance(broker, Rabbit):
        for suffix in ("", ".DQ", ".XQ"):
            broker.channel.queue_delete(f"{QUEUE}{suffix}")
    broker.close()


QUEUE = f"drained_{uuid4().hex[:8]}"


def message() -> dramatiq.Message[Any]:
    return run_message(uuid4(), uuid4(), uuid4(), "demo/echo").copy(queue_name=QUEUE)


class Working(threading.Thread):
    """A worker's thread in the middle of an actor, until `over`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.told = False
        self.start()

    def run(self) -> None:
        self.over.wait()

    def stop(self) -> None:
        self.told = True


class Consuming:
    """A worker's consumer on a real broker, iterated as its thread would; nothing is begun."""

    def __init__(self, broker: Rabbit | RedisQueues) -> None:
        self.broker = broker
        self.work_queue = queue.PriorityQueue[_WorkQueueItem]()
        self.workers: list[Working] = []
        self.thread = ConsumerThread(
            broker=broker, queue_name=QUEUE, prefetch=PREFETCH, work_queue=self.work_queue, worker_timeout=20
        )
        self.consumers = {QUEUE: self.thread}
        self.thread.consumer = broker.consume(QUEUE, PREFETCH, 20)

    @property
    def consumer(self) -> OurConsumer:
        assert isinstance(self.thread.consumer, OurConsumer)
        return self.thread.consumer

    def take(self) -> Any:
        deadline = time.monotonic() + PATIENT
        while time.monotonic() < deadline:
            if taken := next(self.consumer):
                return taken
        raise AssertionError("nothing was delivered")

    def wait_for(self, length: int) -> None:
        """Let the consumer's connection work until so many messages wait in the queue again."""
        deadline = time.monotonic() + PATIENT
        while time.monotonic() < deadline:
            assert next(self.consumer) is None
            if queue_length(self.broker, QUEUE) == length:
                return
        raise AssertionError(f"{queue_length(self.broker, QUEUE)} messages wait, not {length}")

    @property
    def worker(self) -> dramatiq.Worker:
        return cast(dramatiq.Worker, self)


def test_messages_that_no_thread_has_begun_go_back_when_a_worker_leaves(broker: Rabbit | RedisQueues) -> None:
    consuming = Consuming(broker)
    for _ in range(PREFETCH):
        broker.enqueue(message())
    for _ in range(PREFETCH - 1):
        consuming.work_queue.put(_WorkQueueItem(0, consuming.take()))
    assert queue_length(broker, QUEUE) < PREFETCH
    take_no_more(consuming.worker)
    consuming.wait_for(PREFETCH)
    broker.enqueue(message())
    consuming.wait_for(PREFETCH + 1)
    consuming.consumer.close()


def test_a_message_that_a_thread_has_taken_and_not_begun_goes_back(
    broker: Rabbit | RedisQueues, settings: Settings
) -> None:
    consuming = Consuming(broker)
    broker.enqueue(message())
    taken = consuming.take()
    runtime = Runtime(settings)
    runtime.before_process_message(broker, taken)
    runtime.drain = Drain(settings.runs, consuming.worker, Future(), lambda: True)
    with pytest.raises(SkipMessage):
        runtime.before_process_message(broker, taken)
    consuming.consumer.ack(taken)
    consuming.consumer.cancel()
    consuming.wait_for(1)
    consuming.consumer.close()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_message_that_could_not_be_given_back_is_not_acked(broker: RedisQueues) -> None:
    """Redis was away for that moment only: whoever comes next has to find the message."""
    consuming = Consuming(broker)
    broker.enqueue(message())
    taken = consuming.take()
    with patch.object(broker, "do_requeue", side_effect=redis.ConnectionError("away")):
        return_to_queue(consuming.worker, QUEUE, [taken])
    consuming.consumer.ack(taken)
    assert broker.client.scard(f"{broker.namespace}:__acks__.{broker.broker_id}.{QUEUE}") == 1
    consuming.consumer.close()


def test_a_connection_that_comes_back_while_a_worker_leaves_takes_nothing(broker: Rabbit | RedisQueues) -> None:
    broker.leaving = True
    consuming = Consuming(broker)
    broker.enqueue(message())
    consuming.wait_for(1)
    for _ in range(10):
        assert next(consuming.consumer) is None
    assert queue_length(broker, QUEUE) == 1


def leaving(process: Process, worker: dramatiq.Worker, **settings: Any) -> Drain:
    opened: Future[Process] = Future()
    opened.set_result(process)
    return Drain(process.settings.runs.model_copy(update=settings), worker, opened, lambda: True)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
async def test_a_drain_hands_over_though_the_messages_cannot_be_given_back(
    process: Process, broker: Rabbit | RedisQueues
) -> None:
    consuming = Consuming(broker)
    broker.enqueue(message())
    consuming.work_queue.put(_WorkQueueItem(0, consuming.take()))
    assert isinstance(consuming.consumer, StampedConsumer)
    consuming.consumer.connection.close()
    assert await asyncio.to_thread(leaving(process, consuming.worker).leave, process)
    assert process.draining.is_set()
    says = "RabbitMQ itself gives back what a lost connection held"
    await eventually(lambda: queue_length(broker, QUEUE) == 1, says=says)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
async def test_finishing_tells_live_runs_to_hand_over_at_the_deadline_and_no_sooner(
    process: Process, broker: Rabbit | RedisQueues
) -> None:
    consuming = Consuming(broker)
    thread = Working()
    consuming.workers.append(thread)
    drain = leaving(process, consuming.worker, drain="finish", drain_deadline=timedelta(seconds=0.5))
    began = time.monotonic()
    task = asyncio.create_task(asyncio.to_thread(drain.leave, process))
    async with asyncio.timeout(PATIENT):
        await process.draining.wait()
    assert process.leaving.is_set()
    assert time.monotonic() - began >= 0.5
    assert thread.told, "whatever becomes of Dramatiq's main thread, a thread begins nothing after what it has begun"
    thread.over.set()
    assert await task


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
async def test_a_drain_does_not_wait_for_ever(process: Process, broker: Rabbit | RedisQueues) -> None:
    consuming = Consuming(broker)
    consuming.workers.append(Working())
    with patch.object(drain_module, "HAND_OVER_PATIENCE", timedelta(seconds=0.2)):
        async with asyncio.timeout(PATIENT):
            assert not await asyncio.to_thread(leaving(process, consuming.worker).leave, process)
    consuming.workers[0].over.set()


def test_a_worker_that_shuts_down_without_having_heard_a_signal_of_its_own_drains_too(settings: Settings) -> None:
    begun: list[Any] = []

    class Begun:
        def __init__(self, *_: Any) -> None:
            begun.append(self)

        def start(self) -> None:
            pass

    runtime = Runtime(settings)
    anything: Any = None
    with patch.object(runtime_module, "Drain", Begun):
        runtime.before_worker_shutdown(anything, anything)
        runtime.before_worker_shutdown(anything, anything)
    assert begun == [runtime.drain]


@pytest.fixture
def sigterm() -> Iterator[list[int]]:
    """What Dramatiq's own handler was told, which would end the process at the second signal."""
    told: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) > 1:
            sys.exit(3)

    before = {number: signal.signal(number, handler) for number in runtime_module.STOP_SIGNALS}
    yield told
    for number, original in before.items():
        signal.signal(number, original)


class Noticed(Drain):
    """A drain that is only counted."""

    begun = 0

    def start(self) -> None:
        Noticed.begun += 1


@pytest.mark.parametrize("line", range(6))
def test_a_second_signal_within_the_handling_of_the_first_changes_nothing(
    settings: Settings, sigterm: list[int], line: int
) -> None:
    """A group's kill comes twice, once through the master: between any two lines of the handler."""
    runtime, anything = Runtime(settings), cast(Any, None)
    runtime.listen_for_stop(anything)
    lines = iter(range(1000))

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename == runtime_module.__file__ and event == "line" and next(lines) == line:
            signal.raise_signal(signal.SIGTERM)
        return trace

    Noticed.begun = 0
    with patch.object(runtime_module, "Drain", Noticed):
        sys.settrace(trace)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            sys.settrace(None)
    assert next(lines) > line, "the handler has fewer lines"
    assert (Noticed.begun, sigterm) == (1, [signal.SIGTERM])


def test_a_signal_after_one_that_dramatiq_heard_while_it_booted_does_not_end_the_main_thread(
    settings: Settings, sigterm: list[int]
) -> None:
    signal.raise_signal(signal.SIGTERM)
    runtime, anything = Runtime(settings), cast(Any, None)
    runtime.listen_for_stop(anything)
    Noticed.begun = 0
    with patch.object(runtime_module, "Drain", Noticed):
        signal.raise_signal(signal.SIGTERM)
        runtime.before_worker_shutdown(anything, anything)
    assert Noticed.begun == 1
