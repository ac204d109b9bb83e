"""How many requests there are, and how long they take."""

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import metrics

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"
UNKNOWN = "unknown"
"""The route of what no route is for: its path is whatever somebody wrote."""


class Measured:
    """Around all other layers: an answer of any of them counts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = perf_counter(), 500
        metrics.requests_in_progress.inc()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        finally:
            metrics.requests_in_progress.dec()
            method = scope["method"] if scope["method"] in METHODS else OTHER
            labels = method, route_of(scope), f"{status // 100}xx"
            metrics.request_seconds.labels(*labels).observe(perf_counter() - begun)


def route_of(scope: Scope) -> str:
    """The template of its path."""
    return getattr(scope.get("route"), "path", UNKNOWN)
