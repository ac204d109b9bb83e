"""Dramatiq's middleware for hour-long asyncio runs: one loop per process, boot, drain, watchdog (TRAPS 1-13)."""

import asyncio
import contextlib
import queue
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any, cast

import dramatiq
import uvloop
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.logging import get_logger
from dramatiq.middleware import MiddlewareError

from services.broker import StampedConsumer
from services.http import open_client
from services.log import logger
from services.runs.stores import open_stores
from services.settings import Settings
from worker.process import Process
from worker.sweeper import keep_sweeping
from worker.watchdog import Watchdog

BOOT_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
SHUTDOWN_SECONDS = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

_process: Process | None = None


def current_process() -> Process:
    """What this worker process opened at boot. Raises: RuntimeError outside a worker."""
    if _process is None:
        raise RuntimeError("this is no worker process: it is started with `dramatiq worker`")
    return _process


class LoopThread(EventLoopThread):
    """A daemon on uvloop: a hung loop must not keep a worker from exiting (TRAPS 3)."""

    def __init__(self) -> None:
        super().__init__(get_logger(__name__, LoopThread))
        self.loop.close()
        self.loop = uvloop.new_event_loop()
        self.daemon = True


class Runtime(dramatiq.Middleware):
    """Opens what runs need when the worker boots, and hands runs over when it is asked to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.thread: LoopThread | None = None
        self.closing: asyncio.Event | None = None
        self.closed = threading.Event()

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if worker.worker_threads < 2:
            raise MiddlewareError("--threads must be at least 2: one thread stays free for short actors")
        # Runs take all threads but one; a queue of runs never waits in a process that has no slot for it (TRAPS 10).
        worker.queue_prefetch = worker.worker_threads - 1
        self.thread = LoopThread()
        self.thread.start(timeout=5.0)
        set_event_loop_thread(self.thread)
        booted = threading.Event()
        asyncio.run_coroutine_threadsafe(self.live(booted), self.thread.loop).add_done_callback(report)
        while not booted.wait(timeout=1.0):
            logger.info("worker.waiting_for_stores")
        Watchdog(self.thread.loop, self.settings.runs.watchdog_timeout).start()
        self.listen_for_stop(worker)

    async def live(self, booted: threading.Event) -> None:
        """The life of the process on its loop: stores open, sweeper beating, until it is told to close."""
        global _process
        self.closing = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            stores = await stack.enter_async_context(self.stores_once_reachable())
            http = await stack.enter_async_context(open_client(self.settings))
            _process = Process(self.settings, stores, http)
            stores.background.spawn(keep_sweeping(stores))
            logger.info("worker.ready", instance_id=stores.instance_id)
            booted.set()
            await self.closing.wait()
        _process = None
        self.closed.set()

    @contextlib.asynccontextmanager
    async def stores_once_reachable(self) -> AsyncIterator[Any]:
        """Postgres may come up after the worker: Dramatiq would swallow the error and run without us."""
        tries = 0
        while True:
            opening = open_stores(self.settings, pool_min=self.settings.postgres.worker_pool_min)
            try:
                stores = await opening.__aenter__()
            except Exception as error:  # noqa: BLE001 - the boundary of one try at booting
                logger.warning("worker.boot_retried", error=repr(error))
                await asyncio.sleep(BOOT_RETRY_SECONDS[min(tries, len(BOOT_RETRY_SECONDS) - 1)])
                tries += 1
                continue
            try:
                yield stores
            finally:
                await opening.__aexit__(None, None, None)
            return

    def listen_for_stop(self, worker: dramatiq.Worker) -> None:
        """Drain at the first signal; a second one (the master forwards a group's kill again) changes nothing."""
        originals = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        asked = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            if asked.is_set():
                return
            asked.set()
            threading.Thread(target=self.drain, args=(worker,), name="drain", daemon=True).start()
            original = originals[signal.Signals(number)]
            if callable(original):
                original(number, frame)

        for number in STOP_SIGNALS:
            signal.signal(number, stop)

    def drain(self, worker: dramatiq.Worker) -> None:
        """Take nothing more, give back what was prefetched, and tell live runs to hand over."""
        logger.info("worker.draining", policy=self.settings.runs.drain)
        give_back(worker)
        if self.settings.runs.drain == "finish":
            time.sleep(self.settings.runs.drain_deadline.total_seconds())
        if self.thread and _process:
            self.thread.loop.call_soon_threadsafe(_process.draining.set)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if self.thread and self.closing:
            self.thread.loop.call_soon_threadsafe(self.closing.set)
            if not self.closed.wait(timeout=SHUTDOWN_SECONDS):
                logger.error("worker.closed_late", seconds=SHUTDOWN_SECONDS)


def give_back(worker: dramatiq.Worker) -> None:
    """Return the messages that no thread has begun, and stop deliveries."""
    waiting = defaultdict(list)
    with contextlib.suppress(queue.Empty):
        while True:
            message = worker.work_queue.get_nowait().message
            waiting[message.queue_name].append(message)
    for name, thread in worker.consumers.items():
        if isinstance(worker.broker, RabbitmqBroker):
            if thread.consumer is not None:
                cast(StampedConsumer, thread.consumer).give_back(waiting[name])
        else:
            thread.pause()
            if waiting[name]:
                thread.requeue_messages(waiting[name])


def report(life: Any) -> None:
    if not life.cancelled() and (error := life.exception()):
        logger.error("worker.died", exc_info=error)
