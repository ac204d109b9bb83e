"""Tasks that nobody waits for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

running = set[asyncio.Task[Any]]()


def spawn(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begin it now; the event loop alone would hold it too weakly."""
    task = asyncio.ensure_future(work)
    running.add(task)
    task.add_done_callback(running.discard)
    return task
