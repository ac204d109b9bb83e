"""Consecutive events of a log, as they are stored and as they are sent."""

from services.runs import events

OVERHEAD_BYTES = 640
"""What a batch of one event weighs beside its bytes."""


class Batch:
    """Consecutive events from id `first_id` on; `last` says that the run's last event is among them."""

    __slots__ = ("encoded", "end", "events", "first_id", "last", "size")

    def __init__(self, first_id: int, events: list[bytes], last: bool) -> None:
        self.first_id, self.events, self.last = first_id, events, last
        self.end = first_id + len(events)
        self.size = sum(map(len, events))
        self.encoded: bytes | None = None

    @property
    def chunk(self) -> bytes:
        """The batch as server-sent events in one chunk of an HTTP/1.1 answer, encoded once for all readers."""
        if self.encoded is None:
            numbered = map(frame, range(self.first_id, self.end), self.events)
            frames = b"".join(numbered) if len(self.events) > 1 else next(numbered, b"")
            self.encoded = b"%x\r\n%b\r\n" % (len(frames), frames)
        return self.encoded

    @property
    def frames(self) -> bytes:
        """The batch as server-sent events, without the chunk around them."""
        return self.chunk[self.chunk.index(b"\n") + 1 : -2]

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes, encoded."""
        return OVERHEAD_BYTES + 2 * self.size

    def since(self, event_id: int) -> "Batch":
        """The part from `event_id` on; the batch itself when that is all of it."""
        skipped = event_id - self.first_id
        return self if skipped <= 0 else Batch(event_id, self.events[skipped:], self.last)


def frame(number: int, event: bytes) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (number, data_lines(event))


def data_lines(event: bytes) -> bytes:
    """An event that a foreign producer wrote over several lines has one `data:` for each."""
    return event if b"\n" not in event and b"\r" not in event else b"\ndata: ".join(event.splitlines())


def make_batch(first_id: int, found: list[bytes]) -> Batch:
    """A batch that ends with the last event, if that is among the events found."""
    for position, event in enumerate(found, 1):
        if events.final_status(event):
            return Batch(first_id, found[:position], True)
    return Batch(first_id, found, False)
