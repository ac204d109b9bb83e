"""The newest events of one run, and the readers that share them."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from uuid import UUID

from services.channels import Listener
from services.runs import keys
from services.runs.batches import Batch

READ_EVENTS = 500
EVENT_BYTES = 2048
"""How large an event is thought to be before one was seen: reads are bounded in bytes by their count."""


class Windows:
    """What all tails of a process may hold together: the tail that was silent for longest gives up its part first."""

    def __init__(self, window_bytes: int, total_bytes: int) -> None:
        self.window_bytes, self.total_bytes = window_bytes, total_bytes
        self.held = 0
        self.tails: OrderedDict[Tail, None] = OrderedDict()

    def add(self, tail: "Tail", batch: Batch) -> None:
        weight = batch.weight
        tail.window.append(batch)
        tail.weight += weight
        self.held += weight
        self.tails[tail] = None
        self.tails.move_to_end(tail)
        while tail.weight > self.window_bytes and len(tail.window) > 1:
            self.drop_oldest(tail)
        while self.held > self.total_bytes and len(self.tails) > 1:
            self.forget(next(iter(self.tails)))

    def drop_oldest(self, tail: "Tail") -> None:
        weight = tail.window.pop(0).weight
        tail.weight -= weight
        self.held -= weight

    def forget(self, tail: "Tail") -> None:
        self.tails.pop(tail, None)
        self.held -= tail.weight
        tail.weight = 0
        tail.window.clear()


class Tail:
    """The newest events of one run, shared by its readers in this process."""

    __slots__ = (
        "end", "expired", "gone", "heard_at", "key", "last", "listener", "mean_bytes", "over", "readers", "run_id",
        "telling", "untold", "weight", "window", "windows",
    )  # fmt: skip

    def __init__(self, run_id: UUID, windows: Windows, mark: Callable[["Tail"], None]) -> None:
        self.run_id, self.windows = run_id, windows
        self.key = keys.responses(run_id)
        self.listener = Listener(on_message=lambda _: mark(self), on_reset=lambda: mark(self))
        self.end: int | None = None
        """The id after the newest event seen, None before the first look."""
        self.window: list[Batch] = []
        self.weight = 0
        self.mean_bytes = float(EVENT_BYTES)
        self.last: Batch | None = None
        """The batch with the last event."""
        self.over = False
        self.expired = False
        """Whether retention has taken all but the last event."""
        self.gone = False
        """Whether the run was deleted: what Redis still has of it is told, and nothing ends it."""
        self.readers: set[Reader] = set()
        self.telling = self.untold = False
        self.heard_at = 0.0

    def count_in(self, size: int) -> int:
        """How many events to read at once, to hold about so many bytes."""
        count = int(size / self.mean_bytes)
        return READ_EVENTS if count > READ_EVENTS else count or 1

    def learn(self, batch: Batch) -> None:
        self.mean_bytes = (self.mean_bytes + batch.size / len(batch.events)) / 2

    def extend(self, batch: Batch) -> None:
        if not (batch.events and self.readers):
            return
        self.learn(batch)
        self.end, self.over = batch.end, batch.last
        self.last = batch if batch.last else None
        self.windows.add(self, batch)

    def forget_if_told(self) -> None:
        """What the only reader has taken is of use to nobody: a later one reads Redis, and it is freed while warm."""
        if len(self.readers) != 1:
            return
        (reader,) = self.readers
        if reader.cursor == self.end:
            self.windows.forget(self)

    def held(self, event_id: int) -> Batch | None:
        """What the window holds from `event_id` on, up to a batch; None when it holds no such event."""
        window = self.window
        if not window or event_id < window[0].first_id:
            return None
        newest = window[-1]
        if event_id == newest.first_id:
            return newest
        if event_id >= newest.end:
            return None
        return next(batch.since(event_id) for batch in window if batch.end > event_id)


class Reader:
    """One follower: a cursor and a way to wake it, no buffer of its own.

    With `on_news` it is told of news at once, and takes them with `held` and `take`; without, `next` waits for them.
    """

    __slots__ = ("cursor", "on_news", "over", "read_back", "tail", "waiter")

    def __init__(
        self,
        tail: Tail,
        cursor: int,
        read_back: Callable[[Tail, int], Awaitable[Batch | None]],
        on_news: Callable[[], None] | None = None,
    ) -> None:
        self.tail, self.cursor, self.read_back, self.on_news = tail, cursor, read_back, on_news
        self.over = False
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.on_news:
            self.on_news()
        elif self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def behind(self) -> bool:
        end = self.tail.end
        return end is not None and self.cursor < end

    @property
    def events_behind(self) -> int:
        return max((self.tail.end or 0) - self.cursor, 0)

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to come: it has read the last event, or was beyond it."""
        if not self.over and self.tail.over and not self.behind:
            self.over = True
        return self.over

    def held(self) -> Batch | None:
        """The next events if the window has them."""
        return self.tail.held(self.cursor)

    def take(self, batch: Batch) -> None:
        """These events have been told."""
        self.cursor, self.over = batch.end, batch.last

    async def fetch(self) -> Batch | None:
        """The next events from the window or the stores; None when neither has them (yet), or nothing is to come.

        Raises: redis or asyncpg errors when neither store can be read.
        """
        batch = self.held()
        if batch is None and self.behind:
            batch = await self.read_back(self.tail, self.cursor)
            if batch is None and self.tail.gone:
                self.over = True
        if batch:
            self.take(batch)
        return batch

    async def next(self) -> Batch | None:
        """The next events, or None when somebody woke the reader for another reason.

        Raises: as `fetch`.
        """
        if self.finished:
            return None
        if not self.behind:
            await self.sleep()
            batch = self.held()
            if batch:
                self.take(batch)
            return batch
        batch = await self.fetch()
        if batch is None:
            await self.wait_for_stores()
        return batch

    async def wait_for_stores(self) -> None:
        """Redis lost what is next, and it is not archived or refilled yet."""
        if not self.over:
            await asyncio.sleep(RETRY_SECONDS)

    async def sleep(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None


RETRY_SECONDS = 0.2
