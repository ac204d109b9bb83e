"""A transport that is watched: how much comes, whether it has ended and why, and that listed tools have their shape."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
from mcp.client._transport import ReadStream, TransportStreams
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCResponse

from agent.mcp import schemas

MAX_LISTED = 1_000
"""Tools of one page that are looked at."""
MAX_NAME_CHARS = 200
MAX_DESCRIPTION_CHARS = 2_000
MAX_MESSAGES = 10_000
"""Between two requests of ours: each costs some work, however small it is."""
HINTS = ("readOnlyHint", "idempotentHint")


class Flooded(Exception):
    """A server sent more than it may; the text says how much that is."""


class Watch:
    """What is known of one connection from outside. `over` is done when nothing more can come."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.received = self.messages = 0
        self.complaint: str | None = None
        self.status: int | None = None
        """The last HTTP status of a request that was refused."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def asked(self) -> None:
        """A request goes out: what comes from now on is counted anew."""
        self.received = self.messages = 0
        self.status = None

    def count(self, size: int) -> None:
        """Raises: Flooded."""
        self.received += size
        if self.received > self.max_bytes:
            raise self.refused(f"it sent more than {self.max_bytes / 1024 / 1024:g} MiB at once")

    def refused(self, complaint: str) -> Flooded:
        self.complaint = self.complaint or complaint
        return Flooded(self.complaint)

    def end(self, complaint: str | None = None) -> None:
        self.complaint = self.complaint or complaint
        if not self.over.done():
            self.over.set_result(None)


@asynccontextmanager
async def watched(transport: AbstractAsyncContextManager[TransportStreams], watch: Watch) -> AsyncIterator[Any]:
    """The transport's streams; what is read passes through our hands."""
    try:
        async with transport as (incoming, outgoing):
            yield Incoming(incoming, watch), outgoing
    finally:
        watch.end()


class Incoming:
    """Messages of a server, as the SDK reads them."""

    def __init__(self, inner: ReadStream[SessionMessage | Exception], watch: Watch) -> None:
        self.inner = inner
        self.watch = watch

    @property
    def last_context(self) -> Any:
        return getattr(self.inner, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        try:
            received = await self.inner.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self.watch.end()
            raise
        self.watch.messages += 1
        if self.watch.messages > MAX_MESSAGES:
            self.watch.end(f"it sent more than {MAX_MESSAGES} messages at once")
            raise anyio.EndOfStream
        if isinstance(received, SessionMessage) and isinstance(received.message, JSONRPCResponse):
            await mend_listing(received.message.result)
        return received

    async def aclose(self) -> None:
        await self.inner.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def mend_listing(result: dict[str, Any]) -> None:
    """One tool that lies about its schema would cost all tools of its server: the SDK refuses the whole list."""
    if not isinstance(listed := result.get("tools"), list):
        return
    mended = []
    for said in listed[:MAX_LISTED]:
        mended.append(mended_tool(said))
        await asyncio.sleep(0)  # a large list takes a while, and other runs share the loop
    result["tools"] = [tool for tool in mended if tool]
    if not isinstance(result.get("nextCursor"), str):
        result.pop("nextCursor", None)


def mended_tool(said: Any) -> dict[str, Any] | None:
    """What we use of a tool. Not its output schema: a result that breaks it is still a result."""
    name = said.get("name") if isinstance(said, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        return None
    described, notes = said.get("description"), said.get("annotations")
    hints = {hint: True for hint in HINTS if isinstance(notes, dict) and notes.get(hint) is True}
    return {
        "name": name,
        "description": described[:MAX_DESCRIPTION_CHARS] if isinstance(described, str) else "",
        "inputSchema": schemas.clean(said.get("inputSchema")),
        "annotations": hints,
    }
