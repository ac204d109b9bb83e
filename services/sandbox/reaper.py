"""The reaper, in every worker: ends sandboxes that nobody uses. Several at once do no harm."""

import asyncio
import random

from services.log import logger
from services.sandbox.protocol import SandboxProvider
from services.settings import SandboxSettings


async def keep_reaping(sandboxes: SandboxProvider, settings: SandboxSettings) -> None:
    interval = settings.reap_interval.total_seconds()
    while True:
        await asyncio.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret
        try:
            for project_id in await sandboxes.reap(settings.idle_timeout.total_seconds()):
                logger.info("sandbox.reaped", project_id=str(project_id))
        except Exception:
            logger.exception("sandbox.reap_failed")
