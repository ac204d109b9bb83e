"""One live connection to one server, entered and left in a task of its own (TRAPS 31)."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, CallToolResult, Implementation, Tool
from pydantic import ValidationError

from agent.mcp.watching import Watch, watched
from services.log import logger
from services.outgoing import ForbiddenUrl
from services.sandbox.protocol import SandboxFailed, SandboxUnavailable

US = Implementation(name="longrun", version="1")
MAX_PAGES = 50
MAX_WORDS = 1_000
GONE = "Session terminated"
"""What the SDK makes of a 404 for a session that the server has forgotten: the request was not taken."""

COURTESY_SECONDS = 0.3
LEAVING_SECONDS = 0.8
CANCELLING_SECONDS = 0.5
"""How long telling the server of cancelled calls, leaving it, and leaving it without a word may take: under 2 s."""

# Its tracebacks carry URLs and what servers wrote; what counts of them is told in words of ours.
logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)

abandoned: set[asyncio.Task[None]] = set()
"""Connections that did not even end when they were cancelled, kept until they do."""


class Lost(Exception):
    """The connection has ended; the text says why. `taken`: the server may have begun what it was asked."""

    def __init__(self, words: str, *, taken: bool = True) -> None:
        super().__init__(words)
        self.taken = taken


class Refused(Exception):
    """The server answered, with an error or with something that is no answer."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The tools of a server; `partial` when it has more than we read."""

    tools: list[Tool]
    partial: bool = False


class Connection:
    def __init__(self, transport: AbstractAsyncContextManager[TransportStreams], watch: Watch) -> None:
        self.watch = watch
        self.opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self.calls: set[asyncio.Future[Any]] = set()
        self.failure: BaseException | None = None
        self.task = asyncio.create_task(self.own(transport))

    async def own(self, transport: AbstractAsyncContextManager[TransportStreams]) -> None:
        """The life of the connection; its end is told by `watch.over`, never raised."""
        try:
            async with Client(watched(transport, self.watch), client_info=US, cache=None) as client:
                if not self.opened.done():
                    self.opened.set_result(client)
                await self.leaving.wait()
        except Exception as error:  # noqa: BLE001 - the boundary around a stranger: told in `lost`
            self.failure = error
        finally:
            self.watch.end()

    @property
    def alive(self) -> bool:
        return self.opened.done() and not self.watch.over.done() and not self.task.done()

    async def open(self) -> Client:
        """Wait for the handshake. Raises: Lost."""
        either: set[asyncio.Future[Any]] = {self.opened, self.task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self.opened.done():
            raise self.lost(taken=False)
        return self.opened.result()

    async def list_tools(self, most: int) -> Listing:
        """Raises: Lost, Refused."""
        tools: list[Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self.ask(self.opened.result().list_tools(cursor=cursor))
            tools += page.tools
            before, cursor = cursor, page.next_cursor
            if cursor is None or cursor == before or len(tools) > most:
                return Listing(tools[:most], partial=cursor is not None or len(tools) > most)
        return Listing(tools[:most], partial=True)

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Raises: Lost, Refused. Cancelling tells the server, and does not wait for it."""
        result: CallToolResult = await self.ask(self.opened.result().call_tool(name, arguments))
        return result

    async def ask(self, asking: Any) -> Any:
        """Make a request in a task of its own: ours can be cancelled at once, whatever the server takes in."""
        task = asyncio.ensure_future(asking)
        self.calls.add(task)
        task.add_done_callback(self.settle)
        try:
            await asyncio.wait({task, self.watch.over}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise await self.ended()
        finally:
            if not task.done():
                task.cancel()
        return await self.answer(task)

    async def answer(self, task: "asyncio.Future[Any]") -> Any:
        try:
            return task.result()
        except MCPError as error:
            if error.code == CONNECTION_CLOSED or self.watch.complaint:
                raise await self.ended() from error
            if error.message == GONE:
                self.watch.end("it has forgotten the session")
                raise self.lost(taken=False) from error
            raise Refused(with_status(error.message, self.watch.status)) from error
        except ValidationError as error:
            raise Refused(f"its answer is not valid: {where(error)}") from error
        except asyncio.CancelledError:
            raise await self.ended() from None
        except Exception as error:
            raise Refused(f"its answer could not be used: {type(error).__name__}: {error}"[:MAX_WORDS]) from error

    def settle(self, task: "asyncio.Future[Any]") -> None:
        self.calls.discard(task)
        if not task.cancelled():
            task.exception()

    async def ended(self) -> Lost:
        """Why the connection is over; its own task may know in a moment."""
        self.watch.end()
        self.leaving.set()
        await asyncio.wait({self.task}, timeout=LEAVING_SECONDS)
        return self.lost()

    def lost(self, *, taken: bool = True) -> Lost:
        causes = list(leaves(self.failure)) if self.failure else []
        refused = any(isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | ForbiddenUrl) for cause in causes)
        told = self.watch.complaint or (words_of(causes[0]) if causes else "the connection ended")
        return Lost(with_status(told, self.watch.status), taken=taken and not refused)

    async def close(self) -> None:
        """Leave within two seconds, whatever the server does."""
        for call in self.calls:
            call.cancel()
        if self.calls:
            await asyncio.wait(set(self.calls), timeout=COURTESY_SECONDS)
        self.leaving.set()
        if self.opened.done():
            await asyncio.wait({self.task}, timeout=LEAVING_SECONDS)
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=CANCELLING_SECONDS)
        if not self.task.done():
            abandoned.add(self.task)
            self.task.add_done_callback(abandoned.discard)
            logger.warning("mcp.connection_hangs")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What a group of exceptions is made of."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def words_of(error: BaseException) -> str:
    """A sentence's end for people: what the SDK and the HTTP client raise says little, or too much."""
    if isinstance(error, ForbiddenUrl | SandboxFailed | SandboxUnavailable):
        return str(error).rstrip(".")
    if isinstance(error, httpx2.HTTPStatusError):
        return f"it answered with the status {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    if isinstance(error, httpx2.ConnectError):
        return f"it could not be reached ({str(error).rstrip('.')})" if str(error) else "it could not be reached"
    if isinstance(error, MCPError):
        return f"it answered: {error.message}"[:MAX_WORDS]
    if isinstance(error, ValidationError):
        return f"its answer is not valid: {where(error)}"
    return f"{type(error).__name__}: {error}"[:MAX_WORDS].rstrip(": ")


def where(error: ValidationError) -> str:
    """The places of an answer that are wrong, without what stood there."""
    wrong = [f"{'.'.join(map(str, each['loc'])) or 'all of it'}: {each['msg']}" for each in error.errors()[:3]]
    return "; ".join(wrong)[:MAX_WORDS]


def with_status(told: str, status: int | None) -> str:
    return f"{told} (status {status})" if status and str(status) not in told else told
