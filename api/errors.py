"""Errors to JSON: the only place that turns an exception into an answer."""

from collections.abc import Sequence
from typing import Any, TypeVar

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import postgres, redis
from services.errors import AppError, NotFound, Unavailable, Unprocessable
from services.log import logger
from services.sandbox.protocol import SandboxUnavailable

Model = TypeVar("Model", bound=BaseModel)

Unreachable = (*postgres.Unreachable, *redis.Unreachable)
"""What the stores' clients raise while a store is away, restarting, failing over or full: 503, never 500."""

MAX_PROBLEMS, MAX_PROBLEM_CHARS, MAX_STEP_CHARS = 100, 500, 100

SELF_EXPLANATORY = (ConnectionError, TimeoutError, *redis.Unreachable[1:], asyncpg.PostgresConnectionError)


def install(app: FastAPI) -> None:
    app.add_exception_handler(AppError, app_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(asyncpg.ForeignKeyViolationError, parent_gone)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(SandboxUnavailable, sandbox_unavailable)
    for kind in Unreachable:
        app.add_exception_handler(kind, store_unreachable)


def invalid(field: str, message: str, *, where: str = "body") -> RequestValidationError:
    """The 422 for one field of a request, in the shape of FastAPI's own."""
    return RequestValidationError([{"type": "value_error", "loc": (where, field), "msg": message}])


def validated(model: type[Model], fields: dict[str, Any]) -> Model:
    """A model from fields that FastAPI did not read for us.

    Raises: RequestValidationError, as FastAPI would for a body.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**said, "loc": ("body", *said["loc"])} for said in error.errors()]) from error


async def app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    if isinstance(error, Unprocessable) and isinstance(error.detail, str):
        return problems([{"type": "value_error", "loc": ("body",), "msg": error.detail}])
    return JSONResponse({"detail": error.detail}, error.status, dict(error.headers))


async def invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problems(error.errors())


async def http_error(request: Request, error: Exception) -> Response:
    """FastAPI says 400 of a body that is no text, nested too deeply, or no form, and 422 of all others."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return problems([{"type": "value_error", "loc": ("body",), "msg": error.detail}])
    return await http_exception_handler(request, error)


def problems(errors: Sequence[Any]) -> Response:
    """FastAPI's list without `input`: it would send whole prompts and files back. Bounded: names are input too."""
    detail = [
        {"type": said["type"], "loc": list(map(bounded, said["loc"])), "msg": said["msg"][:MAX_PROBLEM_CHARS]}
        for said in errors[:MAX_PROBLEMS]
    ]
    return JSONResponse({"detail": detail}, 422)


def bounded(step: int | str) -> int | str:
    return step[:MAX_STEP_CHARS] if isinstance(step, str) else step


async def store_unreachable(request: Request, error: Exception) -> Response:
    if postgres.is_misuse(error):
        raise error
    surprising = not isinstance(error, SELF_EXPLANATORY)
    logger.warning("api.store_unreachable", path=request.url.path, error=repr(error), exc_info=surprising and error)
    return await app_error(request, Unavailable())


async def parent_gone(request: Request, error: Exception) -> Response:
    """What was checked a moment ago has been deleted since, and took with it what this request would add to it."""
    logger.info("api.parent_gone", path=request.url.path, error=repr(error))
    request.app.state.resources.seen.forget_all()  # it may be a personal account, which the next request makes anew
    return await app_error(request, NotFound())


async def sandbox_unavailable(request: Request, error: Exception) -> Response:
    logger.warning("api.sandbox_unavailable", path=request.url.path, error=str(error))
    return await app_error(request, Unavailable(str(error)))


async def gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


class Boundary:
    """The last resort of a request: whatever nobody expected is logged with its traceback and answered 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            if started:
                raise
            logger.exception("api.request_failed", method=scope["method"], path=scope["path"])
            await JSONResponse({"detail": "Internal error."}, 500)(scope, receive, send)
