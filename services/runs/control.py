"""Control: a stop asked on one side, watched on the other; and the word that a run has ended."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

from services.channels import Channels
from services.redis import Client
from services.runs import keys
from services.runs.lease import Held

SIGNALS = {"completed": b"END_STREAM", "failed": b"ERROR", "stopped": keys.STOP}


class Watch:
    """Hears a STOP of one run; one that is heard before the lease is in hand counts as well."""

    def __init__(self) -> None:
        self.stop_heard = False
        self.held: Held | None = None

    def heard(self, message: bytes) -> None:
        if message == keys.STOP:
            self.stop_heard = True
            self.tell()

    def missed_nothing(self) -> None:
        """A stop that was said while the connection was away stands in the row; the next beat reads it."""

    def tell(self) -> None:
        if self.held and self.stop_heard:
            self.held.stop_asked.set()

    def over(self, held: Held) -> None:
        self.held = held
        self.tell()


@contextmanager
def begin_watch(channels: Channels, run_id: UUID, instance_id: str) -> Iterator[Callable[[Held], Awaitable[None]]]:
    """As `watch`, while the lease is being taken: what this gives takes it, and returns when nothing can be missed."""
    watch = Watch()
    names = keys.control(run_id), keys.instance_control(run_id, instance_id)
    with channels.begin_listening(*names, on_message=watch.heard, on_reset=watch.missed_nothing) as confirmed:

        async def over(held: Held) -> None:
            watch.over(held)
            await confirmed()

        yield over


@asynccontextmanager
async def watch(channels: Channels, held: Held) -> AsyncIterator[None]:
    """Set `held.stop_asked` on a bare STOP from anybody, on the run's channel or this instance's.

    Raises: redis ConnectionError when the subscription is not confirmed.
    """
    with begin_watch(channels, held.fence.run_id, held.fence.instance_id) as watching:
        await watching(held)
        yield


async def announce_stop(redis: Client, run_id: UUID) -> int:
    """Say STOP; returns how many heard it: 0 means that no live process drives the run."""
    return (await announce_stops(redis, [run_id]))[0]


async def announce_stops(redis: Client, run_ids: Sequence[UUID]) -> list[int]:
    """As `announce_stop`, for many runs in one round trip. Raises: redis errors."""
    return await publish(redis, [(keys.control(run_id), keys.STOP) for run_id in run_ids])


async def announce_end(redis: Client, run_id: UUID, status: str) -> None:
    """Raises: redis errors."""
    await publish(redis, [(keys.control(run_id), SIGNALS[status])])


async def publish(redis: Client, words: Iterable[tuple[str, bytes]]) -> list[int]:
    """How many heard each of the words, which are said on their channels in one round trip."""
    answers = await redis.ask([("PUBLISH", channel, word) for channel, word in words])
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers
