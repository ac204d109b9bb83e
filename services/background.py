"""Tasks that outlive the request or run that began them, and end with the process."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from services.log import logger

RETRY_SECONDS = 0.2


async def repeat(tick: Callable[[], Awaitable[object]]) -> None:
    """Run `tick` until cancelled; it does its own waiting. What one tick raises is logged, and the next one comes."""
    task = asyncio.current_task()
    while not (task and task.cancelling()):  # asyncio.wait_for, in redis-py's every send, may swallow it (Python 3.11)
        try:
            await tick()
        except Exception:
            logger.exception("background.tick_failed", tick=getattr(tick, "__qualname__", repr(tick)))
            await asyncio.sleep(RETRY_SECONDS)


class Background:
    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` beside everything else; an error it raises is logged."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.finished)
        return task

    def finished(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("background.failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
