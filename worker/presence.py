"""A worker process says that it is there, and leaves when an operator asks it to."""

import asyncio
import multiprocessing
import os
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from services import workers
from services.log import logger
from services.redis import Unreachable
from services.workers import Worker
from worker.process import Process


def this_worker(process: Process, slots: int) -> Worker:
    master = multiprocessing.parent_process()
    pid = os.getpid()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    instance_id = process.stores.instance_id
    return Worker(instance_id, socket.gethostname(), pid, master.pid or pid if master else pid, slots, started_at)


async def keep_present(process: Process, slots: int) -> None:
    """Announce this process until it closes; what Redis misses meanwhile it is told at the next beat."""
    worker, stores = this_worker(process, slots), process.stores
    settings = stores.settings.runs

    def heard(message: bytes) -> None:
        if message == workers.DRAIN:
            logger.info("worker.drain_asked", group_pid=worker.group_pid)
            os.kill(worker.group_pid, signal.SIGTERM)

    def missed_nothing() -> None:
        """Whoever asks is told that nobody heard, and asks again."""

    with stores.shards.home.channels.begin_listening(
        workers.control(worker.instance_id), on_message=heard, on_reset=missed_nothing
    ):
        try:
            while True:
                with suppress(*Unreachable):
                    now = replace(worker, leaving=not process.begins_runs)
                    await workers.announce(stores.shards.home.redis, now, settings.lock_ttl)
                await asyncio.sleep(settings.heartbeat_interval.total_seconds())
        finally:
            with suppress(*Unreachable):
                await workers.forget(stores.shards.home.redis, worker.instance_id)
