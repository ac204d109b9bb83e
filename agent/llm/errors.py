"""A failed model call → what to do about it and the sentence its user reads. The same for every dialect."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from agent.catalog import Provider
from agent.llm.failures import (
    BrokeOff,
    CallFailed,
    EndedEarly,
    KeyNotSendable,
    NotReachedInTime,
    Refused,
    Reported,
    Unreachable,
    WentSilent,
)
from services.settings import Settings

RETRIED_STATUSES = {408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
OUT_OF_QUOTA = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
}
TOO_LONG = {"context_length_exceeded", "request_too_large", "string_above_max_length"}
WORDS_FOR_TOO_LONG = re.compile(
    r"context.(length|window|limit)|prompt is too long|input is too long|too many (input )?tokens|"
    r"maximum (prompt|context|input|number of tokens)|exceeds? the (model|max|limit)",
    re.IGNORECASE,
)
LONGEST_WAIT = 60.0
FIRST_WAIT = 0.5
LONGEST_BACKOFF = 8.0
QUOTED_CHARS = 300


def wait_before_retry(error: CallFailed, failures: int) -> float | None:
    """Seconds to wait before asking again after `failures` failed calls in a row; None when that is of no use."""
    if not may_pass(error):
        return None
    told = retry_after(error)
    if told is None:
        return min(FIRST_WAIT * 2.0 ** (failures - 1), LONGEST_BACKOFF)
    return told if told <= LONGEST_WAIT else None


def may_pass(error: CallFailed) -> bool:
    """The same request may succeed a little later. One that went silent would only wait as long once more."""
    if isinstance(error, Refused):
        return error.status in RETRIED_STATUSES and not out_of_quota(error)
    if isinstance(error, Reported):
        return error.status in {str(status) for status in RETRIED_STATUSES}
    return isinstance(error, NotReachedInTime | Unreachable | BrokeOff | EndedEarly)


def out_of_quota(error: Refused) -> bool:
    return error.status == 402 or error.code in OUT_OF_QUOTA or error.type in OUT_OF_QUOTA


def too_long(error: CallFailed) -> bool:
    """The request holds more than the model reads: each provider has words of its own for that."""
    if not isinstance(error, Refused) or error.status not in (400, 413, 422):
        return False
    return error.code in TOO_LONG or bool(WORDS_FOR_TOO_LONG.search(error.told))


def retry_after(error: CallFailed) -> float | None:
    return seconds_from(error.retry_after.strip()) if isinstance(error, Refused) else None


def seconds_from(value: str) -> float | None:
    """A Retry-After header in seconds: it is a number or a date (RFC 9110, 10.2.3)."""
    if value.isascii() and value.replace(".", "", 1).isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((aware - datetime.now(UTC)).total_seconds(), 0.0)


def sentence(error: CallFailed, settings: Settings, provider: Provider, model: str, *, spoke: bool) -> str:
    """What the user reads; `spoke` says that part of the answer was already shown (and is kept)."""
    kept = " The text so far was kept." if spoke else ""
    return explain(error, settings, provider, model) + kept


def explain(error: CallFailed, settings: Settings, provider: Provider, model: str) -> str:
    match error:
        case Refused():
            return explain_status(error, provider, model)
        case Reported():
            return f"{provider.title} reported an error while {model} was answering: {quote(error.told)}"
        case WentSilent():
            return f"{model} sent nothing for {seconds(settings.models.idle_timeout.total_seconds())}."
        case NotReachedInTime():
            waited = seconds(settings.models.connect_timeout.total_seconds())
            return f"{provider.title} could not be reached within {waited} ({provider.url_name})."
        case Unreachable():
            return f"{provider.title} cannot be reached at {provider.base_url(settings)} ({provider.url_name})."
        case BrokeOff():
            return f"The connection to {provider.title} broke off before the answer was complete."
        case EndedEarly():
            return f"{provider.title} ended the answer of {model} before it was complete."
        case KeyNotSendable():
            return f"{provider.key_name} holds characters that no API key has; check that setting."
    return f"{provider.title} sent an answer that cannot be read; is {provider.url_name} right?"


def explain_status(error: Refused, provider: Provider, model: str) -> str:
    status = error.status
    if out_of_quota(error):
        return f"The {provider.title} account behind {provider.key_name} is out of quota; check its plan and billing."
    if status == 401:
        return f"{provider.title} refused the API key; check {provider.key_name}."
    if status == 403:
        return f"The key in {provider.key_name} may not use {model}: {quote(error.told)}"
    if status == 404:
        return f"{provider.title} does not know the model {model}."
    if status == 429:
        return f"{provider.title} is limiting the rate of requests; try again{later(retry_after(error))}."
    if status >= 500:
        return f"{provider.title} had an internal error (HTTP {status}); try again later."
    return f"{provider.title} refused the request (HTTP {status}): {quote(error.told)}"


def later(wait: float | None) -> str:
    return f" in {seconds(wait)}" if wait else " later"


def seconds(number: float) -> str:
    return f"{number:g} second{'' if number == 1 else 's'}"


def quote(told: str) -> str:
    """The provider's own words, as one bounded sentence."""
    text = " ".join(told.split()) or "no reason was given"
    if len(text) > QUOTED_CHARS:
        return f"{text[:QUOTED_CHARS]}…"
    return text if text.endswith((".", "!", "?")) else f"{text}."
