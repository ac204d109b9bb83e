"""Errors that a caller may see: each carries its HTTP status; the docstring is the default message."""

from collections.abc import Mapping
from typing import Any


class AppError(Exception):
    """Something went wrong."""

    status = 500
    headers: Mapping[str, str] = {}

    def __init__(self, detail: str | dict[str, Any] | None = None, *, headers: Mapping[str, str] | None = None):
        self.detail: str | dict[str, Any] = detail if detail is not None else (type(self).__doc__ or "").strip()
        if headers is not None:
            self.headers = headers
        super().__init__(self.detail)


class Unauthenticated(AppError):
    """Not authenticated."""

    status = 401
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class PaymentRequired(AppError):
    """The account may not run anything more."""

    status = 402


class Forbidden(AppError):
    """Not allowed."""

    status = 403


class NotFound(AppError):
    """Not found."""

    status = 404


class Conflict(AppError):
    """The state of the thing does not allow this."""

    status = 409


class PayloadTooLarge(AppError):
    """The request is too large."""

    status = 413


class UnsupportedMediaType(AppError):
    """The request has a body of a type that is not taken here."""

    status = 415


class Unprocessable(AppError):
    """The request could not be understood."""

    status = 422


class TooManyRequests(AppError):
    """Too many requests; try again later."""

    status = 429


class BadGateway(AppError):
    """A server that somebody named cannot be used."""

    status = 502


class GatewayTimeout(AppError):
    """A server that somebody named did not answer in time."""

    status = 504


class Unavailable(AppError):
    """A service this needs is not available right now; try again shortly."""

    status = 503
    headers: Mapping[str, str] = {"Retry-After": "2"}
