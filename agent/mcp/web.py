"""MCP over HTTP: streamable HTTP and the older SSE, through the guard for outgoing URLs and bounded."""

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import orjson
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from agent.mcp.config import ServerConfig
from agent.mcp.watching import Watch
from services.outgoing import open_guarded_client
from services.settings import McpSettings, Settings

FAREWELL_SECONDS = 0.5
"""How long the DELETE of a session may take when we leave."""
PLAIN = ("", "identity")


def address(config: ServerConfig, settings: McpSettings) -> str:
    """Where a server is reached: its own URL, else the registry's, with the rest of its config in the query.

    Empty when it has none and there is no registry.
    """
    if config.url or not settings.registry_url:
        return config.url
    url = settings.registry_url.replace("{qualifiedName}", quote(config.qualified_name, safe="@/"))
    if not config.options:
        return url
    encoded = b64encode(orjson.dumps(dict(config.options))).decode()
    return f"{url}{'&' if '?' in url else '?'}{urlencode({'config': encoded})}"


def headers(config: ServerConfig, settings: McpSettings) -> dict[str, str]:
    key = settings.registry_api_key.get_secret_value()
    ours = {"Authorization": f"Bearer {key}"} if key and not config.url else {}
    return {**ours, **config.headers, "Accept-Encoding": "identity"}


def streams(config: ServerConfig, settings: Settings, watch: Watch) -> AbstractAsyncContextManager[TransportStreams]:
    """A transport for `mcp.Client`."""
    url = address(config, settings.mcp)
    client = open_client(config, settings, watch)
    return over_sse(url, client) if config.kind == "sse" else streamable(url, client, watch)


@asynccontextmanager
async def streamable(url: str, client: httpx2.AsyncClient, watch: Watch) -> AsyncIterator[TransportStreams]:
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=watch.max_bytes) as opened,
    ):
        yield opened


@asynccontextmanager
async def over_sse(url: str, client: httpx2.AsyncClient) -> AsyncIterator[TransportStreams]:
    def ours(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        return client

    async with sse_client(url, httpx_client_factory=ours) as opened:
        yield opened


def open_client(config: ServerConfig, settings: Settings, watch: Watch) -> httpx2.AsyncClient:
    longest = (settings.mcp.connect_timeout + settings.mcp.call_timeout).total_seconds()
    connect = settings.outgoing.connect_timeout.total_seconds()
    client = open_guarded_client(
        settings, headers=headers(config, settings.mcp), timeout=httpx2.Timeout(longest, connect=connect)
    )

    async def prepare(request: httpx2.Request) -> None:
        watch.asked()
        if request.method == "DELETE":
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), FAREWELL_SECONDS)

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "") not in PLAIN:
            raise watch.refused("it compresses its answers, which nobody asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Counted(response.stream, watch)
        if response.status_code >= 400:
            watch.status = response.status_code
        if response.status_code >= 400 and config.kind == "sse":
            watch.end(f"it answered with the status {response.status_code}")

    client.event_hooks = {"request": [prepare], "response": [bound]}
    return client


class Counted(httpx2.AsyncByteStream):
    """The body of a response, cut off where it becomes too much."""

    def __init__(self, inner: httpx2.AsyncByteStream, watch: Watch) -> None:
        self.inner = inner
        self.watch = watch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self.inner:
            self.watch.count(len(data))
            yield data

    async def aclose(self) -> None:
        await self.inner.aclose()
