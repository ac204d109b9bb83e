"""Which host names the API answers to."""

from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

UNKNOWN = "This server does not answer to the host name of the request."
PROBES = ("/api/health", "/metrics")
"""Whoever looks after the machine asks by its address."""


class KnownHosts:
    """Refuses a name that leads here and is not ours: a page of somebody else's domain would else share our origin."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app = app
        self.names = frozenset(name for name in names if not name.startswith("*"))
        self.endings = tuple(name[1:] for name in names if name.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.knows(host_of(scope)) or scope["path"].startswith(PROBES):
            await self.app(scope, receive, send)
            return
        await JSONResponse({"detail": UNKNOWN}, 400)(scope, receive, send)

    def knows(self, host: str) -> bool:
        return host in self.names or host.endswith(self.endings)


def host_of(scope: Scope) -> str:
    """Without its port; empty when a request names none, or two."""
    named = [value for name, value in scope["headers"] if name == b"host"]
    if len(named) != 1:
        return ""
    host: str = named[0].decode("latin-1").lower()
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() and name else host
