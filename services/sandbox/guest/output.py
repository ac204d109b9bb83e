"""What is kept of an output, bounded."""

from .wire import CHUNK

RING = 1024 * 1024


class Kept:
    """The beginning and the end of an output, bounded."""

    def __init__(self, limit: int) -> None:
        self.head_size, self.tail_size = limit - limit // 2, limit // 2
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.head_size - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > 2 * self.tail_size + CHUNK:
            del self.tail[: len(self.tail) - self.tail_size]

    @property
    def left_out(self) -> int:
        return max(0, self.total - self.head_size - self.tail_size)

    @property
    def output(self) -> bytes:
        tail = bytes(self.tail[-self.tail_size :]) if self.tail_size else b""
        if self.left_out:
            return bytes(self.head) + b"\n[... %d bytes left out ...]\n" % self.left_out + tail
        return bytes(self.head) + tail


class Ring:
    """The last bytes of a job's output; offsets count from its first byte."""

    def __init__(self) -> None:
        self.kept, self.start = bytearray(), 0

    def add(self, data: bytes) -> None:
        self.kept += data
        surplus = len(self.kept) - RING
        if surplus > CHUNK:
            del self.kept[:surplus]
            self.start += surplus

    def since(self, offset: int) -> bytes:
        return bytes(self.kept[max(0, offset - self.start) :])

    @property
    def end(self) -> int:
        return self.start + len(self.kept)
