"""Open streams are asked, now and then, whether their reader may still read them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from api.open_streams import AT_ONCE, Streams
from api.sse import Stream
from services import stream_passes
from services.background import repeat, stop
from services.log import logger
from services.postgres import Pool, Unreachable
from services.stream_tokens import StreamPass

BATCH = 1000


class Recheck:
    """Ends the streams of runs that were deleted or made private, of former members, and of void API keys."""

    def __init__(self, streams: Streams, pool: Pool) -> None:
        self.streams, self.pool = streams, pool
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.create_task(repeat(self.tick), name="recheck")

    async def close(self) -> None:
        await stop([self.task] if self.task else [])

    async def tick(self) -> None:
        await asyncio.sleep(self.streams.settings.recheck_interval.total_seconds())
        streams = tuple(self.streams.open_streams)
        for start in range(0, len(streams), BATCH):
            await self.ask(streams[start : start + BATCH])

    async def ask(self, streams: Sequence[Stream]) -> None:
        followed: defaultdict[StreamPass, list[Stream]] = defaultdict(list)
        for stream in streams:
            followed[stream.admitted].append(stream)
        for refused in await self.refused(list(followed)):
            logger.info("stream.refused", agent_run_id=str(refused.run_id), streams=len(followed[refused]))
            for number, stream in enumerate(followed[refused], 1):
                stream.refuse()
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def refused(self, passes: list[StreamPass]) -> list[StreamPass]:
        """Those that are good no more; none while Postgres is away, since nobody can tell."""
        try:
            good = await stream_passes.still_good(self.pool, passes)
        except Unreachable as error:
            logger.warning("stream.recheck_failed", error=repr(error))
            return []
        return [each for each, holds in zip(passes, good, strict=True) if not holds]
