"""The connection under a request, for what the layers in between only slow down or cannot do."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

WIRE = "longrun.wire"
STILL_NEEDED = {"type", "asgi", "http_version", "method", "path", "query_string", "client"}


@dataclass(slots=True)
class Wire:
    """The server's own `send`, unwrapped, and its transport where that is known (uvicorn's is)."""

    send: Send
    transport: asyncio.Transport | None
    go_on: Callable[[], Awaitable[None]] | None = None
    """What is left of an answer once all layers have returned: none of them is kept for as long as a stream is open."""
    cycle: RequestResponseCycle | None = None
    """The server's own answer, once it is known that whole chunks may be written to the transport beside its `send`."""

    def expect_chunks(self) -> None:
        """Once the answer has begun: only uvicorn's over HTTP/1.1 consists of chunks that anybody could write."""
        cycle = getattr(self.send, "__self__", None)
        if self.transport and isinstance(cycle, RequestResponseCycle) and cycle.chunked_encoding:
            self.cycle = cycle

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a chunk, encoded as HTTP/1.1 has it, as `send` would; False when only `send` knows what to do."""
        cycle = self.cycle
        if cycle is None or cycle.flow.write_paused or cycle.disconnected:
            return False
        cycle.transport.write(chunk)
        return True

    def start_send(self, message: Message) -> Awaitable[None] | None:
        """Send without a task: None when that was done at once, else the rest of it, which must be awaited."""
        sending = cast(Coroutine[Any, Any, None], self.send(message))
        try:
            awaited = sending.send(None)
        except StopIteration:
            return None
        return Rest(sending, awaited)

    def abort(self) -> None:
        """Cut the connection and its unsent bytes: a close would wait for a client that does not read."""
        if self.transport:
            self.transport.abort()

    @property
    def closing(self) -> bool:
        return self.transport is not None and self.transport.is_closing()

    def expect_answers(self, within: timedelta) -> None:
        """Have the kernel drop a peer that acknowledges nothing for so long: it may have vanished without a word."""
        connection = self.transport.get_extra_info("socket") if self.transport else None
        if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        with suppress(AttributeError, OSError):  # Linux alone has it
            limit = within // timedelta(milliseconds=1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)


class Rest:
    """What is left of a coroutine that was begun outside of a task, and awaits a future now."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], awaited: Any) -> None:
        self.coroutine, self.awaited = coroutine, awaited

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self.awaited
        try:
            while True:
                try:
                    sent = yield awaited
                except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the coroutine
                    awaited = self.coroutine.throw(error)
                else:
                    awaited = self.coroutine.send(sent)
        except StopIteration:
            return


def keep_wire(scope: Scope, send: Send) -> Wire | None:
    """Keep the wire in the scope of a request; only the outermost layer sees the server's `send`."""
    if scope["type"] != "http":
        return None
    wire = Wire(send, getattr(getattr(send, "__self__", None), "transport", None))
    scope.setdefault("extensions", {})[WIRE] = wire
    return wire


def wire_of(scope: Scope) -> Wire:
    wire: Wire = scope["extensions"][WIRE]
    return wire


def release(scope: Scope) -> None:
    """Forget of a request what the server does not look at while it sends the answer."""
    for name in scope.keys() - STILL_NEEDED:
        del scope[name]
