"""The numbers behind the metrics: in memory, and in a file of the process's own once one is opened.

prometheus_client's own multi-process values cannot be had here (docs/adr/0020-metrics.md): they open their files at
import, under a folder that the environment names, and look at the process id with every step.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Any, Protocol

from prometheus_client import values
from prometheus_client.mmap_dict import mmap_key

from services.log import logger


class Book(Protocol):
    """Where numbers of one kind are written, as prometheus_client's MmapedDict has them."""

    def write_value(self, key: str, value: float, timestamp: float) -> None: ...


Books = Mapping[str, Book]
"""By the beginning of the names of their files: `counter`, `histogram`, `gauge_livesum`, `gauge_livemax`."""

_lock = Lock()
_every: list["Value"] = []
_books: Books = {}
_told = False


class Value:
    """One number, as prometheus_client asks for it; written from any thread."""

    _multiprocess = False
    __slots__ = ("book", "key", "kind", "number")

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        multiprocess_mode: str = "",
        **_options: Any,
    ) -> None:
        self.kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self.key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self.number = 0.0
        with _lock:
            _every.append(self)
            self.book = _books.get(self.kind)
            self.write()

    def write(self) -> None:
        """The first time it takes room; where there is none the number is told by nobody, and counts on in memory."""
        if self.book:
            try:
                self.book.write_value(self.key, self.number, 0.0)
            except OSError as error:
                self.book = None
                tell_once(error)

    def inc(self, amount: float) -> None:
        with _lock:
            self.number += amount
            if self.book:
                self.book.write_value(self.key, self.number, 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with _lock:
            self.number = value
            if self.book:
                self.book.write_value(self.key, value, 0.0)

    def get(self) -> float:
        return self.number

    def set_exemplar(self, exemplar: Any) -> None:
        """There are none."""

    def get_exemplar(self) -> None:
        return None


def tell_once(error: OSError) -> None:
    """In a process: what has no room for one number has none for the next."""
    global _told
    if not _told:
        logger.warning("metrics.no_room", error=repr(error))
    _told = True


def write_into(books: Books) -> None:
    """From now on every number is in these; without any, in memory alone."""
    global _books
    with _lock:
        _books = books
        for value in _every:
            value.book = books.get(value.kind)
            value.write()


values.ValueClass = Value
