"""Waiting for the end of a run."""

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

from services.errors import NotFound
from services.log import logger
from services.redis import Unreachable
from services.runs import control, keys, store
from services.runs.store import Run
from services.runs.stores import Stores

LOOK_AGAIN_SECONDS = 2.0
"""How often the row is looked at although nothing was announced: an announcement may be lost."""


async def until_final(stores: Stores, run_id: UUID, seconds: float) -> Run:
    """The run's row once it is final, or as it is when `seconds` are over. Raises: NotFound."""
    ended = asyncio.Event()
    deadline = asyncio.get_running_loop().time() + seconds

    def heard(message: bytes) -> None:
        if message in control.SIGNALS.values():
            ended.set()

    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(
                stores.of(run_id).channels.listen(keys.control(run_id), on_message=heard, on_reset=ended.set)
            )
        except Unreachable:
            logger.warning("run.wait_without_announcements", agent_run_id=str(run_id))
        while True:
            ended.clear()
            run = await store.get(stores.pool, run_id)
            if run is None:
                raise NotFound
            left = deadline - asyncio.get_running_loop().time()
            if run.final or left <= 0:
                return run
            try:
                async with asyncio.timeout(min(left, LOOK_AGAIN_SECONDS)):
                    await ended.wait()
            except TimeoutError:
                continue
