"""The connection under a request, for the one case in which an answer must be cut instead of closed."""

import asyncio

from starlette.types import Scope, Send

ABORT = "longrun.abort"


def keep_transport(scope: Scope, send: Send) -> None:
    """Keep uvicorn's transport in the scope; only the outermost layer sees its own `send`, unwrapped."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if scope["type"] == "http" and transport is not None:
        scope.setdefault("extensions", {})[ABORT] = transport


async def abort(scope: Scope) -> None:
    """Cut the connection and its unsent bytes: a close would wait for a client that does not read."""
    transport = scope.get("extensions", {}).get(ABORT)
    if transport:
        transport.abort()
        await asyncio.sleep(0)  # uvicorn must see the loss before the answer ends unfinished
