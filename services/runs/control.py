"""Control: a stop asked on one side, watched on the other; and the word that a run has ended."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from redis.asyncio import Redis

from services.channels import Channels
from services.runs import keys
from services.runs.lease import Held

SIGNALS = {"completed": b"END_STREAM", "failed": b"ERROR", "stopped": keys.STOP}


@asynccontextmanager
async def watch(channels: Channels, held: Held) -> AsyncIterator[None]:
    """Set `held.stop_asked` on a bare STOP from anybody, on the run's channel or this instance's.

    Raises: redis ConnectionError when the subscription is not confirmed.
    """
    run_id, instance_id = held.fence.run_id, held.fence.instance_id

    def heard(message: bytes) -> None:
        if message == keys.STOP:
            held.stop_asked.set()

    def missed_nothing() -> None:
        """A stop that was said while the connection was away stands in the row; the next beat reads it."""

    async with channels.listen(
        keys.control(run_id), keys.instance_control(run_id, instance_id), on_message=heard, on_reset=missed_nothing
    ):
        yield


async def announce_stop(redis: Redis, run_id: UUID) -> int:
    """Say STOP; returns how many heard it: 0 means that no live process drives the run."""
    return (await announce_stops(redis, [run_id]))[0]


async def announce_stops(redis: Redis, run_ids: Sequence[UUID]) -> list[int]:
    """As `announce_stop`, for many runs in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    for run_id in run_ids:
        pipeline.publish(keys.control(run_id), keys.STOP)
    return [int(heard) for heard in await pipeline.execute()]


async def announce_end(redis: Redis, run_id: UUID, status: str) -> None:
    await redis.publish(keys.control(run_id), SIGNALS[status])
