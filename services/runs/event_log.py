"""The log of a run as its driver writes it: ordered, fenced, coalesced, archived, refilled when Redis loses it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from time import monotonic
from uuid import UUID

from services import metrics
from services.redis import bulk
from services.runs import events as shapes
from services.runs import keys
from services.runs.archive import BLOCK_BYTES, Block, reserve
from services.runs.events import Event
from services.runs.fence import Fence, FenceLost
from services.settings import RunSettings

BATCH_EVENTS = 1000
BATCH_BYTES = 1024 * 1024
PENDING_BYTES = 1024 * 1024


class LogRefused(Exception):
    """The log takes no more of this run; the text is the sentence its user reads."""


class EventLog:
    """One run's log under one fence. Opened by `services.runs.log_writer.LogWriter`, which moves what is pending.

    Ids: `archived` events are in Postgres, the `tail` follows in memory and Redis, `pending` is not appended yet;
    `length` counts those that are appended.
    """

    __slots__ = (
        "appended_since_archive", "archived", "awaited", "closed", "closing", "due_at", "ended", "failure", "fence",
        "length", "lock", "max_event_bytes", "max_events", "max_log_bytes", "max_tail_bytes", "moved", "news", "notify",
        "owner", "pending", "pending_bytes", "refused_since", "repairing", "reserved", "responses", "sealed",
        "sequence", "settings", "spoken_keys", "spoken_owner", "tail", "tail_bytes", "thread_id", "written_bytes",
    )  # fmt: skip

    def __init__(
        self,
        fence: Fence,
        thread_id: UUID,
        settings: RunSettings,
        *,
        archived: int,
        tail: Iterable[bytes],
        reserved: int,
        notify: Callable[["EventLog"], None],
    ) -> None:
        self.fence, self.thread_id, self.settings = fence, str(thread_id), settings
        self.lock, self.responses = keys.lock(fence.run_id), keys.responses(fence.run_id)
        self.owner, self.news = fence.lock_value, keys.news(fence.run_id)
        self.spoken_keys = bulk(self.lock.encode()) + bulk(self.responses.encode())
        self.spoken_owner = bulk(self.owner.encode()) + bulk(self.news.encode())
        self.max_events, self.max_log_bytes = settings.max_events, settings.max_log_bytes
        self.max_event_bytes, self.max_tail_bytes = settings.max_event_bytes, settings.max_tail_bytes
        self.archived, self.tail, self.reserved = archived, list(tail), reserved
        self.length = self.sequence = archived + len(self.tail)
        self.tail_bytes = sum(map(len, self.tail))
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.written_bytes = 0
        self.appended_since_archive = 0
        self.sealed = False
        self.closing = False
        self.ended = False
        self.closed = asyncio.Event()
        self.awaited = False
        """Whether somebody waits until all that was said is appended."""
        self.due_at: float | None = None
        """Of a log that begins: since when its first event is waited for (monotonic)."""
        self.failure: Exception | None = None
        self.refused_since: float | None = None
        self.repairing = False
        self.moved = asyncio.Event()
        self.notify = notify

    @property
    def blank(self) -> bool:
        """Whether nothing was said yet, in no attempt."""
        return not (self.length or self.pending)

    async def append(self, *events: Event) -> None:
        """Say events, in order. Returns at once unless the log pushes back.

        Raises: FenceLost when another attempt owns the run; LogRefused when the log is full or cannot be written.
        """
        self.check_bounds()
        self.put(list(map(self.encode, events)))
        if self.pending_bytes > PENDING_BYTES or self.tail_bytes > self.max_tail_bytes:
            await self.settle(self.has_room)

    async def flush(self) -> None:
        """Wait until all that was said is appended, which is done at once. Raises as `append` does."""
        if self.pending:
            self.awaited = True
            self.notify(self)
        await self.settle(lambda: not self.pending)

    def seal(self) -> None:
        """Take no more events but the last words: work that does not let go must not hold up the end."""
        self.sealed = True

    async def close(self, last: bytes, *before: Event) -> None:
        """Append `before` and the last event in one step; `closed` is set once the whole log is archived."""
        self.seal()
        await self.flush()
        await self.settle(lambda: self.reserved - self.length > len(before))
        self.put([*(self.encode(event) for event in before), last])
        self.closing = True
        await self.flush()

    def encode(self, event: Event) -> bytes:
        encoded = shapes.encode(event, self.sequence, self.thread_id, self.max_event_bytes)
        self.sequence += 1
        return encoded

    def put(self, events: Sequence[bytes]) -> None:
        if not events:
            return
        size = sum(map(len, events))
        self.pending += events
        self.pending_bytes += size
        self.written_bytes += size
        self.notify(self)

    def check_bounds(self) -> None:
        if self.failure:
            raise self.failure
        if self.sealed:
            raise FenceLost(str(self.fence.run_id))  # the end is being written, whoever still speaks
        if self.length + len(self.pending) >= self.max_events:
            raise LogRefused(f"The run was ended: its log reached {self.max_events} events.")
        if self.written_bytes >= self.max_log_bytes:
            raise LogRefused(f"The run was ended: its log reached {self.max_log_bytes} bytes.")

    def has_room(self) -> bool:
        return self.pending_bytes <= PENDING_BYTES // 2 and self.tail_bytes <= self.max_tail_bytes

    async def settle(self, done: Callable[[], bool]) -> None:
        while not done():
            if self.failure:
                raise self.failure
            self.moved.clear()
            await self.moved.wait()
        if self.failure:
            raise self.failure

    # What the writer does with it.

    def batch(self) -> list[bytes]:
        """What may be appended next: bounded in count and bytes, and within the reserved ids."""
        waiting = len(self.pending)
        if self.length + waiting <= self.reserved and waiting <= BATCH_EVENTS and self.pending_bytes <= BATCH_BYTES:
            return self.pending[:]
        count = max(min(BATCH_EVENTS, self.reserved - self.length), 0)
        if self.pending_bytes > BATCH_BYTES and not self.closing:  # the last words go in one step, whatever their size
            count = min(count, reaching(BATCH_BYTES, self.pending))
        return self.pending[:count]

    def appended(self, count: int) -> None:
        """The first `count` pending events are in Redis now."""
        taken, self.pending = self.pending[:count], self.pending[count:]
        size = sum(map(len, taken)) if self.pending else self.pending_bytes
        self.pending_bytes -= size
        self.add_to_tail(taken, size)
        self.refused_since = None
        self.awaited = self.awaited and bool(self.pending)
        if self.due_at is not None:
            metrics.run_first_event_seconds.observe(monotonic() - self.due_at)
            self.due_at = None
        self.moved.set()

    def extend(self, events: Sequence[bytes]) -> None:
        """Events that stand in the list behind the ones known so far, ours or a foreign producer's."""
        self.add_to_tail(events, sum(map(len, events)))

    def add_to_tail(self, events: Sequence[bytes], size: int) -> None:
        self.tail += events
        self.tail_bytes += size
        self.length += len(events)
        self.appended_since_archive += len(events)

    def refused(self, now: float) -> None:
        """Redis is well, and took nothing: something is wrong with this log, which waiting may not cure."""
        self.refused_since = self.refused_since or now
        patience = self.settings.append_timeout.total_seconds()
        if now - self.refused_since > patience:
            self.fail(LogRefused(f"The run was ended: its log could not be written for {patience:g} seconds."))

    def fail(self, failure: Exception) -> None:
        self.failure = self.failure or failure
        self.moved.set()

    def lose(self) -> None:
        self.fail(FenceLost(str(self.fence.run_id)))

    @property
    def starved(self) -> bool:
        """Whether appends wait for ids to be reserved, or for the tail to be archived."""
        return bool(self.pending) and (self.length >= self.reserved or self.tail_bytes > self.max_tail_bytes)

    def block(self, epoch: str) -> Block | None:
        """What is to be archived next, or None."""
        taken = self.tail[: reaching(BLOCK_BYTES, self.tail)] if self.tail_bytes > BLOCK_BYTES else self.tail[:]
        reserved = reserve(self.length, self.reserved, max(self.appended_since_archive, len(self.pending)))
        whole = len(taken) == len(self.tail)
        closes = self.closing and whole and not self.pending
        enough_ahead = self.reserved - self.length > (reserved - self.length) // 2
        if not taken and not closes and enough_ahead:
            return None
        return Block(self.fence, self.archived, taken, reserved, epoch, closes)

    def archived_block(self, block: Block) -> None:
        """`block` is in Postgres now."""
        self.tail_bytes -= sum(map(len, block.events))
        del self.tail[: len(block.events)]
        self.archived += len(block.events)
        self.reserved = max(self.reserved, block.reserved)
        self.appended_since_archive = 0
        if block.closes:
            self.closed.set()
        self.moved.set()
        if self.pending:
            self.notify(self)


def reaching(size: int, events: Sequence[bytes]) -> int:
    """How many events from the first on it takes to reach so many bytes; all of them when they do not."""
    return next((count for count, total in enumerate(accumulate(map(len, events)), 1) if total >= size), len(events))
