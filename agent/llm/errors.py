"""A failed model call → what to do about it and the sentence its user reads."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import openai

from agent.catalog import Provider
from agent.llm.openai_dialect import StreamEndedEarly
from services.settings import Settings

ModelError = (openai.OpenAIError, StreamEndedEarly, ValueError)
"""What a model call may raise; ValueError is an answer (or a key) that cannot be decoded or encoded."""

RETRIED_STATUSES = {408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
OUT_OF_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
LONGEST_WAIT = 60.0
FIRST_WAIT = 0.5
LONGEST_BACKOFF = 8.0
QUOTED_CHARS = 300


def wait_before_retry(error: Exception, failures: int) -> float | None:
    """Seconds to wait before asking again after `failures` failed calls in a row; None when that is of no use."""
    if not may_pass(error):
        return None
    told = retry_after(error)
    if told is None:
        return min(FIRST_WAIT * 2.0 ** (failures - 1), LONGEST_BACKOFF)
    return told if told <= LONGEST_WAIT else None


def may_pass(error: Exception) -> bool:
    """The same request may succeed a little later."""
    if isinstance(error, openai.APITimeoutError):
        return not went_silent(error)
    if isinstance(error, openai.APIStatusError):
        return error.status_code in RETRIED_STATUSES and not out_of_quota(error)
    if isinstance(error, openai.APIConnectionError | StreamEndedEarly):
        return True
    return isinstance(error, openai.APIError) and error_code(error) in {str(status) for status in RETRIED_STATUSES}


def went_silent(error: openai.APITimeoutError) -> bool:
    """It accepted the request and then said nothing: asking again would wait as long once more."""
    return not isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout)


def out_of_quota(error: openai.APIError) -> bool:
    return error.code in OUT_OF_QUOTA or error.type in OUT_OF_QUOTA


def error_code(error: openai.APIError) -> str:
    """The status an error inside a stream speaks of: OpenRouter sends numbers, OpenAI words."""
    words = {"server_error": "500", "rate_limit_exceeded": "429"}
    code = error.code or error.type or ""
    return words.get(code, code)


def retry_after(error: Exception) -> float | None:
    if not isinstance(error, openai.APIStatusError):
        return None
    return seconds_from(error.response.headers.get("retry-after", "").strip())


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


def sentence(error: Exception, settings: Settings, provider: Provider, model: str, *, spoke: bool) -> str:
    """What the user reads; `spoke` says that part of the answer was already shown (and is kept)."""
    kept = " The text so far was kept." if spoke else ""
    return explain(error, settings, provider, model) + kept


def explain(error: Exception, settings: Settings, provider: Provider, model: str) -> str:
    if isinstance(error, openai.APITimeoutError):
        return explain_timeout(error, settings, provider, model)
    if isinstance(error, openai.APIStatusError):
        return explain_status(error, provider, model)
    if isinstance(error, openai.APIConnectionError):
        return explain_connection(error, settings, provider)
    if isinstance(error, StreamEndedEarly):
        return f"{provider.title} ended the answer of {model} before it was complete."
    if isinstance(error, openai.APIError):
        return f"{provider.title} reported an error while {model} was answering: {quote(error)}"
    if isinstance(error, UnicodeEncodeError):
        return f"{provider.key_name} holds characters that no API key has; check that setting."
    return f"{provider.title} sent an answer that cannot be read; is {provider.url_name} right?"


def explain_timeout(error: openai.APITimeoutError, settings: Settings, provider: Provider, model: str) -> str:
    if went_silent(error):
        return f"{model} sent nothing for {seconds(settings.models.idle_timeout.total_seconds())}."
    waited = seconds(settings.models.connect_timeout.total_seconds())
    return f"{provider.title} could not be reached within {waited} ({provider.url_name})."


def explain_connection(error: openai.APIConnectionError, settings: Settings, provider: Provider) -> str:
    if isinstance(error.__cause__, httpx2.ConnectError | httpx2.UnsupportedProtocol):
        return f"{provider.title} cannot be reached at {provider.base_url(settings)} ({provider.url_name})."
    return f"The connection to {provider.title} broke off before the answer was complete."


def explain_status(error: openai.APIStatusError, provider: Provider, model: str) -> str:
    status = error.status_code
    if out_of_quota(error) or status == 402:
        return f"The {provider.title} account behind {provider.key_name} is out of quota; check its plan and billing."
    if status == 401:
        return f"{provider.title} refused the API key; check {provider.key_name}."
    if status == 403:
        return f"The key in {provider.key_name} may not use {model}: {quote(error)}"
    if status == 404:
        return f"{provider.title} does not know the model {model}."
    if status == 429:
        return f"{provider.title} is limiting the rate of requests; try again{later(retry_after(error))}."
    if status >= 500:
        return f"{provider.title} had an internal error (HTTP {status}); try again later."
    return f"{provider.title} refused the request (HTTP {status}): {quote(error)}"


def later(wait: float | None) -> str:
    return f" in {seconds(wait)}" if wait else " later"


def seconds(number: float) -> str:
    return f"{number:g} second{'' if number == 1 else 's'}"


def quote(error: openai.APIError) -> str:
    """The provider's own words, as one bounded sentence."""
    told = error.body.get("message") if isinstance(error.body, dict) else None
    text = " ".join((told if isinstance(told, str) else error.message).split())
    if len(text) > QUOTED_CHARS:
        return f"{text[:QUOTED_CHARS]}…"
    return text if text.endswith((".", "!", "?")) else f"{text}."
