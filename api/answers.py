"""Answers of many rows: written from plain values, since a model for each row takes longer than the query."""

from uuid import UUID

import orjson
from fastapi import Response


def as_json(content: object) -> Response:
    """The bytes that the route's `response_model` would make of the same values, which are not checked here."""
    return Response(orjson.dumps(content, plain, orjson.OPT_UTC_Z), media_type="application/json")


def plain(value: object) -> str:
    """The ids that asyncpg gives are of a class of its own, which orjson does not take for what they are."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} in an answer")
