"""The thread that sends messages for an event loop, which never waits for the broker."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar, cast

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from services.broker import RUN_QUEUE, Broken, make_broker, queue_length
from services.errors import Unavailable
from services.log import logger
from services.settings import Settings

T = TypeVar("T")

IDLE_SECONDS = 5.0
"""How often the thread looks up from an empty outbox when heartbeats are switched off."""


class Publisher:
    """One thread that owns the connection to the broker: `send` never waits for it (TRAPS 8)."""

    def __init__(self, settings: Settings) -> None:
        self.broker = make_broker(settings)
        self.interval = settings.broker.heartbeat.total_seconds() / 4 or IDLE_SECONDS
        self.outbox: queue.Queue[Callable[[], None] | None] = queue.Queue(settings.broker.outbox_size)
        self.thread = threading.Thread(target=self.work, name="publisher", daemon=True)

    def open(self) -> None:
        self.thread.start()

    async def close(self) -> None:
        """Send what is queued, within five seconds, and stop."""
        with_room = asyncio.get_running_loop().run_in_executor(None, self.stop)
        await with_room

    def stop(self) -> None:
        try:
            self.outbox.put(None, timeout=1)
        except queue.Full:
            return
        self.thread.join(timeout=5)

    def send(self, message: dramatiq.Message[Any], confirmed: Callable[[bool], None]) -> bool:
        """Hand a message to the thread; False at once when the outbox is full (the sweeper sends it then).

        `confirmed(ok)` is called on the event loop once the broker has it, or has refused it.
        """
        loop = asyncio.get_running_loop()

        def publish() -> None:
            sent = False
            try:
                self.broker.enqueue(message)
                sent = True
            finally:
                loop.call_soon_threadsafe(confirmed, sent)

        return self.hand_over(publish)

    async def call(self, function: Callable[[dramatiq.Broker], T], timeout_seconds: float) -> T:
        """Run a blocking question to the broker on its thread.

        Raises: Unavailable when the broker does not answer in time or is broken.
        """
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def ask() -> None:
            try:
                result = function(self.broker)
            except Exception as error:
                loop.call_soon_threadsafe(settle, None, error)
                raise
            loop.call_soon_threadsafe(settle, result, None)

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        if not self.hand_over(ask):
            raise Unavailable("The message broker is not keeping up.")
        try:
            async with asyncio.timeout(timeout_seconds):
                return cast(T, await answer)
        except (*Broken, TimeoutError) as error:
            raise Unavailable("The message broker does not answer.") from error

    async def ping(self, timeout_seconds: float) -> None:
        """Raises: Unavailable when the broker does not answer."""
        await self.call(lambda broker: queue_length(broker, RUN_QUEUE), timeout_seconds)

    def hand_over(self, job: Callable[[], None]) -> bool:
        """What the thread logs about a job is about whatever the caller is at."""
        try:
            self.outbox.put_nowait(partial(copy_context().run, self.do, job))
        except queue.Full:
            return False
        return True

    def work(self) -> None:
        while True:
            try:
                job = self.outbox.get(timeout=self.interval)
            except queue.Empty:
                job = partial(self.do, self.keep_alive)
            if job is None:
                break
            job()
        self.broker.close()

    def do(self, job: Callable[[], None]) -> None:
        """Whatever a job raised, the next one gets a new connection: a broken one can only raise, and lies why."""
        try:
            job()
        except Broken as error:
            logger.warning("publisher.broker_unreachable", error=repr(error))
            self.drop_connection()
        except Exception:
            logger.exception("publisher.job_failed")
            self.drop_connection()

    def keep_alive(self) -> None:
        """Answer RabbitMQ's heartbeats while there is nothing to send."""
        connection = getattr(getattr(self.broker, "state", None), "connection", None)
        if connection is not None:
            connection.process_data_events(0)

    def drop_connection(self) -> None:
        if isinstance(self.broker, RabbitmqBroker):
            if channel := getattr(self.broker.state, "channel", None):
                self.broker.channels.add(channel)  # Dramatiq removes it, and had not come to add one that broke early
            del self.broker.connection
