"""Leaving: take nothing more, see to the live runs, close the stores, exit. Nothing here waits for the broker."""

import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta

import dramatiq

from services.broker import Broken, OurConsumer, Rabbit, RedisQueues
from services.log import logger
from services.settings import RunSettings
from worker.process import Process

HAND_OVER_PATIENCE = timedelta(seconds=15)
"""Cancel, flush and archive have five seconds each at most; runs that take longer are taken over as after a crash."""
EXIT_SECONDS = 3.0
"""How long connections to the broker may take to close; what was not acked is delivered again, which is harmless."""
POLL_SECONDS = 0.05


class Drain(threading.Thread):
    """Ends the process: status 0 when every live run ended or was handed over and the stores were closed, else 1."""

    def __init__(
        self, settings: RunSettings, worker: dramatiq.Worker, opened: Future[Process], close: Callable[[], bool]
    ) -> None:
        super().__init__(name="drain")
        self.settings, self.worker, self.opened, self.close = settings, worker, opened, close
        self.over = threading.Event()
        """Set when the stores are closed; until then the main thread keeps the log open."""

    def run(self) -> None:
        logger.info("worker.draining", policy=self.settings.drain)
        if not self.opened.done():
            os._exit(0)  # nothing was begun, and what was taken is delivered again
        try:
            clean = self.leave(self.opened.result())
        except Exception:
            logger.exception("worker.drain_failed")
            clean = False
        self.over.set()
        threading.main_thread().join(EXIT_SECONDS)
        os._exit(0 if clean else 1)

    def leave(self, process: Process) -> bool:
        """Whether all went well."""
        process.tell(process.leaving)
        take_no_more(self.worker)
        if self.settings.drain == "finish":
            self.wait_until_idle(self.settings.drain_deadline)
        process.tell(process.draining)
        idle = self.wait_until_idle(HAND_OVER_PATIENCE)
        if not idle:
            logger.error("worker.runs_left", seconds=HAND_OVER_PATIENCE.total_seconds())
        return self.close() and idle

    def wait_until_idle(self, patience: timedelta) -> bool:
        """Whether all threads ended in time: each does after what it has begun."""
        deadline = time.monotonic() + patience.total_seconds()
        while any(thread.is_alive() for thread in self.worker.workers):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
            give_back(self.worker)
        return True


def take_no_more(worker: dramatiq.Worker) -> None:
    """Stop deliveries and return the messages that no thread has begun; what comes later goes back by itself.

    Dramatiq's main thread would stop the threads too, a second later.
    """
    assert isinstance(worker.broker, Rabbit | RedisQueues)
    worker.broker.leaving = True
    for thread in worker.workers:
        thread.stop()
    for name, consuming in worker.consumers.items():
        if isinstance(consuming.consumer, OurConsumer):
            try:
                consuming.consumer.cancel()
            except Broken as error:
                logger.info("worker.deliveries_broken_off", queue=name, error=repr(error))
    give_back(worker)


def give_back(worker: dramatiq.Worker) -> None:
    """Return the messages that no thread has begun."""
    waiting = defaultdict(list)
    while True:
        try:
            message = worker.work_queue.get_nowait().message
        except queue.Empty:
            break
        waiting[message.queue_name].append(message)
    for name, messages in waiting.items():
        return_to_queue(worker, name, messages)


def return_to_queue(worker: dramatiq.Worker, name: str, messages: list[dramatiq.broker.MessageProxy]) -> None:
    consumer = worker.consumers[name].consumer
    if not isinstance(consumer, OurConsumer):
        return
    try:
        consumer.give_back(messages)
    except Broken as error:  # the broker delivers again what is not acked
        logger.info("worker.not_given_back", queue=name, count=len(messages), error=repr(error))
