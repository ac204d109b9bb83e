"""Tasks that outlive the request or run that began them, and end with the process."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from services.log import logger

RETRY_SECONDS = 0.2
CANCEL_AGAIN_SECONDS = 1.0


async def repeat(tick: Callable[[], Awaitable[object]]) -> None:
    """Run `tick` for ever; it does its own waiting. What one tick raises is logged, and the next one comes."""
    while True:
        try:
            await tick()
        except Exception:
            logger.exception("background.tick_failed", tick=getattr(tick, "__qualname__", repr(tick)))
            await asyncio.sleep(RETRY_SECONDS)


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they are done.

    Once is not enough: asyncio.wait_for of Python 3.11, in redis-py's every send, may swallow it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


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
        await stop(self.tasks)
