"""One attempt to tell a receiver: what is sent, through the guard for outgoing URLs, and what the answer means."""

import asyncio
import email.utils
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import orjson

from services.outgoing import ForbiddenUrl, open_guarded_client
from services.settings import Settings, WebhookSettings
from services.webhooks import signatures
from services.webhooks.claims import Claim
from services.webhooks.deliveries import Outcome

GROWTH = 3
"""Each delay is so many times the one before it."""
MAX_GROWTHS = 40
"""Beyond it any delay is the longest."""
JITTER = 0.2
MAX_EXCERPT_BYTES = 512
EXCERPT_CHARS = 200
GONE = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, or a sentence that says why there is none."""

    status_code: int | None = None
    error: str | None = None
    excerpt: str | None = None
    retry_after: float | None = None


def body_of(run: Claim) -> bytes:
    """What is told of a run; the same for each attempt."""
    told: dict[str, Any] = {
        "type": f"agent_run.{run.status}",
        "timestamp": run.completed_at,
        "id": str(run.agent_run_id),
        "kind": run.kind,
        "thread_id": str(run.thread_id),
        "project_id": str(run.project_id),
        "status": run.status,
        "error": run.error,
        "model_name": run.model_name,
        "usage": run.usage,
        "metadata": run.metadata,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
    }
    if run.execution_id:
        told |= {"execution_id": run.execution_id, "workflow_id": run.workflow_id}
    return orjson.dumps(told)


def id_of(run_id: UUID) -> str:
    """The `webhook-id`, by which a receiver knows what it was told before."""
    return f"run_{run_id}"


async def send(settings: Settings, run: Claim, keys: Sequence[str]) -> Outcome:
    """Tell the receiver once, signed with `keys`; never raises for anything that a receiver does."""
    body = body_of(run)
    began = time.monotonic()
    signed = signatures.headers(keys, id_of(run.agent_run_id), datetime.now(UTC), body)
    answer = await ask(settings, run.webhook_url, {"Content-Type": "application/json", **signed}, body)
    return judged(settings.webhooks, run, answer, time.monotonic() - began)


async def ask(settings: Settings, url: str, headers: dict[str, str], body: bytes) -> Answer:
    patience = settings.webhooks.timeout.total_seconds()
    status: int | None = None
    try:
        async with asyncio.timeout(patience), open_guarded_client(settings) as client:
            identity = {"Accept-Encoding": "identity"}
            asking = client.stream("POST", url, content=body, headers={**headers, **identity}, timeout=patience)
            async with asking as response:
                status = response.status_code
                return await read(response)
    except (ForbiddenUrl, httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError, ValueError) as error:
        return Answer(status, f"The request cannot be made: {error}")
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        return Answer(status, f"The receiver could not be reached: {words(error)}")
    except (TimeoutError, httpx2.TimeoutException):
        return Answer(status, f"The receiver did not answer within {patience:g} seconds.")
    except httpx2.HTTPError as error:
        return Answer(status, f"The request broke off: {words(error)}")


async def read(response: httpx2.Response) -> Answer:
    """Of an answer that is no success also how its body begins; not unpacked: it may be made to grow."""
    status = response.status_code
    if response.is_success:
        return Answer(status)
    begin = b""
    async with aclosing(response.aiter_raw()) as body:
        async for part in body:
            begin += part[:MAX_EXCERPT_BYTES]
            if len(begin) >= MAX_EXCERPT_BYTES:
                break
    excerpt = begin[:MAX_EXCERPT_BYTES].decode(errors="replace")[:EXCERPT_CHARS] or None
    retry_after = seconds_of(response.headers.get("retry-after"))
    where = " The receiver redirects, and redirects are not followed." if response.has_redirect_location else ""
    return Answer(status, f"The receiver answered with status {status}.{where}", excerpt, retry_after)


def words(error: Exception) -> str:
    return str(error) or type(error).__name__


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header, which names seconds or a date; None for one that is neither."""
    if not retry_after:
        return None
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:12])
    try:
        when = email.utils.parsedate_to_datetime(retry_after)
        return max((when - datetime.now(when.tzinfo or UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def judged(settings: WebhookSettings, run: Claim, answer: Answer, duration: float) -> Outcome:
    """Any 2xx is a delivery, 410 says never again, all else is tried again as long as there are attempts."""
    code = answer.status_code
    if answer.error is None:
        return Outcome(run, "delivered", None, duration, code)
    if code == GONE:
        return Outcome(run, "gone", None, duration, code, answer.error, answer.excerpt)
    if run.attempt >= settings.attempts:
        return Outcome(run, "failed", None, duration, code, answer.error, answer.excerpt)
    again = delay(settings, run.attempt, answer.retry_after)
    return Outcome(run, "pending", again, duration, code, answer.error, answer.excerpt)


def delay(settings: WebhookSettings, attempt: int, retry_after: float | None = None) -> timedelta:
    """After an attempt, the first being 1: it grows up to the longest; a receiver may ask for more, up to the same."""
    longest = settings.max_delay.total_seconds()
    own = min(settings.first_delay.total_seconds() * GROWTH ** min(attempt - 1, MAX_GROWTHS), longest)
    jittered = own * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter, no secret
    return timedelta(seconds=max(jittered, min(retry_after or 0, longest)))
