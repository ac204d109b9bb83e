"""A process that does nothing but fire schedules: `python -m tests.worker.scheduling`, as the environment says."""

import asyncio

from services import settings
from services.http import open_client
from services.runs.stores import open_stores
from worker.process import Process
from worker.scheduler import keep_scheduling


async def main() -> None:
    configuration = settings.load()
    async with open_stores(configuration) as stores, open_client(configuration) as http:
        await keep_scheduling(Process(configuration, stores, http))


if __name__ == "__main__":
    asyncio.run(main())
