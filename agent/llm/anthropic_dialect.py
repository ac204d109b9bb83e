"""Anthropic's Messages API, as a stream of chunks.

Its SDK would cost every worker 38 MB and a second of CPU at boot (docs/adr/0005-libraries.md).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
import orjson
from httpx2 import AsyncClient, EventSource, Response

from agent.catalog import Provider
from agent.llm.anthropic_events import NOTHING, Reader, mapping
from agent.llm.anthropic_messages import body
from agent.llm.chunk import Chunk, readable
from agent.llm.failures import CallFailed, EndedEarly, Refused, from_transport, from_value_error
from agent.llm.request import ModelRequest
from agent.models import look_up
from services.http import timeouts
from services.settings import Settings

API_VERSION = "2026-10-21"
BOUND_THINKING = "thinking-binding-controls-2026-08-01"
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_TOLD = 1_000


async def stream(
    settings: Settings, http: AsyncClient, provider: Provider, request: ModelRequest
) -> AsyncGenerator[Chunk, None]:
    """Ask once and yield the answer as it comes; closing this iterator closes the provider's connection.

    Pings count as signs of life: a model may be busy for long with what is not shown. Raises: CallFailed.
    """
    finished = False
    content = orjson.dumps(body(request, request.model.removeprefix(f"{provider.prefix}/")))
    try:
        async with http.stream(
            "POST",
            messages_url(provider.base_url(settings)),
            content=content,
            headers=headers(provider.key(settings), request),
            timeout=timeouts(settings),
        ) as response:
            if not response.is_success:
                raise refused(response, await response.aread())
            async with aclosing(read_stream(response)) as chunks:
                async for chunk in chunks:
                    finished = finished or chunk.finish_reason is not None
                    yield chunk
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        # After the finish reason only the end of the stream can be missing: the answer itself is whole.
        if not finished:
            raise from_transport(error) from error
    except ValueError as error:
        raise from_value_error(error) from error
    if not finished:
        raise EndedEarly


async def read_stream(response: Response) -> AsyncGenerator[Chunk, None]:
    reader = Reader()
    async for event in EventSource(response, max_event_size=MAX_EVENT_BYTES):
        chunk = reader.read(orjson.loads(event.data)) if event.data else NOTHING
        if chunk != NOTHING:
            yield chunk


def messages_url(base_url: str) -> str:
    """Anthropic's own tools take the base URL without `/v1`; with it, as other providers' have it, is fine too."""
    return f"{base_url.rstrip('/').removesuffix('/v1')}/v1/messages"


def headers(key: str, request: ModelRequest) -> dict[str, str]:
    sent = {"x-api-key": key, "anthropic-version": API_VERSION, "content-type": "application/json"}
    return {**sent, "anthropic-beta": BOUND_THINKING} if look_up(request.model).binds_thinking else sent


def refused(response: Response, said: bytes) -> CallFailed:
    error = mapping(read_json(said).get("error"))
    told = readable(error.get("message")) or said[:MAX_TOLD].decode(errors="replace")
    code = readable(mapping(error.get("details")).get("error_code"))
    retry_after = response.headers.get("retry-after", "")
    return Refused(response.status_code, told, code, readable(error.get("type")), retry_after)


def read_json(said: bytes) -> dict[str, object]:
    """An error's body; proxies in between answer in HTML."""
    try:
        return dict(mapping(orjson.loads(said)))
    except orjson.JSONDecodeError:
        return {}
