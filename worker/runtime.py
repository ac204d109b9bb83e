"""Dramatiq's middleware for hour-long asyncio runs: one loop per process, boot, drain, watchdog (TRAPS 1-13)."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, wait
from functools import partial
from types import FrameType
from typing import Any

import dramatiq
import uvloop
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.logging import get_logger
from dramatiq.middleware import MiddlewareError, SkipMessage
from structlog.contextvars import bind_contextvars, clear_contextvars

from services import origin, reporting
from services.billing import gate_of
from services.http import open_client
from services.liveness import shown
from services.log import logger, name_process
from services.metrics.exposition import Exposition, open_exposition
from services.parent import dying_with
from services.projects import wants_network
from services.runs.naming import requested_by
from services.runs.sampling import Sampler, keep_sampling
from services.runs.stores import Stores, open_stores
from services.sandbox.providers import make_provider
from services.sandbox.reaper import keep_reaping
from services.settings import Settings
from services.tracing import Tracing, open_tracing
from worker.deliveries import keep_delivering
from worker.drain import Drain, return_to_queue
from worker.listener import Listener
from worker.presence import keep_present
from worker.process import Process
from worker.retention import keep_removing_old
from worker.scheduler import keep_scheduling
from worker.sweeper import keep_sweeping
from worker.watchdog import Watchdog

BOOT_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
CLOSE_SECONDS = 8.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

BOOT_SECONDS = 5.0
IDLE_POLL_MS = {"redis": 50, "rabbitmq": 200}
"""How long an idle consumer or thread sleeps: on Redis it is the pick-up latency (TRAPS 14)."""

ID_CHARS = 36

_opened: Future[Process] = Future()


async def current_process() -> Process:
    """What this worker process has opened; waits while its stores are not reachable yet."""
    return await asyncio.shield(asyncio.wrap_future(_opened))


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
        self.turn = threading.Lock()
        """Taken by the first who has the worker leave, and never released."""
        self.drain: Drain | None = None
        self.closing: asyncio.Event | None = None
        self.closed = threading.Event()
        self.slots = 0
        """Runs at a time."""

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if worker.worker_threads < 2:
            raise MiddlewareError("--threads must be at least 2: one thread stays free for short actors")
        # Runs take all threads but one; a queue of runs never waits in a process that has no slot for it (TRAPS 10).
        worker.queue_prefetch = self.slots = worker.worker_threads - 1
        worker.worker_timeout = IDLE_POLL_MS[self.settings.broker.kind]
        self.thread = LoopThread()
        self.thread.start(timeout=5.0)
        set_event_loop_thread(self.thread)
        asyncio.run_coroutine_threadsafe(self.live(), self.thread.loop).add_done_callback(report)
        # Dramatiq's master takes no signals until every child has booted: messages wait for the stores instead.
        if not wait([_opened], timeout=BOOT_SECONDS).done:
            logger.warning("worker.boots_without_stores")
        Watchdog(self.thread.loop, self.settings.runs.watchdog_timeout).start()
        self.listen_for_stop(worker)

    async def live(self) -> None:
        """The life of the process on its loop: stores open, sweeper beating, until it is told to close."""
        self.closing = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(shown(self.settings.metrics.liveness_dir))
            exposition = stack.enter_context(open_exposition(self.settings.metrics, "worker"))
            tracing = await stack.enter_async_context(open_tracing(self.settings))
            stack.push_async_callback(reporting.flush)
            stores = await stack.enter_async_context(self.stores_once_reachable(tracing))
            name_process(stores.instance_id)
            http = await stack.enter_async_context(open_client(self.settings))
            sandboxes = make_provider(self.settings.sandbox, partial(wants_network, stores.pool))
            process = Process(self.settings, stores, http, sandboxes, gate_of(self.settings), tracing)
            stack.push_async_callback(process.browser_driver.close)
            _opened.set_result(process)
            stack.push_async_callback(self.tell_metrics(stores, exposition).close)
            stores.background.spawn(keep_sweeping(stores))
            stores.background.spawn(keep_reaping(sandboxes, stores))
            stores.background.spawn(keep_delivering(process))
            stores.background.spawn(keep_removing_old(stores))
            stores.background.spawn(keep_present(process, self.slots))
            stores.background.spawn(keep_scheduling(process))
            logger.info("worker.ready", instance_id=stores.instance_id)
            await self.closing.wait()
        logger.info("worker.closed")
        self.closed.set()

    def tell_metrics(self, stores: Stores, exposition: Exposition) -> Listener:
        sampler = Sampler(stores)

        async def text() -> bytes:
            sampler.sample()
            return await exposition.text()

        listener = Listener(self.settings.metrics, text, exposition.group.folder if exposition.group else None)
        listener.open()
        stores.background.spawn(keep_sampling(sampler))
        return listener

    @contextlib.asynccontextmanager
    async def stores_once_reachable(self, tracing: Tracing) -> AsyncIterator[Any]:
        """Postgres may come up after the worker: Dramatiq would swallow the error and run without us."""
        tries = 0
        while True:
            opening = open_stores(self.settings, pool_min=self.settings.postgres.worker_pool_min, tracing=tracing)
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

        def stop(number: int, frame: FrameType | None) -> None:
            original = originals[signal.Signals(number)]
            if self.leave(worker) and callable(original):
                with contextlib.suppress(SystemExit):  # it has heard one while the worker booted
                    original(number, frame)

        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        if master := multiprocessing.parent_process():  # killed, it tells nobody: its processes would work on for ever
            dying_with(os.getppid(), signal.SIGTERM)()  # not always the master: a fork server may stand between
            if not master.is_alive():
                signal.raise_signal(signal.SIGTERM)

    def leave(self, worker: dramatiq.Worker) -> bool:
        """Whether this is the first time; asked in one step, since a signal may come between any two lines."""
        if not self.turn.acquire(blocking=False):
            return False
        self.drain = Drain(self.settings.runs, worker, _opened, self.close)
        self.drain.start()
        return True

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """A signal that came while the worker booted was Dramatiq's alone."""
        self.leave(worker)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Dramatiq would close the log before the stores are; with a broken broker it may not even come here."""
        if self.drain:
            self.drain.over.wait()

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """A message that a thread has taken and not begun goes back too. What is logged from here on is about it."""
        name_message(message)
        if self.drain:
            return_to_queue(self.drain.worker, message.queue_name, [message])
            raise SkipMessage("the worker leaves")

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """What an actor raises makes a dead letter of its message: without Dramatiq's retries it would be acked."""
        if exception:
            message.fail()

    def close(self) -> bool:
        """Close the stores on their loop; False when that took too long."""
        if self.thread and self.closing:
            self.thread.loop.call_soon_threadsafe(self.closing.set)
        if self.closed.wait(CLOSE_SECONDS):
            return True
        logger.error("worker.closed_late", seconds=CLOSE_SECONDS)
        return False


def name_message(message: MessageProxy) -> None:
    """Dramatiq's threads have one context each, and what they await goes on in a copy of it."""
    origin.current.set(origin.read(message.kwargs))
    clear_contextvars()
    bind_contextvars(**requested_by(origin.current.get().request_id))
    first = next(iter(message.args), None) if message.actor_name == "run_agent_background" else None
    run_id = message.kwargs.get("agent_run_id", first)
    if isinstance(run_id, str) and len(run_id) == ID_CHARS:
        bind_contextvars(agent_run_id=run_id)


def report(life: Any) -> None:
    """Without its stores and clients a worker would only keep messages from others."""
    if not life.cancelled() and (error := life.exception()):
        logger.error("worker.died", exc_info=error)
        os._exit(1)
