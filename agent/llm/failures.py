"""What can go wrong with a model call, in words that no dialect owns; `errors` says what follows from it."""

from dataclasses import dataclass

import httpx2


class CallFailed(Exception):
    """One call of a model failed; its `__cause__` is what the library said."""


@dataclass(eq=False)
class Refused(CallFailed):
    """The provider answered with an HTTP error; `code` and `type` are its own words for it."""

    status: int
    told: str
    code: str = ""
    type: str = ""
    retry_after: str = ""


@dataclass(eq=False)
class Reported(CallFailed):
    """An error inside a stream that began well; `status` is the HTTP status it speaks of, as far as it does."""

    told: str
    status: str = ""


class WentSilent(CallFailed):
    """It accepted the request and then said nothing for the idle timeout."""


class NotReachedInTime(CallFailed):
    """No connection within the connect timeout."""


class Unreachable(CallFailed):
    """Nobody listens at the base URL, or it is none."""


class BrokeOff(CallFailed):
    """The connection broke before the answer was whole."""


class EndedEarly(CallFailed):
    """The stream ended in good order but without a finish reason: some proxy in between was cut off."""


class Unreadable(CallFailed):
    """The answer is not what the dialect speaks."""


class KeyNotSendable(CallFailed):
    """The API key holds characters that no header takes."""


def from_transport(error: BaseException | None) -> CallFailed:
    """The failure behind an error of the HTTP client."""
    if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return NotReachedInTime()
    if isinstance(error, httpx2.TimeoutException):
        return WentSilent()
    if isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return Unreachable()
    return Unreadable() if isinstance(error, httpx2.DecodingError | httpx2.SSEError) else BrokeOff()


def from_value_error(error: ValueError) -> CallFailed:
    """An answer that cannot be decoded, or a key that cannot be encoded."""
    return KeyNotSendable() if isinstance(error, UnicodeEncodeError) else Unreadable()
