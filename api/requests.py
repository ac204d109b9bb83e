"""Each request as log, trace and metrics tell of it: an id that the answer repeats, one line, one observation."""

import logging
from time import perf_counter

from starlette.types import Message, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from services import metrics, origin
from services.log import logger
from services.origin import Origin
from services.tracing import Tracing

QUIET = ("/api/health", "/metrics")
"""Asked every few seconds by machines: told at level debug."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"
UNKNOWN = "unknown"
"""The route of what no route is for: its path is whatever somebody wrote."""
ID_CHARS = 36
NAMES = {"run_id": "agent_run_id"}


class Request:
    """One request, from its head to the end of its answer, or to the beginning of its stream."""

    __slots__ = ("began", "passage", "request_id", "scope", "status")

    def __init__(self, scope: Scope, tracing: Tracing) -> None:
        """Whatever is logged in this context from now on has the request's id."""
        self.scope, self.status, self.began = scope, 0, perf_counter()
        came_from = origin_of(scope)
        self.request_id = came_from.request_id
        self.passage = tracing.request(scope["method"], came_from)
        origin.current.set(Origin(self.request_id, self.passage.traceparent or came_from.traceparent))
        clear_contextvars()  # of the request before on this connection
        bind_contextvars(request_id=self.request_id)
        metrics.requests_in_progress.inc()

    def heard_by(self, send: Send) -> Send:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            await send(message)

        return send_with_id

    def over(self) -> None:
        """A status of 0: nothing was answered."""
        seconds, route, method = perf_counter() - self.began, route_of(self.scope), self.scope["method"]
        metrics.requests_in_progress.dec()
        metrics.request_seconds.labels(*labels_of(self.scope, self.status)).observe(seconds)
        self.passage.over(failed=self.status not in range(1, 500), route=route, status=self.status, method=method)
        level = logging.DEBUG if self.scope["path"].startswith(QUIET) else logging.INFO
        logger.log(
            level,
            "request.answered",
            method=method,
            route=route,
            status=self.status,
            seconds=round(seconds, 4),
            **ids_of(self.scope),
        )


def origin_of(scope: Scope) -> Origin:
    request_id = traceparent = ""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id = value.decode("latin-1")
        elif name == b"traceparent":
            traceparent = value.decode("latin-1")
    return origin.of_request(request_id, traceparent)


def route_of(scope: Scope) -> str:
    """The template, never the path: that may have anything in it. Empty for what no route is for."""
    prefixed = scope.get("fastapi", {}).get("effective_route_context")
    return str(getattr(prefixed, "path", "") or getattr(scope.get("route"), "path", ""))


def labels_of(scope: Scope, status: int) -> tuple[str, str, str]:
    """Method, the template within its router, and the class of the status; what was not answered counts as failed."""
    method = scope["method"] if scope["method"] in METHODS else OTHER
    return method, getattr(scope.get("route"), "path", UNKNOWN), f"{(status or 500) // 100}xx"


def ids_of(scope: Scope) -> dict[str, str]:
    """The ids in the path."""
    named = scope.get("path_params") or {}
    return {NAMES.get(name, name): value for name, value in named.items() if is_id(value)}


def is_id(value: object) -> bool:
    return isinstance(value, str) and len(value) == ID_CHARS
