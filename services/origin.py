"""Where work comes from: the request that asked for it, told by the same words in every process that is at it."""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from uuid import uuid4

ORIGIN = "origin"
"""Where the settings of a run have it: no request can set that."""
REQUEST_ID = re.compile(r"[A-Za-z0-9][\w.:@+=/-]{0,127}", re.ASCII)
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
"""As the W3C has it, of a version that we know to read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The id of a request, and the span of a trace that work belongs below; empty where there is none."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def words(self) -> dict[str, str]:
        """As JSON has it; what is empty is left out."""
        return {name: word for name, word in asdict(self).items() if word}


NOWHERE = Origin()
current: ContextVar[Origin] = ContextVar("origin", default=NOWHERE)


def read(said: object) -> Origin:
    """What a row or a message says, whoever wrote it: a word of any other shape counts as absent."""
    words = said if isinstance(said, Mapping) else {}
    return Origin(fitting(REQUEST_ID, words.get("request_id")), fitting(TRACEPARENT, words.get("traceparent")))


def of_row(settings: Mapping[str, object]) -> Origin:
    """What the settings of a run say of the request that started it."""
    return read(settings.get(ORIGIN))


def of_request(request_id: str, traceparent: str) -> Origin:
    """What the headers of a request say; an id of our own for one that has none, or none that may go into a header."""
    return Origin(fitting(REQUEST_ID, request_id) or uuid4().hex, fitting(TRACEPARENT, traceparent))


def of_attempt(settings: Mapping[str, object]) -> Origin:
    """Of a run that is driven here: its row is the truth, and the message that woke us up says what the row does not.

    The row knows the request, and a message the span of its sending: that counts while both are of one trace.
    """
    row, message = of_row(settings), current.get()
    of_one_trace = row.traceparent[:35] == message.traceparent[:35] or not row.traceparent
    return Origin(row.request_id or message.request_id, message.traceparent if of_one_trace else row.traceparent)


def fitting(shape: re.Pattern[str], word: object) -> str:
    return word if isinstance(word, str) and shape.fullmatch(word) else ""
