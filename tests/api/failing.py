"""The API with routes that fail with all they were told: `uvicorn --factory tests.api.failing:create_app`."""

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

import api.app


def create_app() -> FastAPI:
    app = api.app.create_app()
    app.add_route("/api/fail", fail)
    app.add_route("/api/fail-late", fail_late)
    return app


async def fail(request: Request) -> Response:
    raise RuntimeError(told(request))


async def fail_late(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"so far so good"
        raise RuntimeError(told(request))

    return StreamingResponse(body())


def told(request: Request) -> str:
    return f"{request.url} {request.headers.items()}"
