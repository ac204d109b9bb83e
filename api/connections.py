"""What a connection may send, and how slowly: bounds on a request's head, and on the time that head and body take.

uvicorn has none of these: it would keep a head that never ends, and wait for a body for ever.
"""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Receive, Scope
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.log import logger
from services.settings import ApiSettings

LATE_HEAD = "The head of the request did not arrive in time."
LATE_BODY = "The body of the request arrives too slowly."


def guard(scope: Scope, receive: Receive, limits: ApiSettings) -> None:
    """At the start of the lifespan: let uvicorn speak our protocol on all connections that it will accept."""
    if scope["type"] != "lifespan":
        return
    config = getattr(getattr(receive, "__self__", None), "config", None)
    if not isinstance(config, Config):
        return  # no uvicorn: another server, or a test without one
    if config.http_protocol_class is not HttpToolsProtocol:
        logger.warning("connections.unguarded", protocol=repr(config.http_protocol_class))
        return
    config.http_protocol_class = partial(GuardedProtocol, limits)  # type: ignore[assignment]


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Whatever arrives whole and at once, as nearly all requests do, needs no timer."""

    def __init__(self, limits: ApiSettings, **given: Any) -> None:
        super().__init__(**given)
        self.limits = limits
        self.timer: asyncio.TimerHandle | None = None
        self.refused = False
        self.in_head = self.in_body = False
        self.head_bytes = 0
        """Of an unfinished head, what came after its first piece."""
        self.body_bytes = 0
        """What arrived of a body since its pace was looked at last."""
        self.answering: RequestResponseCycle | None = None
        """`cycle` is that of the newest request, which may wait for this one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        if self.answering:
            self.leave(self.answering)  # uvicorn tells the newest request alone
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self.stop_timer()
        if not self.refused:
            self.in_head = self.in_body = False
            super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        was_in_head = self.in_head
        super().data_received(data)
        if self.in_head and was_in_head:
            self.head_bytes += len(data)
            self.check_head(self.head_bytes)
        if self.timer or self.refused:
            return
        if self.in_body:
            self.expect_body()
        elif self.in_head or self.idle:
            self.expect_head()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered: whatever arrives then should be the beginning of one."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head, self.head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.stop_timer()
        self.check_head(sum(len(name) + len(value) for name, value in self.headers))
        if not self.refused:
            self.in_body = True
            waiting = len(self.pipeline)
            super().on_headers_complete()
            if len(self.pipeline) == waiting:
                self.answering = self.cycle

    def on_body(self, body: bytes) -> None:
        if not self.refused:
            self.body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.refused:
            self.in_body = False
            self.stop_timer()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self.answering = self.pipeline[-1][0]
        super().on_response_complete()

    def check_head(self, size: int) -> None:
        """Refuse a head that is too large, which may not have arrived wholly."""
        limits = self.limits
        if len(self.url) > limits.max_url_bytes:
            self.refuse(HTTPStatus.REQUEST_URI_TOO_LONG, f"The URL is longer than {limits.max_url_bytes} bytes.")
        elif len(self.headers) > limits.max_headers:
            self.too_large(f"The request has more than {limits.max_headers} headers.")
        elif size > limits.max_header_bytes:
            self.too_large(f"The headers of the request are larger than {limits.max_header_bytes} bytes.")

    def too_large(self, message: str) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, msg)

    def expect_head(self) -> None:
        self.timer = self.loop.call_later(self.limits.head_timeout.total_seconds(), self.on_late_head)

    def on_late_head(self) -> None:
        if self.flow.read_paused:
            self.expect_head()  # it comes while another request is answered, and waits for us
        elif self.in_head:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, LATE_HEAD)
        else:
            self.close()  # it said nothing at all: browsers open connections in advance

    def expect_body(self) -> None:
        self.body_bytes = 0
        self.timer = self.loop.call_later(self.limits.body_timeout.total_seconds(), self.on_body_due)

    def on_body_due(self) -> None:
        """Go on waiting for a body that keeps the pace, or that waits for us; not for one that was answered."""
        enough = self.limits.min_body_rate * self.limits.body_timeout.total_seconds()
        waits_for_us = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if (self.body_bytes >= enough or waits_for_us) and not self.cycle.response_complete:
            self.expect_body()
        else:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, LATE_BODY)

    def stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer, unless an answer has begun, and close the connection."""
        logger.info("connection.refused", status=int(status), reason=message)
        if (self.idle if not self.in_body else not self.cycle.response_started) and not self.transport.is_closing():
            self.transport.write(self.refusal(status, message))
        self.close()

    def refusal(self, status: HTTPStatus, message: str) -> bytes:
        body = orjson.dumps({"detail": message})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        return b"".join([STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body])

    def close(self) -> None:
        self.refused = True
        self.stop_timer()
        self._unset_keepalive_if_required()
        if self.in_body:
            self.leave(self.cycle)
        self.transport.close()

    def leave(self, cycle: RequestResponseCycle) -> None:
        """What is working on it has nobody to answer any more."""
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
