"""What WEBHOOK steps send: through the guard for URLs that somebody else chose."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import httpx2
import orjson

from agent.workflows.failures import StepFailed
from agent.workflows.values import MAX_OUTPUT_BYTES
from services.outgoing import BodyTooLarge, ForbiddenUrl, open_guarded_client, read_bounded
from services.settings import Settings

OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "idempotency-key"})
SENDABLE = re.compile(r"[\t\x20-\x7e]*")
SHOWN_HEADERS = ("content-type", "location", "retry-after", "etag", "last-modified")
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which another try may help."""
SHOWN_CHARS = 300
CONNECT_SECONDS = 10.0
MAX_BODY_BYTES = MAX_OUTPUT_BYTES - 16 * 1024


async def send(
    settings: Settings, inputs: Mapping[str, Any], headers: Mapping[str, str], key: str, timeout_seconds: float
) -> dict[str, Any]:
    """`{status, headers, body}` of an answer that is a success; JSON is read.

    Raises: StepFailed; harmless where nothing was sent.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            response, body = await ask(settings, inputs, told(headers, inputs, key), timeout_seconds)
    except (ForbiddenUrl, httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError, ValueError) as error:
        raise StepFailed(f"The request cannot be made: {error}", again=False, harmless=True) from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise StepFailed(f"The server could not be reached: {words(error)}", harmless=True) from error
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise StepFailed(f"The server did not answer within {timeout_seconds:g} seconds.") from error
    except BodyTooLarge as error:
        raise StepFailed(f"The answer is too large. {error}", again=False) from error
    except httpx2.HTTPError as error:
        raise StepFailed(f"The request broke off: {words(error)}") from error
    return judged(response, read(response, body))


async def ask(
    settings: Settings, inputs: Mapping[str, Any], headers: Mapping[str, str], timeout_seconds: float
) -> tuple[httpx2.Response, bytes]:
    timeout = httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS))
    async with open_guarded_client(settings, timeout=timeout) as client:
        request = client.stream(inputs["method"], inputs["url"], headers=headers, content=content(inputs))
        async with request as response:
            return response, await read_bounded(response, MAX_BODY_BYTES)


def told(headers: Mapping[str, str], inputs: Mapping[str, Any], key: str) -> dict[str, str]:
    """The headers of the step, and ours. Raises: ValueError for one that cannot be sent; it may be secret."""
    own = {name: value.strip() for name, value in headers.items() if name.lower() not in OURS}
    for name, value in own.items():
        if not SENDABLE.fullmatch(value):
            raise ValueError(f"the header {name} may hold printable ASCII characters only.")
    kind = {} if isinstance(inputs.get("body"), str) else {"Content-Type": "application/json"}
    named = {name.lower() for name in own}
    usual = kind if "body" in inputs and "content-type" not in named else {}
    return {**usual, **own, "Idempotency-Key": key}


def content(inputs: Mapping[str, Any]) -> bytes | None:
    body = inputs.get("body")
    if body is None:
        return None
    return body.encode() if isinstance(body, str) else orjson.dumps(body)


def words(error: Exception) -> str:
    return str(error) or type(error).__name__


def read(response: httpx2.Response, body: bytes) -> Any:
    """JSON as what it is, anything else as text; nothing as null."""
    if not body:
        return None
    if "json" in response.headers.get("content-type", ""):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    try:
        return body.decode(response.charset_encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):  # no encoding that anybody knows, or none of texts
        return body.decode(errors="replace")


def judged(response: httpx2.Response, body: Any) -> dict[str, Any]:
    """Raises: StepFailed unless the status is a success."""
    status = response.status_code
    if not response.is_success:
        said = body if isinstance(body, str) else orjson.dumps(body).decode()
        again = status in PASSING
        raise StepFailed(f"The server answered with status {status}: {said[:SHOWN_CHARS]}", again=again)
    headers = {name: response.headers[name] for name in SHOWN_HEADERS if name in response.headers}
    return {"status": status, "headers": headers, "body": body}
