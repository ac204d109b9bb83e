"""A bound on request bodies, counted while they arrive."""

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCOPE_KEY = "longrun.body_budget"


@dataclass(slots=True)
class Budget:
    limit: int
    refusal: str
    received: int = 0

    def check(self, size: int) -> None:
        """Raises: HTTPException, which FastAPI lets through while it reads a body (others become a 400)."""
        if size > self.limit:
            raise HTTPException(413, self.refusal)


class BodyLimit:
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        budget = scope[SCOPE_KEY] = Budget(self.max_bytes, f"The request body is larger than {self.max_bytes} bytes.")
        declared = declared_length(scope)

        async def counted_receive() -> Message:
            budget.check(declared)
            message = await receive()
            budget.received += len(message.get("body", b""))
            budget.check(budget.received)
            return message

        await self.app(scope, counted_receive, send)


def declared_length(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else 0


def widen(request: Request, max_bytes: int, refusal: str) -> None:
    """Let this one request have a larger body; for routes that spool it and have checked the caller."""
    budget: Budget = request.scope[SCOPE_KEY]
    budget.limit, budget.refusal = max_bytes, refusal
